"""The only place that knows Ray Data: shards -> engine actors -> durable replies.

    read row groups ──> [ check ─> ask ─> engine ─> journal ] ──> how many were answered
       Ray tasks             one actor per engine                      the driver

Ray Data only moves encoded images to the actors. What leaves an actor is a row of counts, and it
leaves when the replies it counts are on disk, so nothing depends on the end of the pipeline.
"""

import os
import socket
import uuid
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from facescan import images, registry
from facescan.errors import BadImage, EngineError
from facescan.models import Checkpoint, ModelCard
from facescan.run import journal
from facescan.run.journal import Journal
from facescan.run.selection import Selection
from facescan.shards import Shards
from facescan.types import Question, Reply, Request, request_id
from jobs.cluster import Share
from serving import engine as engines
from serving.engine import EngineSettings

_COLUMNS = ("image_id", "image_sha256", "image")

_BLOCK_BYTES = 8 * 1024 * 1024
"""Encoded images per block, which is the unit of work and of progress: about 500 images of 16 KB.
Smaller blocks cost scheduling (about 5 ms each), larger ones memory and smooth progress."""

_REQUESTS_PER_BATCH = 512
"""Requests handed to an engine by one call; several calls are in flight."""

_CALLS_PER_ACTOR = 2
"""Blocks an actor works on at a time, so that the engine does not run dry between them."""

_ANSWERED_SCHEMA = pa.schema(
    [
        ("images", pa.int64()),
        ("replies", pa.map_(pa.string(), pa.int64())),
        ("worker", pa.string()),
        ("about", pa.map_(pa.string(), pa.string())),
    ]
)

_READ_CPUS = 0.25
"""Reading waits for disks more than it works; engines need the cores."""

_RESTARTS = 2
"""Of a crashed actor and of its block. Ray Data's default is to try for ever."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One pass over the images: questions that the same weights answer, and the engines for it."""

    card: ModelCard
    checkpoint: Checkpoint | None
    questions: tuple[Question, ...]
    share: Share


@dataclass(frozen=True, slots=True)
class Work:
    """What all legs of a run share.

    Attributes:
        replies: the run's folder of replies, reachable from every node.
        include_path: folders of the user's own files.
    """

    shards: Shards
    selection: Selection
    limits: images.Limits
    replies: Path
    include_path: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """How far an actor got with one batch; its replies are on disk.

    Attributes:
        images: rows of the batch that belong to the run.
        replies: by error kind; "" counts the models' answers.
        worker: id of the actor.
        about: what it runs on and with, for the manifest.
    """

    images: int
    replies: dict[str, int]
    worker: str
    about: dict[str, str]


def answer(work: Work, leg: Leg, object_store_bytes: int) -> Iterator[Answered]:
    """Ask a leg's questions of every selected image; yields as blocks are done.

    Raises:
        EngineError: an engine cannot start, or died more often than it is restarted.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=object_store_bytes
    )
    try:
        for table in _stream(work, leg).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for row in table.to_pylist():
                yield Answered(
                    row["images"], dict(row["replies"]), row["worker"], dict(row["about"])
                )
    except ray.exceptions.RayError as error:
        raise _explained(error, leg) from error


def _stream(work: Work, leg: Leg) -> ray.data.Dataset:
    """The two stages of the module's docstring, not started yet."""
    groups = [{"group": index} for index in range(len(work.shards.row_groups))]
    # Of Ray Data 2.60 keywords are the only way to finite retries; it warns that 2.64 drops them.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
    return (
        ray.data.from_items(groups, override_num_blocks=len(groups))
        .map_batches(
            read,
            fn_args=(work.shards, work.selection),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=_READ_CPUS,
            max_retries=_RESTARTS,
        )
        .map_batches(
            EngineActor,
            fn_constructor_args=(leg, work.limits, work.replies, work.include_path),
            batch_size=max(16, _REQUESTS_PER_BATCH // len(leg.questions)),
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=min(leg.share.replicas, len(groups)),
                max_concurrent_calls_per_actor=_CALLS_PER_ACTOR,
                max_tasks_in_flight_per_actor=2 * _CALLS_PER_ACTOR,
            ),
            num_cpus=1,
            num_gpus=leg.share.gpus,
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
    )


def _explained(error: ray.exceptions.RayError, leg: Leg) -> EngineError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, EngineError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    reason = str(cause) if cause is not None else str(error)
    return EngineError(f"model {leg.card.name}, engine {leg.card.engine}: {reason}")


def read(indices: pa.Table, shards: Shards, selection: Selection) -> Iterator[pa.Table]:
    """The rows of these row groups that belong to the sample; runs in a Ray task."""
    chosen = cast("list[int]", indices.column("group").to_pylist())
    groups = [shards.row_groups[index] for index in chosen]
    for table in shards.read(groups, _COLUMNS):
        taken = selection.taken(cast("list[str]", table.column("image_id").to_pylist()))
        yield table if all(taken) else table.filter(pa.array(taken))


class EngineActor:
    """Owns an engine, its decode pool and a journal; see the module's docstring."""

    def __init__(
        self, leg: Leg, limits: images.Limits, replies: Path, include_path: tuple[Path, ...]
    ) -> None:
        for folder in include_path:
            registry.include(folder)
        self._leg = leg
        self._limits = limits
        settings = EngineSettings(leg.share.gpus, leg.share.cpus, limits)
        self._engine = engines.module(leg.card.engine).load(leg.card, leg.checkpoint, settings)
        self._journal = Journal(replies, leg.card.name)
        # Read here and not sent along: an actor that Ray started again knows what its predecessor
        # had on disk.
        self._on_disk = journal.answered(replies)
        self._id = uuid.uuid4().hex[:8]
        info = self._engine.info
        self._about = {
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "model": leg.card.name,
            "engine": info.engine,
            "resolved_model": info.resolved_model,
            **info.numerics,
        }

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Ask about one batch of a shard's rows; yields one row of `_ANSWERED_SCHEMA`.

        Raises:
            EngineError: the engine is dead, or did not answer each request exactly once.
            OSError: replies could not be written.
        """
        asked, replies = self._requests(batch)
        counts = Counter[str]()
        for reply in replies:
            self._journal.append(reply)
            counts[reply.error_kind or ""] += 1
        outstanding = {request.request_id for request in asked}
        async for reply in self._engine.answer(asked):
            if reply.request_id not in outstanding:
                raise EngineError(
                    f"engine {self._leg.card.engine} answered {reply.request_id}, which was not "
                    "among the requests of its call"
                )
            outstanding.remove(reply.request_id)
            self._journal.append(reply)
            counts[reply.error_kind or ""] += 1
        if outstanding:
            raise EngineError(
                f"engine {self._leg.card.engine} answered {len(asked) - len(outstanding)} of "
                f"{len(asked)} requests; missing {sorted(outstanding)[:3]}"
            )
        self._journal.flush()
        yield self._answered(batch.num_rows, counts)

    def _requests(self, batch: pa.Table) -> tuple[list[Request], list[Reply]]:
        """The requests still to ask about a batch, and the replies of unusable images.

        Images with equal bytes have equal requests; each is asked once.
        """
        asked: dict[str, Request] = {}
        unusable: dict[str, Reply] = {}
        encoded = pc.struct_field(batch.column("image"), "bytes")
        digests = cast("list[str]", batch.column("image_sha256").to_pylist())
        for sha256, data in zip(digests, encoded, strict=True):
            open_questions = {
                key: question
                for question in self._leg.questions
                if bytes.fromhex(key := request_id(question.identity, sha256)) not in self._on_disk
            }
            if not open_questions:
                continue
            try:
                image = images.check(data.as_py() or b"", sha256, self._limits)
            except BadImage as error:
                for key in open_questions:
                    unusable[key] = engines.failed(key, self._engine.info, error, latency_s=0.0)
                continue
            for key, question in open_questions.items():
                asked[key] = Request(key, image, question)
        return list(asked.values()), list(unusable.values())

    def _answered(self, rows: int, counts: Counter[str]) -> pa.Table:
        row = {
            "images": rows,
            "replies": list(counts.items()),
            "worker": self._id,
            "about": list(self._about.items()),
        }
        return pa.Table.from_pylist([row], schema=_ANSWERED_SCHEMA)
