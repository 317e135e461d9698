"""Scores for the person at the terminal: percent, one decimal, every count beside its figure."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from facescan.score.intervals import Rate
from facescan.score.metrics import Score
from facescan.score.output import remark
from facescan.types import RUN_OUTCOMES, Outcome

# A line break is where a cell may be folded.
_HEADER = (
    "view",
    "n",
    "answered",
    "no\nanswer %",
    "accuracy\n%",
    "of answered\n%",
    "macro\nF1 %",
)


def show(scores: Sequence[Score], console: Console) -> None:
    """Print one table per data set and split, with what limits its figures underneath.

    Several models or protocols stand in it one below the other, view by view. A terminal gets a
    ruled table, folded where it is narrow, or the figures one below the other where it is very
    narrow; anything else gets aligned plain text, one line a row.
    """
    for (dataset, split), group in groupby(sorted(scores, key=_place), _place):
        together = list(group)
        whom = sorted({_asked(score) for score in together})
        if len(whom) == 1:
            ((model, protocol, mode),) = whom
            _line(console, f"{model} on {dataset}/{split}, protocol {protocol} ({mode})")
            names = {whom[0]: ""}
        else:
            _line(console, f"{dataset}/{split}")
            names = _told_apart(whom)
            for (model, protocol, mode), name in names.items():
                if name == model:
                    _line(console, f"{model}: protocol {protocol} ({mode})")
            together.sort(key=lambda score: (score.key.attribute, score.key.view, _asked(score)))
        _print_rows(together, names, console)
        for score in together:
            name = names[_asked(score)].replace("\n", " ")
            for said in _remarks(score):
                _line(console, f"{name}: {said}" if name else said)
        for line in (
            *_without_answer(together, names),
            *_intervals(together),
            *_by_group(together, names),
        ):
            _line(console, line)
        _line(console, "")


def _place(score: Score) -> tuple[str, str]:
    return score.key.dataset, score.key.split


_Asked = tuple[str, str, str]


def _asked(score: Score) -> _Asked:
    return score.key.model, score.key.protocol, score.key.answer_mode


def _told_apart(whom: Sequence[_Asked]) -> dict[_Asked, str]:
    """The shortest names by which all of these differ: the models', unless one is there twice."""
    if len({model for model, _, _ in whom}) == len(whom):
        return {each: each[0] for each in whom}
    return {each: f"{each[0]}\n{each[1]} ({each[2]})" for each in whom}


def _print_rows(scores: Sequence[Score], names: Mapping[_Asked, str], console: Console) -> None:
    rows = [_HEADER, *(_cells(score) for score in scores)]
    if len(names) > 1:
        whose = ["model", *(names[_asked(score)] for score in scores)]
        rows = [(row[0], name, *row[1:]) for row, name in zip(rows, whose, strict=True)]
    _print(rows, 1 if len(names) == 1 else 2, console)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _print(rows: Sequence[tuple[str, ...]], words: int, console: Console) -> None:
    """`words` is how many columns are text, the others are figures."""
    unfolded = [tuple(cell.replace("\n", " ") for cell in row) for row in rows]
    if console.is_terminal:
        for table in (_ruled(unfolded, words), _ruled(rows, words)):
            if _width(table, console) <= console.width:
                console.print(table, markup=False, highlight=False)
                return
    lines = _stacked(unfolded, words) if console.is_terminal else _plain(unfolded, words)
    for line in lines:
        _line(console, line)


def _ruled(rows: Sequence[tuple[str, ...]], words: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for position, title in enumerate(rows[0]):
        table.add_column(title, justify="left" if position < words else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _width(table: Table, console: Console) -> int:
    """What the table needs to show every figure whole."""
    unbounded = console.options.update(max_width=10_000)
    return console.measure(table, options=unbounded).maximum


def _plain(rows: Sequence[tuple[str, ...]], words: int) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            cell.ljust(width) if position < words else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        )


def _stacked(rows: Sequence[tuple[str, ...]], words: int) -> Iterator[str]:
    titles = rows[0][words:]
    for row in rows[1:]:
        figures = row[words:]
        yield ", ".join(row[:words])
        yield from (f"  {title}: {figure}" for title, figure in zip(titles, figures, strict=True))


def _cells(score: Score) -> tuple[str, ...]:
    return (
        f"{_name(score)}{'' if score.complete else '*'}",
        f"{score.n:,}",
        f"{score.n_answered:,}",
        _percent((score.n - score.n_answered) / score.n if score.n else None),
        _interval(score.accuracy),
        _interval(score.accuracy_answered),
        _percent(score.macro_f1.value),
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
    name = _row_name(score)
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
    if score.n_excluded:
        yield f"{name}: {score.n_excluded:,} rows left out, their target is not in the view."
    if score.n_outside_view:
        yield f"{name}: {score.n_outside_view:,} answers are not in the view and count as wrong."
    if score.n_spurious:
        yield f"{name}: {score.n_spurious:,} persons listed who are not there, not in n."


def _without_answer(scores: Sequence[Score], names: Mapping[_Asked, str]) -> Iterator[str]:
    """What came instead of answers, one line each; in other views of the same rows, or fewer."""
    for score in _in_one_view(scores):
        if score.outcome_rates:
            rates = ", ".join(
                f"{outcome} {_interval(rate)} %".replace("\n", " ")
                for outcome, rate in score.outcome_rates.items()
            )
            yield f"{_of(score, names)}: no answer: {rates}."


def _of(score: Score, names: Mapping[_Asked, str]) -> str:
    """Whose score it is, where there are several, and in what."""
    name = names[_asked(score)].replace("\n", " ")
    return f"{name}: {_row_name(score)}" if name else _row_name(score)


def _intervals(scores: Sequence[Score]) -> Iterator[str]:
    """How far the intervals hold."""
    for said in sorted({remark(score) for score in scores if score.n}):
        yield f"Intervals: {said}"


def _by_group(scores: Sequence[Score], names: Mapping[_Asked, str]) -> Iterator[str]:
    """What differs between groups, one line each, and what was looked at besides.

    Of one view only, the asked set where there is one: in others the same rows say the same again.
    """
    tested = compared = 0
    for score in _in_one_view(scores):
        where = _of(score, names)
        for groups in score.groups:
            yield from (f"{where}: {finding}" for finding in groups.findings())
            tests = [test for _, test in groups.tests]
            tests += [groups.equal_rate] if groups.equal_rate else []
            tested += len(tests)
            compared += sum(not test.found for test in tests)
    if tested:
        by = ", ".join(dict.fromkeys(g.name for score in scores for g in score.groups))
        yield (
            f"By group ({by}): {compared:,} of {tested:,} tests of accuracy and outcomes found no "
            "difference; metrics.json has every figure, and other views."
        )


def _in_one_view(scores: Sequence[Score]) -> Iterator[Score]:
    """One score of each combination."""
    chosen: dict[tuple[str, ...], Score] = {}
    for score in scores:
        combination = score.tally.counts.combination
        if combination not in chosen or score.key.view == score.key.asked_label_set:
            chosen[combination] = score
    yield from chosen.values()


def _row_name(score: Score) -> str:
    return _name(score).replace("\n", " ")


def _which(outcomes: dict[Outcome, int], among: frozenset[Outcome]) -> str:
    return ", ".join(f"{o} {n:,}" for o, n in outcomes.items() if n and o in among)
