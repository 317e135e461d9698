"""Scores -> `metrics.parquet` for tools and `metrics.json` for people; docs/scores.md has both."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import to_json

from facescan.score.calibration import Bin, Calibration
from facescan.score.compare import Comparison
from facescan.score.equal_rates import EqualRate
from facescan.score.figures import ClassScore, Figures
from facescan.score.groupings import TOGETHER
from facescan.score.groups import Group, Groups, Spread
from facescan.score.intervals import UNKNOWN, Rate
from facescan.score.metrics import Score
from facescan.score.ordinal import Ordinal
from facescan.score.views import SCORED_OUTCOMES, Key
from facescan.storage import Storage
from facescan.types import Outcome

VERSION = 3
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

_ROWS_AT_ONCE = 1 << 16

_Figures = Iterable[tuple[str, Rate]]


def write(
    folder: Storage, scores: Sequence[Score], comparisons: Sequence[Comparison] = ()
) -> tuple[str, str]:
    """Write `metrics.parquet` and `metrics.json` into `folder`, each whole or not at all.

    The bytes depend on the scores alone, so the same predictions give the same files.

    Returns:
        Where the two are, in this order.

    Raises:
        OSError: they cannot be written.
    """
    parquet = io.BytesIO()
    with pq.ParquetWriter(parquet, METRICS_SCHEMA, compression="zstd") as writer:
        rows = chain.from_iterable(map(_rows, scores))
        while part := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(part, schema=METRICS_SCHEMA))
    folder.write(PARQUET, parquet.getvalue())
    document = {
        "version": VERSION,
        "note": NOTE,
        "scores": [_entry(score) for score in scores],
        "comparisons": [each.entry() for each in comparisons],
    }
    # Python's own encoder takes ten times as long where there are line breaks: 0.4 s of 7 MB.
    folder.write(JSON, to_json(document, indent=1) + b"\n")
    return f"{folder.location}/{PARQUET}", f"{folder.location}/{JSON}"


def _rows(score: Score) -> Iterator[dict[str, Any]]:
    key = asdict(score.key)
    for name, group, n, answered, figures in (*_slices(score), *_group_slices(score)):
        for metric, rate in figures:
            yield {
                **key,
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
    rates = _rates(score.outcome_rates.items())
    overall = [*_headline(score), *_more(score), *_outcomes(score.outcomes), *rates]
    yield "all", "", score.n, score.n_answered, overall
    for c in score.classes:
        yield "class", c.label, c.support, c.answered, _of_class(c)
    confusion = _confusion(score)
    for c in score.classes:
        for column, count in confusion[c.label].items():
            cell = [("confusion", _plain(count))]
            yield f"target:{c.label}", column, c.support, c.answered, cell
    for each in score.calibration.bins if score.calibration else ():
        yield "calibration", f"{each.low:.1f}-{each.high:.1f}", each.n, each.n, _of_bin(each)
    if score.n_unlabelled:
        n = sum(score.unlabelled[o] for o in SCORED_OUTCOMES)
        answered = score.unlabelled[Outcome.ANSWERED]
        yield "unlabelled", "", n, answered, _outcomes(score.unlabelled)
        for column, count in _unlabelled(score).items():
            yield "unlabelled", column, n, answered, [("confusion", _plain(count))]


def _group_slices(score: Score) -> Iterator[tuple[str, str, int, int, _Figures]]:
    for groups in score.groups:
        name = f"by:{groups.name}"
        compared = [each for each in groups.groups if not each.suppressed]
        n, answered = sum(g.n for g in compared), sum(g.n_answered for g in compared)
        yield name, "", n, answered, _across(groups)
        for group in groups.groups:
            yield name, TOGETHER.join(group.name), group.n, group.n_answered, _of_group(group)


def _across(groups: Groups) -> _Figures:
    figures = [("accuracy", groups.pooled)]
    tests = [("accuracy", groups.equal_rate), *groups.tests]
    for name, test in tests:
        if test is not None:
            figures += [(f"equal_rate_p:{name}", _plain(test.p_holm))]
    for name, spread in (("difference", groups.largest_gap), ("ratio", groups.ratio)):
        if spread is not None:
            figures += [
                (name, Rate(spread.value, spread.low, spread.high)),
                (f"{name}_corrected", _plain(spread.corrected)),
            ]
    return [
        *figures,
        ("equalized_odds_difference", _plain(groups.equalized_odds_difference)),
        ("demographic_parity_difference", _plain(groups.demographic_parity_difference)),
    ]


def _of_group(group: Group) -> _Figures:
    """What is said of the whole, a class or a bin behind a colon; one slice is enough."""
    found = group.figures
    if found is None:
        return [("suppressed", _plain(1)), ("n_run_failures", _plain(group.n_run_failures))]
    if not found.n:
        # No row has a target: there are outcomes alone.
        return [*_outcomes(found.unlabelled), *_rates(group.outcomes), *_selection(group)]
    figures = [
        *_headline(found),
        ("accuracy_simultaneous", group.simultaneous),
        *_more(found),
        *_outcomes(found.outcomes),
        *_rates(group.outcomes),
        *_selection(group),
    ]
    for c in found.classes:
        figures += [(f"{metric}:{c.label}", rate) for metric, rate in _of_class(c)]
    for target, columns in _confusion(found).items():
        figures += [(f"confusion:{target}/{name}", _plain(n)) for name, n in columns.items()]
    for each in found.calibration.bins if found.calibration else ():
        bin_ = f"{each.low:.1f}-{each.high:.1f}"
        figures += [(f"calibration_{metric}:{bin_}", rate) for metric, rate in _of_bin(each)]
    return figures


def _selection(group: Group) -> _Figures:
    return [(f"selection_rate:{label}", _plain(share)) for label, share in group.selection]


def _of_class(c: ClassScore) -> list[tuple[str, Rate]]:
    return [
        ("support", _plain(c.support)),
        ("n_predicted", _plain(c.predicted)),
        ("precision", c.precision),
        ("recall", c.recall),
        ("f1", c.f1),
    ]


def _of_bin(each: Bin) -> list[tuple[str, Rate]]:
    return [
        ("n", _plain(each.n)),
        ("confidence", _plain(each.confidence)),
        ("accuracy", each.accuracy),
    ]


def _headline(score: Figures) -> _Figures:
    return [
        ("n", _plain(score.n)),
        ("n_answered", _plain(score.n_answered)),
        ("n_correct", _plain(score.n_correct)),
        ("n_outside_view", _plain(score.n_outside_view)),
        ("n_run_failures", _plain(score.n_run_failures)),
        ("n_excluded", _plain(score.n_excluded)),
        ("n_unlabelled", _plain(score.n_unlabelled)),
        ("accuracy", score.accuracy),
        ("accuracy_answered", score.accuracy_answered),
        ("accuracy_worst", _plain(score.accuracy_worst)),
        ("accuracy_best", _plain(score.accuracy_best)),
        ("balanced_accuracy", score.balanced_accuracy),
        ("macro_f1", score.macro_f1),
    ]


_INTERVALS = ("accuracy", "accuracy_answered", "balanced_accuracy", "macro_f1")
"""The headline figures that have one."""


def _more(score: Figures) -> Iterator[tuple[str, Rate]]:
    if score.ordinal is not None:
        yield "off_by_one", score.ordinal.off_by_one
        yield "mae_bins", score.ordinal.mae_bins
        yield "quadratic_kappa", score.ordinal.quadratic_kappa
        if score.ordinal.mae_years is not None:
            yield "mae_years", score.ordinal.mae_years
    if score.calibration is not None:
        yield "ece", _plain(score.calibration.ece)
        yield "brier", _plain(score.calibration.brier)


def _outcomes(outcomes: dict[Outcome, int]) -> _Figures:
    return [(f"outcome_{outcome}", _plain(n)) for outcome, n in outcomes.items()]


def _rates(outcomes: Iterable[tuple[Outcome, Rate]]) -> _Figures:
    return [(f"rate_{outcome}", rate) for outcome, rate in outcomes]


def _plain(value: float | None) -> Rate:
    return Rate(value, None, None)


def _column(outcome: Outcome, label: str | None) -> str:
    """What stands across the targets of a confusion matrix: a label, or why there is none."""
    if label is not None:
        return f"label:{label}"
    return "outside_view" if outcome is Outcome.ANSWERED else f"outcome:{outcome}"


def _columns(score: Figures) -> list[str]:
    others = [_column(outcome, None) for outcome in Outcome if outcome is not Outcome.SPURIOUS]
    return [_column(Outcome.ANSWERED, label) for label in score.labels.labels] + others


def _confusion(score: Figures) -> dict[str, dict[str, int]]:
    """Rows by target, then by column, without empty cells, in the order of labels and outcomes."""
    cells: Counter[tuple[str | None, str]] = Counter()
    for (target, outcome, label), n in score.met.items():
        cells[target, _column(outcome, label)] += n
    columns = _columns(score)
    return {
        target: {column: cells[target, column] for column in columns if cells[target, column]}
        for target in score.labels.labels
    }


def _unlabelled(score: Score) -> dict[str, int]:
    """Answers given where there is no target: rows by column, without empty cells."""
    cells: Counter[str] = Counter()
    for (_, outcome, label), n in score.tally.met(score.tally.unlabelled).items():
        if outcome is Outcome.ANSWERED:
            cells[_column(outcome, label)] += n
    return {column: cells[column] for column in _columns(score) if cells[column]}


def _entry(score: Score) -> dict[str, Any]:
    headline = {
        metric: _interval(rate) if metric in _INTERVALS else rate.value
        for metric, rate in _headline(score)
    }
    columns, labels = _columns(score), score.labels.labels
    confusion = _confusion(score)
    return {
        **asdict(score.key),
        "complete": score.complete,
        **headline,
        "intervals": {
            "method": "wilson" if score.subjects is None else "clustered",
            "subjects": score.subjects,
            "remark": remark(score),
        },
        "outcomes": {str(outcome): n for outcome, n in score.outcomes.items()},
        "outcome_rates": _outcome_rates(score.outcome_rates.items()),
        "zero_support": list(score.zero_support),
        "classes": [_class(c) for c in score.classes],
        "confusion": {
            "targets": list(labels),
            "columns": columns,
            "counts": [[confusion[t].get(c, 0) for c in columns] for t in labels],
        },
        "ordinal": score.ordinal and _ordinal(score.ordinal),
        "calibration": score.calibration and _calibration(score.calibration),
        "groups": [_groups(each) for each in score.groups],
        "unlabelled": {
            "outcomes": {str(outcome): n for outcome, n in score.unlabelled.items()},
            "answers": _unlabelled(score),
        },
    }


def _class(c: ClassScore) -> dict[str, Any]:
    return {
        "label": c.label,
        "support": c.support,
        "n_predicted": c.predicted,
        "precision": _interval(c.precision),
        "recall": _interval(c.recall),
        "f1": _interval(c.f1),
    }


def _outcome_rates(rates: Iterable[tuple[Outcome, Rate]]) -> dict[str, Any]:
    return {str(outcome): _interval(rate) for outcome, rate in rates}


def remark(score: Score) -> str:
    """How far the intervals can be trusted, for people."""
    if score.subjects is None:
        return (
            "Subjects are not known: rows are taken as independent. Several pictures of one "
            "person, several persons in one picture and near duplicates are not, and then the "
            "intervals are too narrow."
        )
    clustered = f"Clustered by {score.subjects:,} subjects."
    if not score.n_without_subject:
        return clustered
    return (
        f"{clustered} {score.n_without_subject:,} rows have no subject and are taken as subjects "
        "of their own."
    )


def _ordinal(ordinal: Ordinal) -> dict[str, Any]:
    return {
        "off_by_one": _interval(ordinal.off_by_one),
        "mae_bins": _interval(ordinal.mae_bins),
        "quadratic_kappa": _interval(ordinal.quadratic_kappa),
        "mae_years": ordinal.mae_years and _interval(ordinal.mae_years),
    }


def _calibration(calibration: Calibration) -> dict[str, Any]:
    return {
        "n": calibration.n,
        "ece": calibration.ece,
        "brier": calibration.brier,
        "bins": [
            {
                "low": each.low,
                "high": each.high,
                "n": each.n,
                "confidence": each.confidence,
                "accuracy": _interval(each.accuracy),
            }
            for each in calibration.bins
        ],
    }


def _groups(groups: Groups) -> dict[str, Any]:
    return {
        "by": list(groups.by),
        "source": groups.source,
        "min_cell": groups.min_cell,
        "n_ungrouped": groups.ungrouped,
        "cells": [_cell(each) for each in groups.groups],
        "pooled": _interval(groups.pooled),
        "equal_rate": _test(groups.equal_rate),
        "largest_gap": _spread(groups.largest_gap),
        "ratio": _spread(groups.ratio),
        "worst": groups.worst
        and {"group": list(groups.worst[0]), "accuracy": _interval(groups.worst[1])},
        "equalized_odds_difference": groups.equalized_odds_difference,
        "demographic_parity_difference": groups.demographic_parity_difference,
        "outcome_tests": {str(outcome): _test(test) for outcome, test in groups.tests},
        "findings": list(groups.findings()),
        "remarks": list(groups.remarks),
    }


def _cell(group: Group) -> dict[str, Any]:
    found = group.figures
    return {
        "group": list(group.name),
        "n": group.n,
        "n_answered": group.n_answered,
        "n_correct": found.n_correct if found else None,
        "n_outside_view": found.n_outside_view if found else None,
        "n_run_failures": group.n_run_failures,
        "n_excluded": found.n_excluded if found else None,
        "subjects": group.subjects,
        "suppressed": group.suppressed,
        "few": group.few,
        "accuracy": _interval(group.accuracy),
        "simultaneous": _interval(group.simultaneous),
        "accuracy_answered": _interval(found.accuracy_answered if found else UNKNOWN),
        "accuracy_worst": found.accuracy_worst if found else None,
        "accuracy_best": found.accuracy_best if found else None,
        "balanced_accuracy": _interval(found.balanced_accuracy if found else UNKNOWN),
        "macro_f1": _interval(found.macro_f1 if found else UNKNOWN),
        "outcomes": _occurring(found),
        "outcome_rates": _outcome_rates(group.outcomes),
        "selection_rates": dict(group.selection),
        "classes": [_class(c) for c in found.classes] if found else [],
        "confusion": _confusion(found) if found else {},
        "ordinal": _ordinal(found.ordinal) if found and found.ordinal else None,
        "calibration": _calibration(found.calibration) if found and found.calibration else None,
    }


def _occurring(found: Figures | None) -> dict[str, int]:
    """Rows by outcome, without those that do not occur."""
    if found is None:
        return {}
    outcomes = found.outcomes if found.n else found.unlabelled
    return {str(outcome): n for outcome, n in outcomes.items() if n}


def _test(test: EqualRate | None) -> dict[str, Any] | None:
    return None if test is None else asdict(test)


def _spread(spread: Spread | None) -> dict[str, float] | None:
    return (
        None
        if spread is None
        else {
            "value": spread.value,
            "corrected": spread.corrected,
            "ci_low": spread.low,
            "ci_high": spread.high,
        }
    )


def _interval(rate: Rate) -> dict[str, float | None]:
    return {"value": rate.value, "ci_low": rate.low, "ci_high": rate.high}
