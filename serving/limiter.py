"""One account's limits with a provider, shared by everybody who calls it.

    turn = limiter.ask(client, tokens, now)     a Lease: call now; a Wait: ask again after a while
    limiter.answered(turn, now, used, told)     or .limited(...) for a 429, or .failed(...)

Plain logic: time is an argument, in seconds of any clock that does not go back, so hours can be
simulated in a second. Four things let a call go: both quotas per minute (`_Quota`), the requests of
the day, the most calls at a time, and the turns of other clients.

A provider's limit is learned from its headers. Where it has none, from 429s: the first of an
episode lowers the most calls at a time; then everybody waits, and single calls try until one gets
through. That is when this limiter's own calls of the last minute say what the provider allows now,
and its quotas are set to that share. The share grows again after some minutes without a 429.
Without a known limit only the most calls at a time adapt: a limit that is known should be
configured, even roughly.
"""

from collections import deque
from dataclasses import dataclass

PACE = 0.95
"""The part of a limit per minute that is used. Calls reach the provider later than they are let go,
some more and some less, so what went in one minute can arrive in less."""

_BURST_S = 1.0
"""So many seconds' worth of a quota may go at once: 60 per minute can mean one in each second."""

_WINDOW_S = 62.0
"""No such stretch of time has more than a minute's limit: a minute, and what `PACE` is for."""

_SLOT_S = 0.25

_FIRST_CONNECTIONS = 8

_CUT = 0.8
"""What an episode of 429s leaves of the most calls at a time."""

_LEAST_CUT, _MOST_CUT = 0.9, 0.5
"""What it leaves of the quotas, at most and at least."""

_IN_USE = 0.8
"""Whoever uses less than this part of a limit learns nothing about a higher one."""

_HOLD_S = 300.0
_GROWTH_S = 60.0
_FIRST_GROWTH = 0.01
"""A share is kept for so long after a cut, then grows by this part of the limit, twice that ...
in each further period, until it is whole or the next 429 comes."""

_LONGEST_PAUSE_S = 10.0
"""A 429 that does not say for how long means 1 s. When the next call is refused too, everybody
waits for 2 s, then 4 ... at most this, or longer where the provider says so."""

_BRIEF_S = 10.0
"""An episode that is over so soon was about the last seconds: it says nothing about a minute."""

_TRIAL_S = 5.0
"""A call that shall show whether the provider lets calls through again has so long to do it."""

_LATENESS_S = 0.5
"""A client that asks again so much later than it was told to has no turn kept any longer."""

_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.001, 1.0
"""Who waits for its turn asks again in this time: those ahead may have gone."""

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What an account may do; None: nobody has said.

    Attributes:
        connections: the most calls at a time, whatever the provider would allow.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    requests_per_day: int | None = None
    connections: int = 64


@dataclass(frozen=True, slots=True)
class Told:
    """What the headers of a response said; None: nothing.

    Attributes:
        limit_requests: per minute, as `limit_tokens`.
        remaining_requests: as the call was processed, after it was counted.
        reset_requests: in how many seconds nothing will be used of the limit.
    """

    limit_requests: float | None = None
    limit_tokens: float | None = None
    remaining_requests: float | None = None
    remaining_tokens: float | None = None
    reset_requests: float | None = None
    reset_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """One call may be made, now."""

    number: int


@dataclass(frozen=True, slots=True)
class Wait:
    """No call yet.

    Attributes:
        seconds: ask again after these, not before.
        reason: for people.
    """

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """A limit has changed.

    Attributes:
        time: on the limiter's clock.
        what: the limit, and its new value.
        why: for people.
    """

    time: float
    what: str
    why: str


class _Quota:
    """A limit per minute: a bucket that sets the pace, and what was let go in the last minute."""

    def __init__(self, configured: float | None) -> None:
        self._configured = configured
        self._told: float | None = None
        self._share = 1.0
        # Empty: a limiter that was started again does not know what the one before it let go.
        self._level = 0.0
        self._filled: float | None = None
        self._slots: dict[int, float] = {}
        self._used = 0.0

    @property
    def limit(self) -> float | None:
        """Per minute, as configured or as the provider said, whichever is lower."""
        known = [limit for limit in (self._configured, self._told) if limit is not None]
        return min(known) if known else None

    @property
    def per_second(self) -> float | None:
        """The pace; None: there is no limit."""
        return None if self.limit is None else self.limit * self._share * PACE / 60

    def configure(self, configured: float | None) -> None:
        """The limit that somebody gives."""
        self._configured = configured

    def hear(self, told: float | None) -> bool:
        """The provider has named its limit; whether that lowers it."""
        before = self.limit
        if told is not None and told > 0:
            self._told = told
        return before is not None and self.limit is not None and self.limit < before

    def scale(self, share: float) -> None:
        """Use this share of the limit from now on."""
        self._share = share

    def advance(self, now: float) -> None:
        """Let the time pass."""
        pace = self.per_second
        if pace is None or self._filled is None:
            self._level = 0.0
        else:
            self._level = min(self._level + pace * (now - self._filled), pace * _BURST_S)
        self._filled = now
        oldest = int((now - _WINDOW_S) / _SLOT_S)
        while self._slots and (slot := next(iter(self._slots))) < oldest:
            self._used -= self._slots.pop(slot)

    def seconds_until(self, amount: float, ahead: int, now: float) -> float:
        """0: the amount fits now, and after it as much again for each of those ahead."""
        pace = self.per_second
        if pace is None or self.limit is None:
            return 0.0
        # More than ever gathers goes as soon as the bucket is full, and is made up for afterwards.
        missing = min(amount, pace * _BURST_S) * (1 + ahead) - self._level
        wait = max(0.0, missing / pace)
        # One call alone may be more than a minute's limit: it waits until there is no other.
        excess = self._used + amount - self.limit * self._share
        for slot, used in self._slots.items():
            if excess <= 0:
                break
            excess -= used
            wait = max(wait, (slot + 1) * _SLOT_S + _WINDOW_S - now)
        return wait

    def take(self, amount: float, now: float) -> None:
        """The amount is let go."""
        slot = int(now / _SLOT_S)
        self._slots[slot] = self._slots.get(slot, 0.0) + amount
        self._used += amount
        self._level -= amount

    def correct(self, by: float, then: float) -> None:
        """What was taken then was more by so much; after a minute it no longer matters."""
        if int(then / _SLOT_S) in self._slots:
            self.take(by, then)

    def in_use(self, now: float) -> float:
        """What was let go in the last minute, as a part of the whole limit; 0 without one."""
        if self.limit is None:
            return 0.0
        oldest = int((now - 60) / _SLOT_S)
        used = sum(amount for slot, amount in self._slots.items() if slot >= oldest)
        return used / self.limit


@dataclass(slots=True)
class _Call:
    """A call in flight.

    Attributes:
        granted: when.
        estimate: of its tokens, by the client.
        tokens: taken from the quota.
    """

    client: str
    granted: float
    estimate: int
    tokens: float


@dataclass(slots=True)
class _Client:
    """Attributes: asks_again: when, if it was told to wait; served: its last lease."""

    in_flight: int = 0
    served: int = 0
    asks_again: float | None = None


class Limiter:
    """See the module's docstring. A client is a process: its name is all that is known of it."""

    def __init__(
        self,
        limits: Limits,
        *,
        first_lease: int = 1,
        day_ends: float | None = None,
        lease_seconds: float = 600.0,
    ) -> None:
        """Nothing may be called at once: a limiter before this one may have called just now.

        Args:
            limits: as configured; what the provider says later only lowers them.
            first_lease: greater than any number that a limiter before this one has given.
            day_ends: when the provider's day ends, on the limiter's clock; days are 24 hours. None:
                24 hours after the first question.
            lease_seconds: a call that has not come back by then never will.
        """
        self._limits = limits
        self._requests = _Quota(limits.requests_per_minute)
        self._tokens = _Quota(limits.tokens_per_minute)
        self._day_ends = day_ends
        self._lease_seconds = lease_seconds
        self._next_lease = first_lease
        self._calls: dict[int, _Call] = {}
        self._clients: dict[str, _Client] = {}
        self._connections = float(min(_FIRST_CONNECTIONS, limits.connections))
        self._doubling = True
        self._round_left = int(self._connections)
        self._round_peak = 0
        self._round_clean = True
        self._latency = 1.0
        # Of tokens used to tokens estimated.
        self._correction = 1.0
        self._share = 1.0
        self._growth = _FIRST_GROWTH
        self._grows_at = 0.0
        self._paused_until = 0.0
        self._pause = 1.0
        self._trying = False
        self._refused_at = 0.0
        self._explained = False
        # Calls before this number were let go before the latest pause.
        self._since_pause = first_lease
        # The latest call whose headers were read.
        self._heard = first_lease
        self.used_today = 0
        self.history: deque[Change] = deque(maxlen=200)

    @property
    def in_flight(self) -> int:
        """Calls that have not come back."""
        return len(self._calls)

    @property
    def connections(self) -> int:
        """The most calls at a time, now."""
        return int(self._connections)

    @property
    def share(self) -> float:
        """The part of the limits per minute that the provider's 429s have left, of 1."""
        return self._share

    def configure(self, limits: Limits) -> None:
        """Limits as somebody else who joins the account gives them; what was learned stays."""
        self._limits = limits
        self._requests.configure(limits.requests_per_minute)
        self._tokens.configure(limits.tokens_per_minute)
        self._connections = min(self._connections, float(limits.connections))

    def ask(self, client: str, tokens: int, now: float, *, waits: bool = True) -> Lease | Wait:
        """May this client make one call of about so many tokens, now?

        Args:
            client: by its name.
            tokens: of question and answer.
            now: as everywhere.
            waits: whether it asks again when it is told to wait; a turn is kept for it then.
        """
        self._advance(now)
        asking = self._clients.setdefault(client, _Client())
        asking.asks_again = None
        reserved = tokens * self._correction
        daily = self._limits.requests_per_day
        if daily is not None and self.used_today >= daily and self._day_ends is not None:
            return Wait(self._day_ends - now, "requests per day")
        refused = self._obstacle(asking, reserved, now)
        if refused is not None:
            asking.asks_again = now + refused.seconds if waits else None
            return refused
        number = self._next_lease
        self._next_lease += 1
        self._requests.take(1, now)
        self._tokens.take(reserved, now)
        self._calls[number] = _Call(client, now, tokens, reserved)
        asking.in_flight += 1
        asking.served = number
        self.used_today += 1
        self._round_peak = max(self._round_peak, len(self._calls))
        return Lease(number)

    def answered(self, lease: Lease, now: float, tokens: int | None, told: Told) -> None:
        """The call came back.

        Args:
            lease: of this limiter, or of one before it, which is ignored.
            now: as everywhere.
            tokens: what the provider says that it took; None: it does not say.
            told: the response's headers.
        """
        self._advance(now)
        call = self._back(lease)
        if call is None:
            return
        self._learn(lease.number, told, now)
        self._latency += 0.1 * (now - call.granted - self._latency)
        if tokens is not None:
            self._tokens.correct(tokens - call.tokens, call.granted)
            if call.estimate > 0:
                self._correction += 0.05 * (tokens / call.estimate - self._correction)
        if self._trying:
            if lease.number < self._since_pause:
                return
            self._through(now)
        self._round_left -= 1
        if self._round_left <= 0:
            self._end_round(now)
        self._grow(now)

    def limited(self, lease: Lease, now: float, retry_after: float | None, told: Told) -> None:
        """The provider refused the call for its rate (429).

        Args:
            lease: as for `answered`.
            now: as everywhere.
            retry_after: seconds that the provider wants everybody to wait; None: it does not say.
            told: the response's headers.
        """
        self._advance(now)
        call = self._back(lease)
        if retry_after is not None:
            self._paused_until = max(self._paused_until, now + retry_after)
        if call is None:
            return
        lowered = self._learn(lease.number, told, now)
        # A refused call is a request to most providers, but it has used no tokens.
        self._tokens.correct(-call.tokens, call.granted)
        self._explained = self._explained or lowered
        if lease.number < self._since_pause:
            return
        self._since_pause = self._next_lease
        if self._trying:
            # Who came when the provider wanted it, and in vain, waits longer than it wants.
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
            pause = self._pause
        else:
            self._trying = True
            self._refused_at = now
            self._explained = lowered
            self._pause = 1.0
            self._set_connections(self._connections * _CUT, now, "429")
            self._doubling = False
            pause = _pause_wanted(retry_after, told)
        self._paused_until = max(self._paused_until, now + pause)

    def failed(self, lease: Lease, now: float, retry_after: float | None = None) -> None:
        """The call came to nothing, and not for its rate; what it has used is not known.

        Args:
            lease: as for `answered`.
            now: as everywhere.
            retry_after: seconds that the provider wants everybody to wait; None: it does not say.
        """
        self._advance(now)
        if retry_after is not None:
            self._paused_until = max(self._paused_until, now + retry_after)
        if self._back(lease) is not None:
            self._round_clean = False

    def forget(self, client: str, now: float) -> None:
        """The client is dead: its calls will not come back."""
        self._advance(now)
        for number in [number for number, call in self._calls.items() if call.client == client]:
            del self._calls[number]
        self._clients.pop(client, None)

    def _advance(self, now: float) -> None:
        self._requests.advance(now)
        self._tokens.advance(now)
        if self._day_ends is None:
            self._day_ends = now + _DAY_S
        while now >= self._day_ends:
            self._day_ends += _DAY_S
            self.used_today = 0
        while self._calls:
            number, oldest = next(iter(self._calls.items()))
            if now - oldest.granted < self._lease_seconds:
                break
            self._back(Lease(number))

    def _obstacle(self, asking: _Client, reserved: float, now: float) -> Wait | None:
        """Why this client may make no call now; None: it may."""
        if now < self._paused_until:
            return Wait(self._paused_until - now, "the provider asked for a pause")
        own = (asking.in_flight, asking.served)
        # Who has the fewest calls in flight goes first, then who has waited longest.
        ahead = sum(
            (other.in_flight, other.served) < own
            for other in self._clients.values()
            if other.asks_again is not None and other.asks_again + _LATENESS_S >= now
        )
        turn = self._latency / self.connections * (1 + ahead)
        free = self.connections - len(self._calls) - ahead
        seconds, reason = max(
            (self._requests.seconds_until(1, ahead, now), "requests per minute"),
            (self._tokens.seconds_until(reserved, ahead, now), "tokens per minute"),
            (turn if free <= 0 else 0.0, "calls at a time"),
            (self._latency / 4 if self._on_trial(now) else 0.0, "one call tries after a 429"),
        )
        if seconds == 0:
            return None
        return Wait(min(max(seconds, _SHORTEST_WAIT_S), _LONGEST_WAIT_S), reason)

    def _on_trial(self, now: float) -> bool:
        """A call is out that shall show whether the provider lets calls through again."""
        if not self._trying or not self._calls:
            return False
        number, latest = next(reversed(self._calls.items()))
        return number >= self._since_pause and now < latest.granted + _TRIAL_S

    def _back(self, lease: Lease) -> _Call | None:
        call = self._calls.pop(lease.number, None)
        if call is not None and call.client in self._clients:
            self._clients[call.client].in_flight -= 1
        return call

    def _learn(self, number: int, told: Told, now: float) -> bool:
        """What the headers say of the limits; whether that lowers one of them."""
        # Answers overtake each other: a limit of before must not come back with a slow one.
        if number < self._heard:
            return False
        self._heard = number
        lowered = False
        for name, quota, limit in (
            ("requests", self._requests, told.limit_requests),
            ("tokens", self._tokens, told.limit_tokens),
        ):
            before = quota.limit
            lowered = quota.hear(limit) or lowered
            if quota.limit != before:
                self._note(now, f"{name} per minute {quota.limit:g}", "the provider's headers")
        return lowered

    def _through(self, now: float) -> None:
        """A call has got through again: the episode of 429s is over."""
        self._trying = False
        self._new_round()
        self._growth = _FIRST_GROWTH
        self._grows_at = now + _HOLD_S
        if self._explained:
            return
        share = self._share * _LEAST_CUT
        if now - self._refused_at > _BRIEF_S:
            fits = max(self._requests.in_use(now), self._tokens.in_use(now))
            share = min(share, max(fits, self._share * _MOST_CUT))
        self._set_share(share, now, "429")

    def _grow(self, now: float) -> None:
        if self._share == 1 or now < self._grows_at:
            return
        in_use = max(self._requests.in_use(now), self._tokens.in_use(now))
        if in_use >= _IN_USE * PACE * self._share:
            self._set_share(min(1.0, self._share + self._growth), now, "no 429 for long")
            self._growth *= 2
            self._grows_at = now + _GROWTH_S

    def _end_round(self, now: float) -> None:
        """As many calls as may be made at a time have come back."""
        if self._round_clean and self._round_peak >= _IN_USE * self.connections:
            more = self._connections if self._doubling else max(1.0, 0.05 * self._connections)
            self._set_connections(self._connections + more, now, "all in use, no 429")
        self._new_round()

    def _new_round(self) -> None:
        self._round_left = self.connections
        self._round_peak = len(self._calls)
        self._round_clean = True

    def _set_connections(self, wanted: float, now: float, why: str) -> None:
        before = self.connections
        self._connections = min(max(wanted, 1.0), float(self._limits.connections))
        if self.connections != before:
            self._note(now, f"calls at a time {self.connections}", why)

    def _set_share(self, share: float, now: float, why: str) -> None:
        self._share = share
        self._requests.scale(share)
        self._tokens.scale(share)
        if self._requests.limit is not None or self._tokens.limit is not None:
            self._note(now, f"share of the limits per minute {share:.2f}", why)

    def _note(self, now: float, what: str, why: str) -> None:
        self.history.append(Change(now, what, why))


def _pause_wanted(retry_after: float | None, told: Told) -> float:
    """Seconds that a 429 wants everybody to wait."""
    if retry_after is not None:
        return retry_after
    resets = (
        (told.remaining_requests, told.reset_requests),
        (told.remaining_tokens, told.reset_tokens),
    )
    said = [reset for remaining, reset in resets if remaining == 0 and reset is not None]
    return min(max(said, default=1.0), _LONGEST_PAUSE_S)
