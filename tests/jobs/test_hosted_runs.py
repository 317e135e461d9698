"""The short form of `bench.hosted`: storms, budgets, kills, limits, by the provider's own count."""

from pathlib import Path

import pytest
import ray

from bench import hosted, kills
from bench.hosted import CONNECTIONS
from tests.provider.running import Config, provider_server

pytestmark = pytest.mark.slow


@pytest.fixture
def address(local_ray: None) -> str:
    """Of the Ray of all tests; it costs half as much as a Ray for each command."""
    del local_ray
    return str(ray.get_runtime_context().gcs_address)


def test_a_storm_changes_no_row(tmp_path: Path, address: str) -> None:
    shards = kills.make_shards(tmp_path / "shards", 30, 2)
    storm = hosted.through_a_storm(shards, 0, engines=2, address=address)
    assert 0.1 < storm.before < 0.4
    assert 0.1 < storm.after < 0.4


def test_a_budget_holds_through_a_killed_driver(tmp_path: Path, address: str) -> None:
    shards = kills.make_shards(tmp_path / "shards", 200, 2)
    result = hosted.spend(shards, 0.06, 0, kill_after=0.1, engines=2, address=address)
    assert result is not None, "killed after the end"
    assert result.looks > 10


def test_a_budget_is_used_up_after_an_engine_was_killed(tmp_path: Path) -> None:
    shards = kills.make_shards(tmp_path / "shards", 200, 2)
    with (
        provider_server(Config(latency_s=(0.1, 0.4))) as provider,
        hosted.job(
            shards, provider, "--max-cost", 0.1, "--max-connections", CONNECTIONS, engines=2
        ) as it,
        hosted.compared(it),
    ):
        process = it.start()
        kills.wait_for_reply(it, process)
        kills.kill(it.engine_processes[0])
        it.finish(process, 3)
        spent = it.spent
        assert spent.unknown <= hosted.IN_FLIGHT
        assert 0.1 - spent.total_usd < hosted.most_per_call()


def test_engines_share_the_limit_that_is_given(tmp_path: Path, address: str) -> None:
    shards = kills.make_shards(tmp_path / "shards", 70, 2)
    with (
        # Without limits of its own: a refusal would slow the engines, and hide what they ask.
        provider_server(Config(latency_s=(0.1, 0.5))) as provider,
        hosted.job(shards, provider, "--rpm", 200, engines=2, address=address) as it,
    ):
        it.finish(it.start(), 0)
        calls = hosted.chats(provider)
    seen = hosted.between(calls, calls[0]["arrived"], calls[-1]["arrived"], 200 / 60)
    # With a limit for each it is twice as much; without one, a busy machine asks 7 a second. How
    # few are refused by a provider's limits is measured by `bench.hosted`.
    assert 0.1 < seen.used <= 1.2, seen
