"""Asked in X, viewed in Y: nothing is dropped without being counted."""

from collections import Counter

import pytest

from facescan.errors import DataError, UsageError
from facescan.score.views import Tally, tallies
from facescan.types import Outcome
from tests.facescan.score.hats import Row, counted, failed, load, row


def seen(*rows: Row) -> dict[str, Tally]:
    return {tally.key.view: tally for tally in tallies(counted(rows), load)}


def scored(tally: Tally) -> Counter[tuple[str | None, Outcome, str | None]]:
    return tally.met(tally.scored)


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
    assert scored(found["hat-4"]) == {("beret", Outcome.ANSWERED, "cap"): 1}
    assert scored(found["hat-3"]) == {("soft", Outcome.ANSWERED, "soft"): 1}


def test_a_target_without_a_place_is_excluded_and_counted() -> None:
    found = seen(row("cap", "none"), failed("pending", "none"), row("cap", "cap"))
    assert found["hat-2"].rows(found["hat-2"].excluded) == 2
    assert scored(found["hat-2"]) == {("soft", Outcome.ANSWERED, "soft"): 1}
    assert found["hat-3"].rows(found["hat-3"].excluded) == 0


def test_an_answer_without_a_place_stays_answered() -> None:
    """Left out, a model would gain by answering outside the view whenever it is unsure."""
    found = seen(row("none", "cap"))["hat-2"]
    assert scored(found) == {("soft", Outcome.ANSWERED, None): 1}
    assert not found.excluded.any()


def test_rows_without_a_target_are_kept_apart() -> None:
    unlabelled = row("cap", None, target_label_set=None)
    (tally,) = seen(unlabelled, failed("refused", None, target_label_set=None)).values()
    assert tally.key.view == "hat-4"
    assert tally.met(tally.unlabelled) == {
        (None, Outcome.ANSWERED, "cap"): 1,
        (None, Outcome.REFUSED, None): 1,
    }
    assert not tally.scored.any()
    mixed = seen(unlabelled, row("cap", "beret"), row("cap", None))
    assert list(mixed) == ["hat-4", "hat-3", "hat-2"]
    unlabelled_there = mixed["hat-3"].met(mixed["hat-3"].unlabelled)
    assert unlabelled_there == {(None, Outcome.ANSWERED, "soft"): 2}


def test_targets_that_meet_the_answers_in_no_view_are_all_excluded() -> None:
    (tally,) = seen(row("cap", "wide", target_label_set="brim-2")).values()
    assert (tally.key.view, tally.rows(tally.excluded)) == ("hat-4", 1)
    assert not tally.scored.any()


def test_target_sets_of_one_combination_add_up_in_a_view() -> None:
    found = seen(row("cap", "cap"), row("cap", "soft", target_label_set="hat-3"))
    assert found["hat-4"].rows(found["hat-4"].excluded) == 1
    assert scored(found["hat-3"]) == {("soft", Outcome.ANSWERED, "soft"): 2}


def test_spurious_persons_are_counted_apart() -> None:
    tally = seen(row("cap", None, outcome="spurious"), row("cap", "cap"))["hat-4"]
    assert tally.rows(tally.spurious) == 1
    assert not tally.unlabelled.any()


def test_combinations_are_kept_apart_and_sorted() -> None:
    rows = [row("cap", "cap", model=m, split=s) for m in ("b", "a") for s in ("y", "x")]
    keys = [tally.key for tally in tallies(counted(rows), load)]
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
