"""What a run has spent, and what it may still owe: reserved before a call, settled after it.

    ledger/<session>.json     written whole at each change; many changes at once share one write

Every call is in its session's file before it is made, at the most that it can cost, and stays
there at that until its real cost is known. So what the files say together is never less than the
provider's bill, and more by no more than the calls that were in flight when something was killed:
nobody can say whether those were billed.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facescan.errors import BudgetExhausted, DataError
from facescan.storage import Storage


class Session(BaseModel):
    """`ledger/<session>.json`: the calls of one command. Amounts are US dollars."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    settled_usd: float = 0.0
    calls: int = 0
    """That are settled."""
    in_flight: dict[str, float] = Field(default_factory=dict)
    """Number of a call -> the most that it can cost."""

    @property
    def total_usd(self) -> float:
        """What is spent, and what may be."""
        return self.settled_usd + sum(self.in_flight.values())


@dataclass(frozen=True, slots=True)
class Spent:
    """All sessions of a run together.

    Attributes:
        settled_usd: for calls whose cost is known.
        reserved_usd: for calls of which nobody can say any more whether they were billed.
        calls: whose cost is known.
        unknown: calls of which nobody can say.
    """

    settled_usd: float
    reserved_usd: float
    calls: int
    unknown: int

    @property
    def total_usd(self) -> float:
        """Never less than the bill."""
        return self.settled_usd + self.reserved_usd


def spent(storage: Storage) -> Spent:
    """What the sessions in a run's `ledger/` come to.

    Raises:
        DataError: a file is damaged. Nothing may be spent on top of what nobody can read.
    """
    sessions = []
    for name in storage.names():
        try:
            sessions.append(Session.model_validate_json(storage.read(name)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise DataError(
                f"{storage.location}/{name}: damaged: {first['msg']}. What was spent is not known; "
                "write what the provider billed into it by hand, as "
                '{"settled_usd": ...}'
            ) from error
    return Spent(
        settled_usd=sum(each.settled_usd for each in sessions),
        reserved_usd=sum(sum(each.in_flight.values()) for each in sessions),
        calls=sum(each.calls for each in sessions),
        unknown=sum(len(each.in_flight) for each in sessions),
    )


class Ledger:
    """The one writer of a session; all methods belong on one event loop.

    Args:
        storage: the run's `ledger/`.
        session: of the command that is running.
        max_usd: what all sessions of the run together may cost; None: no bound.
    """

    def __init__(self, storage: Storage, session: str, max_usd: float | None = None) -> None:
        """Raises DataError as `spent` does."""
        self._storage = storage
        self._name = f"{session}.json"
        self._max = max_usd
        before = spent(storage)
        self._before = before.total_usd
        self._session = Session()
        # Microseconds since 1970: above all numbers that an earlier process of the session gave,
        # those included which it had not written when it died.
        self._next = time.time_ns() // 1_000
        if storage.exists(self._name):
            # This process was started again. What was in flight then may have been billed.
            self._session = Session.model_validate_json(storage.read(self._name))
            self._before -= self._session.total_usd
        # Calls that will be settled, and by whom.
        self._own: dict[str, str] = {}
        self._deaths = Counter[str]()
        # Room that is kept for calls which are not in flight yet: number -> (whose, US dollars).
        self._held: dict[str, tuple[str, float]] = {}
        self._changes = self._written = 0
        self._writing = asyncio.Lock()
        self._settled = asyncio.Condition()

    @property
    def total_usd(self) -> float:
        """What the run has spent and may have spent so far."""
        return self._before + self._session.total_usd

    async def hold(self, usd: float, client: str = "") -> str:
        """Keep room for the most that a call can cost; returns its number.

        Waits where other calls may turn out cheap enough to leave room for it. Nothing is on disk
        yet: `reserve` follows, or `release`.

        Args:
            usd: the most that it can cost.
            client: whose call it is.

        Raises:
            BudgetExhausted: there is no room for it, however cheap those turn out, or the client
                has died while it waited.
        """
        async with self._settled:
            deaths = self._deaths[client]
            await self._settled.wait_for(
                lambda: (
                    self._fits(usd)
                    or not (self._own or self._held)
                    or self._deaths[client] > deaths
                )
            )
            if self._deaths[client] > deaths:
                raise BudgetExhausted(f"client {client} has died; nothing is reserved for it")
            self._check_fits(usd)
            number = str(self._next)
            self._next += 1
            self._held[number] = (client, usd)
            return number

    async def reserve(self, number: str, usd: float, client: str = "") -> None:
        """The call is about to be made; returns when that is durable.

        A number for which no room is held must fit now: room that was held before this process was
        started again may have been given to others since. One that is in flight already, because
        the caller has heard nothing of it, stays so.

        Raises:
            BudgetExhausted: there is no room for it; the call must not be made.
            OSError: it could not be written; the call must not be made.
        """
        async with self._settled:
            if number not in self._session.in_flight and self._held.pop(number, None) is None:
                self._check_fits(usd)
            self._own[number] = client
            self._session.in_flight[number] = usd
            self._changes += 1
        await self._durable()

    async def release(self, number: str) -> None:
        """The call is not made after all."""
        async with self._settled:
            self._held.pop(number, None)
            self._settled.notify_all()

    async def settle(self, number: str, usd: float) -> None:
        """What a call has cost; returns when that is durable.

        A number from before this process was started again is settled like any other.

        Raises:
            OSError: it could not be written; the reservation stands.
        """
        async with self._settled:
            self._own.pop(number, None)
            if self._session.in_flight.pop(number, None) is None:
                return
            self._session.settled_usd += usd
            self._session.calls += 1
            self._changes += 1
            self._settled.notify_all()
        await self._durable()

    async def forget(self, client: str) -> None:
        """A client has died. What it had in flight stays reserved, and is not waited for."""
        async with self._settled:
            self._deaths[client] += 1
            self._own = {number: whose for number, whose in self._own.items() if whose != client}
            self._held = {number: held for number, held in self._held.items() if held[0] != client}
            self._settled.notify_all()

    def _check_fits(self, usd: float) -> None:
        if not self._fits(usd):
            raise BudgetExhausted(
                f"${self.total_usd:.4f} of the ${self._max:.2f} of --max-cost are spent or may "
                f"be, and the next call may cost ${usd:.4f}"
            )

    def _fits(self, usd: float) -> bool:
        held = sum(each for _, each in self._held.values())
        return self._max is None or self.total_usd + held + usd <= self._max

    async def _durable(self) -> None:
        changes = self._changes
        async with self._writing:
            if self._written < changes:
                upto, data = self._changes, self._session.model_dump_json().encode()
                await asyncio.to_thread(self._storage.write, self._name, data)
                self._written = upto
