"""Actors behind paid models: one limiter for an account on the cluster, one ledger for a run."""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from facescan.models import ModelCard
from facescan.run.ledger import Ledger
from facescan.storage import Storage
from serving.account import Account, Ended, ForgottenError, Queue, Stop
from serving.engines import hosted
from serving.limiter import Limiter, Limits
from serving.tokens import HostedOptions

_NAMESPACE = "facescan"
_CALLS_AT_ONCE = 10_000

_BEAT_S, _SILENCE_S = 5.0, 30.0
"""How often a client says that it lives, and after how long without that it is dead. Ray runs what
a dead process has asked of an actor, and tells the actor nothing."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Accounts:
    """Handles of both actors, to be sent to engine actors."""

    turns: Any
    money: Any

    def account(self, client: str, stop: Stop) -> Account:
        """An engine's side of them."""
        return Account(client, _Turns(self.turns), _Money(self.money, client), stop)

    def forget(self, client: str) -> None:
        """A client's process has died: its calls are in flight no more."""
        self.turns.forget.remote(client)
        self.money.forget.remote(client)


class _Queue(Queue):
    def __init__(self, limits: Limits) -> None:
        # Microseconds since 1970: above all numbers that this limiter gave before it died.
        first = time.time_ns() // 1_000
        super().__init__(Limiter(limits, first_lease=first), silence_s=_SILENCE_S)


def limiter(card: ModelCard) -> Any:
    """The limiter of a card's account and model, shared by all runs on the cluster.

    It outlives the run that made it, and keeps to the limits that were given last. When its process
    dies it starts again with nothing to give, and what calls in flight tell it about turns that it
    does not know is ignored.
    """
    options = card.options(HostedOptions)
    limits = Limits(
        options.limits.rpm, options.limits.tpm, options.limits.rpd, options.limits.connections
    )
    queue = (
        ray.remote(_Queue)
        .options(
            name=f"limiter of {hosted.api_model(card)} for {options.account} at "
            f"{hosted.server(options)}",
            namespace=_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=_CALLS_AT_ONCE,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(limits)
    )
    ray.get(queue.configure.remote(limits))
    return queue


def ledger(storage: Storage, session: str, max_usd: float | None) -> Any:
    """The ledger of a run, beside the driver, whose disk it writes to.

    Raises:
        DataError: what was spent before cannot be read.
    """
    Ledger(storage, session, max_usd)
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(Ledger)
        .options(
            num_cpus=0,
            max_concurrency=_CALLS_AT_ONCE,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote(storage, session, max_usd)
    )


async def _outcome(call: Awaitable[_Result]) -> _Result:
    """What an actor returns, or raises: Ray wraps that."""
    try:
        return await call
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


@dataclass(slots=True)
class _Turns:
    """`serving.account.Turns` of an actor, which hears from this process while it lives.

    One question for turns is on its way at a time, and one word of calls that ended; what comes up
    meanwhile goes together with the next. Each by itself took a third of the processor time of
    a call (4 ms of 12: bench.hosted_vllm).
    """

    actor: Any
    _wanted: dict["asyncio.Future[int]", int] = field(default_factory=dict)
    _over: list[tuple[int, Ended]] = field(default_factory=list)
    _asking: "asyncio.Task[None] | None" = None
    _telling: "asyncio.Task[None] | None" = None
    _beats: "asyncio.Task[None] | None" = None

    async def acquire(self, client: str, tokens: int) -> int:
        if self._beats is None:
            self._beats = asyncio.create_task(self._beat(client))
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._wanted[turn] = tokens
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(client))
            self._asking.add_done_callback(self._asked)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                await self.ended(turn.result(), Ended("failed"))
            raise
        finally:
            self._wanted.pop(turn, None)

    def _asked(self, asking: "asyncio.Task[None]") -> None:
        """Asking ends when all have their turn, or with what is wrong for all of them."""
        for turn in self._wanted:
            if asking.cancelled():
                turn.cancel()
            elif (error := asking.exception()) is not None and not turn.done():
                turn.set_exception(error)

    async def _ask(self, client: str) -> None:
        while self._wanted:
            asked = dict(self._wanted)
            with suppress(ForgottenError):
                granted = await _outcome(
                    self.actor.acquire_some.remote(client, list(asked.values()))
                )
                for number, turn in zip(granted, asked, strict=False):
                    self._wanted.pop(turn, None)
                    if turn.done():
                        # Who wanted it has been stopped meanwhile.
                        await self.ended(number, Ended("failed"))
                    else:
                        turn.set_result(number)

    async def _beat(self, client: str) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            self.actor.alive.remote(client)

    async def ended(self, turn: int, ended: Ended) -> None:
        if self._telling is not None and self._telling.done():
            self._telling.result()
            self._telling = None
        self._over.append((turn, ended))
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        while self._over:
            over, self._over = self._over, []
            await _outcome(self.actor.all_ended.remote(over))


@dataclass(frozen=True, slots=True)
class _Money:
    """`serving.account.Money` of an actor."""

    actor: Any
    client: str

    async def hold(self, usd: float) -> str:
        return await _outcome(self.actor.hold.remote(usd, self.client))

    async def reserve(self, number: str, usd: float) -> None:
        await _outcome(self.actor.reserve.remote(number, usd, self.client))

    async def release(self, number: str) -> None:
        await _outcome(self.actor.release.remote(number))

    async def settle(self, number: str, usd: float) -> None:
        await _outcome(self.actor.settle.remote(number, usd))
