"""What kills an engine is found by few restarts, and what was only there is never blamed."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence

import pytest

from facescan.run import lease
from jobs.watch import HOPELESS, Round, Watch

KEYS = [f"{number:04d}" for number in range(512)]


class Engine:
    """Asks as `jobs.engine_actor` does, and dies as told.

    Args:
        kills: whether asking these, together, ends the process.
    """

    def __init__(self, watch: Watch, kills: Callable[[Sequence[str]], bool]) -> None:
        self._watch = watch
        self._kills = kills
        self.deaths = 0
        self.asked: list[list[str]] = []
        self.answered: set[str] = set()
        self.condemned: set[str] = set()
        self.hopeless: str | None = None

    async def ask(self, keys: Sequence[str]) -> None:
        while True:
            _, self.hopeless = await self._watch.started("worker")
            if self.hopeless is not None or await self._survives(keys):
                return
            self.deaths += 1

    async def _survives(self, keys: Sequence[str]) -> bool:
        plan = await self._watch.round([key for key in keys if key not in self.answered])
        for group in [plan.free, *plan.groups] if plan.free else plan.groups:
            ticket = await self._watch.ask("worker", group)
            assert ticket is not None
            self.asked.append(group)
            if self._kills(group):
                return False
            await self._watch.answered("worker", ticket)
            self.answered.update(group)
        self.condemned.update(plan.condemned)
        return True


def engine(kills: Callable[[Sequence[str]], bool], keys: Sequence[str] = KEYS) -> Engine:
    made = Engine(Watch(), kills)
    asyncio.run(made.ask(keys))
    return made


async def dead(watch: Watch, *groups: Sequence[str], worker: str = "worker") -> str | None:
    """The worker is asked these groups at a time, and its process dies; why it shall not go on."""
    for group in groups:
        await watch.ask(worker, group)
    restarted, hopeless = await watch.started(worker)
    assert restarted
    return hopeless


def watching(scene: Callable[[Watch], Awaitable[None]]) -> None:
    async def begin() -> None:
        watch = Watch()
        assert await watch.started("worker") == (False, None)
        await scene(watch)

    asyncio.run(begin())


def test_what_nobody_suspects_is_asked_together() -> None:
    async def scene(watch: Watch) -> None:
        assert await watch.round(KEYS) == Round(KEYS)

    watching(scene)


def test_suspects_are_asked_in_smaller_and_smaller_groups() -> None:
    async def scene(watch: Watch) -> None:
        await dead(watch, KEYS)
        second = await watch.round(KEYS)
        assert second.free == []
        assert [key for group in second.groups for key in group] == KEYS
        assert {len(group) for group in second.groups} == {22, 512 % 22}
        await dead(watch, second.groups[0])
        third = await watch.round(KEYS)
        alone = third.groups[-22:]
        assert alone == [[key] for key in second.groups[0]]
        assert {len(group) for group in third.groups[:-22]} <= {22, 490 % 22}
        await dead(watch, alone[0])
        assert (await watch.round(KEYS)).condemned == alone[0]

    watching(scene)


@pytest.mark.parametrize("culprit", [KEYS[0], KEYS[100], KEYS[511]])
def test_a_request_that_kills_costs_three_restarts_and_nobody_else_an_answer(culprit: str) -> None:
    found = engine(lambda asked: culprit in asked)
    assert found.deaths == 3
    assert found.hopeless is None
    assert found.condemned == {culprit}
    assert found.answered == set(KEYS) - {culprit}


def test_several_that_kill_are_each_found_without_giving_the_engine_up() -> None:
    culprits = {KEYS[3], KEYS[4], KEYS[200], KEYS[511]}
    found = engine(lambda asked: not culprits.isdisjoint(asked))
    assert found.hopeless is None
    assert found.condemned == culprits
    assert found.answered == set(KEYS) - culprits
    assert found.deaths <= 3 * len(culprits)


def test_a_request_without_company_is_condemned_at_its_third_death() -> None:
    found = engine(lambda _: True, ["only"])
    assert (found.deaths, found.condemned, found.hopeless) == (3, {"only"}, None)


def test_a_kill_by_chance_costs_one_restart_and_condemns_nobody() -> None:
    kills = iter([True])
    found = engine(lambda _: next(kills, False))
    assert found.deaths == 1
    assert found.condemned == set()
    assert found.answered == set(KEYS)


def test_innocents_that_are_there_at_every_death_are_not_condemned() -> None:
    async def scene(watch: Watch) -> None:
        innocents = ["a", "b"]
        for _ in range(10):
            await dead(watch, [*innocents, "c"])
            await watch.count("worker", "m", {"": 1})
        found = await watch.round(innocents)
        assert found == Round([], groups=[["a"], ["b"]])
        ticket = await watch.ask("worker", ["a"])
        assert ticket is not None
        await watch.answered("worker", ticket)
        assert await watch.round(innocents) == Round(["a"], groups=[["b"]])

    watching(scene)


def test_requests_of_two_batches_at_a_death_are_all_suspects_and_others_are_not() -> None:
    async def scene(watch: Watch) -> None:
        ticket = await watch.ask("worker", ["z"])
        assert ticket is not None
        await watch.answered("worker", ticket)
        await dead(watch, KEYS[:4], KEYS[4:8])
        assert await watch.round(["z", *KEYS[:4]]) == Round(["z"], [KEYS[:2], KEYS[2:4]])
        assert await watch.round(KEYS[4:9]) == Round(KEYS[8:9], [KEYS[4:6], KEYS[6:8]])

    watching(scene)


def test_the_death_of_one_worker_says_nothing_about_what_another_was_asked() -> None:
    async def scene(watch: Watch) -> None:
        assert await watch.started("other") == (False, None)
        await watch.ask("other", ["x"])
        await dead(watch, ["a"])
        assert await watch.round(["a", "x"]) == Round(["x"], [["a"]])

    watching(scene)


def test_an_engine_that_dies_on_everything_is_given_up_with_its_reason() -> None:
    found = engine(lambda _: True)
    assert found.deaths == HOPELESS
    assert found.condemned == set()
    assert f"died {HOPELESS} times without one reply; the last time: killed" in str(found.hopeless)

    async def scene(watch: Watch) -> None:
        for _ in range(HOPELESS - 1):
            await watch.dies("worker", "the device is gone")
            assert await dead(watch) is None
        await watch.dies("worker", "the device burns")
        assert str(await dead(watch)).endswith("the last time: the device burns")

    watching(scene)


def test_deaths_with_answers_in_between_are_not_in_a_row() -> None:
    async def by_count(watch: Watch) -> None:
        for _ in range(3 * HOPELESS):
            assert await dead(watch, KEYS) is None
            await watch.count("worker", "m", {"": 1})

    async def by_tickets(watch: Watch) -> None:
        for _ in range(3 * HOPELESS):
            assert await dead(watch, KEYS[:2]) is None
            ticket = await watch.ask("worker", KEYS[2:4])
            assert ticket is not None
            await watch.answered("worker", ticket)

    watching(by_count)
    watching(by_tickets)


@pytest.mark.parametrize(
    ("worker", "replies"), [("worker", {"engine_error": 5}), ("other", {"": 5})]
)
def test_errors_and_the_answers_of_others_do_not_hide_that_an_engine_only_dies(
    worker: str, replies: dict[str, int]
) -> None:
    async def scene(watch: Watch) -> None:
        for _ in range(HOPELESS - 1):
            assert await dead(watch, KEYS) is None
            await watch.count(worker, "m", replies)
        assert await dead(watch, KEYS) is not None

    watching(scene)


def test_replies_are_counted_by_model_and_kind() -> None:
    async def scene(watch: Watch) -> None:
        await watch.count("worker", "m", {"": 3, "bad_image": 1})
        await watch.count("other", "m", {"": 2})
        await watch.count("worker", "n", {"engine_error": 1})
        assert await watch.replies() == {"m": {"": 5, "bad_image": 1}, "n": {"engine_error": 1}}

    watching(scene)


def test_after_a_stop_nothing_is_asked() -> None:
    async def scene(watch: Watch) -> None:
        waiting = asyncio.create_task(watch.until_stopped())
        await dead(watch, KEYS[:4])
        assert not waiting.done()
        await watch.stop()
        await asyncio.wait_for(waiting, 10)
        assert await watch.round(KEYS) == Round([], stopped=True)
        assert await watch.ask("worker", KEYS) is None

    watching(scene)


def test_batches_are_under_way_until_they_end_or_their_worker_dies() -> None:
    async def scene(watch: Watch) -> None:
        await watch.started("other")
        for worker in ("worker", "worker", "other"):
            await watch.works(worker, 1)
        assert await watch.working() == 3
        await watch.works("other", -1)
        assert await watch.working() == 2
        await dead(watch)
        assert await watch.working() == 0

    watching(scene)


def test_nothing_is_asked_for_a_driver_that_has_died() -> None:
    async def asked() -> tuple[int | None, int | None]:
        watch = Watch()
        await watch.started("worker")
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as driver:
            await watch.stop_with(driver.pid, lease.processes())
            before = await watch.ask("worker", KEYS[:1])
            driver.kill()
            await asyncio.wait_for(watch.until_stopped(), 30)
        return before, await watch.ask("worker", KEYS[1:2])

    assert asyncio.run(asked()) == (1, None)


def test_nothing_is_asked_for_a_driver_that_died_before_it_was_looked_at() -> None:
    async def stopped() -> bool:
        watch = Watch()
        driver = subprocess.Popen([sys.executable, "-c", ""])
        driver.wait()
        await watch.stop_with(driver.pid, lease.processes())
        return (await watch.round(KEYS)).stopped

    assert asyncio.run(stopped())


def test_a_driver_among_other_processes_is_not_looked_for() -> None:
    async def stopped() -> bool:
        watch = Watch()
        # The largest id that Linux can give: nobody's here.
        await watch.stop_with(2**22, "another boot")
        return (await watch.round(KEYS)).stopped

    assert not asyncio.run(stopped())


@pytest.mark.parametrize("error", [AttributeError("pidfd_open"), PermissionError(1, "sandbox")])
def test_a_run_goes_on_where_the_system_cannot_tell_of_a_process_end(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def pidfd_open(process: int) -> int:
        raise error

    async def stopped() -> bool:
        watch = Watch()
        await watch.stop_with(os.getpid(), lease.processes())
        return (await watch.round(KEYS)).stopped

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    assert not asyncio.run(stopped())
