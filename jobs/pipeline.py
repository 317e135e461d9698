"""The only place that knows Ray Data: shards -> engine actors -> durable replies.

    read open rows ──> [ check ─> ask ─> engine ─> journal ] ──> reports
       Ray tasks             one actor per engine                the driver

Ray Data only moves encoded images to the actors. What leaves an actor says nothing but that a
batch is done, when its replies are durable, so nothing depends on the end of the pipeline.
"""

import os
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from facescan import images
from facescan.errors import DataError, EngineError, FacescanError
from facescan.run import lease
from facescan.run.manifest import AnsweredBy
from facescan.run.plan import Plan
from facescan.run.selection import Selection
from facescan.shards import Shards
from facescan.storage import Storage
from jobs.account import Accounts
from jobs.engine_actor import FAILURES, Duty, EngineActor, Leg
from jobs.watch import Watch
from serving.engines import hosted
from serving.tokens import HostedOptions

_COLUMNS = ("image_id", "image_sha256", "image")

_BLOCK_BYTES = 8 * 1024 * 1024
"""Encoded images per block, which is the unit of work: about 500 images of 16 KB. Smaller blocks
cost scheduling (about 5 ms each), larger ones memory and smooth progress."""

_REQUESTS_PER_BATCH = 512
"""Requests handed to an engine by one call; several calls are in flight."""

_CALLS_PER_ACTOR = 2
"""Blocks an actor works on at a time, so that the engine does not run dry between them."""

_READ_CPUS = 0.25
"""Reading waits for disks more than it works; engines need the cores."""

_RESTARTS = 100
"""Of an actor, of its block and of a reading task. Ray Data's default is to try for ever. The watch
gives up on an engine long before, unless it goes on answering in between."""

_SECONDS_TO_STOP = 20.0
"""That actors have for ending what they are at, beyond what a paid call may take."""

_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True, slots=True)
class Work:
    """What all legs of a run share.

    Attributes:
        replies: the run's folder of replies, reachable from every node.
        session: of the command that is running.
        include_path: folders of the user's own files.
    """

    shards: Shards
    selection: Selection
    limits: images.Limits
    replies: Storage
    session: str
    include_path: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """An actor has done a batch.

    Attributes:
        worker: id of the actor.
        place: its host, process and GPUs.
        answered_by: what its engine runs.
    """

    worker: str
    place: dict[str, str]
    answered_by: AnsweredBy


def start_watch() -> Any:
    """A `Watch` in an actor beside the driver, where no other node's death reaches it."""
    here = ray.get_runtime_context().get_node_id()
    watch = (
        ray.remote(Watch)
        .options(
            num_cpus=0,
            max_concurrency=1_000,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote()
    )
    ray.get(watch.stop_with.remote(os.getpid(), lease.processes()))
    return watch


def answer(
    work: Work,
    leg: Leg,
    plan: Plan,
    expected: AnsweredBy | None,
    object_store_bytes: int,
    watch: Any,
    accounts: Accounts | None,
) -> Generator[Report, None, None]:
    """Ask what is open of a leg's questions; yields as batches are done.

    Closed before its end it has the actors stop first: paid calls in flight are
    waited for, and replies that wait are written.

    Args:
        work: what all legs share.
        leg: what is asked of whom.
        plan: what is open.
        expected: what answered these questions before, if anything did.
        object_store_bytes: bound on the images in Ray's object store.
        watch: from `start_watch`.
        accounts: of the leg's provider, if it has one.

    Raises:
        MixingError: an engine runs other weights or with other numerics than `expected`.
        EngineError: an engine cannot start, or dies whatever it is asked.
        RunStopped: the budget or the account's quota is used up.
        AccessDenied: the provider refuses the key, or does not have the model.
        StorageError: replies cannot be written.
        DataError: a shard is gone or damaged.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=object_store_bytes
    )
    duty = Duty(
        leg, expected, work.limits, work.replies, work.session, work.include_path, watch, accounts
    )
    try:
        with _stopping(watch, _SECONDS_TO_STOP + _longest_call_s(leg)):
            for table in _stream(work, plan, duty).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for row in table.to_pylist():
                    if row["failure"] is not None:
                        raise _failure(leg, **row["failure"])
                    yield Report(
                        worker=row["worker"],
                        place=dict(row["place"]),
                        answered_by=AnsweredBy.model_validate_json(row["answered_by"]),
                    )
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DataError):
            raise error.cause from error
        raise _failure(leg, EngineError.__name__, str(error).strip()) from error
    except ray.exceptions.RayError as error:
        # A process died once too often, or could not be started: only Ray can say why.
        raise _failure(leg, EngineError.__name__, str(error).strip()) from error


@contextmanager
def _stopping(watch: Any, seconds: float) -> Iterator[None]:
    """Have the actors end in good order where the block is left before its end."""
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        ray.get(watch.stop.remote())
        until = time.monotonic() + seconds
        while ray.get(watch.working.remote()) and time.monotonic() < until:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        raise


def _longest_call_s(leg: Leg) -> float:
    """How long a call takes at most that is paid, and must not be asked again."""
    return leg.card.options(HostedOptions).timeout_s if leg.card.engine == hosted.NAME else 0.0


def _stream(work: Work, plan: Plan, duty: Duty) -> ray.data.Dataset:
    """The two stages of the module's docstring, not started yet."""
    leg = duty.leg
    groups = [
        {"group": index, "rows": rows.rows.tobytes(), "questions": rows.questions.tobytes()}
        for index, rows in plan.groups.items()
    ]
    # Of Ray Data 2.60 keywords are the only way to finite retries; it warns that 2.64 drops them.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
    return (
        ray.data.from_items(groups, override_num_blocks=len(groups))
        .map_batches(
            read,
            fn_args=(work.shards,),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=_READ_CPUS,
            max_retries=_RESTARTS,
        )
        .map_batches(
            EngineActor,
            fn_constructor_args=(duty,),
            batch_size=max(16, _REQUESTS_PER_BATCH // len(leg.questions)),
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=min(leg.share.replicas, len(groups)),
                max_concurrent_calls_per_actor=_CALLS_PER_ACTOR,
                max_tasks_in_flight_per_actor=2 * _CALLS_PER_ACTOR,
            ),
            num_cpus=1,
            num_gpus=leg.share.gpus,
            # Ray would set 1, and vLLM's attention on CPUs dies where threads differ in it.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(leg.share.cpus)}},
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
    )


def _failure(leg: Leg, kind: str, message: str) -> FacescanError:
    return FAILURES[kind](f"model {leg.card.name}, engine {leg.card.engine}: {message}")


def read(open_rows: pa.Table, shards: Shards) -> Iterator[pa.Table]:
    """The open rows of these row groups, each with its open questions; runs in a Ray task."""
    for group in open_rows.to_pylist():
        wanted = np.frombuffer(group["rows"], np.uint32)
        questions = np.frombuffer(group["questions"], np.uint32)
        before = 0
        for table in shards.read([shards.row_groups[group["group"]]], _COLUMNS):
            first, last = np.searchsorted(wanted, [before, before + table.num_rows])
            if last > first:
                here = table.take(pa.array(wanted[first:last] - np.uint32(before)))
                yield here.append_column("questions", pa.array(questions[first:last]))
            before += table.num_rows
