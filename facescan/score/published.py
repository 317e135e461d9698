"""Published figures beside what runs measured of the same: attribute, view and dataset."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from facescan import protocols
from facescan.published import Paper, Row, Table

Score = Mapping[str, Any]
"""An entry of `scores` in a run's `metrics.json`."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run measured of a published figure; fractions.

    Attributes:
        document: position of the run's document among those given.
        score: position in the document's `scores`.
        place: path of the figure inside the score, such as `/classes/3/recall`; empty where it is
            calculated from several figures there (macro precision).
        value: None where the run has it as 0 out of 0.
        low: of its interval; None where it has none.
        high: of its interval; None where it has none.
    """

    document: int
    score: int
    place: str
    model: str
    protocol: str
    answer_mode: str
    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Beside:
    """One published figure, and what was measured of the same.

    Attributes:
        paper: name of the paper's file.
        edition: of the paper, as it is cited.
        table: key of the table in the file.
        title: as the paper calls the table.
        page: or pages, of the paper.
        model: as the paper names it.
        label: the class, as the paper names it; None for a figure over all classes.
        metric: one of `facescan.published.FIGURES`.
        printed: percent, with the digits that are printed.
        published: the same as a fraction.
        n: images that the paper scored.
        measured: None: published only.
        not_runnable: why facescan cannot measure it; empty where it can.
        differences: between what was published and what was measured (or would be), a sentence
            each.
    """

    paper: str
    edition: str
    table: str
    title: str
    page: str
    about: str
    attribute: str
    view: str
    model: str
    label: str | None
    metric: str
    printed: str
    published: float
    n: int
    measured: Measured | None
    not_runnable: str
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A score of a run that a table could be compared with."""

    document: int
    position: int
    score: Score


def beside(paper: Paper, documents: Sequence[Mapping[str, Any]]) -> list[Beside]:
    """The figures of the paper's tables that these runs have measured anything of.

    A table is taken where a score has its attribute, its view and an edition of its dataset (the
    split included). All its rows are given then, those without a measured score as published only.
    A row of which there are several scores, such as one for each protocol, is given for each.

    Args:
        paper: of which figures are published.
        documents: `metrics.json` of the runs, version 2.
    """
    found: list[Beside] = []
    for name, table in paper.tables.items():
        candidates = list(_candidates(paper, table, documents))
        if not candidates:
            continue
        for row in table.rows:
            cards = paper.models[row.model].cards
            of_row: list[_Candidate | None] = [
                each for each in candidates if each.score["model"] in cards
            ]
            for candidate in of_row or [None]:
                found += _figures(paper, name, table, row, candidate)
    return found


def _candidates(
    paper: Paper, table: Table, documents: Sequence[Mapping[str, Any]]
) -> Iterator[_Candidate]:
    examined = paper.test_sets[table.test_set]
    for number, document in enumerate(documents):
        for position, score in enumerate(document["scores"]):
            if (
                score["attribute"] == table.attribute
                and score["view"] == table.view
                and score["dataset"] in examined.editions
                and score["split"] == examined.split
            ):
                yield _Candidate(number, position, score)


def _figures(
    paper: Paper, name: str, table: Table, row: Row, candidate: _Candidate | None
) -> Iterator[Beside]:
    examined = paper.test_sets[table.test_set]
    n = sum(examined.supports.get(table.view, {}).values()) or examined.n
    differences = [*table.differences, *row.differences, *paper.models[row.model].differences]
    if candidate is not None:
        differences += _of_the_run(paper, table, row, candidate.score, n)
    for metric, printed in row.figures():
        yield Beside(
            paper=paper.name,
            edition=paper.edition,
            table=name,
            title=table.title,
            page=table.pages,
            about=table.about,
            attribute=table.attribute,
            view=table.view,
            model=row.model,
            label=row.label_as_printed or row.label,
            metric=metric,
            printed=str(printed),
            published=float(printed / Decimal(100)),
            n=n,
            measured=None if candidate is None else _measured(candidate, row.label, metric),
            not_runnable=paper.models[row.model].not_runnable,
            differences=tuple([*differences, *paper.differences]),
        )


def _of_the_run(paper: Paper, table: Table, row: Row, score: Score, n: int) -> Iterator[str]:
    examined = paper.test_sets[table.test_set]
    if edition := examined.editions[score["dataset"]]:
        yield edition
    protocol = paper.protocol(row)
    asked = None
    if protocol is not None:
        asked = protocols.load(protocol).attributes[table.attribute].label_set
    if score["protocol"] != protocol:
        theirs = "the paper's wording is not known" if protocol is None else f"not {protocol}"
        yield f"Asked by the protocol {score['protocol']}; {theirs}."
    if asked is not None and score["asked_label_set"] != asked:
        yield (
            f"Asked in {score['asked_label_set']} and viewed in {table.view}; {protocol} asks in "
            f"{asked}."
        )
    if score["n"] != n:
        yield f"Scored on {score['n']:,} images; the paper's test set has {n:,}."
    if not score["complete"]:
        yield "The run is not complete: some requests failed and are in no score."


def _measured(candidate: _Candidate, label: str | None, metric: str) -> Measured:
    score = candidate.score
    if label is not None:
        number = [each["label"] for each in score["classes"]].index(label)
        place, figure = f"/classes/{number}/{metric}", score["classes"][number][metric]
    elif metric == "macro_precision":
        place, figure = "", _mean_precision(score)
    else:
        # The mean recall of the classes is the balanced accuracy.
        key = "balanced_accuracy" if metric == "macro_recall" else metric
        place, figure = f"/{key}", score[key]
    return Measured(
        document=candidate.document,
        score=candidate.position,
        place=place,
        model=score["model"],
        protocol=score["protocol"],
        answer_mode=score["answer_mode"],
        n=score["n"],
        value=figure["value"],
        low=figure["ci_low"],
        high=figure["ci_high"],
    )


def _mean_precision(score: Score) -> dict[str, float | None]:
    """Over the classes with support; one that is never answered counts as 0, as in scikit-learn."""
    values = [each["precision"]["value"] or 0.0 for each in score["classes"] if each["support"]]
    mean = sum(values) / len(values) if values else None
    return {"value": mean, "ci_low": None, "ci_high": None}
