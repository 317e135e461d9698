"""An attribute made for these tests, and predictions about it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from facescan.attributes import Attribute, LabelSet, View
from facescan.errors import UnknownNameError
from facescan.score.counts import Counter, Counts
from facescan.score.groupings import groupings
from facescan.types import PREDICTION_SCHEMA

HAT = Attribute(
    name="hat",
    noun="hat",
    label_sets=(
        LabelSet("hat-4", ("none", "cap", "beret", "crown"), {}),
        LabelSet("hat-3", ("none", "soft", "crown"), {}),
        LabelSet("hat-2", ("soft", "crown"), {}),
        LabelSet("brim-2", ("wide", "narrow"), {}),
    ),
    views=(
        View("hat-4", "hat-3", {"none": "none", "cap": "soft", "beret": "soft", "crown": "crown"}),
        View("hat-4", "hat-2", {"cap": "soft", "beret": "soft", "crown": "crown"}),
        View("hat-3", "hat-2", {"soft": "soft", "crown": "crown"}),
    ),
    examples=(),
)

Row = dict[str, str | int | float | None]

_ROW: Row = {
    "dataset": "people",
    "split": "test",
    "image_id": "1",
    "attribute": "hat",
    "person": 0,
    "model": "seer",
    "protocol": "neutral",
    "answer_mode": "free",
    "image_sha256": "00",
    "request_id": "00",
    "outcome": "answered",
    "label": None,
    "asked_label_set": "hat-4",
    "target": None,
    "target_label_set": "hat-4",
    "parser_version": "1",
}


def load(name: str) -> Attribute:
    if name != "hat":
        raise UnknownNameError("attribute", name, ["hat"])
    return HAT


def row(label: str | None, target: str | None, **others: str | int | float | None) -> Row:
    """One prediction; a label makes it answered, unless `outcome` says otherwise."""
    return {**_ROW, "label": label, "target": target, **others}


def failed(outcome: str, target: str | None, **others: str | int | float | None) -> Row:
    return row(None, target, outcome=outcome, **others)


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=PREDICTION_SCHEMA), path)
    return path


def table(rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """The rows as predictions; `label_`, `value_` and `group_` columns follow the fixed ones."""
    rows = list(rows)
    names = dict.fromkeys(name for each in rows for name in each)
    others = [name for name in names if name not in PREDICTION_SCHEMA.names]
    types = {True: pa.float64(), False: pa.string()}
    schema = pa.schema(
        [*PREDICTION_SCHEMA, *((name, types[name.startswith("value_")]) for name in others)]
    )
    return pa.Table.from_pylist([{**dict.fromkeys(names), **each} for each in rows], schema=schema)


def counted(
    rows: Iterable[Mapping[str, object]],
    by: Sequence[str] = ("none",),
    load: Callable[[str], Attribute] = load,
) -> list[Counts]:
    """The rows as they are counted, by the groupings that `--group-by` asks for."""
    whole = table(rows)
    counter = Counter(load, groupings(by, whole.column_names))
    for batch in whole.to_batches():
        counter.add(batch)
    return counter.counts()
