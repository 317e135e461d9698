"""Every figure against scikit-learn, by hand, and against the number of rows that went in."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)

from facescan.attributes import Attribute, LabelSet
from facescan.score import metrics
from facescan.score.metrics import Score
from facescan.score.views import tallies
from facescan.types import RUN_OUTCOMES, Outcome
from tests.facescan.score.hats import Row, counted, failed, load, row


def scores(*rows: Row) -> dict[str, Score]:
    found = [metrics.of(tally) for tally in tallies(counted(rows), load)]
    return {score.key.view: score for score in found}


def nan(value: float | None) -> float:
    return math.nan if value is None else value


def close(expected: float) -> object:
    return pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(200))
def test_equal_to_scikit_learn(seed: int) -> None:
    """A missing answer is one more label to scikit-learn; classes may lack targets or answers."""
    rng = np.random.default_rng(seed)
    labels = [f"c{i}" for i in range(rng.integers(2, 10))]
    n = int(rng.integers(1, 200))
    share = rng.dirichlet(np.full(len(labels), 0.4))
    targets = rng.choice(labels, n, p=share).tolist()
    guesses = np.where(rng.random(n) < 0.6, targets, rng.choice(labels, n)).tolist()
    missing = rng.random(n) < rng.choice([0, 0.2, 1])
    answers = [None if gone else guess for gone, guess in zip(missing, guesses, strict=True)]

    toy = Attribute("hat", "hat", (LabelSet("hat-4", tuple(labels), {}),), (), ())
    rows = [
        row(answer, target, outcome="answered" if answer else "refused")
        for answer, target in zip(answers, targets, strict=True)
    ]
    (tally,) = tallies(counted(rows, load=lambda _: toy), lambda _: toy)
    score = metrics.of(tally)

    compare(score, labels, targets, [answer or "(refused)" for answer in answers])


def compare(
    score: Score, labels: Sequence[str], targets: Sequence[str], answers: Sequence[str]
) -> None:
    assert score.accuracy.value == close(accuracy_score(targets, answers))
    answered = [(t, a) for t, a in zip(targets, answers, strict=True) if a != "(refused)"]
    assert nan(score.accuracy_answered.value) == close(
        accuracy_score(*zip(*answered, strict=True)) if answered else math.nan
    )
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, answers, labels=labels, zero_division=math.nan
    )
    for i, found in enumerate(score.classes):
        assert found.label == labels[i]
        assert found.support == support[i]
        assert nan(found.precision.value) == close(precision[i])
        assert nan(found.recall.value) == close(recall[i])
        assert nan(found.f1.value) == close(f1[i])
    supported = [label for label in labels if label in targets]
    assert score.macro_f1.value == close(
        f1_score(targets, answers, labels=supported, average="macro")
    )
    assert score.balanced_accuracy.value == close(
        recall_score(targets, answers, labels=supported, average="macro")
    )
    assert score.zero_support == tuple(label for label in labels if label not in targets)
    matrix = confusion_matrix(targets, answers, labels=[*labels, "(refused)"])
    met = score.tally.met(score.tally.scored)
    for i, target in enumerate(labels):
        for j, label in enumerate(labels):
            assert met[target, Outcome.ANSWERED, label] == matrix[i, j]
        assert met[target, Outcome.REFUSED, None] == matrix[i, -1]


def test_no_answer_is_wrong_in_accuracy_and_absent_from_accuracy_answered() -> None:
    score = scores(row("cap", "cap"), failed("refused", "cap"), failed("truncated", "none"))[
        "hat-4"
    ]
    assert (score.n, score.n_answered, score.n_correct) == (3, 1, 1)
    assert score.accuracy.value == 1 / 3
    assert score.accuracy_answered.value == 1.0


def test_run_failures_are_in_no_accuracy_but_bound_it() -> None:
    score = scores(
        row("cap", "cap"), row("cap", "none"), failed("pending", "cap"), failed("no_face", "cap")
    )["hat-4"]
    assert (score.n, score.n_run_failures, score.complete) == (2, 2, False)
    assert score.accuracy.value == 0.5
    assert (score.accuracy_worst, score.accuracy_best) == (0.25, 0.75)
    (cap,) = (c for c in score.classes if c.label == "cap")
    assert (cap.support, cap.recall.value) == (1, 1.0)


def test_bounds_of_a_complete_score_are_its_accuracy() -> None:
    score = scores(row("cap", "cap"), row("cap", "none"))["hat-4"]
    assert score.complete
    assert score.accuracy_worst == score.accuracy_best == score.accuracy.value == 0.5


def test_with_run_failures_alone_only_the_bounds_are_known() -> None:
    score = scores(failed("provider_error", "cap"))["hat-4"]
    assert score.accuracy.value is None
    assert score.macro_f1.value is None
    assert (score.accuracy_worst, score.accuracy_best) == (0.0, 1.0)


def test_an_answer_outside_the_view_is_wrong_and_predicts_no_class() -> None:
    score = scores(row("none", "cap"), row("beret", "cap"))["hat-2"]
    assert (score.n, score.n_answered, score.n_outside_view, score.n_correct) == (2, 2, 1, 1)
    assert score.accuracy.value == score.accuracy_answered.value == 0.5
    soft = score.classes[0]
    assert (soft.support, soft.predicted, soft.precision.value) == (2, 1, 1.0)


def test_a_missed_person_counts_and_a_spurious_one_does_not() -> None:
    score = scores(
        row("cap", "cap"), failed("missed", "cap"), row("cap", None, outcome="spurious")
    )["hat-4"]
    assert (score.n, score.accuracy.value) == (2, 0.5)
    assert score.outcomes[Outcome.SPURIOUS] == 1
    assert score.n_unlabelled == 0


def test_without_targets_outcomes_are_all_there_is() -> None:
    score = scores(row("cap", None), failed("refused", None), failed("pending", None))["hat-4"]
    assert (score.n, score.accuracy.value, score.n_unlabelled) == (0, None, 3)
    assert score.unlabelled[Outcome.REFUSED] == 1
    assert not score.complete


LABELS = st.sampled_from(["none", "cap", "beret", "crown"])
ANY_ROW = st.one_of(
    st.builds(row, LABELS, st.none() | LABELS),
    st.builds(failed, st.sampled_from(sorted(set(Outcome) - {"answered"})), st.none() | LABELS),
)


@given(st.lists(ANY_ROW, min_size=1, max_size=40))
def test_every_row_is_in_one_count_of_every_view(rows: list[Row]) -> None:
    for score in scores(*rows).values():
        parts = (score.n, score.n_run_failures, score.n_unlabelled, score.n_excluded)
        assert sum(parts) + score.outcomes[Outcome.SPURIOUS] == len(rows)
        assert sum(score.outcomes.values()) == (
            score.n + score.n_run_failures + score.outcomes[Outcome.SPURIOUS]
        )
        assert sum(c.support for c in score.classes) == score.n
        assert sum(c.predicted for c in score.classes) + score.n_outside_view == score.n_answered
        assert score.n_run_failures == sum(score.outcomes[o] for o in RUN_OUTCOMES)
        low, high = nan(score.accuracy_worst), nan(score.accuracy_best)
        assert not score.n or low <= nan(score.accuracy.value) <= high
