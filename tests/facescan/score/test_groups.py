"""Figures of groups against Fairlearn and scikit-learn, tests against SciPy, and what is said."""

import math
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import (  # type: ignore[import-untyped]  # ships no types
    MetricFrame,
    demographic_parity_difference,
    equalized_odds_difference,
)
from scipy.stats import chi2_contingency  # type: ignore[import-untyped]  # ships no types
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    f1_score,
    precision_score,
    recall_score,
)

from facescan.attributes import Attribute, LabelSet
from facescan.attributes import load as shipped
from facescan.score import groups, metrics
from facescan.score.figures import Figures
from facescan.score.groups import Group, Groups
from facescan.score.metrics import Score
from facescan.score.views import tallies
from facescan.types import Outcome
from tests.facescan.score.hats import Row, counted, failed, load, row

REFUSED = "(refused)"

CLASSES = (
    "The groups are the classes: their accuracies are recalls, and F1, precision and kappa of one "
    "class alone say nothing."
)


def close(expected: float) -> object:
    return pytest.approx(expected, abs=1e-12, nan_ok=True)


def nan(value: float | None) -> float:
    return math.nan if value is None else value


def compared(rows: list[Row], *by: str, min_cell: int = 20, view: str = "hat-4") -> Score:
    of = load if rows[0]["attribute"] == "hat" else shipped
    (counts,) = counted(rows, by, load=of)
    (tally,) = (tally for tally in tallies([counts], of) if tally.key.view == view)
    return metrics.of(tally, min_cell)


def by_light(rows: list[Row], min_cell: int = 20) -> Groups:
    (found,) = compared(rows, "light", min_cell=min_cell).groups
    return found


def lit(light: str | None, right: int, wrong: int, refused: int = 0, **others: Any) -> list[Row]:
    others["group_light"] = light
    return [
        *[row("cap", "cap", **others)] * right,
        *[row("none", "cap", **others)] * wrong,
        *[failed("refused", "cap", **others)] * refused,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_equal_to_fairlearn_and_scikit_learn(seed: int) -> None:
    """With classes that lack targets or answers, missing answers, and groups of any size."""
    rng = np.random.default_rng(seed)
    labels = [f"c{i}" for i in range(rng.integers(2, 7))]
    n = int(rng.integers(2, 300))
    group = rng.choice(["a", "b", "c"], n, p=rng.dirichlet([1, 1, 1]))
    target = rng.choice(labels, n, p=rng.dirichlet(np.full(len(labels), 0.6)))
    guess = np.where(rng.random(n) < 0.6, target, rng.choice(labels, n))
    gone = rng.random(n) < rng.choice([0, 0.2, 1])
    answers = np.where(gone, REFUSED, guess)
    toy = Attribute("hat", "hat", (LabelSet("hat-4", tuple(labels), {}, ordinal=True),), (), ())
    rows = [
        failed("refused", str(t), group_light=str(g))
        if a == REFUSED
        else row(str(a), str(t), group_light=str(g))
        for t, a, g in zip(target, answers, group, strict=True)
    ]
    (counts,) = counted(rows, ("light",), load=lambda _: toy)
    (tally,) = tallies([counts], lambda _: toy)
    (found,) = metrics.of(tally, min_cell=1).groups

    frame = MetricFrame(
        metrics=accuracy_score, y_true=target, y_pred=answers, sensitive_features=group
    )
    assert [each.name for each in found.groups] == [(g,) for g in sorted(set(group))]
    for each in found.groups:
        here = group == each.name[0]
        assert nan(each.accuracy.value) == close(frame.by_group[each.name[0]])
        check_group(each, labels, target[here], answers[here])
    if len(found.groups) < 2:
        assert found.equal_rate is None
        return
    assert nan(found.pooled.value) == close(frame.overall)
    assert found.largest_gap is not None
    assert found.largest_gap.value == close(frame.difference())
    if found.ratio is not None:
        assert found.ratio.value == close(frame.ratio())
    check_across(found, labels, target, answers, group)


def check_group(group: Group, labels: list[str], target: Any, answers: Any) -> None:
    found = group.figures
    assert found is not None
    supported = [label for label in labels if label in target]
    common: dict[str, Any] = {"labels": supported, "average": "macro", "zero_division": 0}
    assert nan(found.macro_f1.value) == close(f1_score(target, answers, **common))
    assert nan(found.balanced_accuracy.value) == close(recall_score(target, answers, **common))
    each: dict[str, Any] = {"labels": labels, "average": None, "zero_division": math.nan}
    for metric in (precision_score, recall_score, f1_score):
        expected = metric(target, answers, **each)
        ours = [getattr(c, metric.__name__.partition("_")[0]).value for c in found.classes]
        assert list(map(nan, ours)) == close(expected.tolist())
    given = answers != REFUSED
    assert nan(found.accuracy_answered.value) == close(
        accuracy_score(target[given], answers[given]) if given.any() else math.nan
    )
    refused = dict(group.outcomes).get(Outcome.REFUSED)
    assert (nan(refused.value) if refused else 0.0) == close(float(np.mean(~given)))
    for label, share in group.selection:
        assert share == close(float(np.mean(answers == label)))
    place = {label: number for number, label in enumerate(labels)}
    t, a = ([place[x] for x in each[given]] for each in (target, answers))
    ordinal = found.ordinal
    assert ordinal is not None
    near = np.abs(np.subtract(t, a)) <= 1
    assert nan(ordinal.off_by_one.value) == close(float(near.sum() / len(target)))
    assert nan(ordinal.mae_bins.value) == close(
        float(np.mean(np.abs(np.subtract(t, a)))) if t else math.nan
    )
    if len(set(t) | set(a)) > 1:
        kappa = cohen_kappa_score(t, a, labels=range(len(labels)), weights="quadratic")
        assert nan(ordinal.quadratic_kappa.value) == close(kappa)


def check_across(found: Groups, labels: list[str], target: Any, answers: Any, group: Any) -> None:
    """One class against the rest, as Fairlearn has it for two; the class that is worst."""
    odds, parity = [], []
    for label in labels:
        truth, chosen = target == label, answers == label
        parity.append(demographic_parity_difference(truth, chosen, sensitive_features=group))
        # Fairlearn takes a rate of no rows as 0, we leave it out: compared where it is defined.
        each = [truth[group == g] for g in set(group)]
        if all(t.any() and not t.all() for t in each):
            odds.append(equalized_odds_difference(truth, chosen, sensitive_features=group))
    assert nan(found.demographic_parity_difference) == close(max(parity))
    if len(odds) == len(labels):
        assert nan(found.equalized_odds_difference) == close(max(odds))
    elif odds:
        assert nan(found.equalized_odds_difference) >= max(odds) - 1e-12


def of_all_kinds(attribute: str, labels: tuple[str, ...], subjects: bool) -> list[Row]:
    """Answers right and wrong, refusals, failures, no target, probabilities, ages; no light too.

    In the bright no subject is known.
    """
    rng = np.random.default_rng(3)
    sets = {"hat": "hat-4", "age": "age-9"}[attribute]
    rows = []
    for number in range(600):
        kind = rng.choice(["answered", "refused", "pending"], p=[0.9, 0.06, 0.04])
        target = str(rng.choice(labels)) if rng.random() > 0.05 else None
        light = (None, "dim", "dark", "bright")[number % 5 % 4]
        others: dict[str, Any] = {"group_light": light, "attribute": attribute}
        others |= {"asked_label_set": sets, "target_label_set": sets}
        others["value_years"] = float(rng.integers(0, 90)) if number % 3 else None
        if subjects and number % 7 and light != "bright":
            others["subject_id"] = f"s{number % 60 // 2}"
        if kind == "answered":
            others["probability"] = float(rng.random())
            rows.append(row(str(rng.choice(labels)), target, **others))
        else:
            rows.append(failed(kind, target, **others))
    return rows


@pytest.mark.parametrize("subjects", [False, True])
@pytest.mark.parametrize(
    ("attribute", "labels", "view"),
    [
        ("hat", ("cap", "none", "crown"), "hat-4"),
        ("hat", ("cap", "none", "crown"), "hat-2"),
        ("age", ("0-2", "20-29", "30-39"), "age-9"),
    ],
)
def test_a_group_has_every_figure_that_its_rows_alone_have(
    attribute: str, labels: tuple[str, ...], view: str, subjects: bool
) -> None:
    rows = of_all_kinds(attribute, labels, subjects)
    (found,) = compared(rows, "light", view=view).groups
    assert [group.name for group in found.groups] == [("bright",), ("dark",), ("dim",)]
    for group in found.groups:
        own = [each for each in rows if (each["group_light"],) == group.name]
        unknown = subjects and group.name == ("bright",)
        if unknown:
            # As subjects of their own, which is what others' subjects make of them.
            own = [{**each, "subject_id": str(number)} for number, each in enumerate(own)]
        alone = compared(own, view=view)
        assert group.figures is not None
        for name in (each.name for each in fields(Figures)):
            ours, expected = getattr(group.figures, name), getattr(alone, name)
            if unknown and name in ("subjects", "n_without_subject"):
                assert (group.figures.subjects, group.figures.n_without_subject) == (0, group.n)
            elif subjects and name in ("macro_f1", "balanced_accuracy", "classes", "ordinal"):
                # What is drawn by chance: subjects are drawn in another order.
                assert plain(ours) == pytest.approx(plain(expected), abs=0.04), name
            else:
                assert ours == expected, name


def plain(figure: Any) -> list[float]:
    """All numbers in a figure, in order; what is no number, as None, is left out."""
    if is_dataclass(figure) and not isinstance(figure, type):
        return [number for each in fields(figure) for number in plain(getattr(figure, each.name))]
    if isinstance(figure, dict):
        return plain(tuple(figure.values()))
    if isinstance(figure, tuple):
        return [number for each in figure for number in plain(each)]
    return [float(figure)] if isinstance(figure, int | float) else []


def test_equal_odds_are_rates_of_each_class_against_the_rest() -> None:
    matrices = np.array([[[8, 2, 0], [1, 9, 0]], [[5, 4, 1], [3, 17, 0]]], float)
    # Class 0: hits 8/10 and 5/10; wrongly chosen 1/10 and 3/20.
    assert groups.equalized_odds_difference(matrices) == pytest.approx(0.3)
    # A group with too few rows of a class is left out of that rate, not taken as 0.
    assert groups.equalized_odds_difference(matrices, 11) is None
    matrices[0, 0] = 0
    assert groups.equalized_odds_difference(matrices) == pytest.approx(0.05)


def test_the_test_of_equal_rates_is_pearsons() -> None:
    found = by_light([*lit("dim", 60, 40), *lit("bright", 90, 30), *lit("dark", 50, 70)])
    expected = chi2_contingency([[60, 90, 50], [40, 30, 70]], correction=False)
    assert found.equal_rate is not None
    assert (found.equal_rate.method, found.equal_rate.df) == ("chi-square", 2)
    assert found.equal_rate.statistic == close(expected.statistic)
    assert found.equal_rate.p == close(expected.pvalue)


def test_where_little_is_expected_answers_are_permuted() -> None:
    """Against Fisher's exact test of 2 x 2, which orders tables nearly as Pearson's does."""
    found = by_light([*lit("dim", 97, 3), *lit("bright", 27, 3)])
    assert found.equal_rate is not None
    assert found.equal_rate.method == "permutation"
    # Of all tables with these totals: those at least as far from equal rates.
    weights = [math.comb(100, k) * math.comb(30, 6 - k) for k in range(7)]
    far = [(k - 600 / 130) ** 2 >= (3 - 600 / 130) ** 2 - 1e-9 for k in range(7)]
    exact = sum(w for w, is_far in zip(weights, far, strict=True) if is_far) / sum(weights)
    assert found.equal_rate.p == pytest.approx(exact, abs=0.01)


def test_equal_rates_are_no_finding() -> None:
    found = by_light([*lit("dim", 80, 20, 5), *lit("bright", 160, 40, 10), *lit("dark", 80, 20, 5)])
    assert list(found.findings()) == []
    assert found.largest_gap is not None
    assert found.largest_gap.value == 0.0
    assert found.largest_gap.corrected < 0
    assert found.largest_gap.low == 0.0


def test_a_difference_is_found_and_the_group_is_named() -> None:
    rows = [*lit("dim", 50, 50), *lit("bright", 160, 40), *lit("dark", 158, 42)]
    (finding,) = by_light(rows).findings()
    assert finding.startswith("Accuracy differs by light (p < 0.001): largest gap ")
    assert "Below the pooled 73.6 %: dim 50.0 % [" in finding
    assert "bright" not in finding
    gap = by_light(rows).largest_gap
    assert gap is not None
    assert 0.2 < gap.corrected < gap.value == pytest.approx(0.3)
    assert 0.05 < gap.low < 0.3 < gap.high


def test_refusals_of_one_group_are_a_finding_of_their_own() -> None:
    rows = [*lit("dim", 90, 30, 0), *lit("bright", 90, 30, 0), *lit("dark", 80, 26, 14)]
    found = by_light(rows)
    assert found.equal_rate is not None
    assert not found.equal_rate.found
    (finding,) = found.findings()
    assert finding == (
        "Outcome refused differs by light (p < 0.001): from 0.0 % (bright) to 11.7 % (dark)."
    )


def test_tests_of_a_score_are_adjusted_together() -> None:
    rows = [
        {**each, "group_hour": "day" if number % 2 else "night"}
        for number, each in enumerate([*lit("dim", 70, 30, 2), *lit("bright", 85, 15, 1)])
    ]
    light, hour = compared(rows, "light", "hour").groups
    tests = [
        test
        for each in (light, hour)
        for test in (each.equal_rate, *(t for _, t in each.tests))
        if test is not None
    ]
    assert len(tests) == 4
    assert light.equal_rate is not None
    assert light.equal_rate.p < 0.05
    assert light.equal_rate.p_holm == pytest.approx(4 * light.equal_rate.p)


def test_small_groups_are_suppressed_and_named() -> None:
    found = by_light([*lit("dim", 60, 40), *lit("bright", 60, 40), *lit("dark", 1, 18)])
    dark = next(each for each in found.groups if each.name == ("dark",))
    assert (dark.n, dark.suppressed, dark.accuracy.value) == (19, True, None)
    assert dark.selection == ()
    assert "Not compared, with fewer than 20 rows: dark (19 rows)." in found.remarks
    assert nan(found.pooled.value) == 0.6
    assert list(found.findings()) == []


def test_groups_of_few_rows_are_marked() -> None:
    found = by_light([*lit("dim", 60, 40), *lit("bright", 20, 10)])
    assert [each.few for each in found.groups] == [True, False]
    assert "Fewer than 100 rows, so very uncertain: bright." in found.remarks


def test_rows_without_a_group_are_counted() -> None:
    found = by_light([*lit("dim", 60, 40), *lit(None, 7, 0)])
    assert found.ungrouped == 7
    assert "7 rows have no light and are in no group." in found.remarks
    assert any("not two groups" in remark for remark in found.remarks)
    assert (found.equal_rate, found.largest_gap, found.worst) == (None, None, None)


def test_the_worst_group_is_given_with_its_simultaneous_interval() -> None:
    found = by_light([*lit("dim", 50, 50), *lit("bright", 160, 40)])
    assert found.worst is not None
    name, accuracy = found.worst
    assert name == ("dim",)
    dim = next(each for each in found.groups if each.name == name)
    assert accuracy == dim.simultaneous
    assert nan(dim.simultaneous.low) < nan(dim.accuracy.low)


def test_subjects_that_agree_are_no_finding() -> None:
    """One subject in which a model is always wrong is one observation, whatever its rows."""
    rows = []
    for who in range(24):
        right = 10 if who % 12 else 0
        light = "dim" if who < 12 else "bright"
        rows += lit(light, right, 10 - right, subject_id=f"s{who}")
    extra = lit("dim", 0, 40, subject_id="s1")
    known = by_light([*rows, *extra])
    assert known.equal_rate is not None
    assert known.equal_rate.method == "clustered"
    assert not known.equal_rate.found
    unknown = by_light([{**each, "subject_id": None} for each in [*rows, *extra]])
    assert unknown.equal_rate is not None
    assert unknown.equal_rate.found


def test_a_group_of_few_subjects_is_suppressed() -> None:
    rows = [
        each
        for who in range(40)
        for each in lit("dim" if who < 9 else "bright", 4, 1, subject_id=f"s{who}")
    ]
    bright, dim = by_light(rows).groups
    assert (dim.n, dim.subjects, dim.suppressed) == (45, 9, True)
    assert (bright.subjects, bright.suppressed) == (31, False)


def test_without_targets_outcomes_are_compared() -> None:
    rows = [{**each, "target": None} for each in [*lit("dim", 90, 0, 0), *lit("dark", 60, 0, 30)]]
    found = by_light(rows)
    assert found.equal_rate is None
    assert [each.accuracy.value for each in found.groups] == [None, None]
    (finding,) = found.findings()
    assert finding.startswith("Outcome refused differs by light")
    assert any("No row has a target" in remark for remark in found.remarks)


def test_groups_that_are_the_classes_have_no_odds() -> None:
    rows = [{**each, "label_hat": "cap"} for each in lit("dim", 50, 30)] + [
        {**row("none", "none"), "group_light": "dim", "label_hat": "none"}
    ] * 40
    (found,) = compared(rows, "hat").groups
    assert found.equalized_odds_difference is None
    assert found.demographic_parity_difference is None
    assert any("groups are the classes" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("label_hat", CLASSES),
        ("group_hat", CLASSES),
        (
            "predicted_hat",
            "The groups are answers to the same question: where the same model gave them, their "
            "accuracies are precisions.",
        ),
    ],
)
def test_grouped_by_itself_an_attribute_has_no_odds_and_no_parity(column: str, said: str) -> None:
    rows = [{**row("cap", "cap"), column: "cap"}] * 40 + [
        {**row("none", "cap"), column: "none"}
    ] * 40
    (found,) = compared(rows, column).groups
    assert found.largest_gap is not None
    assert found.equalized_odds_difference is None
    assert found.demographic_parity_difference is None
    assert said in found.remarks


def test_predicted_groups_of_another_attribute_have_parity_and_no_remark() -> None:
    rows = [{**row("cap", "cap"), "predicted_light": "dim"}] * 40
    rows += [{**row("none", "cap"), "predicted_light": "dark"}] * 40
    (found,) = compared(rows, "predicted_light").groups
    assert found.demographic_parity_difference == 1.0
    assert not any("same question" in remark for remark in found.remarks)


def test_a_fair_model_s_corrected_gap_is_zero_on_average() -> None:
    rng = np.random.default_rng(5)
    gaps = []
    for _ in range(60):
        rights = rng.binomial(200, 0.8, 5)
        rows = [each for g, k in enumerate(rights) for each in lit(str(g), int(k), 200 - int(k))]
        gap = by_light(rows).largest_gap
        assert gap is not None
        gaps.append(gap.corrected)
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / math.sqrt(len(gaps))
