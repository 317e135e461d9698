"""Keeps watch over the engines of a run: tells what killed one, and when to give up or to stop.

It lives in a small Ray actor beside the driver, so it knows what an engine was asked when its
process died. Requests that were asked at a death are suspects: they are asked again in smaller and
smaller groups with nothing beside them, and one that was asked alone at its third death is
condemned. So a request that kills an engine costs three restarts; an engine that dies on everything
is given up after `HOPELESS` deaths without one reply in between. When the driver dies it has the
engines stop, which Ray leaves running for some seconds.
"""

import asyncio
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from facescan.run import lease

HOPELESS = 5
"""Deaths in a row, without any reply, after which an engine is given up."""

_CONDEMNED = 3
"""Deaths, the last of them alone, that make a request the culprit. Fewer would condemn one that
was only there when something else, such as a person, killed the process."""


@dataclass(frozen=True, slots=True)
class Round:
    """How a batch of requests is to be asked.

    Attributes:
        free: those that may be asked together, and beside others.
        groups: of suspects; each is asked with nothing beside it.
        condemned: those that are not asked: they kill the engine.
        stopped: nothing is to be asked any more.
    """

    free: list[str]
    groups: list[list[str]] = field(default_factory=list)
    condemned: list[str] = field(default_factory=list)
    stopped: bool = False


class Watch:
    """See the module's docstring. A worker is an engine actor, the same through its restarts."""

    def __init__(self) -> None:
        self._asked: dict[str, dict[int, tuple[str, ...]]] = {}
        self._deaths = Counter[str]()
        self._condemned = set[str]()
        self._in_a_row = Counter[str]()
        self._reasons: dict[str, str] = {}
        self._working = Counter[str]()
        self._tickets = 0
        self._replies: dict[str, Counter[str]] = {}
        self._stop = asyncio.Event()

    async def started(self, worker: str) -> tuple[bool, str | None]:
        """A worker's process has begun.

        Returns:
            Whether it is a restart, and why it shall not go on (None: it shall).
        """
        if worker not in self._asked:
            self._asked[worker] = {}
            return False, None
        groups = self._asked[worker]
        self._asked[worker] = {}
        self._working[worker] = 0
        self._in_a_row[worker] += 1
        for group in groups.values():
            self._deaths.update(group)
            if len(group) == 1 and self._deaths[group[0]] >= _CONDEMNED:
                self._condemned.add(group[0])
        if self._in_a_row[worker] < HOPELESS:
            return True, None
        reason = self._reasons.get(worker, "killed by a signal, or ended by compiled code")
        return True, f"its process died {HOPELESS} times without one reply; the last time: {reason}"

    async def dies(self, worker: str, reason: str) -> None:
        """The worker's engine is dead, and its process about to end for it."""
        self._reasons[worker] = reason

    async def round(self, keys: Sequence[str]) -> Round:
        """How to ask these requests."""
        if self._stop.is_set():
            return Round([], stopped=True)
        suspects = [key for key in keys if self._deaths[key]]
        if not suspects:
            return Round(list(keys))
        condemned = [key for key in suspects if key in self._condemned]
        alone = [[key] for key in suspects if self._deaths[key] > 1 and key not in self._condemned]
        once = [key for key in suspects if self._deaths[key] == 1]
        return Round(
            free=[key for key in keys if not self._deaths[key]],
            groups=[*_groups(once), *alone],
            condemned=condemned,
        )

    async def ask(self, worker: str, keys: Sequence[str]) -> int | None:
        """These requests are about to be asked; a ticket for `answered`, None: do not ask."""
        if self._stop.is_set():
            return None
        self._tickets += 1
        self._asked[worker][self._tickets] = tuple(keys)
        return self._tickets

    async def answered(self, worker: str, ticket: int) -> None:
        """What was asked with this ticket has its replies: none of it kills engines."""
        self._in_a_row[worker] = 0
        for key in self._asked[worker].pop(ticket, ()):
            del self._deaths[key]

    async def count(self, worker: str, model: str, replies: dict[str, int]) -> None:
        """So many replies of a model, by error kind ("" for answers), are durable."""
        self._replies.setdefault(model, Counter()).update(replies)
        if replies.get(""):
            self._in_a_row[worker] = 0

    async def replies(self) -> dict[str, dict[str, int]]:
        """All replies counted so far: model -> error kind -> how many."""
        return {model: dict(counts) for model, counts in self._replies.items()}

    async def stop(self) -> None:
        """Have nothing more asked."""
        self._stop.set()

    async def stop_with(self, driver: int, processes: str) -> None:
        """Have nothing more asked when the driver's process ends, however it does.

        Ray ends what belongs to a dead driver after 3 to 4 seconds, in which two engines of 20 ms a
        request asked up to 370 more, and the command given again at once asked some of them twice.

        That stays so where the system cannot tell: no Linux, one before 5.3, a strict sandbox.

        Args:
            driver: id of the process.
            processes: what the driver knows as `lease.processes`.
        """
        if sys.platform != "linux" or processes != lease.processes():
            return
        try:
            ended = os.pidfd_open(driver)
        except ProcessLookupError:
            self._stop.set()
            return
        except (AttributeError, OSError):  # a Python may be built without it
            return
        loop = asyncio.get_running_loop()

        def stop() -> None:
            loop.remove_reader(ended)
            os.close(ended)
            self._stop.set()

        loop.add_reader(ended, stop)

    async def until_stopped(self) -> None:
        """Returns when nothing more is to be asked."""
        await self._stop.wait()

    async def works(self, worker: str, batches: int) -> None:
        """The worker has begun (1) or ended (-1) with a batch, whose replies are durable."""
        self._working[worker] += batches

    async def working(self) -> int:
        """Batches that are under way, as far as workers live."""
        return self._working.total()


def _groups(keys: list[str]) -> Iterator[list[str]]:
    size = math.isqrt(len(keys)) or 1
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
