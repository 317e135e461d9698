"""`facescan run`: shards -> replies -> predictions; the same command again continues."""

import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from facescan import __version__, datasets, registry, shards
from facescan.errors import EngineUnavailable, UsageError
from facescan.run import folder as run_folder
from facescan.run import journal, lease, manifest, predictions
from facescan.run.folder import RunFolder, writing
from facescan.run.lease import Lease
from facescan.run.manifest import Manifest
from facescan.run.plan import Plan, plan
from facescan.run.selection import image_ids, sample
from facescan.shards import Shards
from facescan.storage import LocalStorage
from jobs import account, batch_records, batches, cluster, pipeline, record, uploads
from jobs.account import Accounts
from jobs.batches import Batches
from jobs.config import RunConfig
from jobs.engine_actor import Leg
from jobs.follow import Follower, Threshold
from jobs.ingest import ingest
from jobs.passes import Asking, Pass, passes
from jobs.pipeline import Work
from jobs.progress import Progress
from jobs.stop_signals import StopSignals, stoppable
from serving import engine as engines
from serving.engines import hosted

SAMPLE = "sample"
"""The dataset that is generated into the run folder."""

SAMPLE_SIZE = 1_000
"""Its pictures where no limit is given."""


def run(config: RunConfig, console: Console, asking: Asking = passes) -> RunFolder:
    """Ask what the configuration names and has no answer yet, and build the predictions.

    Nothing is written before the configuration has been found to work. Predictions are built even
    where the answering is cut short: what has no reply yet is `pending` in them.

    Args:
        config: of the run.
        console: for people.
        asking: what is asked of the configuration's models, where that is not one protocol.

    Raises:
        UsageError: something named does not exist or does not fit, or another command is working
            on the run (exit 2).
        MixingError: the folder holds answers asked under other settings (exit 4).
        EngineError: an engine cannot start or died for good; what was answered is kept (exit 1).
        TooManyFailures: more requests than allowed ended without an answer, or all did (exit 1).
        AccessDenied: a provider refuses the key, or does not have the model (exit 1).
        RunStopped: the budget or an account's quota is used up; can be continued (exit 3).
        StorageError: the run folder cannot be written; what is in it is whole (exit 1).
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; can be continued (exit 3).
    """
    for path in config.include_path:
        registry.include(path)
    if config.ray_address is not None:
        cluster.check(config.ray_address)
    folder = run_folder.startable(config.output_dir)
    with stoppable() as signals, writing(folder):
        if config.dataset == SAMPLE:
            _check_place_of_sample(folder)
            config = config.model_copy(update={"limit": config.limit or SAMPLE_SIZE})
            planned, data = asking(config, datasets.load(SAMPLE).label_sets), None
        else:
            data = shards.open(config.dataset, config.split)
            planned = asking(config, data.label_sets)
            record.of(config, folder, data, planned)
        if config.batch:
            batches.check(config, planned)
        else:
            batches.check_none_open(folder, planned)
        uploads.check(config, planned, console)
        if not folder.is_run:
            # A new folder is not begun for what cannot run.
            _connect(config, planned, signals)
        with lease.hold(folder.root) as held:
            known = manifest.read(folder) if folder.is_run else None
            if data is None:
                data = _generated(config, folder, known, console)
            whole = record.of(config, folder, data, planned)
            if known is None:
                # First of all: a folder with anything else in it and no manifest is no run.
                whole.write(folder)
            _tidy(folder, console)
            return _ask(_Run(config, folder, data, whole, held, signals), planned, console)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run that is this command's to go on with."""

    config: RunConfig
    folder: RunFolder
    data: Shards
    record: Manifest
    lease: Lease
    signals: StopSignals


def _tidy(folder: RunFolder, console: Console) -> None:
    """Clear away what killed commands left, and set damaged replies aside."""
    for place in (folder.root, folder.replies, folder.predictions, folder.scores):
        place.sweep()
    batch_records.at(folder).storage.sweep()
    for name, reason in journal.set_damaged_aside(folder.replies).items():
        console.print(
            f"replies/{name}: {reason}. It is set aside in replies/{journal.DAMAGED}; what it "
            "held is asked again",
            highlight=False,
            soft_wrap=True,
        )


def _connect(config: RunConfig, planned: Sequence[Pass], signals: StopSignals) -> list[Leg]:
    """The engines that these passes need, on the Ray that is joined or started for them.

    Batches need neither: the provider does the work.
    """
    for each in planned:
        lacking = engines.module(each.card.engine).missing()
        if lacking is not None and (config.batch or cluster.is_own(config.ray_address)):
            raise EngineUnavailable(
                f"model {each.card.name}: engine {each.card.engine} cannot run here: {lacking}"
            )
    if config.batch:
        return [
            Leg(each.card, each.checkpoint, each.questions, batches.NO_ENGINES) for each in planned
        ]
    cluster.connect(config.ray_address, config.object_store_bytes, config.replicas)
    signals.listen()
    return [
        Leg(
            each.card,
            each.checkpoint,
            each.questions,
            cluster.share(each.card, config.replicas, config.gpus),
        )
        for each in planned
    ]


def _ask(run: _Run, planned: Sequence[Pass], console: Console) -> RunFolder:
    """Ask what is open, merge the replies, and build the predictions."""
    config, folder, data = run.config, run.folder, run.data
    work = Work(
        shards=data,
        selection=sample(image_ids(data), config.limit, config.seed),
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
            if config.batch:
                asked = [(leg, its) for leg, (_, its) in zip(legs, to_ask, strict=True)]
                _answer_by_batches(run, work, asked, progress, threshold, console)
            elif legs:
                watch = pipeline.start_watch()
                with Follower(watch, progress, threshold, run.lease) as follower:
                    for leg, (_, its) in zip(legs, to_ask, strict=True):
                        accounts = _accounts(run, work, leg)
                        _answer(run, work, leg, its, watch, accounts, follower)
            threshold.check_end(progress)
    finally:
        run.lease.check()
        journal.compact(folder.replies)
        everything = sample(image_ids(data), run.record.dataset.limit, config.seed)
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
        asked = dict.fromkeys(name for question in each.questions for name in question.attributes)
        protocols = dict.fromkeys(question.protocol for question in each.questions)
        console.print(
            f"{each.card.name}: {its.requests:,} requests about {', '.join(asked)}; "
            f"protocol {', '.join(protocols)}, engine {each.card.engine}",
            highlight=False,
            soft_wrap=True,
        )


def _accounts(run: _Run, work: Work, leg: Leg) -> Accounts | None:
    """Of the leg's provider; None where its engine asks none."""
    if leg.card.engine != hosted.NAME:
        return None
    money = account.ledger(run.folder.ledger, work.session, run.config.max_cost)
    return Accounts(account.limiter(leg.card), money)


def _answer(
    run: _Run,
    work: Work,
    leg: Leg,
    open_requests: Plan,
    watch: Any,
    accounts: Accounts | None,
    follower: Follower,
) -> None:
    """One leg; two models are never loaded at the same time."""
    known = set[str]()
    expected = record.answered_by(manifest.read(run.folder), leg)
    with (
        _forgotten(accounts, known),
        closing(
            pipeline.answer(
                work, leg, open_requests, expected, run.config.object_store_bytes, watch, accounts
            )
        ) as reports,
    ):
        for report in reports:
            follower.check()
            if report.worker not in known:
                known.add(report.worker)
                record.add_worker(run.folder, leg, report)


@contextmanager
def _forgotten(accounts: Accounts | None, workers: set[str]) -> Iterator[None]:
    """Afterwards the account's limiter keeps nothing for these workers."""
    try:
        yield
    finally:
        if accounts is not None:
            for worker in workers:
                accounts.forget(worker)


def _answer_by_batches(
    run: _Run,
    work: Work,
    to_ask: Sequence[tuple[Leg, Plan]],
    progress: Progress,
    threshold: Threshold,
    console: Console,
) -> None:
    """All legs at once: a batch may take a day."""
    replies: dict[str, Counter[str]] = {}

    def tell(model: str, counts: Mapping[str, int]) -> None:
        replies.setdefault(model, Counter()).update(counts)

    def check() -> None:
        progress.show(replies)
        run.lease.check()
        threshold.check(progress)

    with Batches(run.folder, work.session, run.config.max_cost, console, tell, check) as asking:
        asking.resume()
        asking.ask(work, to_ask)
    check()


def _check_place_of_sample(folder: RunFolder) -> None:
    if not isinstance(folder.root, LocalStorage):
        raise UsageError(
            f"--dataset {SAMPLE} draws its faces into the run folder, which has to be on a disk, "
            f"not at {folder.root.location}; draw them with `facescan ingest {SAMPLE}` and give "
            "that path as --dataset"
        )


def _generated(
    config: RunConfig, folder: RunFolder, known: Manifest | None, console: Console
) -> Shards:
    """The sample dataset, drawn into the run folder; more of it where more is asked for."""
    size = max(config.limit or 0, (known and known.dataset.limit) or 0)
    place = Path(folder.root.location, "shards", f"{SAMPLE}-{config.seed}-{size}")
    if not (place / shards.MANIFEST).is_file():
        ingest(SAMPLE, place, console, size=size, seed=config.seed)
    data = shards.open(str(place), config.split)
    # A larger sample holds the smaller one unchanged, so a run may grow from one to the other.
    return replace(data, digest=f"{SAMPLE}:{__version__}:{config.seed}")
