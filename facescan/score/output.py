"""Scores -> `metrics.parquet` for tools and `metrics.json` for people; docs/scores.md has both."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facescan.score.intervals import Rate
from facescan.score.metrics import SCORED_OUTCOMES, Score
from facescan.score.views import Key
from facescan.storage import Storage
from facescan.types import Outcome

VERSION = 1
"""Of both files; raised when a key, a column or a definition changes its meaning."""

PARQUET = "metrics.parquet"
JSON = "metrics.json"

NOTE = "Labels are perceived attributes in the dataset's own categories, not facts about people."

_KEY = tuple(field.name for field in fields(Key))
_FIELDS: list[tuple[str, pa.DataType]] = [
    *((name, pa.string()) for name in (*_KEY, "slice", "group", "metric")),
    *((name, pa.float64()) for name in ("value", "ci_low", "ci_high")),
    *((name, pa.int64()) for name in ("n", "n_answered")),
]
METRICS_SCHEMA = pa.schema(
    _FIELDS, metadata={"facescan.scores_version": str(VERSION), "facescan.note": NOTE}
)

_Figures = Iterable[tuple[str, Rate]]


def write(folder: Storage, scores: Sequence[Score]) -> tuple[str, str]:
    """Write `metrics.parquet` and `metrics.json` into `folder`, each whole or not at all.

    The bytes depend on the scores alone, so the same predictions give the same files.

    Returns:
        Where the two are, in this order.

    Raises:
        OSError: they cannot be written.
    """
    table = pa.Table.from_pylist(
        [row for score in scores for row in _rows(score)], schema=METRICS_SCHEMA
    )
    parquet = io.BytesIO()
    pq.write_table(table, parquet, compression="zstd")
    folder.write(PARQUET, parquet.getvalue())
    document = {"version": VERSION, "note": NOTE, "scores": [_entry(score) for score in scores]}
    folder.write(JSON, (json.dumps(document, indent=1) + "\n").encode())
    return f"{folder.location}/{PARQUET}", f"{folder.location}/{JSON}"


def _rows(score: Score) -> Iterator[dict[str, Any]]:
    for name, group, n, answered, figures in _slices(score):
        for metric, rate in figures:
            yield {
                **asdict(score.key),
                "slice": name,
                "group": group,
                "metric": metric,
                "value": rate.value,
                "ci_low": rate.low,
                "ci_high": rate.high,
                "n": n,
                "n_answered": answered,
            }


def _slices(score: Score) -> Iterator[tuple[str, str, int, int, _Figures]]:
    """(slice, group, model outcomes and answered rows in it, its figures)."""
    overall = [*_headline(score), *_outcomes(score.outcomes)]
    yield "all", "", score.n, score.n_answered, overall
    for c in score.classes:
        figures = [
            ("support", _plain(c.support)),
            ("n_predicted", _plain(c.predicted)),
            ("precision", c.precision),
            ("recall", c.recall),
            ("f1", _plain(c.f1)),
        ]
        yield "class", c.label, c.support, c.answered, figures
    confusion = _confusion(score)
    for c in score.classes:
        for column, count in confusion[c.label].items():
            cell = [("confusion", _plain(count))]
            yield f"target:{c.label}", column, c.support, c.answered, cell
    if score.n_unlabelled:
        n = sum(score.unlabelled[o] for o in SCORED_OUTCOMES)
        answered = score.unlabelled[Outcome.ANSWERED]
        yield "unlabelled", "", n, answered, _outcomes(score.unlabelled)
        for column, count in _unlabelled(score).items():
            yield "unlabelled", column, n, answered, [("confusion", _plain(count))]


def _headline(score: Score) -> _Figures:
    return [
        ("n", _plain(score.n)),
        ("n_answered", _plain(score.n_answered)),
        ("n_correct", _plain(score.n_correct)),
        ("n_outside_view", _plain(score.n_outside_view)),
        ("n_run_failures", _plain(score.n_run_failures)),
        ("n_excluded", _plain(score.tally.excluded)),
        ("n_unlabelled", _plain(score.n_unlabelled)),
        ("accuracy", score.accuracy),
        ("accuracy_answered", score.accuracy_answered),
        ("accuracy_worst", _plain(score.accuracy_worst)),
        ("accuracy_best", _plain(score.accuracy_best)),
        ("macro_f1", _plain(score.macro_f1)),
    ]


def _outcomes(outcomes: dict[Outcome, int]) -> _Figures:
    return [(f"outcome_{outcome}", _plain(n)) for outcome, n in outcomes.items()]


def _plain(value: float | None) -> Rate:
    return Rate(value, None, None)


def _column(outcome: Outcome, label: str | None) -> str:
    """What stands across the targets of a confusion matrix: a label, or why there is none."""
    if label is not None:
        return f"label:{label}"
    return "outside_view" if outcome is Outcome.ANSWERED else f"outcome:{outcome}"


def _columns(score: Score) -> list[str]:
    others = [_column(outcome, None) for outcome in Outcome if outcome is not Outcome.SPURIOUS]
    return [_column(Outcome.ANSWERED, label) for label in score.tally.labels] + others


def _confusion(score: Score) -> dict[str, dict[str, int]]:
    """Rows by target, then by column, without empty cells, in the order of labels and outcomes."""
    cells: Counter[tuple[str, str]] = Counter()
    for (target, outcome, label), n in score.tally.scored.items():
        cells[target, _column(outcome, label)] += n
    columns = _columns(score)
    return {
        target: {column: cells[target, column] for column in columns if cells[target, column]}
        for target in score.tally.labels
    }


def _unlabelled(score: Score) -> dict[str, int]:
    """Answers given where there is no target: rows by column, without empty cells."""
    cells: Counter[str] = Counter()
    for (outcome, label), n in score.tally.unlabelled.items():
        if outcome is Outcome.ANSWERED:
            cells[_column(outcome, label)] += n
    return {column: cells[column] for column in _columns(score) if cells[column]}


def _entry(score: Score) -> dict[str, Any]:
    headline = {
        metric: _interval(rate) if metric in ("accuracy", "accuracy_answered") else rate.value
        for metric, rate in _headline(score)
    }
    columns = _columns(score)
    confusion = _confusion(score)
    return {
        **asdict(score.key),
        "complete": score.complete,
        **headline,
        "outcomes": {str(outcome): n for outcome, n in score.outcomes.items()},
        "zero_support": list(score.zero_support),
        "classes": [
            {
                "label": c.label,
                "support": c.support,
                "n_predicted": c.predicted,
                "precision": _interval(c.precision),
                "recall": _interval(c.recall),
                "f1": c.f1,
            }
            for c in score.classes
        ],
        "confusion": {
            "targets": list(score.tally.labels),
            "columns": columns,
            "counts": [[confusion[t].get(c, 0) for c in columns] for t in score.tally.labels],
        },
        "unlabelled": {
            "outcomes": {str(outcome): n for outcome, n in score.unlabelled.items()},
            "answers": _unlabelled(score),
        },
    }


def _interval(rate: Rate) -> dict[str, float | None]:
    return {"value": rate.value, "ci_low": rate.low, "ci_high": rate.high}
