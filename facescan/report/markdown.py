"""The report's tables and texts as Markdown, as GitHub reads it."""

import re
from collections.abc import Iterable, Iterator, Sequence

from facescan.report.blocks import (
    Block,
    Cell,
    Figure,
    Folded,
    HeatMap,
    Items,
    Part,
    Quote,
    Section,
    Table,
    Text,
)


def markdown(title: str, note: str, sections: Sequence[Section]) -> str:
    """A Markdown document; charts and pictures are left out, the figures they show stand in it."""
    lines = [f"# {_escaped(title)}", "", _escaped(note), ""]
    for section in sections:
        lines += _section(section, 2)
    return "\n".join(lines)


def _section(section: Section, level: int) -> Iterator[str]:
    if section.title:
        yield from (f"{'#' * level} {_escaped(section.title)}", "")
    yield from _blocks(section.blocks)
    for each in section.sections:
        yield from _section(each, level + 1)


def _blocks(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Table():
                yield from _table(block)
            case HeatMap():
                yield from _heat_map(block)
            case Text():
                yield from (_inline(block.parts), "")
            case Items():
                yield from (*(f"- {_inline(each)}" for each in block.items), "")
            case Quote():
                quoted = (f"> {_escaped(line)}" for line in block.text.splitlines())
                yield from (f"{_escaped(block.caption)}:", "", *quoted, "")
            case Folded():
                yield from (f"*{_escaped(block.summary)}*", "", *_blocks(block.blocks))
            case _:
                """A chart or pictures."""


def _table(table: Table) -> Iterator[str]:
    shown = [number for number, column in enumerate(table.columns) if not column.axis]
    columns = [table.columns[number] for number in shown]
    rows = [[_cell(row[number]) for number in shown] for row in table.rows]
    yield from _grid(table.caption, [c.title for c in columns], [c.numbers for c in columns], rows)


def _heat_map(heat_map: HeatMap) -> Iterator[str]:
    titles = ["target", *(name for name, _ in heat_map.columns), "recall %", "n"]
    rows = [
        [
            _escaped(row.target),
            *(count.text for count, _, _ in row.counts),
            row.recall.text,
            row.support.text,
        ]
        for row in heat_map.rows
    ]
    precision = [each.text if each else "" for each in heat_map.precision]
    rows.append(["precision %", *precision, "", ""])
    yield from _grid(heat_map.caption, titles, [False] + [True] * (len(titles) - 1), rows)


def _grid(
    caption: str, titles: Sequence[str], numbers: Sequence[bool], rows: Iterable[Sequence[str]]
) -> Iterator[str]:
    yield f"**{_escaped(caption)}**"
    yield ""
    yield f"| {' | '.join(map(_escaped, titles))} |"
    yield f"|{'|'.join('--:' if each else '---' for each in numbers)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _cell(cell: Cell) -> str:
    return " ".join(text for text in (_inline(cell.main), _inline(cell.small)) if text)


def _inline(parts: Iterable[Part]) -> str:
    joined = "".join(part.text if isinstance(part, Figure) else _escaped(part) for part in parts)
    return joined.strip()


def _escaped(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    for mark in "\\|*_`<>[]#":
        text = text.replace(mark, f"\\{mark}")
    return re.sub(r"\s+", " ", text)
