import math
import random

import pytest

from tests.provider.windows import SlidingWindow


def test_no_window_ever_holds_more_than_the_limit() -> None:
    rng = random.Random(1)
    window = SlidingWindow(10, 5.0)
    now, taken = 1000.0, []
    for _ in range(5000):
        now += rng.expovariate(4)
        amount = rng.randint(1, 4)
        if window.take(amount, now):
            taken.append((now, amount))
    assert len(taken) > 1000
    for start, _ in taken:
        assert sum(amount for time, amount in taken if start <= time < start + 5.0) <= 10


@pytest.mark.parametrize("start", [0.0, 0.1, 1e6 / 3, 1.7e9 + 0.3])
def test_what_was_said_to_fit_later_fits_then_and_not_before(start: float) -> None:
    window = SlidingWindow(3, 60.0)
    for step in range(3):
        assert window.take(1, start + step * 0.7)
    now = start + 2.1
    wait = window.seconds_until(2, now)
    assert wait == pytest.approx(60 + 0.7 - 2.1, abs=1e-5)
    assert not window.take(2, now + wait - 1e-3)
    assert window.take(2, now + wait)


def test_what_fits_now_needs_no_wait_and_what_never_fits_waits_for_ever() -> None:
    window = SlidingWindow(3, 60.0)
    assert window.seconds_until(3, 0.0) == 0
    assert window.seconds_until(4, 0.0) == math.inf


def test_a_refused_amount_takes_nothing() -> None:
    window = SlidingWindow(3, 60.0)
    assert window.take(2, 0.0)
    assert not window.take(2, 1.0)
    assert window.used(1.0) == 2


def test_a_limit_can_be_lowered_below_what_is_taken() -> None:
    window = SlidingWindow(4, 60.0)
    for second in range(4):
        assert window.take(1, float(second))
    window.limit = 2
    assert window.seconds_until(1, 4.0) == pytest.approx(62.0 - 4.0)
    assert not window.take(1, 61.5)
    assert window.take(1, 62.0)


def test_what_is_counted_without_fitting_holds_back_what_comes_later() -> None:
    window = SlidingWindow(1, 60.0)
    window.count(1, 0.0)
    window.count(1, 30.0)
    assert not window.take(1, 60.0)
    assert window.take(1, 90.0)
