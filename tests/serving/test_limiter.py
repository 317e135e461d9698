"""The limiter against a strict provider in virtual time, and rule by rule."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from bench.limiter import GEMINI, LIMITS, OPENAI, SILENT, Case, of_kind, simulate
from serving.limiter import Change, Lease, Limiter, Limits, Told, Wait
from tests.provider.windows import SlidingWindow

NOTHING = Told()


def lease(said: Lease | Wait) -> Lease:
    assert isinstance(said, Lease), said
    return said


def wait(said: Lease | Wait) -> Wait:
    assert isinstance(said, Wait)
    return said


def leases(limiter: Limiter, now: float, most: int = 1000, client: str = "a") -> list[Lease]:
    """As many as one client gets at one time."""
    got: list[Lease] = []
    while len(got) < most and isinstance(said := limiter.ask(client, 100, now), Lease):
        got.append(said)
    return got


def rounds(limiter: Limiter, number: int, now: float) -> None:
    """Rounds of calls, each as many as the limiter allows at a time, a second each."""
    for second in range(number):
        for each in leases(limiter, now + second):
            limiter.answered(each, now + second + 1, None, NOTHING)


def refused(limiter: Limiter, now: float, retry_after: float | None = None) -> None:
    limiter.limited(lease(limiter.ask("a", 100, now)), now, retry_after, NOTHING)


@pytest.mark.parametrize("kind", [OPENAI, GEMINI, SILENT], ids=lambda kind: kind.name)
@pytest.mark.parametrize("limit", ["60 rpm", "500 rpm", "200k tpm", "200k tpm, estimates 40 % low"])
def test_the_quota_is_used_and_not_exceeded(kind: Case, limit: str) -> None:
    result = simulate(of_kind(LIMITS[limit], kind), seconds=180)
    assert result.refused() <= 0.005
    assert result.used(0, 180) >= 0.9
    calls = result.by_client()
    assert min(calls) >= 0.85 * max(calls)


@pytest.mark.parametrize("kind", [OPENAI, GEMINI, SILENT], ids=lambda kind: kind.name)
@pytest.mark.parametrize("limit", ["500 rpm", "200k tpm", "500 rpm, 5 % of calls fail"])
def test_a_limit_halved_is_found_within_a_minute(kind: Case, limit: str) -> None:
    case = replace(of_kind(LIMITS[limit], kind), halved_at=90.0)
    result = simulate(case, seconds=270)
    assert result.refused(150) <= 0.01
    assert result.used(210, 270) >= 0.8


def test_a_limit_configured_too_high_is_found_without_headers() -> None:
    result = simulate(of_kind(LIMITS["500 rpm, 1,000 configured"], GEMINI), seconds=240)
    assert result.refused() <= 0.005
    assert result.used(60, 240) >= 0.9
    assert result.limiter.share == pytest.approx(0.5, abs=0.05)


def test_a_simulation_can_be_repeated() -> None:
    case = LIMITS["200k tpm"]
    first, again = (simulate(case, seconds=30).arrived for _ in range(2))
    assert first == again
    assert first != simulate(case, seconds=30, seed=1).arrived


def test_no_minute_has_too_many_calls_when_a_limiter_is_replaced() -> None:
    window = SlidingWindow(100, 60)
    sent = 0
    limiter = Limiter(Limits(requests_per_minute=100))
    for tick in range(9000):
        now = tick / 100
        if tick == 4000:
            limiter = Limiter(Limits(requests_per_minute=100), first_lease=1_000)
        if isinstance(said := limiter.ask("a", 100, now), Lease):
            assert window.take(1, now), now
            limiter.answered(said, now, None, NOTHING)
            sent += 1
    assert sent >= 0.93 * 150


def test_after_idle_minutes_no_more_than_a_second_of_quota_goes_at_once() -> None:
    limiter = Limiter(Limits(requests_per_minute=300))
    assert wait(limiter.ask("a", 100, 0.0)).reason == "requests per minute"
    assert len(leases(limiter, 600.0)) == 4
    limiter = Limiter(Limits(requests_per_minute=60))
    limiter.ask("a", 100, 0.0)
    assert len(leases(limiter, 600.0)) == 1


def test_a_wait_says_when_the_call_may_be_made() -> None:
    limiter = Limiter(Limits(requests_per_minute=120))
    said = wait(limiter.ask("a", 100, 10.0))
    wait(limiter.ask("a", 100, 10.0 + 0.9 * said.seconds))
    lease(limiter.ask("a", 100, 10.0 + said.seconds + 1e-6))


def test_a_call_that_takes_more_tokens_than_a_second_has_is_made_up_for() -> None:
    limiter = Limiter(Limits(tokens_per_minute=6000))
    limiter.ask("a", 1000, 0.0)
    lease(limiter.ask("a", 1000, 2.0))
    now = 2.0
    while isinstance(limiter.ask("a", 1000, now), Wait):
        now += 0.1
    assert now - 2.0 == pytest.approx(1000 / (0.95 * 100), abs=0.3)


def test_calls_that_use_the_whole_limit_still_go_one_a_minute() -> None:
    limiter = Limiter(Limits(tokens_per_minute=1000))
    went = []
    for second in range(300):
        if isinstance(said := limiter.ask("a", 5000, float(second)), Lease):
            limiter.answered(said, float(second), None, NOTHING)
            went.append(second)
    assert len(went) >= 1
    assert all(later - earlier >= 60 for earlier, later in pairwise(went))


def test_estimates_are_corrected_by_usage() -> None:
    limiter = Limiter(Limits(tokens_per_minute=60_000))
    used = 0
    for tick in range(12_000):
        now = tick / 100
        if isinstance(said := limiter.ask("a", 500, now), Lease):
            limiter.answered(said, now, 1500, NOTHING)
            used += 1500 * (now >= 60)
    assert 0.9 * 60_000 <= used <= 60_000


def test_a_call_that_took_more_than_was_estimated_is_made_up_for() -> None:
    limiter = Limiter(Limits(tokens_per_minute=60_000))
    limiter.ask("a", 100, 0.0)
    limiter.answered(lease(limiter.ask("a", 100, 5.0)), 5.0, 9600, NOTHING)
    wait(limiter.ask("a", 100, 13.0))
    lease(limiter.ask("a", 100, 16.0))


def test_the_next_estimates_are_corrected_before_their_calls_come_back() -> None:
    limiter = Limiter(Limits(tokens_per_minute=60_000))
    now = 0.0
    for _ in range(100):
        now += 10.0
        said = limiter.ask("a", 100, now)
        if isinstance(said, Lease):
            limiter.answered(said, now, 300, NOTHING)
    # A second of quota is 950 tokens.
    assert len(leases(limiter, now + 10.0)) == 3


def test_tokens_of_a_refused_call_are_free_again() -> None:
    limiter = Limiter(Limits(tokens_per_minute=1000))
    limiter.ask("a", 900, 0.0)
    limiter.limited(lease(limiter.ask("a", 900, 2.0)), 2.0, 1.0, NOTHING)
    lease(limiter.ask("a", 900, 4.0))


def test_no_minute_has_too_many_tokens_where_few_calls_fit() -> None:
    window = SlidingWindow(5500, 60)
    limiter = Limiter(Limits(tokens_per_minute=5500))
    sent = 0
    for tick in range(3000):
        now = tick / 10
        if isinstance(said := limiter.ask("a", 1000, now), Lease):
            assert window.take(1000, now), now
            limiter.answered(said, now, 1000, NOTHING)
            sent += 1
    assert sent >= 5 * 4


def test_without_limits_only_the_most_calls_at_a_time_counts() -> None:
    limiter = Limiter(Limits(connections=64))
    first = leases(limiter, 0.0)
    assert len(first) == 8
    assert wait(limiter.ask("a", 100, 0.0)).reason == "calls at a time"
    limiter.answered(first[0], 1.0, None, NOTHING)
    assert len(leases(limiter, 1.0)) == 1


def test_calls_at_a_time_double_each_clean_round_up_to_the_most() -> None:
    limiter = Limiter(Limits(connections=50))
    seen = []
    for start in range(4):
        seen.append(limiter.connections)
        rounds(limiter, 1, float(start))
    assert seen == [8, 16, 32, 50]
    assert Limiter(Limits(connections=3)).connections == 3


def test_calls_at_a_time_do_not_grow_unused() -> None:
    limiter = Limiter(Limits())
    for second in range(50):
        for each in leases(limiter, float(second), most=6):
            limiter.answered(each, second + 0.5, None, NOTHING)
    assert limiter.connections == 8


def test_a_failed_call_stops_growth_and_cuts_nothing() -> None:
    limiter = Limiter(Limits())
    for second in range(20):
        first, *others = leases(limiter, float(second))
        limiter.failed(first, second + 0.5)
        for each in others:
            limiter.answered(each, second + 0.9, None, NOTHING)
    assert limiter.connections == 8
    assert limiter.in_flight == 0


def test_one_episode_of_429s_cuts_once_and_growth_is_slow_afterwards() -> None:
    limiter = Limiter(Limits(requests_per_minute=60_000))
    limiter.ask("a", 100, -1.0)
    rounds(limiter, 2, 0.0)
    assert limiter.connections == 32
    together = leases(limiter, 2.0)
    assert len(together) == 32
    for each in together:
        limiter.limited(each, 2.1, 5.0, NOTHING)
    assert limiter.connections == 25
    trial = lease(limiter.ask("a", 100, 7.2))
    limiter.answered(trial, 7.5, None, NOTHING)
    assert limiter.connections == 25
    assert limiter.share == pytest.approx(0.9)
    rounds(limiter, 4, 8.0)
    assert 28 <= limiter.connections <= 32


def test_everybody_waits_as_long_as_the_provider_wants() -> None:
    limiter = Limiter(Limits())
    refused(limiter, 1.0, retry_after=30.0)
    for client in ("a", "b", "c"):
        assert wait(limiter.ask(client, 100, 1.5)).seconds == pytest.approx(29.5)
    wait(limiter.ask("b", 100, 30.9))
    lease(limiter.ask("b", 100, 31.1))


def test_after_a_429_one_call_tries_and_the_others_wait_for_it() -> None:
    limiter = Limiter(Limits())
    refused(limiter, 1.0, retry_after=2.0)
    trial = lease(limiter.ask("a", 100, 3.1))
    assert wait(limiter.ask("b", 100, 3.2)).reason == "one call tries after a 429"
    limiter.answered(trial, 4.0, None, NOTHING)
    assert len(leases(limiter, 4.0)) == limiter.connections


def test_a_trial_that_does_not_come_back_is_not_waited_for() -> None:
    limiter = Limiter(Limits())
    refused(limiter, 1.0, retry_after=2.0)
    lease(limiter.ask("a", 100, 3.1))
    lease(limiter.ask("b", 100, 8.2))


@pytest.mark.parametrize("retry_after", [None, 0.01])
def test_pauses_grow_while_calls_are_refused(retry_after: float | None) -> None:
    limiter = Limiter(Limits())
    refused(limiter, 0.0)
    now, gaps = 0.0, []
    for _ in range(6):
        before = now
        while isinstance(said := limiter.ask("a", 100, now), Wait):
            now += said.seconds + 0.001
        limiter.limited(said, now, retry_after, NOTHING)
        gaps.append(now - before)
    assert gaps == pytest.approx([1, 2, 4, 8, 10, 10], abs=0.1)


def test_without_retry_after_the_reset_of_what_is_spent_is_waited_for() -> None:
    limiter = Limiter(Limits())
    told = Told(remaining_requests=7, reset_requests=9.0, remaining_tokens=0, reset_tokens=4.0)
    limiter.limited(lease(limiter.ask("a", 100, 0.0)), 0.0, None, told)
    assert wait(limiter.ask("a", 100, 0.0)).seconds == pytest.approx(4.0)


def test_limits_are_learned_from_headers_and_never_above_the_configured_ones() -> None:
    limiter = Limiter(Limits(requests_per_minute=600))
    limiter.ask("a", 100, 0.0)
    first, second = lease(limiter.ask("a", 100, 0.5)), lease(limiter.ask("a", 100, 0.7))
    limiter.answered(second, 1.0, 100, Told(limit_requests=60))
    assert len(leases(limiter, 1.0)) <= 1
    assert wait(limiter.ask("a", 100, 1.0)).seconds > 0.5
    assert limiter.history[-1] == Change(1.0, "requests per minute 60", "the provider's headers")
    # A slower answer to an earlier call brings no old limit back.
    limiter.answered(first, 1.1, 100, Told(limit_requests=10_000))
    assert len(limiter.history) == 1
    later = lease(limiter.ask("a", 100, 3.0))
    limiter.answered(later, 4.0, 100, Told(limit_requests=10_000))
    assert limiter.history[-1].what == "requests per minute 600"


def test_a_limit_first_told_after_many_calls_does_not_block() -> None:
    limiter = Limiter(Limits())
    for second in range(100):
        for each in leases(limiter, float(second), most=5):
            limiter.answered(each, second + 0.5, 100, NOTHING)
    call = lease(limiter.ask("a", 100, 200.0))
    limiter.answered(call, 200.5, 100, Told(limit_requests=600, limit_tokens=60_000))
    lease(limiter.ask("a", 100, 201.5))


def test_a_lowered_limit_that_the_headers_explain_costs_no_share() -> None:
    limiter = Limiter(Limits(requests_per_minute=600))
    limiter.ask("a", 100, 0.0)
    limiter.limited(lease(limiter.ask("a", 100, 1.0)), 1.2, 1.0, Told(limit_requests=300))
    limiter.answered(lease(limiter.ask("a", 100, 3.0)), 3.5, 100, Told(limit_requests=300))
    assert limiter.share == 1


def test_the_explanation_may_come_with_a_later_429_of_the_episode() -> None:
    limiter = Limiter(Limits(requests_per_minute=600))
    limiter.ask("a", 100, 0.0)
    first, second = leases(limiter, 1.0, most=2)
    limiter.limited(first, 1.2, 1.0, Told(limit_requests=600))
    limiter.limited(second, 1.3, 1.0, Told(limit_requests=300))
    limiter.answered(lease(limiter.ask("a", 100, 3.0)), 3.5, 100, Told(limit_requests=300))
    assert limiter.share == 1


def test_a_share_lost_comes_back_when_it_is_used_without_429s() -> None:
    limiter = Limiter(Limits(requests_per_minute=600))
    limiter.ask("a", 100, 0.0)
    refused(limiter, 1.0, retry_after=1.0)
    shares = []
    for tick in range(7000):
        now = 2.5 + tick / 10
        for each in leases(limiter, now):
            limiter.answered(each, now, 100, NOTHING)
        shares.append(limiter.share)
    assert shares[2900] == pytest.approx(0.9)
    assert shares[-1] == 1
    assert [change.why for change in limiter.history].count("no 429 for long") >= 3


def test_the_requests_of_a_day_end_with_a_time() -> None:
    limiter = Limiter(Limits(requests_per_day=5), day_ends=1000.0)
    for each in leases(limiter, 10.0):
        limiter.failed(each, 11.0)
    assert limiter.used_today == 5
    said = wait(limiter.ask("b", 100, 12.0))
    assert (said.seconds, said.reason) == (988.0, "requests per day")
    assert len(leases(limiter, 1000.0)) == 5
    assert wait(limiter.ask("b", 100, 1001.0)).seconds == pytest.approx(86_399)


def test_a_dead_client_gives_its_calls_back() -> None:
    limiter = Limiter(Limits(connections=4))
    dead = leases(limiter, 0.0, client="dead")
    assert len(dead) == 4
    limiter.forget("dead", 1.0)
    assert len(leases(limiter, 1.0, client="alive")) == 4
    # Its last answer, still under way, frees nobody else's place.
    limiter.answered(dead[0], 2.0, None, NOTHING)
    wait(limiter.ask("alive", 100, 2.0))


def test_calls_that_never_come_back_expire() -> None:
    limiter = Limiter(Limits(connections=4), lease_seconds=300.0)
    lost = leases(limiter, 0.0)
    wait(limiter.ask("b", 100, 299.0))
    assert len(leases(limiter, 300.0, client="b")) == 4
    limiter.answered(lost[0], 301.0, None, NOTHING)
    assert limiter.in_flight == 4


def test_the_answer_to_a_lease_of_a_limiter_before_frees_nothing_but_its_pause_is_kept() -> None:
    before = lease(Limiter(Limits()).ask("a", 100, 0.0))
    limiter = Limiter(Limits(connections=4), first_lease=1_000)
    assert len(leases(limiter, 1.0)) == 4
    limiter.answered(before, 2.0, 100, Told(limit_requests=1))
    assert limiter.in_flight == 4
    limiter.limited(before, 2.0, 20.0, NOTHING)
    assert wait(limiter.ask("a", 100, 2.0)).seconds == pytest.approx(20.0)


@pytest.mark.parametrize(
    "limits", [Limits(requests_per_minute=60), Limits(requests_per_minute=600), Limits()]
)
def test_a_client_that_asks_all_the_time_gets_no_more_than_one_that_waits(limits: Limits) -> None:
    limits = replace(limits, connections=4)
    limiter = Limiter(limits)
    got = {"greedy": 0, "polite": 0}
    asks_at = 0.0
    back: list[tuple[float, Lease]] = []
    for tick in range(12_000):
        now = tick / 100
        while back and back[0][0] <= now:
            limiter.answered(back.pop(0)[1], now, None, NOTHING)
        said = limiter.ask("greedy", 100, now)
        if isinstance(said, Lease):
            got["greedy"] += 1
            back.append((now + 0.5, said))
        while asks_at <= now:
            said = limiter.ask("polite", 100, now)
            if isinstance(said, Wait):
                asks_at = now + said.seconds
                break
            got["polite"] += 1
            back.append((now + 0.5, said))
    assert got["polite"] >= 0.8 * got["greedy"]
    per_second = (limits.requests_per_minute or math.inf) * 0.95 / 60
    assert sum(got.values()) >= 0.9 * 120 * min(per_second, 4 / 0.5)


def test_a_client_that_stopped_asking_holds_nobody_back() -> None:
    limiter = Limiter(Limits(requests_per_minute=60))
    limiter.ask("gone", 100, 0.0)
    went = 0
    now = 0.1
    while now < 60:
        said = limiter.ask("here", 100, now)
        if isinstance(said, Lease):
            limiter.answered(said, now, None, NOTHING)
            went += 1
        now += said.seconds if isinstance(said, Wait) else 0.01
    assert went >= 54


@pytest.mark.parametrize("waits", [True, False])
def test_a_turn_is_kept_only_for_who_waits(waits: bool) -> None:
    limiter = Limiter(Limits(connections=1))
    first = lease(limiter.ask("b", 100, 0.0))
    wait(limiter.ask("a", 100, 0.1, waits=waits))
    limiter.answered(first, 0.2, None, NOTHING)
    assert isinstance(limiter.ask("b", 100, 0.2), Wait if waits else Lease)


def test_a_429_of_an_episode_that_is_over_begins_no_other() -> None:
    limiter = Limiter(Limits(requests_per_minute=60_000))
    limiter.ask("a", 100, 0.0)
    first, slow = leases(limiter, 1.0, most=2)
    limiter.limited(first, 1.1, 1.0, NOTHING)
    limiter.answered(lease(limiter.ask("a", 100, 2.2)), 2.5, None, NOTHING)
    before = (limiter.connections, limiter.share)
    limiter.limited(slow, 2.6, None, NOTHING)
    assert (limiter.connections, limiter.share) == before
    lease(limiter.ask("a", 100, 2.7))


def test_history_keeps_the_last_changes() -> None:
    limiter = Limiter(Limits(connections=1))
    for second in range(300):
        call = lease(limiter.ask("a", 100, float(second)))
        limiter.answered(call, second + 0.5, None, Told(limit_requests=6000 + second % 2))
    assert len(limiter.history) == 200
    assert limiter.history[-1].time == 299.5


def test_limits_given_later_hold_from_then_on() -> None:
    limiter = Limiter(Limits(requests_per_minute=6000, connections=64))
    rounds(limiter, 5, 0.0)
    limiter.configure(Limits(requests_per_minute=60, connections=2))
    assert limiter.connections <= 2
    assert len(leases(limiter, 600.0)) == 1
