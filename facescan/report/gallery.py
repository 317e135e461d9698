"""Which errors are shown as pictures: a few of each cell of a confusion matrix."""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from facescan.attributes import Attribute
from facescan.report.answers import Galleries
from facescan.report.blocks import Figure, Gallery, Picture
from facescan.report.entries import Entry
from facescan.report.pictures import Pictures
from facescan.score.counts import COMBINATION
from facescan.storage import Storage
from facescan.types import Outcome

CELLS = 12
"""Of a confusion matrix: those with the most rows."""

PER_CELL = 6
"""Pictures of one cell."""

MAX_SIDE = 96
"""Of a picture, in pixels."""

MAX_PICTURES = 600
"""Of a whole page, which is about 2 MB."""

_COLUMNS = (*COMBINATION, "image_id", "outcome", "label", "target", "target_label_set")
_ROWS_AT_ONCE = 1 << 16

# By a digest, which is no order that the dataset may have; the same pictures every time.
_SOME = f"""
    SELECT {", ".join(COMBINATION)}, target_label_set, target, label,
           min_by(image_id, md5(image_id), {PER_CELL}) AS image_ids
    FROM rows
    WHERE outcome = '{Outcome.ANSWERED}' AND target IS NOT NULL
      AND (target <> label OR target_label_set <> asked_label_set)
    GROUP BY ALL ORDER BY ALL
"""


@dataclass(frozen=True, slots=True)
class Errors:
    """Wrong answers of one kind.

    Attributes:
        combination: the values of `COMBINATION`.
        image_ids: some, at most `PER_CELL`.
    """

    combination: tuple[str, ...]
    target_label_set: str
    target: str
    label: str
    image_ids: tuple[str, ...]


def errors(predictions: Storage) -> list[Errors]:
    """Some images for each pair of a target and another answer.

    Raises:
        OSError: the predictions cannot be reached.
    """
    names = [name for name in predictions.names() if name.endswith(".parquet")]
    schema = pa.schema([pa.field(name, pa.string()) for name in _COLUMNS])
    with duckdb.connect(":memory:", config={"memory_limit": "512MB"}) as connection:
        reader = pa.RecordBatchReader.from_batches(schema, _batches(predictions, names, schema))
        connection.register("rows", reader)
        found = connection.sql(_SOME).fetchall()
    width = len(COMBINATION)
    return [
        Errors(tuple(row[:width]), row[width], row[width + 1], row[width + 2], tuple(row[-1]))
        for row in found
    ]


def _batches(
    predictions: Storage, names: Iterable[str], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for name in names:
        with predictions.open(name) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS)):
                yield batch.select(list(_COLUMNS)).cast(schema)


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell of the matrix of an entry, and images in it."""

    entry: Entry
    target: str
    label: str
    count: Figure
    image_ids: tuple[str, ...]


def chosen(
    entries: Iterable[Entry], found: Iterable[Errors], load: Callable[[str], Attribute], most: int
) -> list[Shown]:
    """The cells to show of each entry, the largest first, up to `most` pictures in all."""
    by_combination: dict[tuple[str, ...], list[Errors]] = {}
    for each in found:
        by_combination.setdefault(each.combination, []).append(each)
    cells: list[Shown] = []
    left = most
    for entry in entries:
        key = tuple(str(getattr(entry.score, name)) for name in COMBINATION)
        attribute = load(entry.score.attribute)
        seen = _in_view(by_combination.get(key, ()), attribute, entry)
        for target, label, count in _largest(entry):
            image_ids = seen.get((target, label), ())[:left]
            if image_ids:
                cells.append(Shown(entry, target, label, count, tuple(image_ids)))
                left -= len(image_ids)
    return cells


def _in_view(
    found: Iterable[Errors], attribute: Attribute, entry: Entry
) -> dict[tuple[str, str], list[str]]:
    seen: dict[tuple[str, str], list[str]] = {}
    answers = attribute.view(entry.score.asked_label_set, entry.score.view)
    for each in found:
        targets = attribute.view(each.target_label_set, entry.score.view)
        label = answers.merges.get(each.label) if answers else None
        target = targets.merges.get(each.target) if targets else None
        if label is not None and target is not None and label != target:
            seen.setdefault((target, label), []).extend(each.image_ids)
    return {cell: image_ids[:PER_CELL] for cell, image_ids in seen.items()}


def _largest(entry: Entry) -> Sequence[tuple[str, str, Figure]]:
    confusion, at = entry.score.confusion, entry.at / "confusion" / "counts"
    cells = [
        (target, column.removeprefix("label:"), Figure(counts[number], at / row / number, "count"))
        for row, (target, counts) in enumerate(
            zip(confusion.targets, confusion.counts, strict=True)
        )
        for number, column in enumerate(confusion.columns)
        if column.startswith("label:") and column != f"label:{target}" and counts[number]
    ]
    return sorted(cells, key=lambda cell: -(cell[2].value or 0))[:CELLS]


def galleries(cells: Sequence[Shown], pictures: Pictures) -> Galleries:
    """The cells with their pictures.

    Raises:
        DataError: the shards are not what they were.
    """
    wanted = [image_id for cell in cells for image_id in cell.image_ids]
    found = dict(pictures.thumbnails(wanted))
    shown: dict[str, tuple[Gallery, ...]] = {}
    for cell in cells:
        gallery = Gallery(
            (f"{cell.target} answered {cell.label}: {len(cell.image_ids)} of ", cell.count),
            tuple(_picture(image_id, found.get(image_id)) for image_id in cell.image_ids),
        )
        shown[cell.entry.key] = (*shown.get(cell.entry.key, ()), gallery)
    return shown


def _picture(image_id: str, found: bytes | str | None) -> Picture:
    if isinstance(found, bytes):
        encoded = base64.b64encode(found).decode()
        return Picture(image_id, f"data:image/jpeg;base64,{encoded}", "")
    return Picture(image_id, None, found or "no longer in the dataset")
