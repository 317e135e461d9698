"""Where face photographs come from: one file per dataset, each defining `DATASET`.

A dataset that is published in several editions, whose results must not be taken for each other, is
a family: its file defines `DATASETS`, whose members are addressed as `family.member`.

A dataset file knows how its source is laid out and nothing of shards. It yields rows in an order
that is always the same, without holding them; what is true of every dataset (labels are of the
declared label sets, ids and splits are there, one split is asked for) is checked here, so that
a reader need not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from facescan import attributes, registry
from facescan.errors import DataError, UnknownNameError, UsageError

PACKAGE = "facescan.datasets"


class NoOptions(BaseModel):
    """The options of a dataset that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


OptionsT = TypeVar("OptionsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Source(Generic[OptionsT]):
    """What a dataset is read from.

    Attributes:
        path: the folder, or the file, that the user has; None where the dataset needs none.
        split: the only one wanted; a reader may skip others early, but need not.
    """

    path: Path | None
    split: str | None
    options: OptionsT

    @property
    def root(self) -> Path:
        """The folder that the paths of images start from, and below which they must stay.

        Raises:
            DataError: there is no such folder or file.
        """
        if self.path is None or not self.path.exists():
            raise DataError(f"{self.path}: no such folder or file")
        return self.path if self.path.is_dir() else self.path.parent


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One image as its source has it.

    Attributes:
        where: file and row, or what else finds it again; error messages begin with it.
        image_id: unique within the dataset, and the same whenever it is read.
        image: the encoded file, or its path relative to `Source.root`, which is read later;
            None where the source has a row without an image.
        labels: attribute -> label of the declared label set; None or absent where there is none.
        values: numeric truths by name.
        groups: groupings by name, which scores are taken over.
    """

    where: str
    image_id: str
    image: bytes | str | None
    split: str
    subject_id: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)
    values: Mapping[str, float | None] = field(default_factory=dict)
    groups: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something in the source that cannot become a row, such as a file with a malformed name.

    Attributes:
        where: as in `SourceRow`.
        reason: a word fit for counting, such as `malformed_name`.
    """

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Example:
    """A small source and what must be read from it; every dataset that is read carries some.

    Attributes:
        files: path below the source -> contents.
        rows: in the order in which they are read.
        options: as a YAML file would give them.
    """

    files: Mapping[str, bytes]
    rows: tuple[SourceRow | Rejected, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dataset(Generic[OptionsT]):
    """One dataset, or one kind of them.

    Attributes:
        name: the file's name, of a family's member with `.member` behind it; for a kind, the name
            its options give.
        description: one line.
        licence: of the images, in words or as an SPDX identifier.
        revision: the edition of the source that the reader was written for.
        label_sets: attribute -> name of the label set its labels are in.
        values: names of the numeric truths.
        groups: names of the groupings.
        options: what can be set by flags or a YAML file; its fields are the settings.
        read: the rows of a source, streaming, in a fixed order.
        needs_source: False where the images are made, not read.
        examples: at least one where there is a source.
        described_by: for a kind: what of the above the options decide.
    """

    name: str
    description: str
    licence: str
    revision: str
    options: type[OptionsT]
    read: Callable[[Source[OptionsT]], Iterator[SourceRow | Rejected]]
    label_sets: Mapping[str, str] = field(default_factory=dict)
    values: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    needs_source: bool = True
    examples: tuple[Example, ...] = ()
    described_by: "Callable[[OptionsT], Dataset[OptionsT]] | None" = None

    def described(self, options: OptionsT) -> "Dataset[OptionsT]":
        """The dataset that these options make of it; itself where they decide nothing of it.

        Raises:
            UsageError: the options name an attribute or a label set that does not exist.
        """
        return self if self.described_by is None else self.described_by(options)

    def rows(self, source: Source[OptionsT]) -> Iterator[SourceRow | Rejected]:
        """The rows of the wanted split, each held to what the dataset declares.

        Raises:
            DataError: the source is not laid out as it should be or has no such split, or a row
                has no id, no split or an undeclared label; the message says file and row.
        """
        allowed = {
            attribute: attributes.load(attribute).label_set(label_set).labels
            for attribute, label_set in self.label_sets.items()
        }
        splits = set[str]()
        for item in self.read(source):
            if isinstance(item, Rejected):
                yield item
                continue
            if not item.image_id or not item.split:
                raise DataError(f"{item.where}: no {'split' if item.image_id else 'image id'}")
            splits.add(item.split)
            if source.split in (None, item.split):
                self._check_labels(item, allowed)
                yield item
        if source.split is not None and source.split not in splits:
            known = ", ".join(sorted(splits)) or "none"
            raise DataError(
                f"{source.path or self.name}: no split '{source.split}'; known: {known}"
            )

    def _check_labels(self, row: SourceRow, allowed: Mapping[str, tuple[str, ...]]) -> None:
        for attribute, label in row.labels.items():
            if label is not None and label not in allowed.get(attribute, ()):
                label_set = self.label_sets.get(attribute, "no declared label set")
                raise DataError(
                    f"{row.where}: {attribute} '{label}' is not a label of {label_set}; "
                    f"allowed: {', '.join(allowed.get(attribute, ()))}"
                )


def names() -> tuple[str, ...]:
    """The names of all datasets, each member of a family for itself."""
    return tuple(name for file in registry.names(PACKAGE) for name in _in_file(file))


def load(name: str) -> Dataset[Any]:
    """The dataset of that name.

    Raises:
        UnknownNameError: no file carries the name, or its family has no such member.
        UsageError: it is a family's name.
    """
    file = registry.path(PACKAGE, name).stem
    found = _in_file(file)
    if name in found:
        return found[name]
    if name == file:
        raise UsageError(f"dataset '{name}' has several editions; say which: {', '.join(found)}")
    raise UnknownNameError("dataset", name, found)


def _in_file(file: str) -> dict[str, Dataset[Any]]:
    module = registry.load(PACKAGE, file)
    if hasattr(module, "DATASETS"):
        return {dataset.name: dataset for dataset in module.DATASETS}
    return {file: module.DATASET}
