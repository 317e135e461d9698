"""Asked in X, viewed in Y: nothing is dropped without being counted."""

from collections.abc import Iterable

import pyarrow as pa
import pytest

from facescan.errors import DataError, UsageError
from facescan.score.counts import CELL, COMBINATION, COUNTS_SCHEMA
from facescan.score.views import Tally, tallies
from facescan.types import Outcome
from tests.facescan.score.hats import Row, failed, load, row


def counts(rows: Iterable[Row]) -> pa.Table:
    cells = [{name: r.get(name) for name in COMBINATION + CELL} | {"n": 1} for r in rows]
    return pa.Table.from_pylist(cells, schema=COUNTS_SCHEMA)


def seen(*rows: Row) -> dict[str, Tally]:
    return {tally.key.view: tally for tally in tallies(counts(rows), load)}


def test_a_view_is_taken_where_answers_and_targets_lead_into_it() -> None:
    assert list(seen(row("cap", "cap"))) == ["hat-4", "hat-3", "hat-2"]
    assert list(seen(row("soft", "soft", asked_label_set="hat-3", target_label_set="hat-3"))) == [
        "hat-3",
        "hat-2",
    ]
    assert list(seen(row("soft", "cap", asked_label_set="hat-3"))) == ["hat-3", "hat-2"]
    assert list(seen(row("cap", "soft", target_label_set="hat-3"))) == ["hat-3", "hat-2"]


def test_merged_labels_agree_in_the_coarser_view() -> None:
    found = seen(row("cap", "beret"))
    assert found["hat-4"].scored == {("beret", Outcome.ANSWERED, "cap"): 1}
    assert found["hat-3"].scored == {("soft", Outcome.ANSWERED, "soft"): 1}


def test_a_target_without_a_place_is_excluded_and_counted() -> None:
    found = seen(row("cap", "none"), failed("pending", "none"), row("cap", "cap"))
    assert found["hat-2"].excluded == 2
    assert found["hat-2"].scored == {("soft", Outcome.ANSWERED, "soft"): 1}
    assert found["hat-3"].excluded == 0


def test_an_answer_without_a_place_stays_answered() -> None:
    """Left out, a model would gain by answering outside the view whenever it is unsure."""
    found = seen(row("none", "cap"))["hat-2"]
    assert found.scored == {("soft", Outcome.ANSWERED, None): 1}
    assert found.excluded == 0


def test_rows_without_a_target_are_kept_apart() -> None:
    unlabelled = row("cap", None, target_label_set=None)
    (tally,) = seen(unlabelled, failed("refused", None, target_label_set=None)).values()
    assert tally.key.view == "hat-4"
    assert tally.unlabelled == {
        (Outcome.ANSWERED, "cap"): 1,
        (Outcome.REFUSED, None): 1,
    }
    assert not tally.scored
    mixed = seen(unlabelled, row("cap", "beret"), row("cap", None))
    assert list(mixed) == ["hat-4", "hat-3", "hat-2"]
    assert mixed["hat-3"].unlabelled == {(Outcome.ANSWERED, "soft"): 2}


def test_targets_that_meet_the_answers_in_no_view_are_all_excluded() -> None:
    (tally,) = seen(row("cap", "wide", target_label_set="brim-2")).values()
    assert (tally.key.view, tally.excluded, sum(tally.scored.values())) == ("hat-4", 1, 0)


def test_target_sets_of_one_combination_add_up_in_a_view() -> None:
    found = seen(row("cap", "cap"), row("cap", "soft", target_label_set="hat-3"))
    assert found["hat-4"].excluded == 1
    assert found["hat-3"].scored == {("soft", Outcome.ANSWERED, "soft"): 2}


def test_spurious_persons_are_counted_apart() -> None:
    tally = seen(row("cap", None, outcome="spurious"), row("cap", "cap"))["hat-4"]
    assert tally.spurious == 1
    assert not tally.unlabelled


def test_combinations_are_kept_apart_and_sorted() -> None:
    rows = [row("cap", "cap", model=m, split=s) for m in ("b", "a") for s in ("y", "x")]
    keys = [tally.key for tally in tallies(counts(rows), load)]
    assert [(k.model, k.split) for k in keys if k.view == "hat-4"] == [
        ("a", "x"),
        ("a", "y"),
        ("b", "x"),
        ("b", "y"),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row("cap", "cap", outcome="guessed"), "'guessed', which is no outcome"),
        (row("fez", "cap"), "answer 'fez', which is not in hat-4"),
        (row(None, "cap"), "answer 'None', which is not in hat-4"),
        (row("cap", "fez"), "target 'fez', which is not in hat-4"),
        (row("cap", "cap", target_label_set=None), "target 'cap', which is not in None"),
    ],
)
def test_rows_that_cannot_be_are_refused(wrong: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        seen(wrong)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="no label set 'hat-9'"):
        seen(row("cap", "cap", asked_label_set="hat-9"))
    with pytest.raises(UsageError, match="unknown attribute 'shoe'"):
        seen(row("cap", "cap", attribute="shoe"))
