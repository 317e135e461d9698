"""Models against each other on the same rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from facescan.report import charts
from facescan.report.answers import single
from facescan.report.blocks import (
    At,
    Axis,
    Cell,
    Column,
    Section,
    Strip,
    Table,
    Text,
)
from facescan.report.entries import Entry
from facescan.report.scores_file import Comparison, Side
from facescan.report.summary import interval, refusal_note
from facescan.score.intervals import CONFIDENCE

Found = tuple[At, Comparison]
"""A comparison, and where it stands."""


def comparisons(found: Sequence[Found], entries: Sequence[Entry], several_runs: bool) -> Section:
    """Differences between two models, as forest plots."""
    by_topic: dict[tuple[str, str, str], list[Found]] = {}
    for at, each in found:
        by_topic.setdefault((each.attribute, each.dataset, each.split), []).append((at, each))
    if not by_topic:
        said = _NONE_OF_RUNS if several_runs else _NONE
        return Section("comparison", "Models compared", [Text((said,))])
    return Section(
        "comparison",
        "Models compared",
        [
            Text((_SAID,)),
            *refusal_note(entries),
        ],
        [
            _topic(number, topic, together)
            for number, (topic, together) in enumerate(by_topic.items())
        ],
    )


_SAID = (
    "Both models on the same rows. The difference is the first one's accuracy minus the second "
    "one's, in points. p is of McNemar's exact test, then with Holm's correction for all "
    "comparisons made together: where that is 0.05 or less, the two differ beyond chance (a "
    "diamond). The last column is the smallest difference that so many rows could have shown."
)
_NONE = "The scores hold no comparison: no two models were asked about the same rows."
_NONE_OF_RUNS = (
    "These runs were not compared with each other. `facescan compare` with the same runs does it, "
    "and a report made after that shows it."
)


def _topic(number: int, topic: tuple[str, str, str], found: Sequence[Found]) -> Section:
    attribute, dataset, split = topic
    return Section(
        f"comparison-{number}",
        f"{attribute.capitalize()}: {dataset}/{split}",
        [_table(number, topic, found)],
        detail=True,
    )


def _table(number: int, topic: tuple[str, str, str], found: Sequence[Found]) -> Table:
    attribute, dataset, split = topic
    names = _names(each for _, each in found)
    on = charts.axis(
        (
            0.0,
            *(
                value
                for _, each in found
                for value in (
                    each.difference.value,
                    each.difference.ci_low,
                    each.difference.ci_high,
                )
            ),
        ),
        within=(-1.0, 1.0),
    )
    return Table(
        f"table-comparison-{number}",
        f"Differences: {attribute}, {dataset}/{split}",
        (
            Column("first \N{MINUS SIGN} second", numbers=False),
            Column("difference, points", axis=on),
            Column("difference, points"),
            Column("n"),
            Column("only first right"),
            Column("only second right"),
            Column("p"),
            Column("p, Holm"),
            Column("could show, points"),
        ),
        tuple(_row(on, at, each, names) for at, each in found),
    )


def _row(on: Axis, at: At, each: Comparison, names: Mapping[Side, str]) -> tuple[Cell, ...]:
    test = at / "mcnemar"
    return (
        Cell((f"{names[each.a]} \N{MINUS SIGN} {names[each.b]}",), (each.view,)),
        Cell(strip=_strip(on, each)),
        interval(each.difference, at / "difference", "points"),
        single(each.n, at / "n", "count"),
        single(each.mcnemar.a_only, test / "a_only", "count"),
        single(each.mcnemar.b_only, test / "b_only", "count"),
        single(each.mcnemar.p, test / "p", "p"),
        single(each.mcnemar.p_holm, test / "p_holm", "p"),
        single(each.smallest_detectable, at / "smallest_detectable", "percent"),
    )


def _names(found: Iterable[Comparison]) -> dict[Side, str]:
    """The shortest names by which all sides differ; of a run its folder, not where that is."""
    sides = list(dict.fromkeys(side for each in found for side in (each.a, each.b)))
    shortest: tuple[Callable[[Side], str], ...] = (
        lambda side: side.model,
        lambda side: f"{side.model}, {side.protocol}",
        lambda side: f"{_folder(side)}: {side.model}",
        lambda side: f"{_folder(side)}: {side.model}, {side.protocol}",
    )
    for name in shortest:
        if len({name(side) for side in sides}) == len(sides):
            return {side: name(side) for side in sides}
    return {
        side: f"{_folder(side)}: {side.model}, {side.protocol} ({side.answer_mode}, "
        f"{side.asked_label_set})"
        for side in sides
    }


def _folder(side: Side) -> str:
    return side.run.rpartition("/")[2]


def _strip(on: Axis, each: Comparison) -> Strip:
    p = each.mcnemar.p_holm
    apart = p is not None and p <= 1 - CONFIDENCE
    return charts.strip(on, each.difference, reference=0.0, differs=apart)
