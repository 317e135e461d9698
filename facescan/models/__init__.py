"""Which models can be asked: one YAML card each, found by its file name.

A card says which engine runs it, the checkpoint and revision, what it answers and how it is
asked by default. A model without a card is named by engine and checkpoint, `vllm:owner/name`.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from facescan import attributes, registry
from facescan.errors import UsageError

PACKAGE = "facescan.models"
_CONTENT = (".json", ".safetensors", ".model", ".txt", ".jinja")

_Options = TypeVar("_Options", bound=BaseModel)

_NEUTRAL = "neutral"
"""The protocol of a model without a card."""

FOLDER_CARD = "facescan.yaml"
"""A model folder given as `--model FOLDER` holds its card under this name."""


class Checkpoint(BaseModel):
    """Where weights come from: a Hugging Face repository, a local folder, or somebody's API."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """Repository id, or a folder: `./name` beside the card's own file, or an absolute path; of a
    hosted model what its API calls it."""
    revision: str | None = None
    """Commit or tag; None takes the repository's main branch. The commit loaded is recorded."""
    processor: str | None = None
    """Where tokenizer and image processor come from, if not from `path`."""


class ModelCard(BaseModel):
    """A model as facescan knows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    engine: str
    """A file of `serving/engines/`."""
    protocol: str
    """Default protocol."""
    attributes: tuple[str, ...]
    """What the model can be asked."""
    checkpoint: Checkpoint | None = None
    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    """By attribute, for families with one fine-tune per attribute; excludes `checkpoint`."""
    prompt: str = Field(default="{question}", pattern=r"\{question\}")
    """The form in which this model expects a question, such as `answer en {question}`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tensor_parallel_size: int = Field(default=1, ge=1)
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of one engine; None: `tensor_parallel_size` where the cluster has GPUs, else 0."""
    engine_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Engine-specific settings; the engine's module documents and checks them."""
    licence: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _checkpoints_cover_attributes(self) -> Self:
        if self.checkpoint is not None and self.checkpoints:
            raise ValueError("give either `checkpoint` or `checkpoints`")
        if self.checkpoints and set(self.checkpoints) != set(self.attributes):
            raise ValueError("`checkpoints` must name exactly the card's attributes")
        return self

    def options(self, known: type[_Options]) -> _Options:
        """`engine_options` as the engine knows them.

        Raises:
            UsageError: they are others.
        """
        try:
            return known.model_validate(self.engine_options)
        except ValidationError as error:
            raise UsageError(f"model '{self.name}': engine_options: {error}") from error

    def checkpoint_for(self, attribute: str) -> Checkpoint | None:
        """The weights that answer `attribute`; None for engines without weights."""
        return self.checkpoints.get(attribute, self.checkpoint)


def folder_digest(folder: Path) -> str:
    """`sha256:...` over names and contents of a checkpoint folder's files.

    All bytes are read (about 1 s for 1 GB), once for each state of a file: two fine-tunes of one
    base may differ in a few tensors only, and answers of one must never pass for the other's.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"checkpoint {folder}: no such folder")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _CONTENT:
            state = path.stat()
            content = _file_digest(path, state.st_size, state.st_mtime_ns)
            digest.update(f"{path.name} {content}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


@cache
def _file_digest(path: Path, size: int, changed_ns: int) -> str:
    del size, changed_ns  # they are there for the cache: a file that changed is read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(checkpoint: Checkpoint) -> dict[str, str | None]:
    """What of a checkpoint can change an answer: a folder by its content, not by its place."""

    def named(path: str | None) -> str | None:
        return folder_digest(Path(path)) if path and Path(path).is_absolute() else path

    return {
        "path": named(checkpoint.path),
        "revision": checkpoint.revision,
        "processor": named(checkpoint.processor),
    }


def names() -> tuple[str, ...]:
    """The names of all cards."""
    return registry.names(PACKAGE)


def _resolved(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    def absolute(path: str | None) -> str | None:
        return str((folder / path).resolve()) if path and path.startswith("./") else path

    return checkpoint.model_copy(
        update={"path": absolute(checkpoint.path), "processor": absolute(checkpoint.processor)}
    )


@cache
def _read(file: Path, name: str) -> ModelCard:
    fields = registry.fields(file)
    try:
        card = ModelCard(**fields | {"name": name})
    except ValidationError as error:
        raise UsageError(f"{file}: not a model card:\n{error}") from error
    return card.model_copy(
        update={
            "checkpoint": card.checkpoint and _resolved(card.checkpoint, file.parent),
            "checkpoints": {
                attribute: _resolved(checkpoint, file.parent)
                for attribute, checkpoint in card.checkpoints.items()
            },
        }
    )


def _of_checkpoint(engine: str, checkpoint: str) -> ModelCard:
    folder = Path(checkpoint)
    if checkpoint and folder.is_dir():
        path, revision = str(folder.resolve()), None
    else:
        path, _, revision = checkpoint.partition("@")
    name = Path(path).name
    if not engine or not name:
        raise UsageError(f"--model {engine}:{checkpoint}: expected ENGINE:OWNER/NAME[@REVISION]")
    return ModelCard(
        name=name,
        description=f"{checkpoint}, without a card",
        engine=engine,
        protocol=_NEUTRAL,
        attributes=attributes.names(),
        checkpoint=Checkpoint(path=path, revision=revision or None),
    )


def load(name: str) -> ModelCard:
    """The card of that name, or one made for a model that has none in facescan.

    Args:
        name: of a card; a folder that holds a `facescan.yaml`; or an engine and a checkpoint of
            any model that it can ask, a repository (`vllm:owner/name`, with a commit or tag
            `vllm:owner/name@revision`) or a folder (`vllm:/models/mine`). Such a model is called
            by the last part of its path.

    Raises:
        UnknownNameError: no file carries the name.
        UsageError: the file is not a valid card, or the name no checkpoint.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / FOLDER_CARD).is_file():
            raise UsageError(f"--model {name}: the folder has no model card {FOLDER_CARD}")
        return _read((folder / FOLDER_CARD).resolve(), folder.resolve().name)
    engine, colon, checkpoint = name.partition(":")
    if colon:
        return _of_checkpoint(engine, checkpoint)
    return _read(registry.path(PACKAGE, name), name)
