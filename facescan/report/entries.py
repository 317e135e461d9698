"""The scores of one or several runs, each with a name that tells it from the others."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from facescan.report.blocks import At
from facescan.report.provenance import Provenance
from facescan.report.scores_file import Document, Score


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of one run."""

    document: Document
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Entry:
    """A score in the report.

    Attributes:
        at: where it stands in its run's `metrics.json`.
        who: what was asked, as short as tells it from all others of the report.
        key: unique in the report, and fit for an anchor.
        avoids_refusals: see `Asked`.
    """

    run: Provenance
    at: At
    score: Score
    who: str
    key: str
    avoids_refusals: bool

    @property
    def name(self) -> str:
        """`who`, marked where the wording avoids refusals."""
        return f"{self.who} †" if self.avoids_refusals else self.who

    @property
    def view(self) -> str:
        """What it was asked in, and what it is seen in."""
        asked, view = self.score.asked_label_set, self.score.view
        return view if view == asked else f"{asked} as {view}"

    @property
    def asked(self) -> tuple[str, ...]:
        """What all views of one combination share."""
        score = self.score
        return (
            *(self.run.run, score.model, score.dataset, score.split, score.attribute),
            *(score.protocol, score.answer_mode, score.asked_label_set),
        )


def of(runs: Sequence[Run]) -> list[Entry]:
    """All scores of the runs, in their order."""
    scores = [
        (number, run, position, score)
        for number, run in enumerate(runs)
        for position, score in enumerate(run.document.scores)
    ]
    names = _names((run.provenance.run, score) for _, run, _, score in scores)
    return [
        Entry(
            run=run.provenance,
            at=At(f"{number}:/scores/{position}"),
            score=score,
            who=name,
            key=f"{number}-{position}",
            avoids_refusals=_avoids_refusals(run.provenance, score),
        )
        for (number, run, position, score), name in zip(scores, names, strict=True)
    ]


def _names(scores: Iterable[tuple[str, Score]]) -> list[str]:
    """Model names, with protocol and run only where two would otherwise have one name."""
    whom = [(run, score) for run, score in scores]
    shortest: tuple[Callable[[str, Score], str], ...] = (
        lambda run, score: score.model,
        lambda run, score: f"{score.model}, {score.protocol}",
        lambda run, score: f"{score.model}, {score.protocol} ({score.answer_mode})",
        lambda run, score: f"{run}: {score.model}",
        lambda run, score: f"{run}: {score.model}, {score.protocol}",
    )
    for name in shortest:
        # Beside its name a row has the place, the attribute and the two label sets.
        found = Counter(
            (name(run, s), s.dataset, s.split, s.attribute, s.asked_label_set, s.view)
            for run, s in whom
        )
        if max(found.values(), default=1) == 1:
            return [name(run, score) for run, score in whom]
    return [f"{run}: {s.model}, {s.protocol} ({s.answer_mode})" for run, s in whom]


def _avoids_refusals(run: Provenance, score: Score) -> bool:
    key = (score.model, score.protocol, score.attribute)
    return any(
        asked.avoids_refusals
        for asked in run.asked
        if (asked.model, asked.protocol, asked.attribute) == key
    )


@dataclass(frozen=True, slots=True)
class Topic:
    """Scores that stand side by side: of one attribute of one dataset and split."""

    dataset: str
    split: str
    attribute: str
    entries: tuple[Entry, ...]

    @property
    def primary(self) -> list[tuple[Entry, tuple[Entry, ...]]]:
        """Each combination in the labels it was asked in, if it is seen in them; and its others."""
        found: dict[tuple[str, ...], list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.asked, []).append(entry)
        chosen = []
        for views in found.values():
            first = next((e for e in views if e.score.view == e.score.asked_label_set), views[0])
            chosen.append((first, tuple(each for each in views if each is not first)))
        return sorted(chosen, key=lambda pair: pair[0].who)


def topics(entries: Iterable[Entry]) -> list[Topic]:
    """The entries by dataset, split and attribute; the finest views first, in each by name."""
    found: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        score = entry.score
        found.setdefault((score.dataset, score.split, score.attribute), []).append(entry)
    return [
        Topic(*place, tuple(sorted(together, key=_order)))
        for place, together in sorted(found.items())
    ]


def _order(entry: Entry) -> tuple[int, str, str, str]:
    return -len(entry.score.confusion.targets), entry.score.view, entry.who, entry.view
