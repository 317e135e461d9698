"""What moved between the runs of a sensitivity study: accuracy, gaps between groups, answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import and_
from pathlib import Path
from statistics import mean, median
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from facescan import attributes
from facescan.attributes import Attribute
from facescan.models import ModelCard
from facescan.run import folder, journal
from facescan.run.folder import RunFolder
from facescan.score import paired
from facescan.score.flips import flips
from facescan.score.intervals import UNKNOWN, Rate
from facescan.score.paired import Meeting
from facescan.types import RUN_OUTCOMES, AnswerMode
from jobs.variants import BASE, Variant, Variants

_RUN = "run"

Result = dict[str, Any]
"""One model about one attribute on one split; see docs/sensitivity.md for its keys."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model of the study; `model` is what `--model` was given."""

    model: str
    card: ModelCard
    variants: Variants


def again(root: Path, number: int) -> Path:
    """The run folder of a repeat."""
    return root / f"again-{number}" / _RUN


def runs(root: Path, repeats: int) -> list[Path]:
    """The run folders of a study: of the variants, then of the repeats."""
    return [root / _RUN, *(again(root, number) for number in range(1, repeats + 1))]


def of(
    root: Path, subjects: Sequence[Subject], said: Mapping[tuple[int, str], str]
) -> list[Result]:
    """What moved, from the scores and the predictions of the study's runs.

    Args:
        root: the study's folder; its runs are scored.
        subjects: the models.
        said: (number of a repeat, model) -> what was not as in the first run.
    """
    repeats = max((number for number, _ in said), default=0)
    study = _Study(
        run=folder.existing(str(root / _RUN)),
        repeats=[folder.existing(str(again(root, n + 1))) for n in range(repeats)],
        said=said,
        scores=[_scores(place) for place in runs(root, repeats)],
        meetings=_meetings(root, repeats),
    )
    return [
        _result(study, subject, name, place)
        for subject in subjects
        for name in dict.fromkeys(a for v in subject.variants.asked for a in v.attributes)
        for place in study.places(subject.card.name, name)
    ]


_Score = Mapping[str, Any]
"""An entry of `scores` in `metrics.json`."""

_Place = tuple[str, str]
"""Dataset and split."""

_Asking = tuple[int, str]
"""Number of the run (0: that of the variants) and protocol."""

_Pairs = Mapping[tuple[str, str, _Place], Mapping[tuple[_Asking, _Asking], Meeting]]
"""(model, attribute, place) -> two askings -> how their answers met."""


@dataclass(frozen=True, slots=True)
class _Study:
    run: RunFolder
    repeats: Sequence[RunFolder]
    said: Mapping[tuple[int, str], str]
    scores: Sequence[Sequence[_Score]]
    meetings: _Pairs

    def by_view(
        self, number: int, model: str, protocol: str, attribute: str, place: _Place
    ) -> dict[str, _Score]:
        """View -> score of one asking; `number` is that of the run."""
        wanted = (model, protocol, attribute, *place)
        keys = ("model", "protocol", "attribute", "dataset", "split")
        return {
            score["view"]: score
            for score in self.scores[number]
            if tuple(score[key] for key in keys) == wanted
        }

    def places(self, model: str, attribute: str) -> list[_Place]:
        """Where the model was asked about the attribute."""
        found = (
            (score["dataset"], score["split"])
            for score in self.scores[0]
            if (score["model"], score["attribute"]) == (model, attribute)
        )
        return list(dict.fromkeys(found))


def _scores(place: Path) -> list[_Score]:
    document = json.loads((place / "scores" / "metrics.json").read_text(encoding="utf-8"))
    found: list[_Score] = document["scores"]
    return found


def _meetings(root: Path, repeats: int) -> _Pairs:
    numbers = {str(number): place for number, place in enumerate(runs(root, repeats))}
    named = [(name, folder.existing(str(place)).predictions) for name, place in numbers.items()]
    found: dict[tuple[str, str, _Place], dict[tuple[_Asking, _Asking], Meeting]] = {}
    for meeting in paired.meetings(named):
        a, b = meeting.a, meeting.b
        if a.model != b.model:
            continue
        key = (a.model, meeting.attribute, (meeting.dataset, meeting.split))
        askings = ((int(a.run), a.protocol), (int(b.run), b.protocol))
        found.setdefault(key, {})[askings] = meeting
        found[key][askings[::-1]] = meeting
    return found


def _result(study: _Study, subject: Subject, name: str, place: _Place) -> Result:
    model, attribute = subject.card.name, attributes.load(name)
    asked = [v for v in subject.variants.asked if name in v.attributes]
    met = study.meetings.get((model, name, place), {})
    scored = [study.by_view(0, model, v.protocol, name, place) for v in asked]
    view = next((s.name for s in attribute.label_sets if all(s.name in v for v in scored)), "")
    base = (0, asked[0].protocol)
    described = [
        _variant(v, found.get(view), _flips(met, base, (0, v.protocol), attribute))
        for v, found in zip(asked, scored, strict=True)
    ]
    pairs = [
        _flips(met, (0, a.protocol), (0, b.protocol), attribute) for a, b in combinations(asked, 2)
    ]
    rates = [each["rate"]["value"] for each in pairs if each and each["rows"]]
    return {
        "model": model,
        "attribute": name,
        "dataset": place[0],
        "split": place[1],
        "view": view or None,
        "variants": described,
        "accuracy": _moved([each["accuracy"]["value"] for each in described]),
        "gaps": {
            by: _moved([each["gaps"].get(by) for each in described])
            for by in dict.fromkeys(by for each in described for by in each["gaps"])
        },
        "mean_flip_rate": mean(rates) if rates else None,
        "again": [
            _repeat(study, subject, attribute, number, place, view)
            for number in range(1, len(study.repeats) + 1)
        ],
    }


def _variant(variant: Variant, score: _Score | None, flipped: Result | None) -> Result:
    return {
        "varies": variant.varies,
        "protocol": variant.protocol,
        "answer_mode": str(variant.answer_mode),
        "n": score and score["n"],
        "n_answered": score and score["n_answered"],
        "accuracy": score["accuracy"] if score else _interval(UNKNOWN),
        "gaps": _gaps(score) if score else {},
        "flips": None if variant.varies == BASE else flipped,
    }


def _gaps(score: _Score) -> dict[str, float | None]:
    """Column -> largest minus smallest accuracy of its groups."""
    return {
        group["by"][0]: group["largest_gap"] and group["largest_gap"]["value"]
        for group in score["groups"]
        if len(group["by"]) == 1
    }


def _moved(values: Sequence[float | None]) -> Result | None:
    known = [value for value in values if value is not None]
    return {"mean": mean(known), "low": min(known), "high": max(known)} if known else None


def _flips(
    met: Mapping[tuple[_Asking, _Asking], Meeting],
    one: _Asking,
    other: _Asking,
    attribute: Attribute,
) -> Result | None:
    """None where the two have no row or no view in common."""
    meeting = met.get((one, other))
    found = flips(meeting, attribute) if meeting else None
    if found is None:
        return None
    return {
        "rows": found.rows,
        "flipped": found.flipped,
        "failed": found.failed,
        "rate": _interval(found.rate),
    }


def _interval(rate: Rate) -> dict[str, float | None]:
    return {"value": rate.value, "ci_low": rate.low, "ci_high": rate.high}


def _repeat(
    study: _Study, subject: Subject, attribute: Attribute, number: int, place: _Place, view: str
) -> Result:
    model, base = subject.card.name, subject.variants.asked[0]
    met = study.meetings.get((model, attribute.name, place), {})
    score = study.by_view(number, model, base.protocol, attribute.name, place).get(view)
    return {
        "number": number,
        "differs": study.said[number, model],
        "accuracy": score["accuracy"] if score else _interval(UNKNOWN),
        "flips": _flips(met, (0, base.protocol), (number, base.protocol), attribute),
        "margins": _margins(study, subject, attribute.name, number, place),
    }


def _margins(
    study: _Study, subject: Subject, attribute: str, number: int, place: _Place
) -> Result | None:
    """How far the two likeliest labels were apart, on the rows that flipped and on all.

    As natural-log probabilities, of the base's wording in the mode `score`; None where it was not
    asked in it.
    """
    scored = [
        v.protocol
        for v in subject.variants.asked
        if v.varies in (BASE, "mode")
        and attribute in v.attributes
        and v.answer_mode is AnswerMode.SCORE
    ]
    if not scored:
        return None
    base = subject.variants.asked[0].protocol
    whose = (subject.card.name, attribute, place)
    before = _answers(study.run, base, *whose)
    after = _answers(study.repeats[number - 1], base, *whose)
    margin = _apart(study.run)
    margins = {
        row: margin[request]
        for row, (_, request) in _answers(study.run, scored[0], *whose).items()
        if request in margin
    }
    flipped = [row for row in before.keys() & after.keys() if before[row][0] != after[row][0]]
    known = [margins[row] for row in flipped if row in margins]
    return {
        "protocol": scored[0],
        "flipped": {"rows": len(known), "median": median(known) if known else None},
        "all": {
            "rows": len(margins),
            "median": median(margins.values()) if margins else None,
        },
    }


_Row = tuple[str, int]
"""Image and person."""


def _answers(
    run: RunFolder, protocol: str, model: str, attribute: str, place: _Place
) -> dict[_Row, tuple[tuple[str, str | None], str]]:
    """Row -> (outcome and label, key of the request), for outcomes of the model."""
    wanted = {"model": model, "protocol": protocol, "attribute": attribute}
    wanted |= {"dataset": place[0], "split": place[1]}
    columns = [*wanted, "image_id", "person", "outcome", "label", "request_id"]
    condition = reduce(and_, (pc.field(column) == value for column, value in wanted.items()))
    found = {}
    for name in run.predictions.names():
        if not name.endswith(".parquet"):
            continue
        with run.predictions.open(name) as file:
            table = pq.read_table(file, columns=columns, filters=condition)
        for row in table.to_pylist():
            if row["outcome"] not in RUN_OUTCOMES:
                answer = (row["outcome"], row["label"])
                found[row["image_id"], row["person"]] = (answer, row["request_id"])
    return found


def _apart(run: RunFolder) -> dict[str, float]:
    """Request -> by how much its likeliest label exceeds the next, in natural-log probability."""
    found = {}
    names = journal.files(run.replies).names
    for batch in journal.reader(run.replies, names, ("request_id", "label_logprobs")):
        for row in batch.to_pylist():
            first, *others = sorted((p for _, p in row["label_logprobs"] or ()), reverse=True) or [
                0
            ]
            if others:
                found[row["request_id"]] = first - others[0]
    return found
