"""Any CSV or Parquet table with a column that names the image and columns with labels."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from facescan import tabular
from facescan.datasets.table import LabelColumn, as_column, label_set_of
from facescan.errors import DataError, UsageError
from facescan.foreign import Answered, Foreign, ForeignRow, file_name
from facescan.types import AnswerMode


class Columns(BaseModel):
    """What the columns of a table are; from flags or YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    """Names the image."""
    labels: dict[str, Annotated[LabelColumn, BeforeValidator(as_column)]]
    """Attribute -> column, or column, label set and map, as `facescan ingest table` has them."""
    match: Literal["id", "name"] = "id"
    """`name`: an id that no image has may be a path to a file of an image's name."""


def opened(path: Path, columns: Columns, label_sets: Mapping[str, str]) -> Foreign:
    """The answers in a table.

    Args:
        path: of the table.
        columns: what is where in it.
        label_sets: attribute -> the set that its answers are of where `columns` does not say.

    Raises:
        DataError: no such table, or it lacks a column.
        UsageError: an attribute or label set does not exist, or nothing says which it is.
    """
    if not columns.labels:
        raise UsageError("name at least one column with labels: --label race=COLUMN")
    found = tabular.columns(path, path.name)
    named = {"id": columns.id, **{name: each.column for name, each in columns.labels.items()}}
    lacking = [f"'{column}' ({what})" for what, column in named.items() if column not in found]
    if lacking:
        raise DataError(f"{path}: no column {', '.join(lacking)}; columns: {', '.join(found)}")
    answered = tuple(
        _answered(name, each, label_sets.get(name)) for name, each in columns.labels.items()
    )
    return Foreign(answered, _rows(path, columns), by_name=columns.match == "name")


def _answered(attribute: str, column: LabelColumn, label_set: str | None) -> Answered:
    if column.label_set is None:
        column = column.model_copy(update={"label_set": label_set})
    asked = label_set_of(attribute, column)
    offered = {label: label for label in asked.labels}
    offered |= {said: label for said, label in column.map.items() if label is not None}
    return Answered(attribute, asked.name, tuple(offered.items()), AnswerMode.FREE)


def _rows(path: Path, columns: Columns) -> Iterator[ForeignRow]:
    named = [("id", columns.id), *((n, each.column) for n, each in columns.labels.items())]
    nothing = (None,) * len(columns.labels)
    for place, cells in tabular.read(path, path.name, named, needed="id"):
        image = tabular.text(cells[columns.id]) or ""
        yield ForeignRow(
            where=f"{path.name}, {place}",
            names=(image, file_name(image)),
            face=0,
            texts=tuple(_text(cells[each.column], each) for each in columns.labels.values()),
            scores=nothing,
        )


def _text(cell: Any, column: LabelColumn) -> str:
    text = tabular.text(cell) or ""
    return "" if text in column.map and column.map[text] is None else text
