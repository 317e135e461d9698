"""A user's own data: a CSV or Parquet table whose columns a few lines of YAML explain, or a folder.

docs/datasets.md shows the YAML. Without a table, every image file below the folder is a row
without labels.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from facescan import attributes, tabular
from facescan.datasets import Dataset, Example, Rejected, Source, SourceRow, _folder
from facescan.errors import DataError, UsageError

_IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"),
    # Of these no model can be asked; they are taken, and end as `bad_image` in plain sight.
    *(".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2"),
}

_ONE_SPLIT = "all"
"""The split of a table without any."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
ColumnName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelColumn(_Strict):
    """Where the labels of an attribute stand."""

    column: str
    label_set: str | None = None
    """Needed where the attribute has several."""
    map: Annotated[
        # YAML reads a key 0 as a number, and a table has text.
        dict[str, str | None],
        BeforeValidator(lambda given: {str(key): value for key, value in given.items()}),
    ] = Field(default_factory=dict)
    """What the table says -> label, or null for none; other values must be labels already."""


class FixedSplit(_Strict):
    """One split for all rows."""

    value: str


def as_column(given: Any) -> Any:
    """A `LabelColumn` that may be given by its column alone."""
    return {"column": given} if isinstance(given, str) else given


class TableOptions(_Strict):
    """What the YAML file says."""

    name: Name = "table"
    """The dataset's name in every result."""
    table: str | None = None
    """File, or pattern such as `data/*.parquet`, below the source; default: the only one there."""
    image: str | None = None
    """Column with a path relative to the source, with bytes, or with both (Hugging Face)."""
    id: str | None = None
    """Column; default: the image's path, or the table's name and row."""
    labels: dict[str, Annotated[LabelColumn, BeforeValidator(as_column)]] = Field(
        default_factory=dict
    )
    """Attribute -> column, or column, label set and map."""
    values: dict[ColumnName, str] = Field(default_factory=dict)
    groups: dict[ColumnName, str] = Field(default_factory=dict)
    subject: str | None = None
    split: str | FixedSplit | None = None
    """Column, or `{value: test}` for all rows."""
    licence: str = ""
    revision: str = ""


def label_set_of(attribute: str, column: LabelColumn) -> attributes.LabelSet:
    """The label set that a column's labels are in.

    Raises:
        UsageError: there is no such attribute or label set, nothing says which of several it is,
            or the column's map names a label that is not in it.
    """
    known = attributes.load(attribute)
    if column.label_set is not None:
        label_set = known.label_set(column.label_set)
    elif len(known.label_sets) == 1:
        label_set = known.label_sets[0]
    else:
        names = ", ".join(each.name for each in known.label_sets)
        raise UsageError(f"labels: {attribute}: say which label_set it is in: {names}")
    for value in column.map.values():
        if value is not None and value not in label_set.labels:
            raise UsageError(
                f"labels: {attribute}: map: '{value}' is not a label of {label_set.name}; "
                f"allowed: {', '.join(label_set.labels)}"
            )
    return label_set


def _described(options: TableOptions) -> Dataset[TableOptions]:
    return replace(
        DATASET,
        name=options.name,
        licence=options.licence,
        revision=options.revision,
        label_sets={name: label_set_of(name, c).name for name, c in options.labels.items()},
        values=tuple(options.values),
        groups=tuple(options.groups),
    )


def _read(source: Source[TableOptions]) -> Iterator[SourceRow | Rejected]:
    tables = _tables(source)
    if not tables:
        return _image_files(source)
    return _table_rows(source, tables)


def _tables(source: Source[TableOptions]) -> list[Path]:
    """The table's files, sorted; none where the source is a folder of images."""
    pattern, root = source.options.table, source.root
    if source.path is not None and source.path != root:
        return [source.path]
    if pattern is not None:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise UsageError(f"table: {pattern}: name a file below the source")
        found = sorted(root.glob(pattern))
        if not found:
            raise DataError(f"{root}: no file '{pattern}' in it")
        return found
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in tabular.SUFFIXES)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"{root}: several tables; say which with `table:` ({names})")
    return found


def _split(options: TableOptions) -> str:
    """The split of all rows where no column has it."""
    return options.split.value if isinstance(options.split, FixedSplit) else _ONE_SPLIT


def _image_files(source: Source[TableOptions]) -> Iterator[SourceRow | Rejected]:
    options, root = source.options, source.root
    if named := _columns(options):
        setting, column = named[0]
        raise DataError(f"{root}: no table in it that could have a column '{column}' ({setting})")
    split = _split(options)
    for path in _folder.files(root):
        if Path(path).suffix.lower() in _IMAGE_SUFFIXES:
            yield SourceRow(path, path, path, split)
        else:
            yield Rejected(path, "not_an_image_file")


def _table_rows(source: Source[TableOptions], tables: list[Path]) -> Iterator[SourceRow]:
    options, columns = source.options, _columns(source.options)
    labels = {name: _Labels(name, column) for name, column in options.labels.items()}
    for table in tables:
        name = table.relative_to(source.root).as_posix()
        for place, cells in tabular.read(table, name, columns):
            yield _row(options, labels, f"{name}, {place}", cells)


def _columns(options: TableOptions) -> list[tuple[str, str]]:
    """Every setting that names a column, with the column."""
    named = {
        "image": options.image,
        "id": options.id,
        "subject": options.subject,
        "split": options.split if isinstance(options.split, str) else None,
        **{f"labels: {name}": column.column for name, column in options.labels.items()},
        **{f"values: {name}": column for name, column in options.values.items()},
        **{f"groups: {name}": column for name, column in options.groups.items()},
    }
    return [(setting, column) for setting, column in named.items() if column is not None]


class _Labels:
    """What one column's values mean."""

    def __init__(self, attribute: str, column: LabelColumn) -> None:
        self.column = column.column
        self._map = column.map
        self._canonical = {
            label.casefold(): label for label in label_set_of(attribute, column).labels
        }

    def label(self, value: Any) -> str | None:
        """The label that a cell means; an unknown text is returned as it is."""
        text = tabular.text(value)
        if text is None or text in self._map:
            return self._map.get(text) if text is not None else None
        return self._canonical.get(text.casefold(), text)


def _row(
    options: TableOptions, labels: Mapping[str, _Labels], where: str, cells: Mapping[str, Any]
) -> SourceRow:
    image, path = tabular.image(cells[options.image or ""], where)
    split = options.split
    return SourceRow(
        where=where,
        image_id=(path or where) if options.id is None else (tabular.text(cells[options.id]) or ""),
        image=image,
        split=(tabular.text(cells[split]) or "") if isinstance(split, str) else _split(options),
        subject_id=tabular.text(cells[options.subject]) if options.subject is not None else None,
        labels={name: each.label(cells[each.column]) for name, each in labels.items()},
        values={n: _number(cells[c], where, c) for n, c in options.values.items()},
        groups={name: tabular.text(cells[column]) for name, column in options.groups.items()},
    )


def _number(cell: Any, where: str, column: str) -> float | None:
    text = tabular.text(cell)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise DataError(f"{where}: '{text}' in column '{column}' is not a number")
    return number


DATASET: Dataset[TableOptions] = Dataset(
    name="table",
    description="your own images: a CSV or Parquet table explained by YAML, or a plain folder",
    licence="",
    revision="",
    options=TableOptions,
    read=_read,
    examples=(
        Example(
            files={"faces.csv": b"file,sex,age\n1.jpg,male,31\n2.jpg,,\n"},
            options={"image": "file", "labels": {"gender": "sex"}, "values": {"years": "age"}},
            rows=(
                SourceRow(
                    where="faces.csv, line 2",
                    image_id="1.jpg",
                    image="1.jpg",
                    split="all",
                    labels={"gender": "Male"},
                    values={"years": 31.0},
                ),
                SourceRow(
                    where="faces.csv, line 3",
                    image_id="2.jpg",
                    image="2.jpg",
                    split="all",
                    labels={"gender": None},
                    values={"years": None},
                ),
            ),
        ),
        Example(
            files={"b/1.jpg": b"", "notes.txt": b""},
            rows=(
                Rejected("notes.txt", "not_an_image_file"),
                SourceRow("b/1.jpg", "b/1.jpg", "b/1.jpg", "all"),
            ),
        ),
    ),
    described_by=_described,
)
