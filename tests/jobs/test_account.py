"""The actors behind paid models outlive their clients, and their own deaths."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
import ray

from facescan import models
from facescan.errors import BudgetExhausted
from facescan.run import ledger
from facescan.storage import LocalStorage
from jobs import account
from jobs.account import Accounts
from serving.account import Account, Ended, NotAskedError, Stop
from serving.engines import hosted

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def limiter(name: str, **limits: Any) -> Any:
    """The limiter of an account of that name."""
    card = models.load("gpt-4o")
    card = card.model_copy(update={"engine_options": card.engine_options | {"account": name}})
    given = {"rpm": None, "tpm": None, "connections": None} | limits
    return account.limiter(hosted.with_account(card, base_url=None, **given))


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def money(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path / "ledger"))


async def turns(of: Account, count: int) -> list[int]:
    return [await of.turn(100) for _ in range(count)]


def test_all_runs_of_an_account_share_one_limiter(name: str, money: LocalStorage) -> None:
    async def both() -> None:
        book = account.ledger(money, "s", None)
        first, second = (
            Accounts(limiter(name, connections=2), book).account(client, Stop())
            for client in ("first", "second")
        )
        held = await turns(first, 2)
        waiting = asyncio.create_task(second.turn(100))
        done, _ = await asyncio.wait({waiting}, timeout=1.5)
        assert not done
        await first.turns.ended(held[0], Ended("answered", 100))
        await asyncio.wait_for(waiting, 20)

    asyncio.run(both())


def test_a_turn_that_comes_after_its_caller_was_stopped_goes_to_the_next(
    name: str, money: LocalStorage
) -> None:
    async def stopped() -> None:
        accounts = Accounts(limiter(name, connections=1), account.ledger(money, "s", None))
        mine = accounts.account("a", Stop())
        (held,) = await turns(mine, 1)
        gone, stays = (asyncio.create_task(mine.turn(100)) for _ in range(2))
        await asyncio.wait({gone, stays}, timeout=0.5)
        gone.cancel()
        await mine.turns.ended(held, Ended("answered", 100))
        await asyncio.wait_for(stays, 20)

    asyncio.run(stopped())


def test_a_turn_that_comes_as_its_caller_is_stopped_goes_to_the_next(
    name: str, money: LocalStorage
) -> None:
    async def stopped() -> None:
        accounts = Accounts(limiter(name, connections=2), account.ledger(money, "s", None))
        mine = accounts.account("a", Stop())

        async def stop_the_other() -> None:
            await mine.turn(100)
            # Its turn came with this one, and it has not looked yet.
            other.cancel()

        first = asyncio.create_task(stop_the_other())
        other = asyncio.create_task(mine.turn(100))
        await asyncio.wait_for(first, 20)
        await asyncio.wait_for(mine.turn(100), 20)

    asyncio.run(stopped())


def test_a_stop_ends_every_wait_for_a_turn(name: str, money: LocalStorage) -> None:
    async def stopped() -> None:
        accounts = Accounts(limiter(name, connections=1), account.ledger(money, "s", None))
        stop = Stop()
        mine = accounts.account("a", stop)
        (held,) = await turns(mine, 1)
        waiting = [asyncio.create_task(mine.turn(100)) for _ in range(3)]
        done, _ = await asyncio.wait(waiting, timeout=0.5)
        assert not done
        stop.set()
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        assert [type(each) for each in ended] == [NotAskedError] * 3
        with pytest.raises(NotAskedError):
            await mine.turn(100)
        await mine.turns.ended(held, Ended("answered", 100))
        await asyncio.wait_for(turns(accounts.account("b", Stop()), 1), 20)

    asyncio.run(stopped())


def test_turns_of_a_dead_client_are_free_again(name: str, money: LocalStorage) -> None:
    async def survive() -> None:
        accounts = Accounts(limiter(name, connections=2), account.ledger(money, "s", None))
        await turns(accounts.account("dead", Stop()), 2)
        accounts.forget("dead")
        living = accounts.account("living", Stop())
        await asyncio.wait_for(living.turn(100), 20)

    asyncio.run(survive())


def test_a_limiter_that_dies_starts_again_and_ignores_turns_of_before(
    name: str, money: LocalStorage
) -> None:
    async def survive() -> None:
        handle = limiter(name, connections=2)
        mine = Accounts(handle, account.ledger(money, "s", None)).account("a", Stop())
        before = await turns(mine, 2)
        ray.kill(handle, no_restart=False)
        after = await asyncio.wait_for(turns(mine, 2), 60)
        assert min(after) > max(before)
        for turn in before:
            await mine.turns.ended(turn, Ended("answered", 100))
        waiting = asyncio.create_task(mine.turn(100))
        done, _ = await asyncio.wait({waiting}, timeout=1.5)
        assert not done
        waiting.cancel()

    asyncio.run(survive())


def test_a_ledger_that_dies_has_lost_nothing(money: LocalStorage, name: str) -> None:
    async def survive() -> None:
        handle = account.ledger(money, "s", 1.0)
        mine = Accounts(limiter(name), handle).account("a", Stop())
        first = await mine.money.hold(0.5)
        await mine.money.reserve(first, 0.5)
        ray.kill(handle, no_restart=False)
        await mine.money.settle(first, 0.25)
        assert ledger.spent(money).total_usd == 0.25
        with pytest.raises(BudgetExhausted):
            await mine.money.hold(0.80)

    asyncio.run(survive())
