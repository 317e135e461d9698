"""In front of an engine: so many requests at a time, so many waiting, and no more.

    place ──> (upload is taken apart and checked) ──> turn ──> engine

A request has a place before anything is done about it, so what a full service refuses costs it no
more than the way there.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving.refusals import Refusal

_LONGEST_PAUSE_S = 30
"""That a client is asked for, however long the line is."""

_SMOOTHING = 0.1
"""Weight of the newest request in the mean time of one."""


class Admission:
    """The places of one replica.

    Args:
        running: requests that the engine has at a time.
        waiting: requests beyond those that have a place.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._most = running + waiting
        self._slots = running
        self._turns = asyncio.Semaphore(running)
        self._taken = 0
        self._seconds = 0.0

    @property
    def taken(self) -> int:
        """Requests that have a place."""
        return self._taken

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for as long as the block lasts.

        Raises:
            Refusal: there is none (429).
        """
        if self._taken >= self._most:
            raise Refusal(
                429,
                "overloaded",
                "The service has as many requests as it takes. Try again later.",
                retry_after_s=self._pause_s(),
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The engine for as long as the block lasts; who waits longest comes first."""
        async with self._turns:
            started = time.monotonic()
            yield
            seconds = time.monotonic() - started
            self._seconds += _SMOOTHING * (seconds - self._seconds)

    def _pause_s(self) -> int:
        """Until the line that is there has been served, about."""
        rounds = self._taken / self._slots
        return min(_LONGEST_PAUSE_S, max(1, math.ceil(rounds * self._seconds)))
