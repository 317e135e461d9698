"""Who waits for a turn, and whether it still lives when that comes."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from serving.account import ForgottenError, Queue
from serving.limiter import Limiter, Limits, Told

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    """Seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def queue(clock: Clock, silence_s: float = 30.0) -> Queue:
    return Queue(Limiter(Limits(connections=1)), clock, silence_s)


async def begun(waiting: Coroutine[Any, Any, int]) -> "asyncio.Task[int]":
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
    await turns.answered(held, 100, Told())
    await asyncio.wait_for(waiting, 10)
