"""Runs -> a report: its sections, then `index.html` and `report.md`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2

from facescan.report import answers, comparisons, entries, groups, origin, publications, summary
from facescan.report.answers import Galleries
from facescan.report.blocks import At, Block, Figure, Folded, Gallery, HeatMap, Section, Text
from facescan.report.comparisons import Found
from facescan.report.entries import Run
from facescan.report.markdown import markdown
from facescan.report.publications import Publication

MAX_BYTES = 2_900_000
"""Of a page without pictures; details that do not fit are left out, and the page says which."""

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("facescan.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.tests["figure"] = lambda value: isinstance(value, Figure)
TEMPLATES.tests["matrix"] = lambda value: isinstance(value, HeatMap)
TEMPLATES.filters["kind"] = lambda value: type(value).__name__.lower()


_CIVIDIS = (
    ("#00224e", "#ffffff"),
    ("#083370", "#ffffff"),
    ("#35456c", "#ffffff"),
    ("#4f576c", "#ffffff"),
    ("#666970", "#ffffff"),
    ("#7d7c78", "#000000"),
    ("#948e77", "#000000"),
    ("#aea371", "#000000"),
    ("#c8b866", "#000000"),
    ("#e5cf52", "#000000"),
    ("#fee838", "#000000"),
)
"""Shades of a treemap and the ink to read on each: matplotlib's cividis, which is seen alike with
and without colour blindness."""

_LEFT_OUT = Text(
    (
        "Left out, so that the page stays below 3 MB: these figures are in metrics.json; a report "
        "on fewer runs has room for them.",
    )
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a report shows.

    Attributes:
        runs: at least one.
        compared: what was found by comparing the runs with each other, and where it stands; None:
            what each run's own scores hold.
        published: figures of publications that belong to them.
        galleries: pictures of errors; none unless they were asked for.
    """

    runs: Sequence[Run]
    compared: Sequence[Found] | None = None
    published: Sequence[Publication] = ()
    galleries: Galleries = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is a report of."""
        names = [run.provenance.run for run in self.runs]
        return f"facescan: {', '.join(names)}"

    @property
    def note(self) -> str:
        """What has to stand above all figures."""
        return self.runs[0].document.note

    def sections(self) -> list[Section]:
        """All of it, in order; every part is there, and says so where it has nothing to show."""
        found = entries.of(self.runs)
        topics = entries.topics(found)
        several = len({(topic.dataset, topic.split) for topic in topics}) > 1
        return [
            summary.accuracy(topics, several),
            summary.outcomes(topics, several),
            answers.confusion(topics, several, self.galleries),
            groups.groups(topics, several),
            answers.calibration(topics, several),
            comparisons.comparisons(self._compared(), found, len(self.runs) > 1),
            publications.published(self.published),
            groups.in_detail(topics, several),
            origin.manifest(self.runs),
            origin.limits(self.runs, found),
            origin.responsible_use(self.note),
        ]

    def _compared(self) -> Sequence[Found]:
        if self.compared is not None:
            return self.compared
        return [
            (At(f"{number}:/comparisons/{position}"), each)
            for number, run in enumerate(self.runs)
            for position, each in enumerate(run.document.comparisons)
        ]

    def markdown(self) -> str:
        """The tables and texts as Markdown, without charts and pictures."""
        return markdown(self.title, self.note, self.sections())

    def html(self) -> str:
        """One page that needs nothing but itself; below `MAX_BYTES` and what the pictures take."""
        sections = self.sections()
        room = MAX_BYTES - len(self._html([_bounded(each, _Room(0)) for each in sections]).encode())
        left = _Room(room)
        return self._html([_bounded(each, left) for each in sections])

    def _html(self, sections: Sequence[Section]) -> str:
        return TEMPLATES.get_template("page.html").render(
            title=self.title, note=self.note, runs=self.runs, sections=sections, cividis=_CIVIDIS
        )


@dataclass(slots=True)
class _Room:
    bytes: int


def _bounded(section: Section, left: _Room) -> Section:
    """The section, with details as long as there is room for them."""
    if not section.detail:
        inner = [_bounded(each, left) for each in section.sections]
        return replace(section, sections=inner)
    # Pictures were asked for, whatever they take, and are bounded where they are chosen.
    size = len(_shown(section).encode()) - _picture_bytes(section.blocks)
    if size > left.bytes:
        return replace(section, blocks=[_LEFT_OUT])
    left.bytes -= size
    return section


def _shown(section: Section) -> str:
    macros: Any = TEMPLATES.get_template("blocks.html").module
    return str(macros.blocks(section.blocks))


def _picture_bytes(blocks: Iterable[Block]) -> int:
    total = 0
    for block in blocks:
        if isinstance(block, Folded):
            total += _picture_bytes(block.blocks)
        elif isinstance(block, Gallery):
            total += sum(len(each.source or "") for each in block.pictures)
    return total
