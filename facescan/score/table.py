"""Scores for the person at the terminal: percent, one decimal, every count beside its figure."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from facescan.score.intervals import Rate
from facescan.score.metrics import Score
from facescan.types import RUN_OUTCOMES, Outcome

# A line break is where a cell may be folded.
_HEADER = (
    "view",
    "n",
    "answered",
    "no\nanswer",
    "accuracy\n%",
    "of answered\n%",
    "macro\nF1 %",
)


def show(scores: Sequence[Score], console: Console) -> None:
    """Print one table per model, data set, split and protocol, with what limits it underneath.

    A terminal gets a ruled table, folded where it is narrow, or the figures one below the other
    where it is very narrow; anything else gets aligned plain text, one line a row.
    """

    def asked(score: Score) -> tuple[str, str, str, str, str]:
        key = score.key
        return key.model, key.dataset, key.split, key.protocol, key.answer_mode

    for (model, dataset, split, protocol, mode), group in groupby(sorted(scores, key=asked), asked):
        together = list(group)
        _line(console, f"{model} on {dataset}/{split}, protocol {protocol} ({mode})")
        rows = [_HEADER, *(_cells(score) for score in together)]
        _print(rows, console)
        for score in together:
            for remark in _remarks(score):
                _line(console, remark)
        _line(console, "")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _print(rows: Sequence[tuple[str, ...]], console: Console) -> None:
    unfolded = [tuple(cell.replace("\n", " ") for cell in row) for row in rows]
    if console.is_terminal:
        for table in (_ruled(unfolded), _ruled(rows)):
            if _width(table, console) <= console.width:
                console.print(table, markup=False, highlight=False)
                return
    for line in _stacked(unfolded) if console.is_terminal else _plain(unfolded):
        _line(console, line)


def _ruled(rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for position, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if position else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _width(table: Table, console: Console) -> int:
    """What the table needs to show every figure whole."""
    unbounded = console.options.update(max_width=10_000)
    return console.measure(table, options=unbounded).maximum


def _plain(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        numbers = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *numbers])


def _stacked(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    (_, *titles), *scores = rows
    for view, *figures in scores:
        yield view
        yield from (f"  {title}: {figure}" for title, figure in zip(titles, figures, strict=True))


def _cells(score: Score) -> tuple[str, ...]:
    return (
        f"{_name(score)}{'' if score.complete else '*'}",
        f"{score.n:,}",
        f"{score.n_answered:,}",
        f"{score.n - score.n_answered:,}",
        _interval(score.accuracy),
        _interval(score.accuracy_answered),
        _percent(score.macro_f1),
    )


def _name(score: Score) -> str:
    view, asked = score.key.view, score.key.asked_label_set
    return view if view == asked else f"{asked}\nas {view}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _interval(rate: Rate) -> str:
    if rate.value is None:
        return "-"
    return f"{_percent(rate.value)}\n[{_percent(rate.low)}-{_percent(rate.high)}]"


def _remarks(score: Score) -> Iterator[str]:
    """What a reader of the row must know, one line each."""
    name = _name(score).replace("\n", " ")
    if score.n_run_failures:
        yield (
            f"* {name} incomplete: {score.n_run_failures:,} more rows failed in the run "
            f"({_which(score.outcomes, RUN_OUTCOMES)}); with them accuracy is between "
            f"{_percent(score.accuracy_worst)} and {_percent(score.accuracy_best)} %."
        )
    if score.n_unlabelled:
        star = "* " if any(score.unlabelled[o] for o in RUN_OUTCOMES) else ""
        yield (
            f"{star}{name}: {score.n_unlabelled:,} rows have no target and are not scored "
            f"({_which(score.unlabelled, frozenset(Outcome))})."
        )
    if score.tally.excluded:
        yield f"{name}: {score.tally.excluded:,} rows left out, their target is not in the view."
    if score.n_outside_view:
        yield f"{name}: {score.n_outside_view:,} answers are not in the view and count as wrong."
    if score.tally.spurious:
        yield f"{name}: {score.tally.spurious:,} persons listed who are not there, not in n."


def _which(outcomes: dict[Outcome, int], among: frozenset[Outcome]) -> str:
    return ", ".join(f"{o} {n:,}" for o, n in outcomes.items() if n and o in among)
