"""Rate limits as a strict provider enforces them. Plain logic: time is an argument."""

import math
from collections import deque


class SlidingWindow:
    """Any `seconds` seconds hold at most `limit`: what was taken at t is free again at t + seconds.

    Times may begin anywhere and must not go back. The limit may be changed at any time; what was
    taken under the old one stays taken.
    """

    def __init__(self, limit: float, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._taken: deque[tuple[float, float]] = deque()  # (time, amount), oldest first
        self._used: float = 0

    def take(self, amount: float, now: float) -> bool:
        """Take `amount` if it fits; if it does not, nothing is taken."""
        if self.used(now) + amount > self.limit:
            return False
        self.count(amount, now)
        return True

    def count(self, amount: float, now: float) -> None:
        """Take `amount` whether it fits or not, as a provider counts requests that it refuses."""
        self._forget(now)
        self._taken.append((now, amount))
        self._used += amount

    def used(self, now: float) -> float:
        """How much of the limit the last `seconds` seconds took."""
        self._forget(now)
        return self._used

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until `amount` fits if nobody takes anything; 0: now, infinity: never."""
        if amount > self.limit:
            return math.inf
        used = self.used(now)
        due = now
        for time, taken in self._taken:
            if used + amount <= self.limit:
                break
            used -= taken
            due = time + self.seconds
        wait = due - now
        # Rounded down it would be asked for again at once, for ever.
        return wait if now + wait >= due else wait + math.ulp(due)

    def _forget(self, now: float) -> None:
        while self._taken and self._taken[0][0] + self.seconds <= now:
            self._used -= self._taken.popleft()[1]
        if not self._taken:
            self._used = 0  # fractions leave a remainder
