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
from facescan.decoding import DecodePool
from facescan.errors import (
    BadImage,
    EngineError,
    EngineUnavailable,
    FacescanError,
    MixingError,
    UsageError,
)
from facescan.models import Checkpoint, ModelCard
from facescan.run import journal, manifest
from facescan.run.journal import Journal
from facescan.run.manifest import AnsweredBy
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
        ("place", pa.map_(pa.string(), pa.string())),
        ("answered_by", pa.string()),
        ("failure", pa.struct([("kind", pa.string()), ("message", pa.string())])),
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
        place: its host, process and GPUs.
        answered_by: what its engine runs.
    """

    images: int
    replies: dict[str, int]
    worker: str
    place: dict[str, str]
    answered_by: AnsweredBy


def answer(
    work: Work, leg: Leg, expected: AnsweredBy | None, object_store_bytes: int
) -> Iterator[Answered]:
    """Ask a leg's questions of every selected image; yields as blocks are done.

    Args:
        work: what all legs share.
        leg: what is asked of whom.
        expected: what answered these questions before, if anything did.
        object_store_bytes: bound on the images in Ray's object store.

    Raises:
        MixingError: an engine runs other weights or with other numerics than `expected`.
        EngineError: an engine cannot start, or died more often than it is restarted.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=object_store_bytes
    )
    try:
        for table in _stream(work, leg, expected).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for row in table.to_pylist():
                if row["failure"] is not None:
                    raise _failure(leg, **row["failure"])
                yield Answered(
                    images=row["images"],
                    replies=dict(row["replies"]),
                    worker=row["worker"],
                    place=dict(row["place"]),
                    answered_by=AnsweredBy.model_validate_json(row["answered_by"]),
                )
    except ray.exceptions.RayError as error:
        # A process died once too often, or could not be started: only Ray can say why.
        raise _failure(leg, EngineError.__name__, str(error).strip()) from error


def _stream(work: Work, leg: Leg, expected: AnsweredBy | None) -> ray.data.Dataset:
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
            fn_constructor_args=(leg, expected, work.limits, work.replies, work.include_path),
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


_FAILURES = {
    kind.__name__: kind for kind in (EngineError, EngineUnavailable, MixingError, UsageError)
}
"""What an actor may end with, by name. Ray wraps exceptions until their type is lost, so an actor
hands its reason over as a row."""


def _failure(leg: Leg, kind: str, message: str) -> FacescanError:
    return _FAILURES[kind](f"model {leg.card.name}, engine {leg.card.engine}: {message}")


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
        self,
        leg: Leg,
        expected: AnsweredBy | None,
        limits: images.Limits,
        replies: Path,
        include_path: tuple[Path, ...],
    ) -> None:
        self._leg = leg
        self._limits = limits
        self._journal = Journal(replies, leg.card.name)
        # Read here and not sent along: an actor that Ray started again knows what its predecessor
        # had on disk.
        self._on_disk = journal.answered(replies)
        self._id = uuid.uuid4().hex[:8]
        self._place = {
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }
        self._failure: dict[str, str] | None = None
        try:
            self._start(expected, include_path)
        except FacescanError as error:
            self._fail(error)

    def _start(self, expected: AnsweredBy | None, include_path: tuple[Path, ...]) -> None:
        for folder in include_path:
            registry.include(folder)
        leg = self._leg
        decoders = DecodePool(leg.share.cpus)
        settings = EngineSettings(decoders, leg.share.gpus, leg.share.cpus)
        self._engine = engines.module(leg.card.engine).load(leg.card, leg.checkpoint, settings)
        info = self._engine.info
        self._answered_by = AnsweredBy(
            engine=info.engine, resolved_model=info.resolved_model, numerics=info.numerics
        )
        if expected is not None:
            manifest.check_same(leg.card.name, expected, self._answered_by)

    def _fail(self, error: FacescanError) -> None:
        kind = next(each for each in type(error).__mro__ if each.__name__ in _FAILURES)
        self._failure = {"kind": kind.__name__, "message": str(error)}

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Ask about one batch of a shard's rows; yields one row of `_ANSWERED_SCHEMA`.

        The row holds a failure where the engine could not start, is dead, or did not answer each
        request exactly once.

        Raises:
            OSError: replies could not be written.
        """
        counts = Counter[str]()
        if self._failure is None:
            try:
                await self._answer(batch, counts)
            except EngineError as error:
                self._fail(error)
            self._journal.flush()
        yield self._answered(batch.num_rows, counts)

    async def _answer(self, batch: pa.Table, counts: Counter[str]) -> None:
        asked, replies = self._requests(batch)
        for reply in replies:
            self._journal.append(reply)
            counts[reply.error_kind or ""] += 1
        outstanding = {request.request_id for request in asked}
        async for reply in self._engine.answer(asked):
            if reply.request_id not in outstanding:
                raise EngineError(
                    f"it answered {reply.request_id}, which was not among its requests"
                )
            outstanding.remove(reply.request_id)
            self._journal.append(reply)
            counts[reply.error_kind or ""] += 1
        if outstanding:
            raise EngineError(
                f"it answered {len(asked) - len(outstanding)} of {len(asked)} requests; "
                f"missing {sorted(outstanding)[:3]}"
            )

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
            "place": list(self._place.items()),
            "answered_by": None if self._failure else self._answered_by.model_dump_json(),
            "failure": self._failure,
        }
        return pa.Table.from_pylist([row], schema=_ANSWERED_SCHEMA)
