"""What a run has spent: never less than the bill, never more than the budget."""

import asyncio
from pathlib import Path

import pytest

from facescan.errors import BudgetExhausted, DataError
from facescan.run import ledger
from facescan.run.ledger import Ledger
from facescan.storage import LocalStorage

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path / "ledger"))


async def reserved(book: Ledger, usd: float, client: str = "") -> str:
    number = await book.hold(usd, client)
    await book.reserve(number, usd, client)
    return number


async def test_a_call_is_on_disk_before_it_is_made(folder: LocalStorage) -> None:
    await reserved(Ledger(folder, "one"), 0.25)
    assert ledger.spent(folder).total_usd == 0.25
    assert ledger.spent(folder).unknown == 1


async def test_a_settled_call_costs_what_it_has_cost(folder: LocalStorage) -> None:
    book = Ledger(folder, "one")
    await book.settle(await reserved(book, 0.25), 0.125)
    assert ledger.spent(folder) == ledger.Spent(0.125, 0.0, 1, 0)


async def test_calls_in_flight_at_a_kill_stay_reserved_for_the_next_command(
    folder: LocalStorage,
) -> None:
    killed = Ledger(folder, "one", 1.0)
    await killed.settle(await reserved(killed, 0.5), 0.25)
    await reserved(killed, 0.5)
    following = Ledger(folder, "two", 1.0)
    assert following.total_usd == 0.75
    await reserved(following, 0.25)
    with pytest.raises(BudgetExhausted):
        await reserved(Ledger(folder, "three", 1.0), 0.01)


async def test_a_ledger_started_again_in_its_session_counts_nothing_twice(
    folder: LocalStorage,
) -> None:
    book = Ledger(folder, "one", 1.0)
    await book.settle(await reserved(book, 0.5), 0.25)
    await reserved(book, 0.5)
    again = Ledger(folder, "one", 1.0)
    assert again.total_usd == 0.75
    number = await reserved(again, 0.25)
    await again.settle(number, 0.25)
    assert ledger.spent(folder).total_usd == 1.0


async def test_room_held_before_a_death_and_given_to_others_since_is_asked_for_again(
    folder: LocalStorage,
) -> None:
    dead = Ledger(folder, "one", 1.0)
    held, small = await dead.hold(0.75), await dead.hold(0.25)
    again = Ledger(folder, "one", 1.0)
    await reserved(again, 0.75)
    with pytest.raises(BudgetExhausted, match=r"\$0.7500 of the \$1.00 .* \$0.7500"):
        await again.reserve(held, 0.75)
    await again.reserve(small, 0.25)
    assert ledger.spent(folder).total_usd == 1.0


async def test_a_call_that_is_in_flight_already_is_not_asked_to_fit_once_more(
    folder: LocalStorage,
) -> None:
    number = await reserved(Ledger(folder, "one", 1.0), 0.75)
    again = Ledger(folder, "one", 1.0)
    for _ in range(2):
        await again.reserve(number, 0.75)
    await again.settle(number, 0.5)
    assert ledger.spent(folder) == ledger.Spent(0.5, 0.0, 1, 0)


async def test_no_number_is_given_twice_when_a_process_dies_before_its_first_write(
    folder: LocalStorage,
) -> None:
    before = await Ledger(folder, "one").hold(0.5)
    assert int(await Ledger(folder, "one").hold(0.5)) > int(before)


async def test_a_call_that_does_not_fit_waits_for_those_in_flight(folder: LocalStorage) -> None:
    book = Ledger(folder, "one", 1.0)
    first = await reserved(book, 0.75)
    second = asyncio.create_task(reserved(book, 0.5))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    await book.settle(first, 0.25)
    await book.settle(await second, 0.5)
    assert ledger.spent(folder).total_usd == 0.75


async def test_room_that_is_held_is_room_no_more_until_it_is_released(
    folder: LocalStorage,
) -> None:
    book = Ledger(folder, "one", 1.0)
    held = await book.hold(0.75)
    second = asyncio.create_task(book.hold(0.5))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    assert ledger.spent(folder).total_usd == 0
    await book.release(held)
    await second


async def test_a_call_that_cannot_fit_any_more_is_refused_with_the_figures(
    folder: LocalStorage,
) -> None:
    book = Ledger(folder, "one", 1.0)
    first = await reserved(book, 0.75)
    second = asyncio.create_task(reserved(book, 0.5))
    await book.settle(first, 0.75)
    with pytest.raises(BudgetExhausted, match=r"\$0.7500 of the \$1.00 .* \$0.5000"):
        await second


async def test_a_dead_client_is_not_waited_for_and_what_it_had_in_flight_stays(
    folder: LocalStorage,
) -> None:
    book = Ledger(folder, "one", 1.0)
    await reserved(book, 0.75, "dead")
    waiting = [asyncio.create_task(reserved(book, 0.5, whose)) for whose in ("dead", "living")]
    for _ in range(10):
        await asyncio.sleep(0)
    await book.forget("dead")
    with pytest.raises(BudgetExhausted, match="client dead has died"):
        await waiting[0]
    with pytest.raises(BudgetExhausted, match=r"\$0.7500 of the \$1.00"):
        await waiting[1]
    assert ledger.spent(folder).unknown == 1
    await reserved(book, 0.25, "dead")


async def test_no_order_of_calls_spends_more_than_the_budget(folder: LocalStorage) -> None:
    book = Ledger(folder, "one", 1.0)
    billed = 0.0

    async def call(number: int) -> None:
        nonlocal billed
        ticket = await reserved(book, 0.05)
        billed += 0.01 * (1 + number % 5)
        await asyncio.sleep(0)
        await book.settle(ticket, 0.01 * (1 + number % 5))

    outcomes = await asyncio.gather(*map(call, range(100)), return_exceptions=True)
    assert any(isinstance(outcome, BudgetExhausted) for outcome in outcomes)
    assert 0.95 <= billed <= 1.0 + 1e-9
    assert ledger.spent(folder).total_usd == pytest.approx(billed)


async def test_many_changes_at_once_share_a_write(
    folder: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    write = LocalStorage.write

    def counted(self: LocalStorage, name: str, data: bytes) -> None:
        nonlocal writes
        writes += 1
        write(self, name, data)

    monkeypatch.setattr(LocalStorage, "write", counted)
    book = Ledger(folder, "one")
    await asyncio.gather(*(reserved(book, 0.01) for _ in range(200)))
    assert ledger.spent(folder).unknown == 200
    assert writes <= 3


async def test_a_call_that_could_not_be_written_is_not_made(
    folder: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    book = Ledger(folder, "one")
    monkeypatch.setattr(LocalStorage, "write", full)
    with pytest.raises(OSError, match="no space"):
        await reserved(book, 0.01)


async def test_a_damaged_ledger_stops_all_spending_and_says_what_to_do(
    folder: LocalStorage,
) -> None:
    folder.write("one.json", b'{"settled_usd": "much"')
    with pytest.raises(DataError, match=r"one\.json: damaged.*by hand"):
        Ledger(folder, "two")
