"""What stands between a hosted engine and its provider: the account's limits and the run's money.

    number = await account.money.hold(...)       when the budget has room for one more call
    turn = await account.turn(...)               when the limits allow it
    account.money.reserve(number, ...)           on disk before it is made
    ... the call ...
    account.turns.ended(...)                     and what it has taught about the limits
    account.money.settle(number, ...)            what it has cost

In a run both are actors, the first shared by everybody who uses the account on the cluster. Here
they are what an engine sees of them.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from facescan.errors import QuotaExhausted
from serving.limiter import Lease, Limiter, Limits, Told

LONGEST_WAIT_S = 120.0
"""A provider that wants a longer pause than this has a limit of the day, not of the minute."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call came back.

    Attributes:
        how: `answered`: it was processed; `limited`: refused for its rate; `failed`: it came to
            nothing for another reason.
        tokens: that it took, where it was processed and the provider says so.
        retry_after: seconds for which everybody is to pause; None: nothing is said.
        told: what the headers said.
    """

    how: Literal["answered", "limited", "failed"]
    tokens: int | None = None
    retry_after: float | None = None
    told: Told = field(default_factory=Told)


class Turns(Protocol):
    """The limits of one account and model."""

    async def acquire(self, client: str, tokens: int) -> int:
        """Wait until one more call of so many tokens may be made; returns its number.

        Raises:
            QuotaExhausted: that is not before `LONGEST_WAIT_S` have passed.
        """
        ...

    async def ended(self, turn: int, ended: Ended) -> None:
        """The call is over; returns when that is known or on its way."""
        ...


class Money(Protocol):
    """The budget of one run; `facescan.run.ledger` says more."""

    async def hold(self, usd: float) -> str:
        """Wait until there is room for the most that a call can cost; returns its number."""
        ...

    async def reserve(self, number: str, usd: float) -> None:
        """The call is about to be made; returns when that is durable."""
        ...

    async def release(self, number: str) -> None:
        """The call is not made after all."""
        ...

    async def settle(self, number: str, usd: float) -> None:
        """What the call has cost; returns when that is durable."""
        ...


class NotAskedError(Exception):
    """The engine was told to stop before the request was asked; it stays open."""


class Stop:
    """Says to all who wait for something that nothing more is to be asked."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting = set[asyncio.Timeout]()

    def set(self) -> None:
        """Say so; of the event loop of those who wait."""
        self._is_set = True
        for each in self._waiting:
            each.reschedule(asyncio.get_running_loop().time())

    async def unless(self, waiting: Coroutine[Any, Any, _Result]) -> _Result:
        """What is waited for.

        Raises:
            NotAskedError: nothing is to be asked any more.
        """
        if self._is_set:
            waiting.close()
            raise NotAskedError
        # Ends the wait from outside, with no task of its own: each task between a turn and the call
        # that waits for it costs two rounds of a busy event loop.
        until = asyncio.timeout(None)
        try:
            async with until:
                self._waiting.add(until)
                try:
                    return await waiting
                finally:
                    self._waiting.discard(until)
        except TimeoutError:
            if until.expired():
                raise NotAskedError from None
            raise


class ForgottenError(Exception):
    """Who waits for a turn was taken for dead; if it lives, it asks again."""


@dataclass(frozen=True, slots=True)
class Account:
    """One engine's side of an account.

    Attributes:
        client: whose calls these are, among all that share the account.
        stop: set when nothing more is to be asked.
    """

    client: str
    turns: Turns
    money: Money
    stop: Stop = field(default_factory=Stop)

    async def turn(self, tokens: int) -> int:
        """`Turns.acquire`, as long as anything is to be asked.

        Raises:
            NotAskedError: nothing is, any more.
            QuotaExhausted: see `Turns.acquire`.
        """
        return await self.stop.unless(self.turns.acquire(self.client, tokens))

    async def pause(self, seconds: float) -> None:
        """Let time pass before the next attempt.

        Raises:
            NotAskedError: there will be none.
        """
        await self.stop.unless(asyncio.sleep(seconds))


@dataclass(slots=True, eq=False)
class _Client:
    """One life of a client: when it was last heard of."""

    heard: float


class Queue:
    """`Turns` of a limiter in the same process: who comes first is served first.

    What a dead client waits for must not be given to it: nobody would give that back for minutes.

    Args:
        limiter: of the account.
        clock: in seconds.
        silence_s: a client that was not heard of for so long is dead.
    """

    def __init__(
        self,
        limiter: Limiter,
        clock: Callable[[], float] = time.monotonic,
        silence_s: float = math.inf,
    ) -> None:
        self._limiter = limiter
        self._clock = clock
        self._silence = silence_s
        self._clients: dict[str, _Client] = {}
        self._first = asyncio.Lock()
        self._waiting = 0
        self._changed = asyncio.Event()

    async def acquire(self, client: str, tokens: int) -> int:
        """See `Turns`; raises as `acquire_some`."""
        (turn,) = await self.acquire_some(client, [tokens])
        return turn

    async def acquire_some(self, client: str, tokens: Sequence[int]) -> list[int]:
        """Turns for the first of some calls of one client, at least one; waits for that one.

        More come with it where nobody else waits.

        Raises:
            ForgottenError: the client has died, or was silent, since it asked.
            QuotaExhausted: see `Turns.acquire`.
        """
        life = self._hear(client)
        self._waiting += 1
        try:
            async with self._first:
                turns = [await self._next(client, life, tokens[0])]
                for more in tokens[1:]:
                    if self._waiting > 1:
                        break
                    said = self._limiter.ask(client, more, self._clock(), waits=False)
                    if not isinstance(said, Lease):
                        break
                    turns.append(said.number)
                return turns
        finally:
            self._waiting -= 1

    async def _next(self, client: str, life: _Client, tokens: int) -> int:
        while True:
            self._forget_silent()
            if self._clients.get(client) is not life:
                raise ForgottenError
            self._changed.clear()
            said = self._limiter.ask(client, tokens, self._clock())
            if isinstance(said, Lease):
                return said.number
            if said.seconds > LONGEST_WAIT_S:
                raise QuotaExhausted(
                    f"the account's limits allow no call for another {said.seconds:.0f} s"
                )
            await _at_most(said.seconds, self._changed.wait())

    async def ended(self, turn: int, ended: Ended) -> None:
        """See `Turns`."""
        lease, now = Lease(turn), self._clock()
        match ended.how:
            case "answered":
                self._limiter.answered(lease, now, ended.tokens, ended.told)
            case "limited":
                self._limiter.limited(lease, now, ended.retry_after, ended.told)
            case "failed":
                self._limiter.failed(lease, now, ended.retry_after)
        self._changed.set()

    async def all_ended(self, calls: Sequence[tuple[int, Ended]]) -> None:
        """`ended`, of several calls."""
        for turn, ended in calls:
            await self.ended(turn, ended)

    async def configure(self, limits: Limits) -> None:
        """See `Limiter.configure`."""
        self._limiter.configure(limits)
        self._changed.set()

    async def alive(self, client: str) -> None:
        """A client that says nothing else has not died."""
        self._hear(client)

    async def forget(self, client: str) -> None:
        """A client has died: its calls will not come back, and what it waits for is not given."""
        self._forget(client)

    def _hear(self, client: str) -> _Client:
        known = self._clients.setdefault(client, _Client(0.0))
        known.heard = self._clock()
        return known

    def _forget(self, client: str) -> None:
        self._clients.pop(client, None)
        self._limiter.forget(client, self._clock())
        self._changed.set()

    def _forget_silent(self) -> None:
        long_ago = self._clock() - self._silence
        for client in [name for name, life in self._clients.items() if life.heard < long_ago]:
            self._forget(client)


async def _at_most(seconds: float, event: Awaitable[object]) -> None:
    try:
        await asyncio.wait_for(event, seconds)
    except TimeoutError:
        return
