"""Runs of hosted models against the strict provider of the tests: storms, budgets, limits.

    python -m bench.hosted [--part storm --part budget ...] [--seed 0]

Parts: `storm`, `budget`, `kills`, `limits`; default: all, about 40 minutes on two cores. Each case
is real `facescan run` commands with eight engines, all attributes of a picture in one call. What is
checked is what the provider (tests/provider) counted and billed:

- `storm`: a quarter of the calls fails before it is processed, another quarter after it was
  processed and billed, at an account that allows 3,000 a minute. 2,000 rows come to what they come
  to without that, and the calls that are made again are spread: while pictures are still asked
  about for the first time there are never more of them in 100 ms than three times their mean. When
  there is nothing else left to ask, the account's limit alone says how many come together.
- `budget`: the bill is never above `--max-cost`, and the ledger never below the bill, at any moment
  of the run.
- `kills`: the same with the driver killed, and the command given again at once.
- `limits`: four minutes at a limit that was given, then four at half of it, in real time. What
  `bench.limiter` simulates.

The exit code is 1 if anything was otherwise than it must be.
"""

import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from bench import kills
from facescan import models, prompt, protocols
from facescan.run import ledger
from facescan.run.ledger import Spent
from facescan.storage import LocalStorage
from serving import estimate
from serving.engines import hosted
from serving.tokens import HostedOptions
from tests.provider.running import CHAT, Config, Fault, Limits, Provider, provider_server

ENGINES = 8
SECONDS = 900.0
"""After which a command counts as one that hangs."""

MODEL = "gpt-4o"
BIN_S = 0.1

_CENT = 1e-9
"""Sums of dollars are not exact."""


@dataclass
class Job(kills.Job):
    """A run of a hosted model; `words` are further ones of the command."""

    provider: Provider | None = None
    words: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """Words after `facescan`."""
        words = ["run", "--dataset", self.shards, "--model", MODEL, "--output-dir", self.folder]
        words += ["--model-base-url", self.asked.base_url, "--allow-upload", "--no-score"]
        words += ["--attributes", "race,gender,age,emotion", "--replicas", self.engines]
        words += [] if self.address is None else ["--ray-address", self.address]
        return [str(word) for word in (*words, *self.words)]

    @property
    def asked(self) -> Provider:
        """The provider of this job."""
        assert self.provider is not None
        return self.provider

    @property
    def engine_processes(self) -> list[int]:
        """Those that ask, in no order."""
        return [
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and self._is_ours(process) and self._is_engine(process)
        ]

    @staticmethod
    def _is_engine(process: Path) -> bool:
        with suppress(OSError):
            return b"EngineActor" in (process / "cmdline").read_bytes()
        return False

    def environment(self, fault: kills.Fault | None) -> dict[str, str]:
        """With which the command, and the Ray that it starts, runs."""
        return super().environment(fault) | {"OPENAI_API_KEY": self.asked.key}

    @property
    def spent(self) -> Spent:
        """What the run's ledger says."""
        return ledger.spent(LocalStorage(str(self.folder / "ledger")))

    def finish(self, process: subprocess.Popen[bytes], *expected: int) -> int:
        """Wait for the end; the exit code, which has to be one of these."""
        code = process.wait(SECONDS)
        assert code in expected, f"exit {code}: {self.messages}"
        return code


@contextmanager
def job(
    shards: Path,
    provider: Provider,
    *words: object,
    engines: int = ENGINES,
    address: str | None = None,
) -> Iterator[Job]:
    """A job in a fresh folder, which is gone afterwards with all its processes.

    Args:
        shards: what it is about.
        provider: who is asked.
        words: further ones of the command.
        engines: how many.
        address: of a Ray whose workers have the provider's key; without one it starts its own.
    """
    with tempfile.TemporaryDirectory(prefix="hosted-", ignore_cleanup_errors=True) as place:
        given = tuple(map(str, words))
        made = Job(
            Path(place) / "job", shards, MODEL, engines, address, provider=provider, words=given
        )
        try:
            yield made
        finally:
            made.end()


def chats(provider: Provider) -> list[dict[str, Any]]:
    """The provider's calls for an answer, in order of arrival."""
    return [call for call in provider.calls() if call["at"] == CHAT]


def wait_for_calls(it: Job, process: subprocess.Popen[bytes], count: int) -> None:
    """Return when so many calls have reached the provider."""
    until = time.monotonic() + kills.SECONDS
    while it.asked.stats()["calls"] < count:
        assert process.poll() is None, f"ended with {process.returncode}: {it.messages}"
        assert time.monotonic() < until, f"no {count} calls"
        time.sleep(0.02)


# Storm

BEFORE, AFTER = 0.25, 0.25

STORM_RPM = 3_000
"""Nearly as many as two cores ask without a limit. Calls that nothing paces are independent at
best, and of few of these there are by chance four times the mean in some bin."""


def storm(late_s: tuple[float, float] = (0.05, 0.3)) -> list[Fault]:
    """A quarter of the calls fails before it was processed, a quarter after, a tenth is late."""
    shares = [
        (Fault(kind="error", error="500"), 0.4 * BEFORE),
        (Fault(kind="error", error="503"), 0.3 * BEFORE),
        (Fault(kind="reset"), 0.3 * BEFORE),
        (Fault(kind="error", error="500", processed=True), 0.3 * AFTER),
        (Fault(kind="reset", processed=True), 0.3 * AFTER),
        (Fault(kind="truncated"), 0.15 * AFTER),
        (Fault(kind="malformed"), 0.15 * AFTER),
        (Fault(kind="silence", processed=True, delay_s=late_s), 0.1 * AFTER),
    ]
    faults = [Fault(kind="delay", delay_s=late_s, probability=0.1)]
    left = 1.0
    for fault, share in shares:
        # The first in the list that strikes is the one that happens.
        faults.append(fault.model_copy(update={"probability": share / left}))
        left -= share
    return faults


@dataclass(frozen=True, slots=True)
class Storm:
    """What a storm was.

    Attributes:
        calls: all that arrived.
        before: the part of them that failed before they were processed.
        after: the part that failed after.
        retries: calls for what had been asked before.
        mean: of them in `BIN_S`, while pictures were asked about for the first time.
        most: of them in one `BIN_S` of that time.
        most_later: of them in one `BIN_S` afterwards.
        seconds: from the first call to the last.
    """

    calls: int
    before: float
    after: float
    retries: int
    mean: float
    most: int
    most_later: int
    seconds: float

    @property
    def spread(self) -> bool:
        """Whether the calls made again do not come together."""
        return self.most <= 3 * self.mean

    def __str__(self) -> str:
        return (
            f"{self.calls} calls in {self.seconds:.0f} s, {self.before:.1%} failed before and "
            f"{self.after:.1%} after they were processed; {self.retries} made again: "
            f"{self.mean:.2f} in 100 ms, at most {self.most} ({3 * self.mean:.2f} are allowed); "
            f"at most {self.most_later} when nothing else was left"
        )


def seen(calls: Sequence[dict[str, Any]]) -> Storm:
    """What the provider saw of it."""
    lost = [call for call in calls if call["outcome"] != "200"]
    billed = sum(call["billed"] > 0 for call in lost)
    first = [call["arrived"] for call in calls if call["number"] == 0]
    again = [call["arrived"] for call in calls if call["number"] > 0]
    began, asked = min(first), max(first)
    bins = Counter(int((arrived - began) / BIN_S) for arrived in again)
    whole = max(1, int((asked - began) / BIN_S))
    during = [count for number, count in bins.items() if number < whole]
    later = [count for number, count in bins.items() if number >= whole]
    return Storm(
        calls=len(calls),
        before=(len(lost) - billed) / len(calls),
        after=billed / len(calls),
        retries=len(again),
        mean=sum(during) / whole,
        most=max(during, default=0),
        most_later=max(later, default=0),
        seconds=calls[-1]["arrived"] - began,
    )


def through(
    faults: list[Fault], shards: Path, seed: int, engines: int, address: str | None = None
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Run a job while these accidents happen: `kills.found` of it, and the provider's calls."""
    limits = Limits(rpm=STORM_RPM)
    config = Config(seed=seed, latency_s=(0.01, 0.05), faults=faults, limits=limits)
    with (
        provider_server(config) as provider,
        job(shards, provider, "--rpm", STORM_RPM, engines=engines, address=address) as it,
    ):
        it.finish(it.start(), 0)
        spent, billed = it.spent, provider.bill()["usd"]
        assert spent.total_usd >= billed - _CENT, f"ledger below the bill: {spent}, {billed}"
        assert spent.unknown == 0, f"calls that were not settled: {spent}"
        return kills.found(it.folder), chats(provider)


def through_a_storm(
    shards: Path, seed: int, engines: int = ENGINES, address: str | None = None
) -> Storm:
    """Run a job in good weather and in a storm; what the storm was.

    Raises:
        AssertionError: the rows differ, or the ledger is below the bill.
    """
    calm, _ = through([], shards, seed, engines, address)
    rows, calls = through(storm(), shards, seed, engines, address)
    assert rows == calm, f"other rows than without the storm: {rows}, {calm}"
    return seen(calls)


# Budget

CONNECTIONS = 16

IN_FLIGHT = 2 * CONNECTIONS
"""Calls at most between their reservation and the disk's word that they are settled and answered:
the limiter gives a call's place to another before that."""


def most_per_call() -> float:
    """What is reserved for one call about a picture of `kills.make_shards`, in USD."""
    card = models.load(MODEL)
    options = card.options(HostedOptions)
    asked = prompt.questions(
        card, protocols.load(card.protocol), card.attributes, hosted.preprocessing(card)
    )
    return estimate.at_most(options, asked[0], (48, 48)).usd


@contextmanager
def compared(it: Job) -> Iterator[list[str]]:
    """Holds the ledger to the bill, over and over, while the block runs; yields what each look saw.

    The bill is read first: what the ledger says afterwards has to cover it.

    Raises:
        AssertionError: at the end, where it did not.
    """
    over = Event()
    looks: list[str] = []

    def look() -> None:
        while not over.wait(0.1):
            billed = it.asked.bill()["usd"]
            spent = it.spent
            looks.append(f"billed {billed}, {spent}")
            assert spent.total_usd >= billed - _CENT, f"the ledger is below the bill: {looks[-1]}"

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield looks
        finally:
            over.set()
        looking.result()


@dataclass(frozen=True, slots=True)
class Budgeted:
    """What a run under `--max-cost` came to.

    Attributes:
        max_usd: the budget.
        billed: by the provider, in USD.
        spent: by the ledger.
        again: calls about pictures that had been asked about before.
        looks: how often ledger and bill were compared.
    """

    max_usd: float
    billed: float
    spent: Spent
    again: int
    looks: int

    def __str__(self) -> str:
        return (
            f"of ${self.max_usd:.4f} ${self.billed:.4f} billed, ledger ${self.spent.total_usd:.4f}"
            f" with {self.spent.unknown} calls of which nobody can say; {self.again} made again; "
            f"{self.looks} looks"
        )


def spend(
    shards: Path,
    max_usd: float,
    seed: int,
    kill_after: float | None = None,
    engines: int = ENGINES,
    address: str | None = None,
) -> Budgeted | None:
    """Run a job under a budget that is not enough for it.

    Args:
        shards: of `kills.make_shards`.
        max_usd: the budget.
        seed: of the provider's latencies.
        kill_after: seconds from the first answer on disk until the driver is killed and the command
            given again at once; None: it is not.
        engines: of the run.
        address: of a Ray, as of `job`.

    Returns:
        What it came to; None: the run ended before it could be killed.

    Raises:
        AssertionError: the bill was above the budget, the ledger below the bill or above it by more
            than the calls in flight at the kill, or there was money for another call.
    """
    words = ("--max-cost", max_usd, "--max-connections", CONNECTIONS)
    with (
        provider_server(Config(seed=seed, latency_s=(0.05, 0.5))) as provider,
        job(shards, provider, *words, engines=engines, address=address) as it,
        compared(it) as looks,
    ):
        process = it.start()
        if kill_after is not None:
            kills.wait_for_reply(it, process)
            time.sleep(kill_after)
            process.kill()
            if process.wait() == 3:
                return None
            process = it.start()
        it.finish(process, 3)
        assert "--max-cost" in it.messages, it.messages
        asked = provider.stats()["calls_by_request"].values()
        again = sum(asked) - len(asked)
        result = Budgeted(max_usd, provider.bill()["usd"], it.spent, again, len(looks))
    in_flight = 0 if kill_after is None else IN_FLIGHT
    spent = result.spent
    assert result.billed <= spent.total_usd + _CENT, f"ledger below the bill: {result}"
    assert spent.total_usd <= max_usd + _CENT, f"above the budget: {result}"
    assert max_usd - spent.total_usd < most_per_call() + _CENT, f"money was left: {result}"
    # Only calls of which nobody can say are above the bill.
    assert spent.settled_usd <= result.billed + _CENT, f"ledger above the bill: {result}"
    assert max(spent.unknown, again) <= in_flight, f"more than was in flight: {result}"
    return result


# Limits


@dataclass(frozen=True, slots=True)
class Minutes:
    """What reached the provider in a stretch of time.

    Attributes:
        calls: all of them.
        refused: the part that were 429s.
        used: what was let in, as a part of the limit.
    """

    calls: int
    refused: float
    used: float

    def __str__(self) -> str:
        return f"{self.calls} calls, {self.refused:.2%} 429s, {self.used:.1%} of the limit used"


def between(calls: Sequence[dict[str, Any]], start: float, end: float, per_s: float) -> Minutes:
    """Of the calls that arrived between two times, where so many a second are allowed."""
    here = [call["outcome"] for call in calls if start <= call["arrived"] < end]
    refused = here.count("429")
    allowed = per_s * (end - start)
    return Minutes(len(here), refused / max(1, len(here)), (len(here) - refused) / allowed)


def at_limits(
    shards: Path, rpm: float, seconds: float, seed: int, say: Callable[[str], None]
) -> None:
    """Run a job at a limit that is given, halve it after so many seconds, and stop after as many.

    Raises:
        AssertionError: more 429s or less use than issue 5 asks for.
    """
    config = Config(seed=seed, latency_s=(0.3, 1.7), limits=Limits(rpm=rpm))
    with provider_server(config) as provider, job(shards, provider, "--rpm", rpm) as it:
        process = it.start()
        wait_for_calls(it, process, 1)
        began = chats(provider)[0]["arrived"]
        _wait_until(began + seconds, it, process)
        halved = time.monotonic()
        provider.configure(limits=Limits(rpm=rpm / 2))
        _wait_until(halved + seconds, it, process)
        process.terminate()
        it.finish(process, 3)
        calls = chats(provider)
    steady = between(calls, began, halved, rpm / 60)
    say(f"{rpm:g} rpm for {halved - began:.0f} s: {steady}")
    minute = between(calls, halved, halved + 60, rpm / 120)
    later = between(calls, halved + 60, halved + seconds, rpm / 120)
    third = between(calls, halved + 120, halved + 180, rpm / 120)
    say(f"halved, first minute: {minute}")
    say(f"halved, from 60 s on: {later}; third minute: {third}")
    assert steady.refused <= 0.005, f"429s: {steady}"
    assert steady.used >= 0.9, f"use: {steady}"
    assert later.refused <= 0.01, f"429s after the limit was halved: {later}"
    assert third.used >= 0.8, f"use after the limit was halved: {third}"


def _wait_until(then: float, it: Job, process: subprocess.Popen[bytes]) -> None:
    while time.monotonic() < then:
        assert process.poll() is None, f"ended with {process.returncode}: {it.messages}"
        time.sleep(0.2)


# Parts

Case = tuple[str, Callable[[], object]]

_BUDGETS = (0.02, 0.25)
"""Least and most, in USD. All pictures of `_budget` together cost $0.4."""

_DRAWS = 5
"""Moments tried for one kill that has to meet a run."""


def _storm(place: Path, times: int, seed: int) -> Iterator[Case]:
    del times
    shards = kills.make_shards(place / "storm", 2_000, 16)

    def case() -> Storm:
        made = through_a_storm(shards, seed)
        assert made.spread, f"calls made again come together: {made}"
        return made

    yield "2,000 rows", case


def _budget(place: Path, times: int, seed: int) -> Iterator[Case]:
    shards = kills.make_shards(place / "budget", 400, 16)
    draw = random.Random(f"{seed} budget")
    for number in range(times):
        max_usd = round(draw.uniform(*_BUDGETS), 4)
        yield f"--max-cost {max_usd}", partial(spend, shards, max_usd, number)


def _kills(place: Path, times: int, seed: int) -> Iterator[Case]:
    shards = kills.make_shards(place / "kills", 400, 16)
    draw = random.Random(f"{seed} kills")

    def met(max_usd: float, seed: int) -> Budgeted:
        for _ in range(_DRAWS):
            # A run of the largest budget takes about so long.
            result = spend(shards, max_usd, seed, draw.uniform(0, 20 * max_usd))
            if result is not None:
                return result
        raise AssertionError(f"{_DRAWS} moments in a row came after the end")

    for number in range(times):
        max_usd = round(draw.uniform(*_BUDGETS), 4)
        yield f"--max-cost {max_usd}, driver killed", partial(met, max_usd, number)


def _limits(place: Path, times: int, seed: int) -> Iterator[Case]:
    del times
    shards = kills.make_shards(place / "limits", 5_000, 16)

    def case() -> str:
        said: list[str] = []
        at_limits(shards, 600, 240, seed, said.append)
        return "; ".join(said)

    yield "600 rpm, halved after 4 minutes", case


PARTS: dict[str, Callable[[Path, int, int], Iterator[Case]]] = {
    "storm": _storm,
    "budget": _budget,
    "kills": _kills,
    "limits": _limits,
}


def main(
    part: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all.")] = None,
    times: Annotated[int, typer.Option(help="Budgets, and kills.")] = 10,
    seed: Annotated[int, typer.Option(help="Of accidents, budgets and moments.")] = 0,
) -> None:
    """Print a line for each case, and what went wrong in all."""
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for name in part or PARTS:
            for case, do in PARTS[name](Path(place), times, seed):
                began = time.monotonic()
                try:
                    result = do()
                except (AssertionError, subprocess.TimeoutExpired) as error:
                    wrong += 1
                    result = f"WRONG: {error}"
                print(f"{name}: {case}: {result} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{wrong} wrong")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
