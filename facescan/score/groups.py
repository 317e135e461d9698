"""For whom a model is right: rates by group, and what of their differences is more than chance.

Of groups that are all alike one comes out highest and one lowest: seven equal groups of FairFace's
sizes lie 3 points apart by chance. So, in this order:

1. Whether rates differ at all is one test of all groups together (`equal_rates`). All tests of a
   score, of accuracy and of every outcome, by every grouping, are adjusted together by Holm's
   procedure.
2. Only where that finds a difference are groups named: those whose interval excludes the pooled
   rate, with intervals that hold for all groups together (Z. Sidak, "Rectangular confidence regions
   for the means of multivariate normal distributions", JASA 62 (1967), 626-633).
3. The largest gap is given with what equal rates would show on average taken off. So for a fair
   model it is 0 on average, and negative as often as not; for an unfair one it is rather too small
   than too large. The bounds that the intervals of step 2 leave are those of the gap as seen; the
   corrected one has none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from facescan.score import equal_rates, figures
from facescan.score.coding import Floats, Ints
from facescan.score.compare import holm
from facescan.score.counts import MOST_GROUPS, Grouped
from facescan.score.equal_rates import EqualRate
from facescan.score.figures import Figures
from facescan.score.groupings import GIVEN, LABELS, PREDICTED, TOGETHER
from facescan.score.intervals import CONFIDENCE, UNKNOWN, Rate
from facescan.score.parts import parts
from facescan.score.subjects import Division, Mask, by_group
from facescan.score.views import SCORED_OUTCOMES, Tally
from facescan.types import RUN_OUTCOMES, Outcome

MIN_CELL = 20
"""Rows below which nothing is said of a group, unless the caller has another number."""

MIN_SUBJECTS = 10
"""Subjects below which nothing is said of a group where rows come in subjects."""

FEW = 100
"""Rows below which a group is marked."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The distance between the best and the worst group, as a difference or a ratio.

    Attributes:
        corrected: less what chance adds; a difference below 0 and a ratio above 1 are possible.
        low: bounds of `value`, not of `corrected`; likewise `high`.
    """

    value: float
    corrected: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Group:
    """One group; of a suppressed one only its size is known.

    Attributes:
        name: a value for each column.
        n: rows that accuracy divides by; where no row has a target, all rows of the model.
        n_run_failures: rows beside them that have an outcome of the run.
        subjects: None where they are not known; a row without one counts as one.
        simultaneous: accuracy, with an interval that holds for all groups together.
        outcomes: the rate of every outcome but `answered` that some group has.
        selection: by label, the share of rows that was answered so.
        figures: all that is said of a whole, of the group's rows, by `described`.
    """

    name: tuple[str, ...]
    n: int
    n_answered: int
    n_run_failures: int
    subjects: int | None
    suppressed: bool
    few: bool
    accuracy: Rate = UNKNOWN
    simultaneous: Rate = UNKNOWN
    outcomes: tuple[tuple[Outcome, Rate], ...] = ()
    selection: tuple[tuple[str, float], ...] = ()
    figures: Figures | None = None


@dataclass(frozen=True, slots=True)
class Groups:
    """A score by one grouping; figures across groups are None where fewer than two are compared.

    Attributes:
        ungrouped: rows without a value in one of the columns.
        pooled: accuracy of all groups that are compared, together.
        worst: the group with the lowest accuracy, its interval simultaneous.
        equalized_odds_difference: the largest difference between groups in true positive or in
            false positive rates, of the class for which that is largest (each against the rest),
            as Fairlearn defines it for two classes; of groups with `min_cell` rows in the
            denominator. None also where the groups are of the attribute itself.
        demographic_parity_difference: the same of selection rates.
        tests: of outcomes.
    """

    by: tuple[str, ...]
    source: str
    min_cell: int
    ungrouped: int
    groups: tuple[Group, ...]
    pooled: Rate = UNKNOWN
    equal_rate: EqualRate | None = None
    largest_gap: Spread | None = None
    ratio: Spread | None = None
    worst: tuple[tuple[str, ...], Rate] | None = None
    equalized_odds_difference: float | None = None
    demographic_parity_difference: float | None = None
    tests: tuple[tuple[Outcome, EqualRate], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The columns, and whose answers they are if another run's."""
        name = TOGETHER.join(self.by)
        return name if self.source == LABELS else f"{name} ({self.source})"

    def findings(self) -> Iterator[str]:
        """What the tests support, a sentence each."""
        if self.equal_rate is not None and self.equal_rate.found:
            yield self._accuracy(self.equal_rate)
        for outcome, test in self.tests:
            if test.found:
                yield self._outcome(outcome, test)

    def _accuracy(self, test: EqualRate) -> str:
        assert self.largest_gap is not None
        gap = self.largest_gap
        said = (
            f"Accuracy differs by {self.name} ({_p(test)}): largest gap "
            f"{_points(gap.corrected)} points ({_points(gap.value)} before what chance adds)."
        )
        pooled = self.pooled.value or 0.0
        compared = [each for each in self.groups if not each.suppressed]
        below = [each for each in compared if (each.simultaneous.high or 0.0) < pooled]
        above = [each for each in compared if (each.simultaneous.low or 0.0) > pooled]
        for word, few in (("Below", below), ("Above", above)):
            if few:
                few.sort(key=lambda each: each.accuracy.value or 0.0, reverse=few is above)
                listed = _listed([f"{_name(g.name)} {_percent(g.simultaneous)}" for g in few])
                said += f" {word} the pooled {_points(pooled)} %: {listed}."
        return said

    def _outcome(self, outcome: Outcome, test: EqualRate) -> str:
        rates = [
            (rate.value or 0.0, each.name)
            for each in self.groups
            for of, rate in each.outcomes
            if of is outcome and not each.suppressed
        ]
        (low, least), (high, most) = min(rates), max(rates)
        return (
            f"Outcome {outcome} differs by {self.name} ({_p(test)}): from {_points(low)} % "
            f"({_name(least)}) to {_points(high)} % ({_name(most)})."
        )


def compare(tally: Tally, grouped: Grouped, min_cell: int = MIN_CELL) -> Groups:
    """Compare the groups of one score; the tests are not yet adjusted for one another."""
    grouping = grouped.grouping
    labelled = bool(tally.rows(tally.tried))
    tried = tally.tried if labelled else tally.unlabelled & tally.of(SCORED_OUTCOMES)
    result = Groups(grouping.by, grouping.source, min_cell, 0, ())
    if grouped.given_up:
        remark = f"More than {MOST_GROUPS:,} groups by {result.name}: they are not compared."
        return replace(result, remarks=(remark,))
    rows = by_group(tally.counts, grouped)
    sizes = rows.totals(tried).astype(np.int64)
    clusters = rows.clusters(tried) if tally.counts.subjects is not None else None
    compared = sizes >= max(min_cell, 1)
    if clusters is not None:
        compared &= clusters >= MIN_SUBJECTS
    failed = tally.failed if labelled else tally.unlabelled & tally.of(RUN_OUTCOMES)
    failures = rows.totals(failed).astype(np.int64)
    listed, among = np.flatnonzero(sizes + failures > 0), np.flatnonzero(compared)
    own = tuple(_of_itself(grouping.columns, tally.key.attribute))
    pooled = rows.merged(np.where(compared, 0, -1))
    shared = None if rows.pairs is None else rows.shared(tried, among)
    found = _Compared(tally, grouped, rows, tried, labelled, sizes, failures, among, pooled, shared)
    groups = found.groups(listed, clusters)
    result = replace(
        result,
        ungrouped=tally.rows(tried) - int(sizes.sum()),
        groups=groups,
        remarks=tuple(_remarks(groups, result, labelled, own, tally.rows(tried) - sizes.sum())),
    )
    return found.across(result, groups, bool(own)) if len(among) > 1 else result


def described(result: Groups, tally: Tally, grouped: Grouped) -> Groups:
    """The same with every figure of the groups that are compared; `grouped` is what they are of."""
    places = {name: place for place, name in enumerate(grouped.groups)}
    shown = [each for each in result.groups if not each.suppressed]
    within = parts(tally, grouped, [places[each.name] for each in shown])
    of_each = {each.name: figures.of(part) for each, part in zip(shown, within, strict=True)}
    return replace(
        result,
        groups=tuple(replace(each, figures=of_each.get(each.name)) for each in result.groups),
    )


def adjusted(all_groups: Sequence[Groups]) -> tuple[Groups, ...]:
    """The same with the tests adjusted for one another, by Holm's procedure."""
    tests = [
        each
        for groups in all_groups
        for each in (groups.equal_rate, *(test for _, test in groups.tests))
        if each is not None
    ]
    new = iter(holm([test.p for test in tests]))
    return tuple(
        replace(
            groups,
            equal_rate=groups.equal_rate and replace(groups.equal_rate, p_holm=next(new)),
            tests=tuple((of, replace(test, p_holm=next(new))) for of, test in groups.tests),
        )
        for groups in all_groups
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """What the figures of one grouping are taken of.

    Attributes:
        among: the groups that are compared.
        pooled: their rows, in one part.
        shared: `Division.shared` of these groups; None where no subject is known.
    """

    tally: Tally
    grouped: Grouped
    rows: Division
    tried: Mask
    labelled: bool
    sizes: Ints
    failures: Ints
    among: Ints
    pooled: Division
    shared: Floats | None

    def groups(self, listed: Ints, clusters: Ints | None) -> tuple[Group, ...]:
        """Every group that has rows."""
        tally, rows, tried = self.tally, self.rows, self.tried
        is_answered = tried & tally.of({Outcome.ANSWERED})
        answered = rows.totals(is_answered).astype(np.int64)
        together = CONFIDENCE ** (1 / max(len(self.among), 1))
        accuracy = simultaneous = (UNKNOWN,) * rows.parts
        if self.labelled:
            accuracy, simultaneous = rows.at_confidences(
                tally.correct, tried, [CONFIDENCE, together]
            )
        outcomes = [
            (outcome, rows.proportions(tried & tally.of({outcome}), tried))
            for outcome in self.outcomes()
        ]
        selection = self._selection()
        found = []
        for part in listed.tolist():
            group = Group(
                name=self.grouped.groups[part],
                n=int(self.sizes[part]),
                n_answered=int(answered[part]),
                n_run_failures=int(self.failures[part]),
                subjects=None if clusters is None else int(clusters[part]),
                suppressed=part not in self.among,
                few=int(self.sizes[part]) < FEW,
            )
            if not group.suppressed:
                group = replace(
                    group,
                    accuracy=accuracy[part],
                    simultaneous=simultaneous[part],
                    outcomes=tuple((outcome, rates[part]) for outcome, rates in outcomes),
                    selection=tuple(zip(tally.labels.labels, selection[part], strict=True)),
                )
            found.append(group)
        return tuple(found)

    def outcomes(self) -> list[Outcome]:
        """Those, `answered` apart, that groups which are compared have."""
        return [
            outcome
            for outcome in Outcome
            if outcome in SCORED_OUTCOMES - {Outcome.ANSWERED}
            and self.rows.totals(self.tried & self.tally.of({outcome}))[self.among].any()
        ]

    def across(self, result: Groups, groups: Sequence[Group], own: bool) -> Groups:
        """Add what is said of the groups together."""
        tests = tuple(
            (outcome, self._test(self.tried & self.tally.of({outcome}))[0])
            for outcome in self.outcomes()
        )
        if not self.labelled:
            return replace(result, tests=tests)
        (pooled,) = self.pooled.proportions(self.tally.correct, self.tried)
        test, drawn = self._test(self.tally.correct, spread=True)
        compared = [each for each in groups if not each.suppressed]
        worst = min(compared, key=lambda each: each.accuracy.value or 0.0)
        gap, ratio = _spreads(compared, drawn)
        matrices = self._matrices()[self.among]
        return replace(
            result,
            pooled=pooled,
            equal_rate=test,
            largest_gap=gap,
            ratio=ratio,
            worst=(worst.name, worst.simultaneous),
            equalized_odds_difference=None
            if own
            else equalized_odds_difference(matrices, result.min_cell),
            demographic_parity_difference=None if own else demographic_parity_difference(matrices),
            tests=tests,
        )

    def _matrices(self) -> Floats:
        """By group, rows by target and label, a last column for those without a label."""
        size = len(self.tally.labels.labels)
        label = np.where(self.tally.label < 0, size, self.tally.label)
        place = np.where(self.tally.tried, self.tally.target * (size + 1) + label, 0)
        width = size * (size + 1)
        where = self.grouped.part * width + place[self.grouped.cell]
        weights = self.grouped.n * self.tally.tried[self.grouped.cell]
        counted = np.bincount(where, weights, self.rows.parts * width)
        return counted.astype(np.float64).reshape(self.rows.parts, size, size + 1)

    def _selection(self) -> list[list[float]]:
        """By group, how often each label is answered."""
        chosen = np.stack(
            [
                self.rows.totals(self.tried & (self.tally.label == place))
                for place in range(len(self.tally.labels.labels))
            ],
            axis=1,
        )
        shares: list[list[float]] = (chosen / np.maximum(self.sizes, 1)[:, None]).tolist()
        return shares

    def _test(self, hits: Mask, spread: bool = False) -> tuple[EqualRate, Floats]:
        """Whether the groups have one rate of `hits`; the draws of `equal_rates.compare`."""
        found = self.rows.totals(hits)[self.among]
        alike = 0.0
        if self.shared is not None:
            (together,) = self.pooled.moments(hits.astype(np.float64), self.tried)
            alike = equal_rates.correlation(together)
        n = self.sizes[self.among]
        return equal_rates.compare(found, n, self.shared, alike, spread)


def equalized_odds_difference(matrices: Floats, min_rows: int = 1) -> float | None:
    """Of one class against the rest, the worst class; None where no two groups can be compared.

    Args:
        matrices: by group, rows by target and label, with a last column for no label.
        min_rows: rates of fewer rows are left out.
    """
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    support, chosen = matrices.sum(axis=2), matrices[..., :-1].sum(axis=1)
    others = support.sum(axis=1, keepdims=True) - support
    return _widest([(hits, support), (chosen - hits, others)], min_rows)


def demographic_parity_difference(matrices: Floats) -> float | None:
    """The largest difference between groups in how often a label is answered."""
    chosen = matrices[..., :-1].sum(axis=1)
    total = np.broadcast_to(matrices.sum(axis=(1, 2))[:, None], chosen.shape)
    return _widest([(chosen, total)], 1)


def _widest(rates: Sequence[tuple[Floats, Floats]], min_rows: int) -> float | None:
    """The largest difference between groups, of any rate and class."""
    found = []
    for hits, trials in rates:
        for hit, rows in zip(hits.T, trials.T, strict=True):
            enough = rows >= max(min_rows, 1)
            if enough.sum() > 1:
                found.append(float(np.ptp(hit[enough] / rows[enough])))
    return max(found, default=None)


def _spreads(compared: Sequence[Group], drawn: Floats) -> tuple[Spread, Spread | None]:
    rates = [each.accuracy.value or 0.0 for each in compared]
    low = [each.simultaneous.low or 0.0 for each in compared]
    high = [1.0 if each.simultaneous.high is None else each.simultaneous.high for each in compared]
    least, most = drawn.min(axis=1), drawn.max(axis=1)
    value = max(rates) - min(rates)
    gap = Spread(
        value,
        value - float((most - least).mean()),
        max(0.0, max(low) - min(high)),
        max(high) - min(low),
    )
    if not max(rates):
        return gap, None
    ratio = min(rates) / max(rates)
    by_chance = np.divide(least, most, out=np.ones(len(most)), where=most > 0)
    return gap, Spread(
        ratio,
        ratio + 1 - float(by_chance.mean()),
        min(low) / max(high),
        min(1.0, min(high) / max(low)) if max(low) else 1.0,
    )


def _of_itself(columns: Sequence[str], attribute: str) -> Iterator[str]:
    """What there is to say where an attribute is grouped by itself; nothing elsewhere."""
    if any(f"{prefix}{attribute}" in columns for prefix in GIVEN):
        yield (
            "The groups are the classes: their accuracies are recalls, and F1, precision and kappa "
            "of one class alone say nothing."
        )
    if f"{PREDICTED}{attribute}" in columns:
        yield (
            "The groups are answers to the same question: where the same model gave them, their "
            "accuracies are precisions."
        )


def _remarks(
    groups: Sequence[Group], result: Groups, labelled: bool, own: Sequence[str], ungrouped: int
) -> Iterator[str]:
    suppressed = [each for each in groups if each.suppressed]
    few = [each for each in groups if each.few and not each.suppressed]
    if suppressed:
        too_few = f"fewer than {result.min_cell} rows"
        if suppressed[0].subjects is not None:
            too_few += f" or {MIN_SUBJECTS} subjects"
        yield (
            f"Not compared, with {too_few}: {_names(suppressed)} "
            f"({sum(each.n for each in suppressed):,} rows)."
        )
    if few:
        yield f"Fewer than {FEW} rows, so very uncertain: {_names(few)}."
    if failed := [each for each in groups if each.n_run_failures]:
        listed = _listed([f"{_name(each.name)} {each.n_run_failures:,}" for each in failed])
        yield f"Rows that failed in the run are in no rate: {listed}."
    if ungrouped:
        yield f"{ungrouped:,} rows have no {' or no '.join(result.by)} and are in no group."
    if len(groups) - len(suppressed) < 2:
        yield "Nothing is compared: there are not two groups large enough."
    yield from own
    if groups and not labelled:
        yield "No row has a target: outcomes alone are compared."


_LISTED = 6


def _names(groups: Sequence[Group]) -> str:
    return _listed([_name(each.name) for each in groups])


def _listed(items: Sequence[str]) -> str:
    listed, more = ", ".join(items[:_LISTED]), len(items) - _LISTED
    return f"{listed} and {more:,} more" if more > 0 else listed


def _name(group: Sequence[str]) -> str:
    return TOGETHER.join(group)


def _p(test: EqualRate) -> str:
    return "p < 0.001" if test.p_holm < 0.001 else f"p = {test.p_holm:.3f}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _percent(rate: Rate) -> str:
    low, high = rate.low or 0.0, 1.0 if rate.high is None else rate.high
    return f"{_points(rate.value or 0.0)} % [{_points(low)}-{_points(high)}]"
