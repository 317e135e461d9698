"""facescan report RUN: the scores of one or several runs as a page and as Markdown."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import PurePath

from rich.console import Console

from facescan import attributes, protocols, published, shards, storage
from facescan.errors import UsageError
from facescan.images import Limits
from facescan.report import entries, gallery, scores_file
from facescan.report.answers import Galleries
from facescan.report.blocks import At
from facescan.report.comparisons import Found
from facescan.report.entries import Run, topics
from facescan.report.page import Report
from facescan.report.pictures import Pictures
from facescan.report.provenance import Asked, Imported, Provenance, avoids_refusals
from facescan.report.publications import Publication
from facescan.run import folder, manifest
from facescan.run.folder import RunFolder
from facescan.run.manifest import Combination
from facescan.score.consistency import checks
from facescan.score.output import JSON
from facescan.score.published import beside
from facescan.storage import Storage
from jobs.compare import FILE as COMPARISON
from jobs.compare import VERSION as COMPARISON_VERSION

PAGE = "index.html"
MARKDOWN = "report.md"


def report(
    runs: Sequence[str], output_dir: str | None, console: Console, *, with_images: bool = False
) -> Storage:
    """Write a report on the run folders at these paths or URIs, from their scores as they stand.

    Prints where the files are. What was there before is replaced.

    Args:
        runs: at least one; several stand side by side.
        output_dir: folder for the files; None for `report` in the first run's folder.
        console: for people.
        with_images: whether some pictures of each kind of error are in the page.

    Returns:
        The folder that holds `index.html` and `report.md`.

    Raises:
        UsageError: one of them is not a run, or has no scores.
        DataError: its scores or its manifest are not what they should be.
        OSError: they cannot be reached, or the report cannot be written.
    """
    places = [folder.existing(run) for run in runs]
    locations = [place.root.location for place in places]
    if len(set(locations)) < len(locations):
        raise UsageError(f"a run is given twice: {', '.join(locations)}")
    contents = [_scores(place) for place in places]
    found = [
        Run(scores_file.read(content, f"{place.scores.location}/{JSON}"), _provenance(place, name))
        for place, name, content in zip(places, _names(locations), contents, strict=True)
    ]
    told = Report(
        runs=found,
        compared=_compared(places) if len(places) > 1 else None,
        published=_published(contents),
        galleries=_galleries(places, found) if with_images else {},
    )
    target = storage.at(output_dir) if output_dir else places[0].root.below("report")
    target.write(PAGE, told.html().encode())
    target.write(MARKDOWN, told.markdown().encode())
    if shown := sum(len(each.pictures) for found in told.galleries.values() for each in found):
        console.print(
            f"{shown} pictures of faces are in the page: see whether the dataset's licence lets "
            "you pass it on",
            highlight=False,
        )
    for name in (PAGE, MARKDOWN):
        console.print(f"{target.location}/{name}", markup=False, highlight=False, soft_wrap=True)
    return target


def _names(locations: Sequence[str]) -> list[str]:
    """What each run is called: as much of its path's end as tells it from the others."""
    parts = [PurePath(location).parts for location in locations]
    depth = 1
    while len({each[-depth:] for each in parts}) < len({*parts}):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


def _scores(place: RunFolder) -> bytes:
    try:
        return place.scores.read(JSON)
    except FileNotFoundError:
        location = place.root.location
        raise UsageError(
            f"{location}: there are no scores to report; `facescan score {location}` makes them"
        ) from None


def _compared(places: Sequence[RunFolder]) -> list[Found] | None:
    """What `facescan compare` found between just these runs; None where it was not asked."""
    wanted = {place.root.location for place in places}
    for place in places:
        if not place.scores.exists(COMPARISON):
            continue
        where = f"{place.scores.location}/{COMPARISON}"
        content = place.scores.read(COMPARISON)
        found = scores_file.read_comparison(content, where, COMPARISON_VERSION)
        if set(found.runs) == wanted:
            return [
                (At(f"{COMPARISON}:/comparisons/{position}"), each)
                for position, each in enumerate(found.comparisons)
            ]
    return None


def _published(contents: Sequence[bytes]) -> list[Publication]:
    documents = [json.loads(content) for content in contents]
    found = []
    for name in published.names():
        paper = published.load(name)
        if figures := beside(paper, documents):
            avoiding = {
                (each.model, each.attribute)
                for each in figures
                if (protocol := paper.models[each.model].protocol) is not None
                and avoids_refusals(_wording(protocol, each.attribute))
            }
            found.append(Publication(tuple(figures), tuple(checks(paper)), frozenset(avoiding)))
    return found


def _wording(protocol: str, attribute: str) -> str:
    found = protocols.load(protocol)
    asked = found.attributes.get(attribute)
    return (asked.question if asked and asked.question else found.joint_question) or ""


def _galleries(places: Sequence[RunFolder], runs: Sequence[Run]) -> Galleries:
    """Pictures of errors of each run, from its own dataset."""
    shown: Galleries = {}
    primary = [entry for topic in topics(entries.of(runs)) for entry, _ in topic.primary]
    left = gallery.MAX_PICTURES
    for place, run in zip(places, runs, strict=True):
        of_run = [entry for entry in primary if entry.run is run.provenance]
        cells = gallery.chosen(of_run, gallery.errors(place.predictions), attributes.load, left)
        left -= sum(len(cell.image_ids) for cell in cells)
        with closing(pictures(place, gallery.MAX_SIDE)) as small:
            shown |= gallery.galleries(cells, small)
    return shown


def pictures(place: RunFolder, max_side: int) -> Pictures:
    """The images of a run's dataset, no longer side above `max_side` pixels; the caller closes it.

    Raises:
        DataError: the dataset is no longer where the run found it.
    """
    data = manifest.read(place).dataset
    limits = Limits(data.max_bytes, data.max_pixels, data.min_side)
    return Pictures(shards.open(data.location, data.split), limits, max_side)


def _provenance(place: RunFolder, name: str) -> Provenance:
    found = manifest.read(place)
    data = found.dataset
    images = f"{data.images:,}"
    if data.limit is not None and data.limit < data.images:
        images = f"{data.limit:,} of {images} (seed {data.seed})"
    dataset = {
        "dataset": ", ".join(data.names),
        "split": data.split or "all",
        "images": images,
        "label sets": ", ".join(data.label_sets.values()),
        "licence": data.licence or "not stated",
        "digest": data.digest,
    }
    return Provenance(
        run=name,
        facescan=found.facescan,
        created_at=found.created_at.isoformat(timespec="seconds"),
        summary=f"{images} images of {', '.join(data.names)}, begun {found.created_at:%Y-%m-%d}.",
        dataset=dataset,
        asked=tuple(map(_asked, found.combinations)),
        packages=found.packages,
        hardware=found.hardware,
    )


def _asked(found: Combination) -> Asked:
    answered = found.answered_by
    return Asked(
        model=found.model,
        protocol=found.protocol,
        attribute=found.attribute,
        label_set=found.label_set,
        answer_mode=found.answer_mode,
        prompt=found.prompt,
        offered=found.offered,
        max_tokens=found.max_tokens,
        temperature=found.temperature,
        preprocessing=found.preprocessing,
        weights=_without_folders(answered.resolved_model) if answered else _identity(found),
        engine=answered.engine if answered else found.engine,
        numerics=answered.numerics if answered else found.numerics,
        imported=None if found.imported is None else Imported(**found.imported.model_dump()),
    )


def _identity(found: Combination) -> str:
    return ", ".join(f"{name} {value}" for name, value in (found.checkpoint or {}).items() if value)


def _without_folders(model: str) -> str:
    """A checkpoint of this machine by its folder's name: a report is for other people."""
    return model.rsplit("/", 1)[-1] if model.startswith("/") else model
