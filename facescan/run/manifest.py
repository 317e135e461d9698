"""What a run is: its dataset, everything it asked of whom, and where it ran.

The manifest is the run's fingerprint. A combination of model, protocol and attribute that stands
in it can be continued but not changed; one that does not is growth.
"""

import json
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facescan.errors import DataError, MixingError
from facescan.run.folder import MANIFEST, RunFolder
from facescan.types import AnswerMode, Decoding, Question

SCHEMA_VERSION = 2


class DatasetRecord(BaseModel):
    """The dataset of a run."""

    model_config = ConfigDict(extra="forbid")

    location: str
    digest: str
    """Over the shard digests of the ingest manifest."""
    names: list[str]
    split: str | None
    label_sets: dict[str, str]
    """Attribute -> the label set its truth is given in."""
    licence: str | None = None
    images: int
    """Rows of the dataset (of the split), before `limit`."""
    seed: int
    limit: int | None
    max_bytes: int
    max_pixels: int
    min_side: int


class AnsweredBy(BaseModel):
    """What answered, as its engine reported it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    resolved_model: str
    """Checkpoint and commit."""
    numerics: dict[str, str]
    """Dtype, attention and the like."""


class Imported(BaseModel):
    """Where answers came from that nobody asked for here."""

    model_config = ConfigDict(extra="forbid")

    file: str
    """Its name, without the folders it was in."""
    sha256: str
    format: str
    """How it was read: a module of `facescan.foreign`."""
    rows: int
    images: int
    """Of the dataset, that a row was found to be of."""
    counted: dict[str, int]
    """What was not as it should be: what -> how often."""


class Combination(BaseModel):
    """One attribute asked of one model under one protocol."""

    model_config = ConfigDict(extra="forbid")

    model: str
    protocol: str
    attribute: str
    label_set: str
    answer_mode: str
    prompt: str
    max_tokens: int
    temperature: float
    offered: dict[str, str]
    """Offered text -> label, in the order offered."""
    question: str
    """The question's identity: a digest over what is asked of which weights, but the image."""
    checkpoint: dict[str, str | None] | None
    """Identity of the weights: repository and revision, or a digest of a folder."""
    preprocessing: str
    engine: str
    numerics: dict[str, str]
    """Settings of the engine that can change an answer."""
    answered_by: AnsweredBy | None = None
    """None before anything was answered."""
    imported: Imported | None = None
    """None where facescan asked."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it one combination."""
        return (self.model, self.protocol, self.attribute)


class Manifest(BaseModel):
    """`manifest.json` of a run folder."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    facescan: str
    created_at: datetime
    dataset: DatasetRecord
    combinations: list[Combination]
    packages: dict[str, str]
    hardware: dict[str, str]
    workers: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Engine actors that took part: id -> host, process and GPUs."""

    def write(self, folder: RunFolder) -> None:
        """Replace the manifest of that run."""
        folder.root.write(MANIFEST, self.model_dump_json(indent=2).encode() + b"\n")


def read(folder: RunFolder) -> Manifest:
    """The manifest of that run.

    Raises:
        DataError: it is damaged, or of another version of facescan.
    """
    where = f"{folder.root.location}/{MANIFEST}"
    try:
        content = json.loads(folder.root.read(MANIFEST))
        found = content.get("schema_version")
        if found != SCHEMA_VERSION:
            raise DataError(
                f"{where}: schema version {found}, expected {SCHEMA_VERSION}: the run was made by "
                f"facescan {content.get('facescan')}; use that version, or another --output-dir"
            )
        return Manifest.model_validate(content)
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise DataError(f"{where}: damaged: {error}. Give another --output-dir") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{where}: damaged: {place}: {first['msg']}. Give another --output-dir"
        ) from error


def grown(old: Manifest, new: Manifest) -> Manifest:
    """The manifest of a run that goes on as `new`: what stood there, and what is added.

    Raises:
        MixingError: something that is there already would be asked otherwise.
    """
    fixed = ("digest", "split", "seed", "max_bytes", "max_pixels", "min_side")
    for field in fixed:
        before, after = getattr(old.dataset, field), getattr(new.dataset, field)
        if before != after:
            raise MixingError(
                f"this run was made with dataset {field} = {before!r}, now {after!r}; "
                "give another --output-dir"
            )
    combinations = {combination.key: combination for combination in old.combinations}
    for combination in new.combinations:
        known = combinations.get(combination.key)
        if known is not None:
            _refuse_change(known, combination)
        combinations.setdefault(combination.key, combination)
    limits = (old.dataset.limit, new.dataset.limit)
    limit = None if None in limits else max(each for each in limits if each is not None)
    return new.model_copy(
        update={
            "dataset": new.dataset.model_copy(update={"limit": limit}),
            "created_at": old.created_at,
            "combinations": list(combinations.values()),
            "workers": old.workers,
        }
    )


def _refuse_change(known: Combination, now: Combination) -> None:
    where = f"model {now.model}, protocol {now.protocol}, attribute {now.attribute}"
    for field in (
        "label_set",
        "answer_mode",
        "prompt",
        "offered",
        "max_tokens",
        "temperature",
        "checkpoint",
        "preprocessing",
        "engine",
        "numerics",
    ):
        before, after = getattr(known, field), getattr(now, field)
        if before != after or (field == "offered" and list(before) != list(after)):
            raise MixingError(
                f"{where}: {field} was {before!r}, now {after!r}; give another --output-dir"
            )
    if known.question != now.question:
        raise MixingError(
            f"{where}: what is asked beside this attribute is not what it was; "
            "give another --output-dir"
        )


def check_same(model: str, before: AnsweredBy, now: AnsweredBy) -> None:
    """Whether two engines may answer for one model in one run.

    Raises:
        MixingError: their weights or numerics differ.
    """
    for field in ("resolved_model", "numerics"):
        if getattr(before, field) != getattr(now, field):
            raise MixingError(
                f"model {model}: {field} was {getattr(before, field)}, now {getattr(now, field)}; "
                "give another --output-dir"
            )


def questions(record: Manifest) -> list[Question]:
    """Everything the run has asked, as far as reading the replies needs it."""
    grouped: dict[tuple[str, str, str], list[Combination]] = {}
    for each in record.combinations:
        grouped.setdefault((each.model, each.protocol, each.question), []).append(each)
    return [
        Question(
            model=model,
            protocol=protocol,
            attributes=tuple(each.attribute for each in group),
            prompt=group[0].prompt,
            labels=tuple(text for each in group for text in each.offered),
            answer_mode=AnswerMode(group[0].answer_mode),
            decoding=Decoding(group[0].max_tokens, group[0].temperature),
            identity=identity,
            label_sets=tuple(each.label_set for each in group),
            offered=tuple(tuple(each.offered.items()) for each in group),
        )
        for (model, protocol, identity), group in grouped.items()
    ]
