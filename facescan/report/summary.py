"""The first tables: how right each model was, and what became of the questions."""

from collections.abc import Iterable, Iterator, Sequence

from facescan.report import charts
from facescan.report.blocks import (
    At,
    Axis,
    Block,
    Cell,
    Column,
    Figure,
    Items,
    Kind,
    Part,
    Section,
    Table,
    Text,
)
from facescan.report.entries import Entry, Topic
from facescan.report.scores_file import Interval
from facescan.types import RUN_OUTCOMES, Outcome

AVOIDS_REFUSALS = (
    "† Asked in wording that avoids refusals: it calls the picture of a real person hypothetical "
    "and the scenario fictional. Asked plainly, the model may refuse more often."
)


def interval(found: Interval, at: At, kind: Kind = "percent") -> Cell:
    """A value, with its interval smaller beside it."""
    value = Figure(found.value, at / "value", kind)
    if found.value is None or found.ci_low is None or found.ci_high is None:
        return Cell((value,))
    low = Figure(found.ci_low, at / "ci_low", kind)
    high = Figure(found.ci_high, at / "ci_high", kind)
    return Cell((value,), span(low, high))


def span(low: Figure, high: Figure) -> tuple[Part, ...]:
    """The bounds of an interval; a dash between signed numbers would read as a minus."""
    return "[", low, " to " if low.kind == "points" else "\N{EN DASH}", high, "]"


def count(entry: Entry, key: str) -> Cell:
    """A number of rows."""
    return Cell((Figure(getattr(entry.score, key), entry.at / key, "count"),))


def title(topic: Topic, several_places: bool) -> str:
    """The heading of a topic; with its place where the report has several."""
    if not several_places:
        return topic.attribute.capitalize()
    return f"{topic.attribute.capitalize()}: {topic.dataset}/{topic.split}"


def place(topic: Topic) -> str:
    """An anchor's end."""
    return f"{topic.dataset}-{topic.split}-{topic.attribute}"


def refusal_note(entries: Iterable[Entry]) -> list[Block]:
    """What has to stand wherever figures of such a wording do."""
    return [Text((AVOIDS_REFUSALS,))] if any(e.avoids_refusals for e in entries) else []


def accuracy(topics: Sequence[Topic], several_places: bool) -> Section:
    """Accuracy of every model in every view."""
    everything = [entry for topic in topics for entry in topic.entries]
    return Section(
        "summary",
        "Summary",
        [
            Text(
                (
                    "Percent, with 95 % intervals. Accuracy divides by all rows that the model was "
                    "asked about: no answer is not right. “race-7 as race-4” was asked in the "
                    "labels of race-7 and is seen in those of race-4.",
                )
            ),
            *refusal_note(everything),
            Items(tuple(_interval_remarks(everything))),
        ],
        [
            Section(
                f"summary-{place(topic)}",
                title(topic, several_places),
                [
                    _accuracy(topic),
                    *([Items(remarks)] if (remarks := tuple(_remarks(topic))) else []),
                ],
            )
            for topic in topics
        ],
    )


def _accuracy(topic: Topic) -> Table:
    found = [entry.score.accuracy for entry in topic.entries]
    on = charts.axis(v for i in found for v in (i.value, i.ci_low, i.ci_high))
    failed = any(entry.score.n_run_failures for entry in topic.entries)
    columns = [
        Column("model", numbers=False),
        Column("accuracy %", axis=on),
        Column("accuracy %"),
        Column("of answered %"),
        Column("balanced %"),
        Column("macro F1 %"),
        Column("n"),
        Column("answered", numbers=False),
        *([Column("failed in the run")] if failed else []),
    ]
    rows = [
        (
            Cell((entry.name + ("" if entry.score.complete else " *"),), (entry.view,)),
            Cell(strip=charts.strip(on, entry.score.accuracy)),
            interval(entry.score.accuracy, entry.at / "accuracy"),
            interval(entry.score.accuracy_answered, entry.at / "accuracy_answered"),
            interval(entry.score.balanced_accuracy, entry.at / "balanced_accuracy"),
            interval(entry.score.macro_f1, entry.at / "macro_f1"),
            count(entry, "n"),
            _unanswered(entry),
            *([count(entry, "n_run_failures")] if failed else []),
        )
        for entry in topic.entries
    ]
    return Table(
        f"table-summary-{place(topic)}",
        f"Accuracy: {topic.attribute}, {topic.dataset}/{topic.split}",
        tuple(columns),
        tuple(rows),
    )


def _unanswered(entry: Entry) -> Cell:
    """How many were answered, and how often each outcome came instead."""
    at = entry.at / "outcome_rates"
    answered = Figure(entry.score.n_answered, entry.at / "n_answered", "count")
    parts: list[Part] = []
    for name, found in entry.score.outcome_rates.items():
        parts += [", " if parts else "", name.replace("_", " "), " "]
        parts += [Figure(found.value, at / name / "value"), "\N{NO-BREAK SPACE}%"]
    return Cell((answered,), tuple(parts))


def _remarks(topic: Topic) -> Iterator[tuple[Part, ...]]:
    """What a reader of the table must know."""
    for entry in topic.entries:
        score, at = entry.score, entry.at
        who = f"{entry.who}, {entry.view}: "

        def rows(key: str, score: object = score, at: At = at) -> Figure:
            return Figure(getattr(score, key), at / key, "count")

        if score.n_run_failures:
            yield (
                *("* ", who, rows("n_run_failures"), " more rows failed in the run, which says "),
                *("nothing of the model; with them accuracy is between ",),
                Figure(score.accuracy_worst, at / "accuracy_worst"),
                " and ",
                Figure(score.accuracy_best, at / "accuracy_best"),
                " %.",
            )
        if score.n_unlabelled:
            star = "" if score.complete or score.n_run_failures else "* "
            yield star, who, rows("n_unlabelled"), " rows have no target and are not scored."
        if score.n_excluded:
            yield who, rows("n_excluded"), " rows left out: their target is not in the view."
        if score.n_outside_view:
            yield who, rows("n_outside_view"), " answers are not in the view and count as wrong."
        if score.zero_support:
            yield who, "no target is ", ", ".join(score.zero_support), "; not in macro F1."


def _interval_remarks(entries: Sequence[Entry]) -> Iterator[tuple[Part, ...]]:
    """How intervals were made, and of which scores where they were not all made alike."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry.score.intervals is not None and entry.score.intervals.remark:
            names = found.setdefault(entry.score.intervals.remark, [])
            names.append(f"{entry.score.attribute}: {entry.who}, {entry.view}")
    for remark, names in found.items():
        whose = "" if len(names) == len(entries) else f" ({'; '.join(names)})"
        yield (f"Intervals: {remark}{whose}",)


def outcomes(topics: Sequence[Topic], several_places: bool) -> Section:
    """What became of every question."""
    tables: list[Block] = [
        Text(
            (
                "Each bar is all rows that have a target. What failed in the run (a file, a "
                "server) is no doing of the model's and is in no accuracy.",
            )
        ),
        *refusal_note(entry for topic in topics for entry in topic.entries),
    ]
    for topic in topics:
        entries = [entry for entry, _ in topic.primary]
        tables.append(_outcomes(topic, entries, several_places))
    return Section("outcomes", "Outcomes", tables)


def _outcomes(topic: Topic, entries: Sequence[Entry], several_places: bool) -> Table:
    shown = [
        outcome
        for outcome in Outcome
        if outcome not in (Outcome.ANSWERED, Outcome.SPURIOUS)
        and any(entry.score.outcomes.get(outcome) for entry in entries)
    ]
    bar = Axis(0.0, 1.0, ((0.0, "0"), (50.0, "50"), (100.0, "100 %")))
    rows = [
        (
            Cell((entry.name,), (entry.view,)),
            Cell(strip=charts.outcome_bar(entry.score)),
            count(entry, "n_correct"),
            count(entry, "n_answered"),
            *(
                Cell(
                    (
                        Figure(
                            entry.score.outcomes.get(outcome, 0),
                            entry.at / "outcomes" / outcome,
                            "count",
                        ),
                    )
                )
                for outcome in shown
            ),
        )
        for entry in entries
    ]
    tones = {"right": "right", "wrong": "wrong"}
    tones |= {tone: str(o) for o, tone in charts.OUTCOME_TONES.items() if o in shown}
    if RUN_OUTCOMES & set(shown):
        tones["run"] = "failed in the run"
    return Table(
        f"table-outcomes-{place(topic)}",
        f"Outcomes: {title(topic, several_places).lower()}",
        (
            Column("model", numbers=False),
            Column("rows", axis=bar),
            Column("right"),
            Column("answered"),
            *(Column(outcome.replace("_", " ")) for outcome in shown),
        ),
        tuple(rows),
        legend=tuple(tones.items()),
    )
