"""Whether intervals hold the truth as often as they say, and findings by group are true.

    python -m bench.score_coverage

Simulates data sets whose truth is known, scores each as `facescan score` does, and counts: how
often the 95 % intervals hold the truth (with rows of one subject alike or not), how often a model
that is equally right for all groups is found unfair, and how often one that is 6 points worse for
one group is found out. About ten minutes on two cores; `--sets 200` for a look.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import binom  # type: ignore[import-untyped]  # ships no types

from facescan import attributes
from facescan.score import bootstrap, classes, groups, views
from facescan.score.coding import Floats, Ints
from facescan.score.counts import COMBINATION, Counter, Counts
from facescan.score.groupings import groupings
from facescan.score.intervals import Rate, rate
from facescan.score.ordinal import quadratic_kappas
from facescan.score.subjects import whole

RACE_SUPPORTS = {
    "White": 2085,
    "Latino_Hispanic": 1623,
    "Black": 1556,
    "East Asian": 1550,
    "Indian": 1516,
    "Southeast Asian": 1415,
    "Middle Eastern": 1209,
}
"""Of FairFace's validation set, as in arXiv 2410.24148."""

_RACE = attributes.load("race").label_set("race-7").labels
_WHOLE_SET = {
    **dict(zip(COMBINATION, ("m", "d", "s", "race", "p", "free", "race-7"), strict=True)),
    "target_label_set": "race-7",
}
_PER_TASK = 50
_ACCURACY = 0.76


@dataclass(frozen=True, slots=True)
class Rows:
    """One simulated set; labels by their place in `race-7`, -1 for a refusal."""

    target: Ints
    label: Ints
    subject: Ints | None = None
    group: Ints | None = None


def counted(rows: Rows) -> Counts:
    """The rows as `facescan score` counts them."""
    n = len(rows.target)
    columns: dict[str, pa.Array[Any]] = {
        name: _coded(np.zeros(n, np.int64), [value]) for name, value in _WHOLE_SET.items()
    }
    columns["target"] = _coded(rows.target, _RACE)
    columns["label"] = _coded(rows.label, _RACE)
    columns["outcome"] = _coded((rows.label < 0).astype(np.int64), ["answered", "refused"])
    if rows.subject is not None:
        columns["subject_id"] = pa.array(rows.subject.astype(str))
    if rows.group is not None:
        columns["group_g"] = _coded(rows.group, [f"{g:03d}" for g in range(rows.group.max() + 1)])
    counter = Counter(attributes.load, groupings(None, columns))
    counter.add(pa.RecordBatch.from_pydict(columns))
    (counts,) = counter.counts()
    return counts


def _coded(codes: Ints, values: Sequence[str]) -> "pa.Array[Any]":
    indices = pa.array(codes, pa.int32(), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(values))


def tally(rows: Rows) -> views.Tally:
    """The set seen in the label set that was asked."""
    return next(views.tallies([counted(rows)], attributes.load))


def answered(rng: np.random.Generator, target: Ints, chance: Floats) -> Ints:
    """Right with this chance; wrong answers go to the next two labels, twice as often to one."""
    right = rng.random(len(target)) < chance
    wrong = (target + rng.choice([1, 1, 2], len(target))) % len(_RACE)
    return np.where(right, target, wrong)


_BY_CLASS = np.array([0.85, 0.9, 0.6, 0.8, 0.7, 0.75, 0.65])
"""How often each class is right in the sets of which macro-F1 and balanced accuracy are taken."""


def clusters(
    rng: np.random.Generator, sizes: Ints, accuracy: Floats, alike: float
) -> tuple[Ints, Floats]:
    """The subject of each row, and its chance; `alike` is the correlation within a subject."""
    subject = np.repeat(np.arange(len(sizes)), sizes)
    if not alike:
        return subject, accuracy[subject]
    scale = (1 - alike) / alike
    return subject, rng.beta(accuracy * scale, (1 - accuracy) * scale)[subject]


def holds(interval: Rate, truth: float) -> bool:
    """Whether the interval has the truth in it."""
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


def accuracy_set(alike: float, equal: bool, number: int) -> list[bool]:
    """Clustered and naive interval of accuracy; 100 subjects, 5 rows each or 1 to 9."""
    rng = np.random.default_rng((number, int(alike * 10), equal))
    sizes = np.full(100, 5) if equal else rng.permutation(np.arange(100) % 9 + 1)
    subject, chance = clusters(rng, sizes, np.full(100, _ACCURACY), alike)
    target = np.zeros(len(subject), np.int64)
    found = tally(Rows(target, answered(rng, target, chance), subject))
    (clustered,) = whole(found.counts).proportions(found.correct, found.tried)
    naive = rate(found.rows(found.correct), found.rows(found.tried))
    return [holds(clustered, _ACCURACY), holds(naive, _ACCURACY)]


def macro_set(alike: float, in_subjects: bool, rows: int, number: int) -> list[bool]:
    """Bootstrap intervals of macro-F1, balanced accuracy and kappa; 5 rows a subject."""
    rng = np.random.default_rng((number, int(alike * 10), rows, in_subjects))
    each = 5 if in_subjects else 1
    share = np.array(list(RACE_SUPPORTS.values())) / sum(RACE_SUPPORTS.values())
    of_subject = rng.choice(len(_RACE), rows // each, p=share)
    sizes = np.full(rows // each, each)
    subject, chance = clusters(rng, sizes, _BY_CLASS[of_subject], alike)
    target = of_subject[subject]
    label = answered(rng, target, chance)
    found = tally(Rows(target, label, subject if in_subjects else None))
    drawn, seen = bootstrap.resampled(found), bootstrap.confusion(found)
    truth, of_class = _true_confusion(share), len(sizes) / len(_RACE)
    return [
        holds(each, float(figure(truth)))
        for figure, clusters_ in (
            (classes.macro_f1, of_class),
            (classes.balanced_accuracy, of_class),
            (quadratic_kappas, len(sizes)),
        )
        for each in [bootstrap.interval(float(figure(seen)), figure(drawn), clusters_, [])]
    ]


def _true_confusion(share: Floats) -> Floats:
    size = len(_RACE)
    matrix = np.zeros((size, size + 1))
    for target in range(size):
        matrix[target, target] = share[target] * _BY_CLASS[target]
        wrong = share[target] * (1 - _BY_CLASS[target])
        matrix[target, (target + 1) % size] = wrong * 2 / 3
        matrix[target, (target + 2) % size] = wrong / 3
    return matrix


def unfair(sizes: tuple[int, ...], gap: float, alike: float, number: int) -> list[bool]:
    """Whether anything is found, and whether the last group is named; 2 % refusals in all groups.

    With `alike` above 0, rows come in subjects of 5.
    """
    rng = np.random.default_rng((number, len(sizes), int(gap * 100), int(alike * 10)))
    if alike:
        sizes = tuple(5 * (size // 5) for size in sizes)
    group = np.repeat(np.arange(len(sizes)), sizes)
    chance = np.full(len(group), _ACCURACY)
    chance[group == len(sizes) - 1] -= gap
    subject = None
    if alike:
        subject, chance = clusters(rng, np.full(len(group) // 5, 5), chance[::5], alike)
    target = rng.integers(0, len(_RACE), len(group))
    label = answered(rng, target, chance)
    label[rng.random(len(group)) < 0.02] = -1
    found = tally(Rows(target, label, subject, group))
    compared = groups.adjusted([groups.compare(found, each) for each in found.counts.grouped])
    findings = [finding for each in compared for finding in each.findings()]
    named = "Below the pooled"
    last = f"{len(sizes) - 1:03d} "
    of_gap = [each.largest_gap.corrected for each in compared if each.largest_gap]
    return [bool(findings), any(named in f and last in f for f in findings), of_gap[0] > 0]


def shares(sets: int, simulate: Callable[[int], list[bool]], pool: ProcessPoolExecutor) -> Floats:
    """How often each of what `simulate` says is true."""
    starts = range(0, sets, _PER_TASK)
    parts = list(pool.map(partial(_part, simulate, sets), starts))
    return np.asarray(np.concatenate(parts).mean(axis=0))


def _part(simulate: Callable[[int], list[bool]], sets: int, first: int) -> npt.NDArray[np.bool_]:
    return np.array([simulate(number) for number in range(first, min(first + _PER_TASK, sets))])


def wilson(trials: int) -> tuple[float, float]:
    """The least and most exact coverage, over true proportions from 0.05 to 0.95."""
    intervals = [rate(hits, trials) for hits in range(trials + 1)]
    low = np.array([each.low for each in intervals], float)
    high = np.array([each.high for each in intervals], float)
    covered = [
        binom.pmf(np.arange(trials + 1), trials, truth)[(low <= truth) & (truth <= high)].sum()
        for truth in np.linspace(0.05, 0.95, 181)
    ]
    return float(min(covered)), float(max(covered))


def _lines(sets: int, pool: ProcessPoolExecutor) -> Iterable[tuple[str, str]]:
    for trials in (100, 500):
        low, high = wilson(trials)
        yield f"Wilson, n {trials}: exact coverage", f"{100 * low:.2f} to {100 * high:.2f} %"
    for alike in (0.0, 0.3):
        for equal, sizes in ((True, "5 rows each"), (False, "1 to 9 rows each")):
            clustered, naive = shares(sets, partial(accuracy_set, alike, equal), pool)
            what = f"accuracy, 100 subjects of {sizes}, ICC {alike}"
            yield f"{what}: clustered", f"{100 * clustered:.1f} %"
            yield f"{what}: naive (Wilson)", f"{100 * naive:.1f} %"
    for alike, in_subjects, rows in (
        (0.0, False, 500),
        (0.0, False, 2000),
        (0.0, True, 500),
        (0.3, True, 500),
        (0.3, True, 2000),
    ):
        macro, balanced, kappa = shares(sets, partial(macro_set, alike, in_subjects, rows), pool)
        rows_ = f"{rows} rows" + (f" of {rows // 5} subjects, ICC {alike}" if in_subjects else "")
        yield f"macro-F1, {rows_}: bootstrap", f"{100 * macro:.1f} %"
        yield f"balanced accuracy, {rows_}: bootstrap", f"{100 * balanced:.1f} %"
        yield f"quadratic kappa, {rows_}: bootstrap", f"{100 * kappa:.1f} %"
    races = tuple(RACE_SUPPORTS.values())
    for sizes_, what in ((races, "FairFace's 7 races"), ((100,) * 70, "70 cells of 100")):
        for alike in (0.0, 0.3):
            who = what + (f", subjects of 5, ICC {alike}" if alike else "")
            fair, _, above = shares(sets, partial(unfair, sizes_, 0.0, alike), pool)
            yield f"fair model, {who}: found unfair", f"{100 * fair:.2f} %"
            yield f"fair model, {who}: corrected gap above 0", f"{100 * above:.1f} %"
    for alike in (0.0, 0.3):
        who = "last of 7 races" + (f", subjects of 5, ICC {alike}" if alike else "")
        found, named, _ = shares(sets, partial(unfair, races, 0.06, alike), pool)
        yield f"6 points worse for the {who}: found", f"{100 * found:.1f} %"
        yield f"6 points worse for the {who}: named", f"{100 * named:.1f} %"


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=2_000, help="simulated data sets a figure")
    sets = parser.parse_args().sets
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for what, figure in _lines(sets, pool):
            print(f"{what:75}  {figure}", flush=True)


if __name__ == "__main__":
    main()
