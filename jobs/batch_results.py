"""What the results of one batch come to: replies, what stays open, and what it has cost."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from facescan.errors import AccessDenied, FacescanError, QuotaExhausted
from facescan.types import Outcome, Reply
from jobs.batch_records import Record
from serving import batches as provider_batches
from serving import estimate
from serving.batches import Batch, Result
from serving.engines import hosted
from serving.provider import Reading, Verdict
from serving.tokens import HostedOptions

ROUNDS = 3
"""How often a request is asked that expires, or fails for a reason that may pass."""


class Collected:
    """What the results of one batch come to."""

    def __init__(self, each: Record, found: Batch) -> None:
        self._record = each
        self._found = found
        self._info = provider_batches.info(each.card)
        self._options = each.card.options(HostedOptions)
        self._now = datetime.now(UTC)
        self._answered = set[str]()
        self._open: dict[str, str] = {}
        """Request -> why it has no answer."""
        self._usd = 0.0
        self._completed = 0
        self.unknown: list[str] = []
        self.doubled: list[str] = []
        self.lost = False
        self.stop: FacescanError | None = None

    @property
    def replied(self) -> int:
        """How many requests have a reply."""
        return len(self._answered)

    def reply(self, result: Result) -> Reply | None:
        """Of a line of results; None where it is none, or its request stays open."""
        key, reading = result.request_id, result.reading
        most = self._record.requests.get(key or "")
        if key is None or most is None:
            self.unknown.append(key or result.reason)
            self._usd += self._cost(result, max(self._record.requests.values()))
            return None
        self._usd += self._cost(result, most)
        if key in self._answered or key in self._open:
            self.doubled.append(key)
            return None
        if reading is not None and reading.verdict in _REPLIES:
            self._answered.add(key)
            return self._made(key, reading)
        self._open[key] = result.reason
        self._stop_for(reading)
        return None

    def given_up(self, aborting: bool) -> Iterator[Reply]:
        """Replies of requests that are not asked again."""
        for key in self._record.requests.keys() - self._answered - self._open.keys():
            self._open[key] = "no line of the results is about it"
        cut_short = aborting or self.stop is not None or self._found.status == "cancelled"
        if self._record.round < ROUNDS or cut_short:
            return
        for key in sorted(self._open):
            self._answered.add(key)
            reason = f"{self._open[key]} (asked in {self._record.round} batches)"
            yield self._made(key, None, reason)
        self._open.clear()

    def left(self) -> dict[str, int]:
        """Requests without a reply -> the round they were in."""
        return dict.fromkeys(self._open, self._record.round)

    def usd(self) -> float:
        """What the batch has cost; all that it can where answers are lost."""
        if self.lost:
            return max(self._usd, self._record.reserved_usd)
        # Answered and billed, they say, and in no file.
        unseen = max(0, self._found.completed - self._completed)
        most = sorted(self._record.requests.values(), reverse=True)
        return self._usd + sum(most[:unseen])

    def _cost(self, result: Result, most: float) -> float:
        if result.reading is None:
            return most if result.asked else 0.0
        self._completed += result.reading.verdict in _COMPLETED
        return self._paid(result.reading, most)

    def _paid(self, reading: Reading, most: float) -> float:
        made = self._record.made_at.date()
        return provider_batches.cost_usd(self._options, reading, most, made)

    def _stop_for(self, reading: Reading | None) -> None:
        if reading is None or reading.verdict not in _STOPS:
            return
        where = f"{hosted.server(self._options)}, batch {self._found.id}: {reading.reason}"
        self.stop = _STOPS[reading.verdict](where)

    def _made(self, key: str, reading: Reading | None, reason: str = "") -> Reply:
        said = reading is not None and reading.verdict is not Verdict.BAD_REQUEST
        most = self._record.requests[key]
        known = estimate.price(self._options, self._record.made_at.date()) is not None
        usd = self._paid(reading, most) if reading else 0.0
        return Reply(
            request_id=key,
            raw_response=reading.text if reading and said else None,
            finish_reason=reading.finish_reason if reading and said else None,
            engine=self._info.engine,
            resolved_model=(reading and reading.model) or hosted.api_model(self._record.card),
            created_at=self._now,
            latency_s=(self._now - self._record.made_at).total_seconds(),
            tokens_in=reading.tokens_in if reading else None,
            tokens_out=reading.tokens_out if reading else None,
            cost_usd=usd if known or usd else None,
            attempts=self._record.round,
            error_kind=None if said else Outcome.PROVIDER_ERROR,
            error=(reading.reason or None) if reading else reason,
            provider_request_id=reading.request_id if reading else None,
        )


_REPLIES = {Verdict.ANSWER, Verdict.REFUSED, Verdict.BLOCKED, Verdict.BAD_REQUEST}
_COMPLETED = {Verdict.ANSWER, Verdict.REFUSED, Verdict.BLOCKED, Verdict.MALFORMED}
_STOPS: Mapping[Verdict, type[FacescanError]] = {
    Verdict.AUTHENTICATION: AccessDenied,
    Verdict.QUOTA: QuotaExhausted,
    Verdict.DAILY: QuotaExhausted,
}
