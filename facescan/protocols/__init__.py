"""How a question is put: the exact wording, the labels offered, calls, answer mode, decoding.

One YAML file per protocol; the file name is its name and part of a result's identity. A changed
wording, option order or answer mode is another protocol with a name of its own.
"""

from functools import cache
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from facescan import registry
from facescan.errors import UsageError
from facescan.types import AnswerMode

PACKAGE = "facescan.protocols"

CANNOT_DETERMINE = "cannot_determine"
"""What a model may answer in a `structured` protocol instead of an offered text."""


class Asked(BaseModel):
    """How one attribute is asked in a protocol."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label_set: str
    """The label set that is offered."""
    question: str | None = None
    """The wording of a call about this attribute alone; `{labels}` is replaced by the offered texts
    joined with `separator`. None: it is asked in the protocol's `joint_question`."""
    offered: dict[str, str] = Field(default_factory=dict)
    """Label -> the text offered for it, where that is not the label itself."""
    order: list[str] | None = None
    """Labels in the order they are offered; default: the label set's order."""
    quote: str = ""
    """Put around each offered text inside `{labels}`."""
    separator: str = ", "


class Protocol(BaseModel):
    """A protocol; see the module's docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    source: str = ""
    joint_question: str | None = None
    """The wording of one call for all attributes that have no `question` of their own;
    `{<attribute>_labels}` stands for the offered texts of each."""
    verbatim: bool = False
    """True: the wording is sent as it is, without the model card's own prompt form."""
    structured: bool = False
    """True: answered as a JSON object with one field for each attribute of the wording, each one of
    the offered texts or `CANNOT_DETERMINE`. Only for engines that enforce a schema."""
    answer_mode: AnswerMode = AnswerMode.FREE
    max_tokens: int = Field(default=16, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    attributes: dict[str, Asked]

    @model_validator(mode="after")
    def _every_attribute_is_asked(self) -> Self:
        joint = [name for name, asked in self.attributes.items() if asked.question is None]
        if joint and self.joint_question is None:
            raise ValueError(f"no `question` for {', '.join(joint)}, and no `joint_question`")
        if not joint and self.joint_question is not None:
            raise ValueError("`joint_question`: every attribute has a `question` of its own")
        if joint and self.answer_mode is not AnswerMode.FREE:
            raise ValueError(
                f"a `joint_question` is answered freely; answer mode '{self.answer_mode}' needs a "
                "`question` for each attribute"
            )
        if self.structured and self.answer_mode is not AnswerMode.FREE:
            raise ValueError(
                f"`structured` and answer mode '{self.answer_mode}' exclude each other"
            )
        return self


def names() -> tuple[str, ...]:
    """The names of all protocols."""
    return registry.names(PACKAGE)


@cache
def _read(file: Path) -> Protocol:
    fields = registry.fields(file)
    if "extends" in fields:
        base = _read(registry.path(PACKAGE, str(fields.pop("extends"))))
        fields = base.model_dump() | fields
    try:
        return Protocol(**fields | {"name": file.stem})
    except ValidationError as error:
        raise UsageError(f"{file}: not a protocol:\n{error}") from error


def load(name: str) -> Protocol:
    """The protocol of that name; a file may say `extends: <name>` and override some fields.

    Raises:
        UnknownNameError: no file carries the name.
        UsageError: the file is not a valid protocol.
    """
    return _read(registry.path(PACKAGE, name))
