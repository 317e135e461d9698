"""`facescan compare RUN [RUN...]`: models on the same rows -> differences, a table and a file."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from facescan import attributes, durable
from facescan.errors import UsageError
from facescan.run import folder
from facescan.score import compare
from facescan.score.compare import POWER, Comparison
from facescan.score.intervals import CONFIDENCE
from facescan.score.output import NOTE
from facescan.score.paired import Side

VERSION = 1
"""Of the file; raised when a key changes its meaning."""

FILE = "comparison.json"
"""In the `scores/` of the first run, where no other place is given."""

_HEADER = (
    *(
        "view",
        "a",
        "b",
        "rows",
        "a %",
        "b %",
        "no answer %",
        "difference, points",
        "only a",
        "only b",
        "p",
    ),
    *("p (Holm)", "could show"),
)
_WORDS = 3


def compare_runs(
    runs: Sequence[str],
    console: Console,
    *,
    wanted_attributes: Sequence[str] = (),
    views: Sequence[str] = (),
    output: Path | None = None,
) -> list[Comparison]:
    """Compare every two models of these runs on the rows that both have.

    Prints a table and writes it as JSON. Comparing again replaces the file.

    Args:
        runs: paths or URIs, at least one.
        console: for the table.
        wanted_attributes: only these; the others are in no family of tests.
        views: only these.
        output: the file; default: `FILE` in the scores of the first run.

    Raises:
        UsageError: one is not a run or given twice, or nothing in them can be compared.
        DataError: the predictions are not what they should be.
        OSError: they cannot be reached, or the file cannot be written.
    """
    places = [folder.existing(run) for run in runs]
    names = [place.root.location for place in places]
    if len(set(names)) < len(names):
        raise UsageError(f"a run is given twice: {', '.join(names)}")
    _check_names(wanted_attributes, views)
    found = compare.compare(
        [(name, place.predictions) for name, place in zip(names, places, strict=True)],
        attributes.load,
        lambda attribute, view: (
            (not wanted_attributes or attribute in wanted_attributes)
            and (not views or view in views)
        ),
    )
    if not found:
        raise UsageError(
            f"{', '.join(names)}: nothing to compare: no two models have answers about the same "
            "images, with targets that both are seen in"
        )
    _show(found, console)
    document = {
        "version": VERSION,
        "note": NOTE,
        "confidence": CONFIDENCE,
        "power": POWER,
        "runs": names,
        "comparisons": [each.entry() for each in found],
    }
    text = json.dumps(document, indent=1) + "\n"
    if output is None:
        places[0].scores.write(FILE, text.encode())
        written = f"{places[0].scores.location}/{FILE}"
    else:
        durable.write_text(output, text)
        written = str(output)
    for line in (NOTE, written):
        _line(console, line)
    return found


def _check_names(wanted: Sequence[str], views: Sequence[str]) -> None:
    known = {
        label_set.name
        for name in (wanted or attributes.names())
        for label_set in attributes.load(name).label_sets
    }
    for view in views:
        if view not in known:
            raise UsageError(
                f"--views {view}: no such label set; known: {', '.join(sorted(known))}"
            )


def _show(found: Sequence[Comparison], console: Console) -> None:
    names = _names(found)
    for (dataset, split), group in groupby(sorted(found, key=_place), _place):
        together = list(group)
        _line(console, f"{dataset}/{split}")
        _print([_cells(each, names) for each in together], console)
        for each in together:
            for remark in _remarks(each, names):
                _line(console, f"{names[each.a]} and {names[each.b]}, {_view(each)}: {remark}")
        _line(console, "")


def _print(rows: Sequence[tuple[str, ...]], console: Console) -> None:
    """A terminal folds what is too wide for it; elsewhere a row is a line."""
    if console.is_terminal:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for position, title in enumerate(_HEADER):
            table.add_column(title, justify="left" if position < _WORDS else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table, highlight=False)
        return
    widths = [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]
    for row in (_HEADER, *rows):
        cells = [
            cell.ljust(width) if position < _WORDS else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        _line(console, "  ".join(cells).rstrip())


def _place(each: Comparison) -> tuple[str, str]:
    return each.dataset, each.split


def _names(found: Sequence[Comparison]) -> dict[Side, str]:
    """The shortest names by which all who answered differ; label sets stand with the view."""
    sides = {side for each in found for side in (each.a, each.b)}
    whom = {_asked(side) for side in sides}
    names = ({each: " ".join(parts(*each)) for each in whom} for parts in _PARTS)
    shortest = next(each for each in names if len(set(each.values())) == len(whom))
    return {side: shortest[_asked(side)] for side in sides}


def _asked(side: Side) -> tuple[str, str, str, str]:
    return side.run, side.model, side.protocol, side.answer_mode


_PARTS: tuple[Callable[[str, str, str, str], tuple[str, ...]], ...] = (
    lambda run, model, protocol, mode: (model,),
    lambda run, model, protocol, mode: (model, protocol),
    lambda run, model, protocol, mode: (f"{run.rpartition('/')[2]}:", model),
    lambda run, model, protocol, mode: (f"{run.rpartition('/')[2]}:", model, protocol),
    lambda run, model, protocol, mode: (f"{run}:", model, protocol, mode),
)
"""Ever longer names; of a run's place the last folder is enough, mostly."""


def _view(each: Comparison) -> str:
    asked = dict.fromkeys((each.a.asked_label_set, each.b.asked_label_set))
    return each.view if list(asked) == [each.view] else f"{'/'.join(asked)} as {each.view}"


def _cells(each: Comparison, names: dict[Side, str]) -> tuple[str, ...]:
    entry = each.entry()
    difference = each.difference
    assert difference.value is not None
    assert difference.low is not None
    assert difference.high is not None
    points = [100 * value for value in (difference.value, difference.low, difference.high)]
    return (
        _view(each),
        names[each.a],
        names[each.b],
        f"{each.n:,}",
        f"{100 * entry['accuracy_a']:.1f}",
        f"{100 * entry['accuracy_b']:.1f}",
        " / ".join(f"{100 * sum(entry[rates].values()):.1f}" for rates in _RATES),
        "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points),
        f"{each.a_only:,}",
        f"{each.b_only:,}",
        _p(each.p),
        _p(each.p_holm),
        "-" if each.smallest_detectable is None else f"{100 * each.smallest_detectable:.1f}",
    )


_RATES = ("outcome_rates_a", "outcome_rates_b")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _remarks(each: Comparison, names: Mapping[Side, str]) -> Iterator[str]:
    """What came instead of answers, and what was left out, one line each."""
    for side, unanswered in ((each.a, each.unanswered_a), (each.b, each.unanswered_b)):
        if unanswered:
            rates = ", ".join(f"{of} {100 * n / each.n:.1f} %" for of, n in unanswered.items())
            yield f"no answer of {names[side]}: {rates}."
    for count, what in (
        (each.rows_only_a, f"rows are of {names[each.a]} only"),
        (each.rows_only_b, f"rows are of {names[each.b]} only"),
        (each.failed, "rows failed in a run"),
        (each.unseen, "rows have no target in the view"),
        (each.relabelled, "rows have another target in the other run"),
    ):
        if count:
            yield f"{count:,} {what}; not compared."


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)
