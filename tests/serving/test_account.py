"""Who waits for a turn, and whether it still lives when that comes."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from serving.account import Ended, ForgottenError, Queue
from serving.limiter import Limiter, Limits

pytestmark = pytest.mark.anyio

_Got = TypeVar("_Got")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    """Seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def queue(clock: Clock, silence_s: float = 30.0, connections: int = 1) -> Queue:
    return Queue(Limiter(Limits(connections=connections)), clock, silence_s)


async def begun(waiting: Coroutine[Any, Any, _Got]) -> "asyncio.Task[_Got]":
    """A wait for a turn, once it has nothing to do but wait."""
    task = asyncio.create_task(waiting)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_what_a_dead_client_waits_for_goes_to_the_living() -> None:
    turns = queue(Clock())
    await turns.acquire("dead", 100)
    waiting = [await begun(turns.acquire("dead", 100)) for _ in range(3)]
    living = await begun(turns.acquire("living", 100))
    await turns.forget("dead")
    await asyncio.wait_for(living, 10)
    for each in waiting:
        with pytest.raises(ForgottenError):
            await each


async def test_a_client_started_again_gets_turns_under_its_name() -> None:
    turns = queue(Clock())
    await turns.acquire("name", 100)
    await turns.forget("name")
    await asyncio.wait_for(turns.acquire("name", 100), 10)


async def test_a_client_that_was_silent_for_long_is_dead() -> None:
    clock = Clock()
    turns = queue(clock)
    await turns.acquire("silent", 100)
    clock.now += 29
    waiting = await begun(turns.acquire("other", 100))
    clock.now += 2
    await asyncio.wait_for(waiting, 10)


async def test_a_client_that_says_it_lives_keeps_its_turn() -> None:
    clock = Clock()
    turns = queue(clock)
    held = await turns.acquire("slow", 100)
    for _ in range(4):
        clock.now += 29
        await turns.alive("slow")
    waiting = await begun(turns.acquire("other", 100))
    await turns.ended(held, Ended("answered", 100))
    await asyncio.wait_for(waiting, 10)


async def test_who_waits_alone_gets_all_turns_that_there_are() -> None:
    turns = queue(Clock(), connections=3)
    assert len(await turns.acquire_some("alone", [100] * 5)) == 3


async def test_where_others_wait_turns_come_one_by_one() -> None:
    turns = queue(Clock(), connections=3)
    held = await turns.acquire_some("first", [100] * 3)
    several = await begun(turns.acquire_some("several", [100] * 5))
    one = await begun(turns.acquire("one", 100))
    await turns.all_ended([(turn, Ended("answered", 100)) for turn in held])
    assert len(await asyncio.wait_for(several, 10)) == 1
    await asyncio.wait_for(one, 10)
