"""One engine with its decode pool and its journal: what a Ray actor of a run does with a batch."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import ray

from facescan import images, registry
from facescan.decoding import DecodePool, memory_for
from facescan.errors import (
    AccessDenied,
    BadImage,
    BudgetExhausted,
    EngineError,
    EngineUnavailable,
    FacescanError,
    MixingError,
    QuotaExhausted,
    StorageError,
    UsageError,
)
from facescan.models import Checkpoint, ModelCard
from facescan.run import journal, manifest
from facescan.run.journal import Journal
from facescan.run.manifest import AnsweredBy
from facescan.storage import Storage
from facescan.types import Question, Reply, Request, request_id
from jobs.account import Accounts
from jobs.cluster import Share
from serving import engine as engines
from serving.account import NotAskedError, Stop
from serving.engine import Engine, EngineSettings

REPORT_SCHEMA = pa.schema(
    [
        ("worker", pa.string()),
        ("place", pa.map_(pa.string(), pa.string())),
        ("answered_by", pa.string()),
        ("failure", pa.struct([("kind", pa.string()), ("message", pa.string())])),
    ]
)
"""What leaves an actor, one row for each batch: who it is, and why it can do no more."""

FAILURES = {
    kind.__name__: kind
    for kind in (
        AccessDenied,
        BudgetExhausted,
        EngineError,
        EngineUnavailable,
        MixingError,
        QuotaExhausted,
        StorageError,
        UsageError,
    )
}
"""What an actor may end with, by name. Ray wraps exceptions until their type is lost, so an actor
hands its reason over in a row."""

_KILLS_ENGINES = (
    "the engine's process died each time this was asked, the last time with nothing else asked "
    "beside it"
)


@dataclass(frozen=True, slots=True)
class Leg:
    """One pass over the images: questions that the same weights answer, and the engines for it."""

    card: ModelCard
    checkpoint: Checkpoint | None
    questions: tuple[Question, ...]
    share: Share


@dataclass(frozen=True, slots=True)
class Duty:
    """What all engine actors of a leg are given.

    Attributes:
        expected: what answered these questions before, if anything did.
        replies: the run's folder of replies, reachable from every node.
        session: of the command that is running; names the parts.
        include_path: folders of the user's own files.
        watch: handle of the `Watch`.
        accounts: of the provider, where the engine sends requests to one.
    """

    leg: Leg
    expected: AnsweredBy | None
    limits: images.Limits
    replies: Storage
    session: str
    include_path: tuple[Any, ...]
    watch: Any
    accounts: Accounts | None = None


class EngineActor:
    """Answers batches of a shard's rows; Ray Data makes one for each engine.

    Where its process dies, Ray starts it again and gives it the same batch: what it had on disk is
    not asked again, and what may have killed it is asked with care (`jobs.watch`).
    """

    def __init__(self, duty: Duty) -> None:
        self._duty = duty
        self._watch = duty.watch
        self._worker = ray.get_runtime_context().get_actor_id()
        self._journal = Journal(duty.replies, duty.session, uuid.uuid4().hex[:8])
        self._on_disk: set[bytes] = set()
        self._place = {
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }
        self._failure: dict[str, str] | None = None
        self._uncounted = Counter[str]()
        self._counts: list[Any] = []
        self._beside = _Beside()
        self._stopped: asyncio.Future[None] | None = None
        self._stop = Stop()
        try:
            self._start()
        except FacescanError as error:
            self._fail(error)

    def _start(self) -> None:
        duty, leg = self._duty, self._duty.leg
        restarted, hopeless = ray.get(self._watch.started.remote(self._worker))
        if hopeless is not None:
            raise EngineError(hopeless)
        account = None
        if duty.accounts is not None:
            account = duty.accounts.account(self._worker, self._stop)
        if restarted:
            self._on_disk = journal.answered_in(duty.replies, duty.session)
            if duty.accounts is not None:
                duty.accounts.forget(self._worker)
        for folder in duty.include_path:
            registry.include(folder)
        self._decoders = DecodePool(leg.share.cpus, memory_bytes=memory_for(duty.limits))
        settings = EngineSettings(self._decoders, leg.share.gpus, leg.share.cpus, account)
        module = engines.module(leg.card.engine)
        self._engine: Engine = module.load(leg.card, leg.checkpoint, settings)
        info = self._engine.info
        self._answered_by = AnsweredBy(
            engine=info.engine, resolved_model=info.resolved_model, numerics=info.numerics
        )
        if duty.expected is not None:
            manifest.check_same(leg.card.name, duty.expected, self._answered_by)
        self._places = asyncio.Semaphore(self._engine.calls_in_flight or 1)

    def _fail(self, error: FacescanError) -> None:
        kind = next(each for each in type(error).__mro__ if each.__name__ in FAILURES)
        self._failure = {"kind": kind.__name__, "message": str(error)}

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Ask about one batch; yields one row of `REPORT_SCHEMA` when its replies are durable."""
        self._watch.works.remote(self._worker, 1)
        if self._failure is None:
            try:
                await self._answer(batch)
            except OSError as error:
                self._fail(StorageError(f"replies cannot be written: {error}"))
            except FacescanError as error:
                self._fail(error)
        self._watch.works.remote(self._worker, -1)
        report = {
            "worker": self._worker,
            "place": list(self._place.items()),
            "answered_by": None if self._failure else self._answered_by.model_dump_json(),
            "failure": self._failure,
        }
        yield pa.Table.from_pylist([report], schema=REPORT_SCHEMA)

    async def _answer(self, batch: pa.Table) -> None:
        requests = await self._requests(batch)
        if self._stopped is None:
            # One call that waits for as long as this process lives, for all batches.
            self._stopped = asyncio.ensure_future(self._watch.until_stopped.remote())
            self._stopped.add_done_callback(lambda _: self._end())
        regularly = asyncio.create_task(self._journal.keep_durable())
        asking = asyncio.create_task(self._ask(requests))
        try:
            await asyncio.wait({self._stopped, asking}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done() and self._engine.calls_in_flight is None:
                # A local engine may need minutes for what it has taken; nobody pays for it.
                asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
        finally:
            for task in (regularly, asking):
                task.cancel()
            # What could not be written is still waiting, and `_durable` says why.
            await asyncio.gather(regularly, asking, return_exceptions=True)
        await self._durable()
        await self._counted()

    def _end(self) -> None:
        self._stop.set()
        self._journal.stop_joining()

    async def _ask(self, requests: Mapping[str, Request]) -> None:
        """Ask what is to be asked of these, as the watch says."""
        plan = await self._watch.round.remote(list(requests))
        if plan.free:
            async with self._beside.others():
                await self._ask_group([requests[key] for key in plan.free])
        for group in plan.groups:
            async with self._beside.nothing():
                await self._ask_group([requests[key] for key in group])
            # The next group may end this process.
            await self._durable()
            await self._counted()
        for key in plan.condemned:
            cause = EngineError(_KILLS_ENGINES)
            self._take(engines.failed(key, self._engine.info, cause, latency_s=0.0))

    async def _ask_group(self, requests: Sequence[Request]) -> None:
        keys = [request.request_id for request in requests]
        ticket = await self._watch.ask.remote(self._worker, keys)
        if ticket is None:
            return
        try:
            if self._engine.calls_in_flight is None:
                await self._ask_engine(requests)
            else:
                await self._ask_all_paid(requests)
        except _BrokenContractError:
            raise
        except EngineError as error:
            await self._durable()
            await self._counted()
            await self._watch.dies.remote(self._worker, str(error))
            # A fresh process, with a fresh engine; Ray would go on with this one.
            os._exit(1)
        await self._watch.answered.remote(self._worker, ticket)

    async def _ask_all_paid(self, requests: Sequence[Request]) -> None:
        """A call for each; where one fails no other begins, and those in flight are waited for."""
        failed = asyncio.Event()
        outcomes = await asyncio.gather(
            *(self._ask_paid(request, failed) for request in requests), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _ask_paid(self, request: Request, failed: asyncio.Event) -> None:
        """One call; its place is given to another when its reply is durable."""
        async with self._places:
            if failed.is_set() or (self._stopped is not None and self._stopped.done()):
                return
            try:
                await self._ask_engine([request])
                await self._durable()
            except NotAskedError:
                return
            except BaseException:
                failed.set()
                # Those that wait for their turn are not to be asked any more.
                self._stop.set()
                raise

    async def _ask_engine(self, requests: Sequence[Request]) -> None:
        outstanding = {request.request_id for request in requests}
        async for reply in self._engine.answer(requests):
            if reply.request_id not in outstanding:
                raise _BrokenContractError(
                    f"it answered {reply.request_id}, which was not among its requests"
                )
            outstanding.remove(reply.request_id)
            if self._take(reply):
                await self._durable()
        if outstanding:
            raise _BrokenContractError(
                f"it answered {len(requests) - len(outstanding)} of {len(requests)} requests; "
                f"missing {sorted(outstanding)[:3]}"
            )

    def _take(self, reply: Reply) -> bool:
        self._uncounted[reply.error_kind or ""] += 1
        return self._journal.append(reply)

    async def _durable(self) -> None:
        counts, self._uncounted = self._uncounted, Counter()
        try:
            await self._journal.durable()
        except OSError:
            self._uncounted += counts
            raise
        if counts:
            name = self._duty.leg.card.name
            self._counts.append(self._watch.count.remote(self._worker, name, dict(counts)))

    async def _counted(self) -> None:
        """Wait until the watch has all counts.

        What is only sent is lost where this process dies, and the driver may look before it is
        there. Not for each call, which would be slower by a tenth.
        """
        counts, self._counts = self._counts, []
        await asyncio.gather(*counts)

    async def _requests(self, batch: pa.Table) -> dict[str, Request]:
        """The requests still to ask about a batch, by key; unusable images get their replies."""
        encoded = cast("list[Mapping[str, bytes | None]]", batch.column("image").to_pylist())
        digests = cast("list[str]", batch.column("image_sha256").to_pylist())
        files = [
            (image["bytes"] or b"", digest) for image, digest in zip(encoded, digests, strict=True)
        ]
        checked = await asyncio.wrap_future(self._decoders.check(files, self._duty.limits))
        masks = cast("list[int]", batch.column("questions").to_pylist())
        asked: dict[str, Request] = {}
        for image, digest, mask in zip(checked, digests, masks, strict=True):
            for index, question in enumerate(self._duty.leg.questions):
                key = request_id(question.identity, digest)
                if not mask >> index & 1 or bytes.fromhex(key) in self._on_disk:
                    continue
                if isinstance(image, BadImage):
                    self._take(engines.failed(key, self._engine.info, image, latency_s=0.0))
                else:
                    asked[key] = Request(key, image, question)
        return asked


class _BrokenContractError(EngineError):
    """An engine that is wrong, not dead: starting it again would not help."""


class _Beside:
    """Who asks an engine beside whom: many together, or one with nothing beside it."""

    def __init__(self) -> None:
        self._together = 0
        self._changed = asyncio.Condition()
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def others(self) -> AsyncIterator[None]:
        async with self._turn:
            self._together += 1
        try:
            yield
        finally:
            async with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def nothing(self) -> AsyncIterator[None]:
        async with self._turn:
            async with self._changed:
                await self._changed.wait_for(lambda: self._together == 0)
            yield
