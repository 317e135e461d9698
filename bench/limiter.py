"""What the limiter makes of a provider's limits, in virtual time: 429s, and quota used.

    python -m bench.limiter [--seed 0] [--only TEXT] [--history]

A strict provider: any 60 s hold at most its limit; a call that does not fit is a 429, and with the
first kind of provider counts all the same. Eight clients that always have more to ask, calls that
take about a second, ten minutes. Each case is run twice: with the limits as they are, and with the
limits halved after five minutes. Then 429s are counted from 60 s after that, and the use in the
third minute after it, and from the third minute to the end.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import typer

from serving.limiter import Lease, Limiter, Limits, Told, Wait
from tests.provider.windows import SlidingWindow

SECONDS = 600.0
HALVED_AT = 300.0

_TOKENS = 1000
_HOP_S = 0.002
"""Of the cluster's network, from a client to the limiter."""


@dataclass(frozen=True, slots=True)
class Case:
    """A provider, and what is known of it.

    Attributes:
        rpm: of the provider, as tpm; None: it has no such limit.
        headers: the provider sends its limits with each response.
        retry_after: a 429 says when to come again.
        refusals_count: a refused call counts against the requests per minute.
        quantum_s: no such stretch of time has more than its part of the requests per minute.
        factor: of the limits configured to the provider's.
        halved_at: seconds until the provider halves its limits; None: it does not.
        guessed: tokens estimated, of those that a call takes.
        failing: the part of the calls that end in a 500.
        workers: of each client; a worker makes one call at a time.
    """

    name: str
    rpm: float | None = None
    tpm: float | None = None
    headers: bool = True
    retry_after: bool = True
    refusals_count: bool = True
    quantum_s: float = 60.0
    factor: float = 1.0
    halved_at: float | None = None
    guessed: float = 1.0
    failing: float = 0.0
    connections: int = 400
    workers: tuple[int, ...] = (40,) * 8


@dataclass(slots=True)
class Result:
    """What came of it.

    Attributes:
        arrived: of each call at the provider: when, tokens, taken or refused, whose.
        limiter: as it was left.
        asks: questions to the limiter.
    """

    case: Case
    limiter: Limiter
    arrived: list[tuple[float, float, bool, int]] = field(default_factory=list)
    asks: int = 0

    def calls(self, start: float = 0.0, end: float = math.inf) -> int:
        """All that reached the provider in that time."""
        return sum(start <= time < end for time, _, _, _ in self.arrived)

    def refused(self, start: float = 0.0, end: float = math.inf) -> float:
        """The part of them that were 429s."""
        refused = sum(start <= time < end and not taken for time, _, taken, _ in self.arrived)
        return refused / max(1, self.calls(start, end))

    def used(self, start: float, end: float) -> float:
        """The part of the provider's limit, as it was at the end, that was used."""
        taken = [tokens for time, tokens, ok, _ in self.arrived if ok and start <= time < end]
        halves = 0.5 if self.case.halved_at is not None and self.case.halved_at < end else 1.0
        minutes = (end - start) / 60 * halves
        shares = [0.0]
        if self.case.rpm is not None:
            shares.append(len(taken) / (self.case.rpm * minutes))
        if self.case.tpm is not None:
            shares.append(sum(taken) / (self.case.tpm * minutes))
        return max(shares)

    def by_client(self) -> list[int]:
        """Calls of each client that were taken."""
        took = [0] * len(self.case.workers)
        for _, _, taken, client in self.arrived:
            took[client] += taken
        return took


class _Provider:
    """Strict windows, and the headers that go with them."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.requests = None if case.rpm is None else SlidingWindow(case.rpm, 60)
        self.tokens = None if case.tpm is None else SlidingWindow(case.tpm, 60)
        quantum = math.inf if case.rpm is None else case.rpm * case.quantum_s / 60
        self._quantum = SlidingWindow(max(1.0, quantum), case.quantum_s)

    def halve(self) -> None:
        for window in (self.requests, self.tokens, self._quantum):
            if window is not None:
                window.limit = max(1.0, window.limit / 2)

    def call(self, tokens: float, now: float) -> tuple[float | None, Told]:
        """For how long to wait, None: the call is taken; and the headers."""
        waits = [self._quantum.seconds_until(1, now)]
        if self.requests is not None:
            waits.append(self.requests.seconds_until(1, now))
        if self.tokens is not None:
            waits.append(self.tokens.seconds_until(tokens, now))
        taken = max(waits) == 0
        if taken:
            self._quantum.count(1, now)
        if self.requests is not None and (taken or self._case.refusals_count):
            self.requests.count(1, now)
        if self.tokens is not None and taken:
            self.tokens.count(tokens, now)
        return None if taken else max(waits), self._told(now)

    def _told(self, now: float) -> Told:
        if not self._case.headers:
            return Told()
        told = Told()
        if (window := self.requests) is not None:
            left = max(0.0, window.limit - window.used(now))
            told = replace(told, limit_requests=window.limit, remaining_requests=left)
        if (window := self.tokens) is not None:
            left = max(0.0, window.limit - window.used(now))
            told = replace(told, limit_tokens=window.limit, remaining_tokens=left)
        return told


class _World:
    """The clients, the provider, the ways between them, and a clock."""

    def __init__(self, case: Case, seed: int) -> None:
        self._case = case
        self._chance = random.Random(seed)
        self._now = 0.0
        self._next: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._provider = _Provider(case)
        limiter = Limiter(
            Limits(
                requests_per_minute=None if case.rpm is None else case.rpm * case.factor,
                tokens_per_minute=None if case.tpm is None else case.tpm * case.factor,
                connections=case.connections,
            )
        )
        self.result = Result(case, limiter)
        # A client's idle workers ask one after the other, as in `serving.account.Queue`.
        self._idle = list(case.workers)
        self._asking = [True] * len(self._idle)
        for client in range(len(self._idle)):
            self._after(self._chance.uniform(0, 0.5), partial(self._ask, client))
        if case.halved_at is not None:
            self._after(case.halved_at, self._provider.halve)

    def run(self, until: float) -> None:
        while self._next[0][0] <= until:
            self._now, _, what = heapq.heappop(self._next)
            what()

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._next, (self._now + seconds, next(self._order), what))

    def _way(self) -> float:
        return _HOP_S + min(self._chance.lognormvariate(math.log(0.08), 0.6), 2.0)

    def _ask(self, client: int) -> None:
        self.result.asks += 1
        tokens = round(_TOKENS * self._chance.uniform(0.7, 1.3))
        estimate = round(tokens * self._case.guessed)
        said = self.result.limiter.ask(str(client), estimate, self._now)
        pause = 0.0
        if isinstance(said, Lease):
            self._idle[client] -= 1
            self._after(self._way(), partial(self._arrive, client, said, tokens))
        else:
            pause = said.seconds
        self._asking[client] = isinstance(said, Wait) or self._idle[client] > 0
        if self._asking[client]:
            self._after(2 * _HOP_S + pause, partial(self._ask, client))

    def _arrive(self, client: int, lease: Lease, tokens: int) -> None:
        wait, told = self._provider.call(tokens, self._now)
        self.result.arrived.append((self._now, tokens, wait is None, client))
        back = self._way()
        if wait is None:
            back += self._chance.lognormvariate(0, 0.5)
        self._after(back, partial(self._return, client, lease, tokens, wait, told))

    def _return(
        self, client: int, lease: Lease, tokens: int, wait: float | None, told: Told
    ) -> None:
        limiter = self.result.limiter
        if wait is not None:
            limiter.limited(lease, self._now, wait if self._case.retry_after else None, told)
        elif self._chance.random() < self._case.failing:
            limiter.failed(lease, self._now)
        else:
            limiter.answered(lease, self._now, tokens, told)
        self._idle[client] += 1
        if not self._asking[client]:
            self._ask(client)


def simulate(case: Case, seconds: float = SECONDS, seed: int = 0) -> Result:
    """The case, from its start; the same seed gives the same."""
    world = _World(case, seed)
    world.run(seconds)
    return world.result


OPENAI = Case("OpenAI's headers")
GEMINI = Case("no headers", headers=False, refusals_count=False)
SILENT = replace(GEMINI, name="no headers, no Retry-After", retry_after=False)

_500 = replace(OPENAI, rpm=500)
_200K = replace(OPENAI, rpm=5000, tpm=200_000)

LIMITS: dict[str, Case] = {
    "60 rpm": replace(OPENAI, rpm=60),
    "500 rpm": _500,
    "5,000 rpm": replace(OPENAI, rpm=5000),
    "30k tpm": replace(OPENAI, rpm=500, tpm=30_000),
    "200k tpm": _200K,
    "2M tpm": replace(OPENAI, rpm=10_000, tpm=2_000_000),
    "500 rpm, 1,000 configured": replace(_500, factor=2),
    "500 rpm, 5 % of calls fail": replace(_500, failing=0.05),
    "500 rpm, a share each 1 s": replace(_500, quantum_s=1),
    "500 rpm, one client has most": replace(_500, workers=(100,) + (5,) * 7),
    "200k tpm, estimates 40 % low": replace(_200K, guessed=0.6),
    "200k tpm, estimates 60 % high": replace(_200K, guessed=1.6),
}


def of_kind(case: Case, kind: Case) -> Case:
    """The case with a provider of this kind."""
    return replace(
        case,
        name=kind.name,
        headers=kind.headers,
        retry_after=kind.retry_after,
        refusals_count=kind.refusals_count,
    )


def main(seed: int = 0, only: str = "", history: bool = False) -> None:
    """Print one line a case."""
    print(f"{'':58}10 minutes                halved at 5, then")
    print(f"{'provider':28}{'limit':30}{'calls':>6}{'429':>8}{'used':>7}{'clients':>8}", end="")
    print(f"{'429':>8}{'3rd min':>8}{'rest':>7}{'asks':>6}")
    for kind in (OPENAI, GEMINI, SILENT):
        for limit, plain in LIMITS.items():
            if only not in f"{kind.name} {limit}":
                continue
            case = of_kind(plain, kind)
            steady = simulate(case, seed=seed)
            halved = simulate(replace(case, halved_at=HALVED_AT), seed=seed)
            calls = steady.by_client()
            print(
                f"{kind.name:28}{limit:30}{steady.calls():6}{steady.refused():8.2%}"
                f"{steady.used(0, SECONDS):7.1%}{min(calls) / max(calls):8.2f}"
                f"{halved.refused(HALVED_AT + 60):8.2%}"
                f"{halved.used(HALVED_AT + 120, HALVED_AT + 180):8.1%}"
                f"{halved.used(HALVED_AT + 120, SECONDS):7.1%}{steady.asks / steady.calls():6.1f}",
                flush=True,
            )
            for change in halved.limiter.history if history else ():
                print(f"    {change.time:7.1f} {change.what}: {change.why}")
    print("clients: fewest calls of a client to most; asks: questions to the limiter for each call")


if __name__ == "__main__":
    typer.run(main)
