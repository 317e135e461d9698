"""Paired comparison: against statsmodels, against Tango's definition, against counting by hand."""

from collections import Counter
from math import log, sqrt
from pathlib import Path
from random import Random

import pytest
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]  # ships no types
from statsmodels.stats.contingency_tables import mcnemar  # type: ignore[import-untyped]  # ships no types
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]  # ships no types

from facescan.errors import DataError
from facescan.score import compare
from facescan.score.compare import Comparison
from facescan.storage import LocalStorage
from facescan.types import RUN_OUTCOMES, Outcome
from tests.facescan.score.hats import HAT, Row, failed, load, row, write


def compared(*runs: Path) -> list[Comparison]:
    folders = [(path.name, LocalStorage(str(path / "predictions"))) for path in runs]
    return compare.compare(folders, load)


def run_of(path: Path, *parts: list[Row]) -> Path:
    for number, rows in enumerate(parts):
        write(path / "predictions" / f"{number}.parquet", rows)
    return path


def answers(model: str, *given: tuple[str, str | None, str | None]) -> list[Row]:
    """Rows of (image, answer, target); without an answer the model refused."""
    return [
        row(label, target, image_id=image, model=model)
        if label
        else failed("refused", target, image_id=image, model=model)
        for image, label, target in given
    ]


def test_two_models_are_compared_on_the_rows_that_both_have(tmp_path: Path) -> None:
    seer = answers("seer", ("1", "cap", "cap"), ("2", "none", "cap"), ("3", None, "crown"))
    poet = answers("poet", ("1", "beret", "cap"), ("2", "cap", "cap"), ("3", "crown", "crown"))
    poet += answers("poet", ("4", "cap", "cap"))
    found = {each.view: each for each in compared(run_of(tmp_path / "run", seer, poet))}
    assert sorted(found) == ["hat-2", "hat-3", "hat-4"]
    exact, merged = found["hat-4"], found["hat-3"]
    assert (exact.a.model, exact.b.model) == ("poet", "seer")
    assert (exact.both, exact.a_only, exact.b_only, exact.neither) == (0, 2, 1, 0)
    assert (merged.both, merged.a_only, merged.b_only, merged.neither) == (1, 2, 0, 0)
    assert (exact.rows_only_a, exact.rows_only_b) == (1, 0)
    assert exact.difference.value == pytest.approx(1 / 3)
    entry = exact.entry()
    assert entry["accuracy_a"] == pytest.approx(2 / 3)
    assert entry["accuracy_b"] == pytest.approx(1 / 3)
    assert (entry["n"], entry["not_compared"]["rows_only_a"]) == (3, 1)
    assert (entry["outcome_rates_a"], entry["outcome_rates_b"]) == ({}, {"refused": 1 / 3})


def test_rows_that_cannot_be_compared_are_counted_by_why(tmp_path: Path) -> None:
    seer = answers("seer", ("1", "cap", "cap"), ("2", "cap", None), ("3", "none", "none"))
    seer += [failed("engine_error", "cap", image_id="4"), row("cap", "cap", image_id="5")]
    poet = answers("poet", ("1", "cap", "cap"), ("2", "cap", None), ("3", "none", "none"))
    poet += answers("poet", ("4", "cap", "cap"), ("5", "cap", "beret"))
    found = {each.view: each for each in compared(run_of(tmp_path / "run", seer + poet))}
    exact, without_none = found["hat-4"], found["hat-2"]
    assert (exact.n, exact.unseen, exact.failed, exact.relabelled) == (2, 1, 1, 1)
    assert (exact.unanswered_a, exact.unanswered_b) == ({}, {})
    assert (without_none.n, without_none.unseen) == (2, 2)
    # Cap and beret are both soft.
    assert without_none.relabelled == 0


def test_runs_are_compared_model_by_model(tmp_path: Path) -> None:
    before = run_of(tmp_path / "before", answers("seer", ("1", "cap", "cap"), ("2", "cap", "cap")))
    after = run_of(tmp_path / "after", answers("seer", ("2", "none", "cap"), ("3", "cap", "cap")))
    (exact,) = (each for each in compared(before, after) if each.view == "hat-4")
    assert {exact.a.run, exact.b.run} == {"before", "after"}
    assert (exact.n, exact.rows_only_a, exact.rows_only_b) == (1, 1, 1)
    assert exact.difference.value == (1.0 if exact.a.run == "before" else -1.0)


def test_answers_in_other_label_sets_meet_in_a_common_view(tmp_path: Path) -> None:
    fine = answers("seer", ("1", "cap", "cap"))
    coarse = [row("soft", "cap", asked_label_set="hat-3", model="poet")]
    elsewhere = [row("wide", "cap", asked_label_set="brim-2", model="other")]
    found = compared(run_of(tmp_path / "run", fine, coarse, elsewhere))
    assert [each.view for each in found] == ["hat-3", "hat-2"]


def test_a_person_who_is_not_there_is_no_row(tmp_path: Path) -> None:
    rows = answers("seer", ("1", "cap", "cap")) + answers("poet", ("1", "cap", "cap"))
    rows += [failed("spurious", None, model=model, person=1) for model in ("seer", "poet")]
    exact = compared(run_of(tmp_path / "run", rows))[0]
    assert (exact.n, exact.unseen, exact.rows_only_a, exact.rows_only_b) == (1, 0, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_files_of_any_cut_and_order_count_as_by_hand(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    labels = HAT.label_set("hat-4").labels
    truth = {str(image): random.choice(labels) for image in range(80)}
    rows: list[Row] = []
    for model in ("seer", "poet", "third"):
        for image in random.sample(sorted(truth), 60):
            outcome = random.choice(
                [Outcome.ANSWERED] * 5 + [o for o in Outcome if o != "spurious"]
            )
            label = random.choice(labels) if outcome is Outcome.ANSWERED else None
            same = {"model": model, "image_id": image, "split": "ab"[int(image) % 2]}
            rows.append(row(label, truth[image], outcome=outcome, **same))
    random.shuffle(rows)
    cut = random.randrange(len(rows))
    found = compared(run_of(tmp_path / "run", rows[:cut], rows[cut:]))
    assert len(found) == 3 * 3 * 2
    for each in found:
        assert counted(each) == by_hand(rows, each)


def counted(each: Comparison) -> tuple[int, ...]:
    return (each.both, each.a_only, each.b_only, each.neither, each.rows_only_a, each.failed)


def by_hand(rows: list[Row], each: Comparison) -> tuple[int, ...]:
    sides = [
        {r["image_id"]: r for r in rows if (r["model"], r["split"]) == (side.model, each.split)}
        for side in (each.a, each.b)
    ]
    view = HAT.view("hat-4", each.view)
    assert view is not None
    kinds = Counter[object]()
    for image, a in sides[0].items():
        b = sides[1].get(image)
        target = view.merges.get(str(a["target"]))
        if b is None:
            kinds["only_a"] += 1
        elif target is not None:
            if {a["outcome"], b["outcome"]} & RUN_OUTCOMES:
                kinds["failed"] += 1
            else:
                kinds[tuple(view.merges.get(str(r["label"])) == target for r in (a, b))] += 1
    right = [(True, True), (True, False), (False, True), (False, False)]
    return tuple(kinds[key] for key in (*right, "only_a", "failed"))


@pytest.mark.parametrize("seed", range(20))
def test_the_exact_test_is_statsmodels(seed: int) -> None:
    random = Random(seed)
    a_only, b_only = random.randrange(60), random.randrange(60)
    oracle = mcnemar([[5, a_only], [b_only, 5]], exact=True).pvalue
    assert compare.mcnemar(a_only, b_only) == pytest.approx(oracle, abs=1e-12)


def test_where_nothing_differs_nothing_is_shown() -> None:
    assert compare.mcnemar(0, 0) == 1.0
    assert compare.smallest_detectable(0, 100) is None
    interval = compare.difference(0, 0, 100)
    assert interval.value == 0.0
    assert interval.low is not None
    assert interval.high == pytest.approx(-interval.low)
    # The score interval of a difference without a discordant pair: z^2 / (n + z^2).
    assert interval.high == pytest.approx(1.959964**2 / (100 + 1.959964**2), abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_statsmodels(seed: int) -> None:
    random = Random(seed)
    p_values = [random.random() ** 3 for _ in range(random.randrange(1, 12))]
    oracle = multipletests(p_values, method="holm")[1]
    assert compare.holm(p_values) == pytest.approx(list(oracle), abs=1e-12)
    assert compare.holm([]) == []


@pytest.mark.parametrize(
    ("a_only", "b_only", "n"),
    [
        (12, 2, 50),
        (2, 12, 50),
        (1, 0, 14),
        (0, 5, 30),
        (40, 25, 1000),
        (3, 3, 6),
        (700, 640, 10954),
    ],
)
def test_at_its_ends_the_interval_is_where_tangos_statistic_is_196(
    a_only: int, b_only: int, n: int
) -> None:
    interval = compare.difference(a_only, b_only, n)
    assert interval.value is not None
    assert interval.low is not None
    assert interval.high is not None
    assert -1 <= interval.low < interval.value < interval.high <= 1
    for end in (interval.low, interval.high):
        assert abs(statistic(a_only, b_only, n, end)) == pytest.approx(1.959964, abs=2e-4)


def statistic(a_only: int, b_only: int, n: int, delta: float) -> float:
    """Tango's statistic, its nuisance by maximising the likelihood instead of his equation."""

    def unlikely(b_rate: float) -> float:
        a_rate = b_rate + delta
        cells = ((a_only, a_rate), (b_only, b_rate), (n - a_only - b_only, 1 - a_rate - b_rate))
        return -sum(count * log(max(rate, 1e-300)) for count, rate in cells if count)

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    options = {"xatol": 1e-12}
    b_rate = float(minimize_scalar(unlikely, bounds=bounds, options=options).x)
    return (a_only - b_only - n * delta) / sqrt(n * (2 * b_rate + delta - delta**2))


@pytest.mark.parametrize(
    ("points", "n"), [(0.01, 15_700), (0.02, 3_920), (0.03, 1_740), (0.05, 630)]
)
def test_what_could_be_shown_at_a_fifth_discordant_is_as_published(points: float, n: int) -> None:
    found = compare.smallest_detectable(n // 5, n)
    assert found == pytest.approx(points, rel=0.005)


def test_where_too_few_rows_differ_nothing_could_be_shown() -> None:
    assert compare.smallest_detectable(3, 1000) is None
    assert compare.smallest_detectable(20, 1000) is not None


@pytest.mark.parametrize("alike", [0, 1, 1000])
@pytest.mark.parametrize("discordant", range(1, 30))
def test_something_could_be_shown_exactly_where_the_test_can_find_it(
    discordant: int, alike: int
) -> None:
    n = discordant + alike
    found = compare.smallest_detectable(discordant, n)
    assert (found is not None) == (compare.mcnemar(discordant, 0) <= 0.05)
    if found is not None:
        assert 0 < found <= discordant / n + 1e-12


def test_p_values_are_adjusted_over_all_that_is_compared(tmp_path: Path) -> None:
    right = [(str(image), "cap", "cap") for image in range(12)]
    wrong = [(str(image), "none", "cap") for image in range(12)]
    run = run_of(tmp_path / "run", answers("a", *right), answers("b", *wrong))
    found = compared(run)
    assert {each.family for each in found} == {3}
    assert {each.p for each in found} == {2 * 0.5**12}
    assert {each.p_holm for each in found} == {3 * 2 * 0.5**12}
    folders = [("run", LocalStorage(str(run / "predictions")))]
    (only,) = compare.compare(folders, load, lambda attribute, view: view == "hat-3")
    assert (only.family, only.p_holm) == (1, only.p)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("top hat", "cap", model="poet"), "answer 'top hat', which is not in hat-4"),
        (row("cap", "top hat", model="poet"), "target 'top hat', which is not in hat-4"),
        (failed("asleep", "cap", model="poet"), "'asleep', which is no outcome"),
        (row("cap", "cap", target_label_set=None, model="poet"), "target 'cap', .* in None"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(
    tmp_path: Path, bad: Row, message: str
) -> None:
    run = run_of(tmp_path / "run", [row("cap", "cap"), bad])
    with pytest.raises(DataError, match=message):
        compared(run)


def test_a_row_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = answers("seer", ("1", "cap", "cap"))
    run = run_of(tmp_path / "run", twice + answers("poet", ("1", "cap", "cap")), twice)
    with pytest.raises(DataError, match=r"a row of people/test about hat twice.*facescan verify"):
        compared(run)


def test_a_file_that_holds_no_predictions_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", answers("seer", ("1", "cap", "cap")))
    (run / "predictions" / "9.parquet").write_text("half")
    with pytest.raises(DataError, match=r"9\.parquet: cannot be read as predictions"):
        compared(run)
