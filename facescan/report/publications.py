"""Published figures beside measured ones."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from facescan.report import charts
from facescan.report.answers import single
from facescan.report.blocks import (
    At,
    Axis,
    Block,
    Cell,
    Column,
    Figure,
    Folded,
    Items,
    Line,
    Section,
    Strip,
    Table,
    Text,
)
from facescan.report.scores_file import Interval
from facescan.report.summary import AVOIDS_REFUSALS, interval
from facescan.score.consistency import Check
from facescan.score.published import Beside, Measured


@dataclass(frozen=True, slots=True)
class Publication:
    """What a paper prints of what the report's runs measured.

    Attributes:
        figures: at least one.
        checks: whether what is printed can be true.
        avoiding: (model, attribute) that the paper asked in wording that avoids refusals.
    """

    figures: tuple[Beside, ...]
    checks: tuple[Check, ...]
    avoiding: frozenset[tuple[str, str]] = frozenset()

    def name(self, each: Beside) -> str:
        """The model's, marked where its figures are of such wording."""
        marked = (each.model, each.attribute) in self.avoiding
        return f"{each.model} †" if marked else each.model


def published(publications: Sequence[Publication]) -> Section:
    """A table for each of the papers' tables, beside what was measured of the same."""
    if not publications:
        return Section("published", "Published and measured", [Text((_NOTHING_PUBLISHED,))])
    sections = [
        Section(
            f"published-{number}-{table}",
            f"{first.title} ({table})",
            list(_table_of(f"{number}-{table}", publication, figures, checks)),
            detail=True,
        )
        for number, publication in enumerate(publications)
        for table, figures, checks in _tables(publication)
        for first in figures[:1]
    ]
    return Section("published", "Published and measured", [Text((_PUBLISHED,))], sections)


def _tables(publication: Publication) -> Iterator[tuple[str, list[Beside], list[Check]]]:
    for table in dict.fromkeys(each.table for each in publication.figures):
        figures = [each for each in publication.figures if each.table == table]
        yield table, figures, [each for each in publication.checks if each.table == table]


_NOTHING_PUBLISHED = (
    "No paper that facescan knows has published figures of these attributes, views and datasets."
)
_PUBLISHED = (
    "Figures as printed, beside those of this report where it has them. The two were not measured "
    "alike: what differs is said. A row without a measured figure is published only: nobody has "
    "run it here."
)


def _table_of(
    number: str, publication: Publication, figures: Sequence[Beside], checks: Sequence[Check]
) -> Iterable[Block]:
    first = figures[0]
    whole = [each for each in figures if each.label is None]
    classes = [each for each in figures if each.label is not None]
    yield Text((f"{first.edition}, page {first.page}. {first.about}".strip(),))
    if any((each.model, each.attribute) in publication.avoiding for each in figures):
        yield Text((AVOIDS_REFUSALS,))
    if wrong := [each.says for each in checks if not each.holds]:
        yield Text(("Not everything that is printed here can be true:",))
        yield Items(tuple((says,) for says in wrong))
    if whole:
        yield _beside(f"table-published-{number}", f"{first.title}: whole", publication, whole)
    if classes:
        table = _beside(
            f"table-published-{number}-classes", f"{first.title}: classes", publication, classes
        )
        yield Folded(f"By class: {first.title}", (table,)) if whole else table
    differences = {
        model: tuple(dict.fromkeys(said for e in figures if e.model == model for said in _said(e)))
        for model in dict.fromkeys(each.model for each in figures)
    }
    items = tuple((f"{model}: {' '.join(said)}",) for model, said in differences.items() if said)
    if items:
        yield Folded(f"What differs: {first.title}", (Items(items),))
    if right := [each.says for each in checks if each.holds]:
        yield Folded(f"What was checked: {first.title}", (Items(tuple((says,) for says in right)),))


def _said(each: Beside) -> tuple[str, ...]:
    return (*each.differences, each.not_runnable) if each.not_runnable else each.differences


def _beside(name: str, caption: str, publication: Publication, figures: Sequence[Beside]) -> Table:
    measured = [each.measured for each in figures if each.measured is not None]
    on = charts.axis(
        value
        for value in (
            *(each.published for each in figures),
            *(value for each in measured for value in (each.value, each.low, each.high)),
        )
    )
    return Table(
        name,
        caption,
        (
            Column("figure", numbers=False),
            Column("\N{WHITE CIRCLE} published, \N{BLACK CIRCLE} measured, %", axis=on),
            Column("published %"),
            Column("n"),
            Column("measured %"),
            Column("n"),
            Column("measured with", numbers=False),
        ),
        tuple(
            (
                Cell(
                    (publication.name(each),),
                    (f"{each.metric.replace('_', ' ')}{f', {each.label}' if each.label else ''}",),
                ),
                Cell(strip=_dots(on, each)),
                Cell((each.printed,)),
                Cell((f"{each.n:,}",)),
                *_measured(each.measured),
            )
            for each in figures
        ),
    )


def _dots(on: Axis, each: Beside) -> Strip:
    place = on.place(each.published)
    lines = [Line(place, place, place, hollow=True)]
    if each.measured is not None and each.measured.value is not None:
        found = Interval(
            value=each.measured.value, ci_low=each.measured.low, ci_high=each.measured.high
        )
        lines += charts.strip(on, found).lines
    return Strip(lines=tuple(lines), ticks=on.gridlines)


def _measured(found: Measured | None) -> tuple[Cell, Cell, Cell]:
    if found is None:
        return Cell((), ("published only",)), Cell(), Cell()
    at = At(f"{found.document}:/scores/{found.score}")
    value = Cell((Figure(found.value, At("")).text,))
    if found.place:
        place = At(f"{at.text}{found.place}")
        measured = Interval(value=found.value, ci_low=found.low, ci_high=found.high)
        value = interval(measured, place)
    with_what = Cell((f"{found.model}, {found.protocol} ({found.answer_mode})",))
    return value, single(found.n, at / "n", "count"), with_what
