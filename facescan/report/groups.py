"""For whom a model is right: groups and their intersections."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from facescan.report import charts
from facescan.report.answers import measures, single
from facescan.report.blocks import (
    TIMES,
    At,
    Axis,
    Block,
    Cell,
    Column,
    Figure,
    Folded,
    Items,
    Kind,
    Section,
    Table,
    Text,
    Treemap,
)
from facescan.report.entries import Entry, Topic
from facescan.report.scores_file import Cell as Group
from facescan.report.scores_file import Class, Equality, Gap, Grouping
from facescan.report.summary import interval, place, refusal_note, span, title
from facescan.types import Outcome


def groups(topics: Sequence[Topic], several_places: bool) -> Section:
    """Every grouping of every combination."""
    found = [
        Section(
            f"groups-{place(topic)}",
            title(topic, several_places),
            [_overview(topic, of_topic)],
            list(_details(of_topic)),
        )
        for topic in topics
        if (of_topic := list(_groupings(topic)))
    ]
    if not found:
        return Section("groups", "Groups", [Text((_NONE,))])
    note = refusal_note(
        entry for topic in topics for entry, _ in topic.primary if entry.score.groups
    )
    return Section("groups", "Groups", [Text((_SAID,)), *note], found)


_SAID = (
    "Groups are those that the dataset, or another run, names: as perceived. Whether they differ "
    "at all is tested first, with Holm's correction for all tests of a score. Where they do, a "
    "group differs (a diamond, a dashed frame) if its interval leaves out the dotted line, the "
    "accuracy of all groups together. The largest gap between groups is never negative, so it is "
    "given less what chance alone makes of equal groups."
)
_NONE = (
    "The scores hold no groups: the dataset names none, or none were asked for when the run was "
    "scored."
)


@dataclass(frozen=True, slots=True)
class _Of:
    """A grouping of an entry, and where it stands there."""

    entry: Entry
    grouping: Grouping
    number: int

    @property
    def at(self) -> At:
        return self.entry.at / "groups" / self.number

    @property
    def key(self) -> str:
        return f"{self.entry.key}-{self.number}"

    @property
    def by(self) -> str:
        return TIMES.join(self.grouping.by)

    @property
    def about(self) -> str:
        entry = self.entry
        return f"{entry.score.attribute} by {self.by}: {entry.who}, {entry.view}"


def _groupings(topic: Topic) -> Iterable[_Of]:
    for entry, _ in topic.primary:
        for number, grouping in enumerate(entry.score.groups):
            yield _Of(entry, grouping, number)


def _overview(topic: Topic, found: Sequence[_Of]) -> Table:
    return Table(
        f"table-overview-{place(topic)}",
        f"Groups compared: {topic.attribute}, {topic.dataset}/{topic.split}",
        (
            Column("model and groups", numbers=False),
            Column("groups"),
            Column("all together %"),
            Column("equal, p (Holm)"),
            Column("largest gap less chance, points"),
            Column("lowest %"),
            Column("lowest group", numbers=False),
        ),
        tuple(_of_overview(each) for each in found),
    )


def _of_overview(each: _Of) -> tuple[Cell, ...]:
    grouping, at = each.grouping, each.at
    test, gap, worst = grouping.equal_rate, grouping.largest_gap, grouping.worst
    return (
        Cell((each.entry.name,), (f"{each.entry.view}, by {each.by}",)),
        Cell((f"{len(grouping.cells):,}",)),
        interval(grouping.pooled, at / "pooled"),
        Cell() if test is None else single(test.p_holm, at / "equal_rate" / "p_holm", "p"),
        Cell()
        if gap is None
        else single(gap.corrected, at / "largest_gap" / "corrected", "points"),
        Cell() if worst is None else interval(worst.accuracy, at / "worst" / "accuracy"),
        Cell() if worst is None else Cell((TIMES.join(worst.group),)),
    )


def _details(found: Sequence[_Of]) -> Iterable[Section]:
    """Each intersection and each grouping with a finding; those that are neither, folded."""
    shown = [each for each in found if each.grouping.findings or len(each.grouping.by) > 1]
    for each in shown:
        yield Section(
            f"groups-{each.key}",
            f"By {each.by}: {each.entry.name}, {each.entry.view}",
            list(_grouping(each)),
            detail=True,
        )
    for each in found:
        if each not in shown:
            said = "no finding" if each.grouping.tested else "not compared"
            summary = f"By {each.by}: {each.entry.name}, {each.entry.view}: {said}"
            blocks = [Folded(summary, tuple(_grouping(each)))]
            yield Section(f"groups-{each.key}", "", blocks, detail=True)


def _grouping(each: _Of) -> Iterable[Block]:
    if each.grouping.findings:
        yield Items(tuple((finding,) for finding in each.grouping.findings))
    elif each.grouping.tested:
        yield Text(("No difference between these groups is found beyond chance.",))
    else:
        yield Text(("Not compared.",))
    if not each.grouping.cells:
        yield _note(each.grouping)
        return
    if len(each.grouping.by) > 1:
        yield _treemap(each)
        yield Folded(f"The groups of {each.about}", (_table(each),))
    else:
        yield _table(each)
    yield _note(each.grouping)
    tests = measures(
        f"table-tests-{each.key}",
        f"Tests and gaps, {each.about}",
        _measures(each.grouping, each.at),
    )
    yield Folded(f"Tests and gaps: {each.about}", (tests,))


def _note(grouping: Grouping) -> Items:
    said = f"Groups are from {grouping.source}; one of fewer than {grouping.min_cell} rows shows "
    return Items(((said + "its size only.",), *((remark,) for remark in grouping.remarks)))


def _table(each: _Of) -> Table:
    grouping = each.grouping
    on = charts.axis(
        value
        for cell in grouping.cells
        for interval in (cell.accuracy, cell.simultaneous)
        for value in (interval.value, interval.ci_low, interval.ci_high)
    )
    failed = any(cell.n_run_failures for cell in grouping.cells)
    present = {name for cell in grouping.cells for name in cell.outcome_rates}
    shown = [str(outcome) for outcome in Outcome if outcome in present]
    return Table(
        f"table-groups-{each.key}",
        f"Accuracy, {each.about}",
        (
            Column(TIMES.join(grouping.by), numbers=False),
            Column("accuracy %", axis=on),
            Column("accuracy %"),
            Column("for all groups at once"),
            Column("n"),
            Column("answered"),
            *([Column("failed in the run")] if failed else []),
            *(Column(f"{name.replace('_', ' ')} %") for name in shown),
        ),
        tuple(
            _row(grouping, cell, each.at / "cells" / number, on, shown, failed)
            for number, cell in enumerate(grouping.cells)
        ),
    )


def _row(
    grouping: Grouping, cell: Group, at: At, on: Axis, shown: Sequence[str], failed: bool
) -> tuple[Cell, ...]:
    name, n = Cell((TIMES.join(cell.group),)), single(cell.n, at / "n", "count")
    failures = [single(cell.n_run_failures, at / "n_run_failures", "count")] if failed else []
    pooled = grouping.pooled.value
    if cell.suppressed:
        empty = charts.strip(on, cell.accuracy, reference=pooled)
        rest = [Cell()] * len(shown)
        too_few = Cell((), ("too few rows",))
        return name, Cell(strip=empty), too_few, Cell(), n, Cell(), *failures, *rest
    apart = charts.differs(cell, grouping)
    wide = at / "simultaneous"
    low = Figure(cell.simultaneous.ci_low, wide / "ci_low")
    high = Figure(cell.simultaneous.ci_high, wide / "ci_high")
    return (
        name,
        Cell(strip=charts.strip(on, cell.simultaneous, reference=pooled, differs=apart)),
        interval(cell.accuracy, at / "accuracy"),
        Cell((), span(low, high)),
        n,
        single(cell.n_answered, at / "n_answered", "count"),
        *failures,
        *(
            interval(cell.outcome_rates[name], at / "outcome_rates" / name)
            if name in cell.outcome_rates
            else Cell()
            for name in shown
        ),
    )


_Compared = Sequence[tuple[Group, At]]
"""Groups, and where each stands."""


def in_detail(topics: Sequence[Topic], several_places: bool) -> Section:
    """Further figures of every group, after all that has to be said of them."""
    found = [
        Section(f"groups-in-detail-{place(topic)}", title(topic, several_places), (), inner)
        for topic in topics
        if (inner := [part for each in _groupings(topic) if (part := _in_detail(each))])
    ]
    text = (_IN_DETAIL,) if found else (_NONE,)
    return Section("groups-in-detail", "Groups in detail", [Text(text)], found)


_IN_DETAIL = (
    "What the whole has, of each group's rows alone. Groups that are the classes themselves are "
    "left out: of one class alone F1 and kappa say nothing."
)


def _in_detail(each: _Of) -> Section | None:
    compared = [
        (cell, each.at / "cells" / number)
        for number, cell in enumerate(each.grouping.cells)
        if not cell.suppressed
    ]
    if all(sum(c.support > 0 for c in cell.classes) < 2 for cell, _ in compared):
        return None
    tables = [_further(each, compared)]
    if places := _enough(each, compared):
        tables.append(_recalls(each, compared, places))
    summary = f"By {each.by}: {each.entry.name}, {each.entry.view}"
    name = f"groups-in-detail-{each.key}"
    return Section(name, "", [Folded(summary, tuple(tables))], detail=True)


def _further(each: _Of, compared: _Compared) -> Table:
    columns = ["of answered %", "balanced %", "macro F1 %"]
    ordered = any(cell.ordinal for cell, _ in compared)
    aged = any(cell.ordinal and cell.ordinal.mae_years for cell, _ in compared)
    calibrated = any(cell.calibration for cell, _ in compared)
    if ordered:
        columns += ["right or one off %", "distance in classes", "quadratic kappa"]
    if aged:
        columns += ["distance in years"]
    if calibrated:
        columns += ["calibration error %", "Brier score"]
    return Table(
        f"table-further-{each.key}",
        f"Further figures, {each.about}",
        (Column(TIMES.join(each.grouping.by), numbers=False), *map(Column, columns)),
        tuple(_further_row(cell, at, ordered, aged, calibrated) for cell, at in compared),
    )


def _further_row(
    cell: Group, at: At, ordered: bool, aged: bool, calibrated: bool
) -> tuple[Cell, ...]:
    row = [
        Cell((TIMES.join(cell.group),)),
        interval(cell.accuracy_answered, at / "accuracy_answered"),
        interval(cell.balanced_accuracy, at / "balanced_accuracy"),
        interval(cell.macro_f1, at / "macro_f1"),
    ]
    order, where = cell.ordinal, at / "ordinal"
    if ordered:
        row += (
            [Cell()] * 3
            if order is None
            else [
                interval(order.off_by_one, where / "off_by_one"),
                interval(order.mae_bins, where / "mae_bins", "decimal"),
                interval(order.quadratic_kappa, where / "quadratic_kappa", "decimal"),
            ]
        )
    if aged:
        years = order and order.mae_years
        row.append(interval(years, where / "mae_years", "years") if years else Cell())
    if calibrated:
        found, where = cell.calibration, at / "calibration"
        row += (
            [Cell()] * 2
            if found is None
            else [
                single(found.ece, where / "ece", "percent"),
                single(found.brier, where / "brier", "decimal"),
            ]
        )
    return tuple(row)


def _enough(each: _Of, compared: _Compared) -> list[int]:
    """The classes that some group has enough rows of to say something."""
    return [
        place
        for place in range(len(compared[0][0].classes))
        if any(cell.classes[place].support >= each.grouping.min_cell for cell, _ in compared)
    ]


def _recalls(each: _Of, compared: _Compared, places: Sequence[int]) -> Table:
    enough = each.grouping.min_cell
    labels = [compared[0][0].classes[place].label for place in places]
    return Table(
        f"table-recalls-{each.key}",
        f"Recall %, of classes with {enough} rows in a group; intervals are in metrics.json; "
        f"{each.about}",
        (Column(TIMES.join(each.grouping.by), numbers=False), *map(Column, labels)),
        tuple(
            (
                Cell((TIMES.join(cell.group),)),
                *(_recall(cell.classes[p], at / "classes" / p, enough) for p in places),
            )
            for cell, at in compared
        ),
    )


def _recall(found: Class, at: At, enough: int) -> Cell:
    if found.support < enough:
        return Cell()
    return single(found.recall.value, at / "recall" / "value", "percent")


def _treemap(each: _Of) -> Treemap:
    tiles, on = charts.tiles(each.grouping, each.at)
    worst = each.grouping.worst
    said = f"{len(tiles)} groups as areas, the larger the more rows; colour is accuracy."
    if worst is not None:
        value = Figure(worst.accuracy.value, each.at).text
        said += f" The lowest is {TIMES.join(worst.group)} with {value} percent."
    return Treemap(
        name=f"treemap-{each.key}",
        caption=f"Size: rows; colour: accuracy, {each.about}",
        alternative=f"{said} The groups are in the table that follows.",
        tiles=tiles,
        scale=(f"{100 * on.low:.0f}", f"{100 * on.high:.0f} %"),
    )


def _measures(grouping: Grouping, at: At) -> Iterable[tuple[str, Cell]]:
    yield "accuracy of all groups together, %", interval(grouping.pooled, at / "pooled")
    if (test := grouping.equal_rate) is not None:
        yield from _test("equal accuracy", test, at / "equal_rate")
    yield from _gap("largest gap, points", grouping.largest_gap, at / "largest_gap", "points")
    yield from _gap("lowest rate ÷ highest", grouping.ratio, at / "ratio", "decimal")
    if (worst := grouping.worst) is not None:
        where = at / "worst" / "accuracy"
        yield f"lowest accuracy, %: {TIMES.join(worst.group)}", interval(worst.accuracy, where)
    for name, value in (
        ("equalized_odds_difference", grouping.equalized_odds_difference),
        ("demographic_parity_difference", grouping.demographic_parity_difference),
    ):
        if value is not None:
            label = f"{name.replace('_', ' ')}, points"
            yield label, single(value, at / name, "points")
    for name, of_outcome in grouping.outcome_tests.items():
        if of_outcome is not None:
            label = f"equal rate of {name.replace('_', ' ')}"
            yield from _test(label, of_outcome, at / "outcome_tests" / name)


def _test(label: str, test: Equality, at: At) -> Iterable[tuple[str, Cell]]:
    if test.statistic is not None:
        statistic = single(test.statistic, at / "statistic", "decimal")
        df = () if test.df is None else (" with ", Figure(test.df, at / "df", "count"), " df")
        yield f"{label}: {test.method}", Cell(statistic.main, df)
    yield f"{label}: p", single(test.p, at / "p", "p")
    if test.p_holm is not None:
        yield f"{label}: p, Holm's correction in it", single(test.p_holm, at / "p_holm", "p")


def _gap(label: str, gap: Gap | None, at: At, kind: Kind) -> Iterable[tuple[str, Cell]]:
    if gap is None:
        return
    yield label, interval(gap, at, kind)
    if gap.corrected is not None:
        yield f"{label}, less what chance adds", single(gap.corrected, at / "corrected", kind)
