"""`facescan import RUN --predictions FILE`: other people's answers as a run."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from facescan import __version__, images, parse, registry, shards
from facescan.errors import UsageError
from facescan.foreign import Answered, Foreign, deepface, fairface
from facescan.foreign import table as foreign_table
from facescan.run import folder as run_folder
from facescan.run import importing, journal, lease, manifest, predictions
from facescan.run.folder import RunFolder, writing
from facescan.run.importing import Finding, Joined
from facescan.run.manifest import AnsweredBy, Combination, DatasetRecord, Imported, Manifest
from facescan.run.selection import image_ids, sample
from facescan.run.verify import GENERATED
from facescan.shards import Shards
from facescan.types import FinishReason, Outcome, Question

_EXAMPLES = 3
_SESSION = "import"


_FORMATS: dict[str, Callable[[Path], Foreign]] = {
    "fairface": fairface.opened,
    "deepface": deepface.opened,
}
_TABLE = "table"


@dataclass(frozen=True, slots=True)
class Source:
    """The file, and how it is read.

    Attributes:
        file: of predictions.
        format: `table`, or one that says itself what its columns are: `fairface`, `deepface`.
        model: what the model is called in every result.
        protocol: how it was asked, by name.
        no_face: images without a row are such as a detector found no face in; else nobody knows
            what became of them.
        columns: of a table, from flags; they add to and override `config`.
        config: YAML file with the columns of a table.
    """

    file: Path
    format: str
    model: str
    protocol: str
    no_face: bool
    columns: dict[str, Any]
    config: Path | None


def import_predictions(
    run: str, source: Source, console: Console, *, dataset: str | None, split: str | None
) -> RunFolder:
    """Make the answers in a file those of a run, new or there already, and say what did not fit.

    The same command again changes nothing.

    Args:
        run: path or URI of the run folder.
        source: the file.
        console: for what was found.
        dataset: path or URI of the shards that the answers are about; None: the run's own.
        split: only this one of them.

    Raises:
        UsageError: flags that cannot work, or a folder that is no run (exit 2).
        DataError: the file is not of its format, lacks a column, or has no row of any image.
        MixingError: the run has other answers of this model, protocol and attribute (exit 4).
        StorageError: the run folder cannot be written.
    """
    folder = run_folder.startable(run)
    known = manifest.read(folder) if folder.is_run else None
    if dataset is None and known is None:
        raise UsageError("--dataset is required: the shards that the predictions are about")
    location, split = _place(folder, dataset, split, known)
    data = shards.open(location, split)
    foreign = _opened(source, data)
    with writing(folder), lease.hold(folder.root):
        limit, seed = (known.dataset.limit, known.dataset.seed) if known else (None, 0)
        selection = sample(image_ids(data), limit, seed)
        with importing.joined(folder, foreign, data, selection) as found:
            findings = found.findings()
            if not found.images:
                raise UsageError(
                    f"{source.file}: no row is of an image of {data.location}: "
                    f"{'; '.join(map(_said, findings))}. Ids there are such as "
                    f"{', '.join(_some_ids(data))}"
                )
            place = _dataset(data, split, known, own=dataset is None)
            record = _record(source, place, known, foreign, found, findings)
            record.write(folder)
            questions = _questions(record, source, foreign.answered)
            absent = Outcome.NO_FACE if source.no_face else None
            replies = found.replies(questions, absent, datetime.now(UTC))
            for number, batch in enumerate(replies):
                stem = f"part-{_SESSION}-{questions[0].identity[:8]}-{number:06d}"
                journal.put(folder.replies, stem, journal.table(batch))
            read = [_read(found, number, each) for number, each in enumerate(questions)]
        journal.compact(folder.replies)
        predictions.build(folder, data, selection, manifest.questions(record))
    _show(source, found, findings, [finding for each in read for finding in each], console)
    return folder


def _place(
    folder: RunFolder, dataset: str | None, split: str | None, known: Manifest | None
) -> tuple[str, str | None]:
    """Where the shards are, and which split of them; the run's own where nothing else is said."""
    if known is None:
        return dataset or "", split
    location = known.dataset.location
    if known.dataset.digest.startswith(GENERATED):
        # Wherever the run folder was moved to.
        location = f"{folder.root.location}/shards/{Path(location).name}"
    return dataset or location, split or known.dataset.split


def _some_ids(data: Shards) -> list[str]:
    return [each for _, each in zip(range(_EXAMPLES), image_ids(data), strict=False)]


def _opened(source: Source, data: Shards) -> Foreign:
    if not source.file.is_file():
        raise UsageError(f"--predictions {source.file}: no such file")
    if source.format == _TABLE:
        columns = _columns(source)
        return foreign_table.opened(source.file, columns, data.label_sets)
    if source.columns or source.config:
        raise UsageError(f"--format {source.format} says itself what its columns are")
    return _FORMATS[source.format](source.file)


def _columns(source: Source) -> foreign_table.Columns:
    given = {} if source.config is None else registry.fields(source.config)
    labels = {**(given.get("labels") or {}), **source.columns.get("labels", {})}
    try:
        return foreign_table.Columns.model_validate({**given, **source.columns, "labels": labels})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{source.config or 'the columns'}: {name}: {first['msg']}; a table needs the column "
            "of the image's id (--id) and of the labels (--label race=COLUMN)"
        ) from error


def _dataset(
    data: Shards, split: str | None, known: Manifest | None, *, own: bool
) -> DatasetRecord:
    """What the manifest says of the dataset; `own` is the one that the run has already."""
    if known is not None:
        digest = known.dataset.digest if own else data.digest
        return known.dataset.model_copy(update={"digest": digest, "split": split})
    limits = images.Limits()
    return DatasetRecord(
        location=data.location,
        digest=data.digest,
        names=list(data.datasets),
        split=split,
        label_sets=dict(data.label_sets),
        licence=data.licence,
        images=data.rows,
        seed=0,
        limit=None,
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_pixels,
        min_side=limits.min_side,
    )


def _record(
    source: Source,
    dataset: DatasetRecord,
    known: Manifest | None,
    foreign: Foreign,
    found: Joined,
    findings: Sequence[Finding],
) -> Manifest:
    """The manifest of the run with what this file adds."""
    digest = _sha256(source.file)
    imported = Imported(
        file=source.file.name,
        sha256=digest,
        format=source.format,
        rows=found.rows,
        images=found.images,
        counted={finding.what: finding.count for finding in findings},
    )
    record = Manifest(
        facescan=__version__,
        created_at=datetime.now(UTC),
        dataset=dataset,
        combinations=[_combination(source, each, digest, imported) for each in foreign.answered],
        packages=known.packages if known else {},
        hardware=known.hardware if known else {},
    )
    return record if known is None else manifest.grown(known, record)


def _combination(
    source: Source, answered: Answered, digest: str, imported: Imported
) -> Combination:
    content = {
        "imported": digest,
        "format": source.format,
        "model": source.model,
        "protocol": source.protocol,
        "no_face": source.no_face,
        **asdict(answered),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return Combination(
        model=source.model,
        protocol=source.protocol,
        attribute=answered.attribute,
        label_set=answered.label_set,
        answer_mode=answered.answer_mode,
        prompt="",
        max_tokens=0,
        temperature=0.0,
        offered=dict(answered.offered),
        question=hashlib.blake2b(text.encode(), digest_size=32).hexdigest(),
        checkpoint=None,
        preprocessing="",
        engine=importing.ENGINE,
        numerics={},
        answered_by=AnsweredBy(engine=importing.ENGINE, resolved_model=source.model, numerics={}),
        imported=imported,
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _questions(record: Manifest, source: Source, answered: Sequence[Answered]) -> list[Question]:
    """In the order of the file's attributes."""
    of_attribute = {
        question.attributes[0]: question
        for question in manifest.questions(record)
        if (question.model, question.protocol) == (source.model, source.protocol)
    }
    return [of_attribute[each.attribute] for each in answered]


def _read(found: Joined, column: int, question: Question) -> list[Finding]:
    """What of the file's words about one attribute is no answer, by outcome."""
    parser = parse.Parser(question)
    counts = Counter[Outcome]()
    examples: dict[Outcome, list[str]] = {}
    for text, count in found.texts(column):
        (reading,) = parser.readings(text, FinishReason.STOP)
        if reading.outcome is not Outcome.ANSWERED:
            counts[reading.outcome] += count
            examples.setdefault(reading.outcome, []).append(f"'{text}' {count:,}")
    what = f"answers about {question.attributes[0]} that name no label of {question.label_sets[0]}"
    return [
        Finding(f"{what}: {outcome}", count, tuple(examples[outcome][:_EXAMPLES]))
        for outcome, count in sorted(counts.items())
    ]


def _show(
    source: Source,
    found: Joined,
    findings: Sequence[Finding],
    read: Sequence[Finding],
    console: Console,
) -> None:
    for line in _lines(source, found, findings, read):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(
    source: Source, found: Joined, findings: Sequence[Finding], read: Sequence[Finding]
) -> Iterator[str]:
    yield (
        f"{source.model}: {found.rows:,} rows of {source.file}, images answered about: "
        f"{found.images:,}"
    )
    yield from (f"  {_said(finding)}" for finding in (*findings, *read))


def _said(finding: Finding) -> str:
    more = ", ..." if finding.count > len(finding.examples) else ""
    examples = f" ({', '.join(finding.examples)}{more})" if finding.examples else ""
    return f"{finding.what}: {finding.count:,}{examples}"
