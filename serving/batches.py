"""OpenAI's Batch API: requests go up as a file, answers come down as files, at leisure and cheaper.

    Line    one request as a line of a file; `fill` writes as many as one batch may have
    Desk    the provider's files and batches, each call tried again where its failure may pass
    read    a file of results -> what became of each request

A batch carries a token of the caller's in its metadata, and its file carries it in its name, so
that what was sent by somebody who died before noting it can be found.
"""

import json
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

from facescan.errors import AccessDenied, FacescanError, QuotaExhausted, RunStopped
from facescan.models import ModelCard
from serving import estimate, provider, tokens
from serving.account import LONGEST_WAIT_S
from serving.engine import EngineInfo
from serving.engines import hosted
from serving.provider import Reading, Verdict
from serving.tokens import HostedOptions

MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
"""Of one file, as OpenAI has it; one file has requests to one model only."""

ENDPOINT = "/v1/chat/completions"
_TOKEN = "facescan"
"""Key of the metadata of a batch."""

_NEVER_ASKED = frozenset({"batch_expired", "batch_cancelled"})

QUEUE_FULL = "token_limit_exceeded"
"""Code of a batch that failed because the account has as much in its queue as it may have."""

UNPAID = frozenset({"billing_hard_limit_reached", "insufficient_quota", "billing_not_active"})
"""Codes of a batch that failed because the account has no money left."""

ATTEMPTS = 6
_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 60.0
_UPLOAD_TIMEOUT_S = 900.0
_PER_PAGE = 100
_CLOCKS_DIFFER = timedelta(hours=1)

_Result = TypeVar("_Result")


class UnreachableError(RunStopped):
    """The provider failed each time it was asked, for a reason that may pass."""


class UncertainError(RunStopped):
    """The provider may have made what it was asked for, and may not."""


class RefusedError(FacescanError):
    """The provider does not accept what it was asked for, and never will."""


class NotThereError(Exception):
    """The provider knows no such file or batch."""


def info(card: ModelCard) -> EngineInfo:
    """What answers, as `serving.engines.hosted` tells it of single calls."""
    return EngineInfo(
        f"{hosted.NAME} openai {version('openai')} batch",
        f"{hosted.api_model(card)} at {hosted.server(card.options(HostedOptions))}",
        hosted.numerics(card),
    )


def share(options: HostedOptions) -> float:
    """What a batch costs of the price of single calls; 1 where that is not known."""
    price = estimate.price(options)
    return 1.0 if price is None or price.batch is None else price.batch


def cost_usd(options: HostedOptions, reading: Reading, most_usd: float, made: date) -> float:
    """What a request of a batch has cost; the most it can where nobody can say.

    Args:
        options: of the card.
        reading: of its answer.
        most_usd: what was reserved for it; 0 where no price was known.
        made: the day of the batch, whose price holds.
    """
    if reading.billed is False:
        return 0.0
    price = estimate.price(options, made)
    if price is None or reading.tokens_in is None:
        return most_usd
    return tokens.cost_usd(
        price, reading.tokens_in, reading.tokens_out or 0, batch=price.batch is not None
    )


# What is sent


@dataclass(frozen=True, slots=True)
class Line:
    """A request as it stands in a file; `usd` is the most that it can cost in a batch."""

    request_id: str
    data: bytes
    usd: float


def line(request_id: str, body: Mapping[str, Any], usd: float) -> Line:
    """The line of a request with this body."""
    sent = {"custom_id": request_id, "method": "POST", "url": ENDPOINT, "body": body}
    return Line(request_id, json.dumps(sent, separators=(",", ":")).encode() + b"\n", usd)


class Lines:
    """Lines, of which the next can be looked at before it is taken."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._next: Line | None = None

    def peek(self) -> Line | None:
        """The next one; None at the end."""
        if self._next is None:
            self._next = next(self._lines, None)
        return self._next

    def take(self) -> None:
        """Go on to the one after it."""
        self._next = None


def fill(
    lines: Lines, path: Path, most_requests: int = MOST_REQUESTS, most_usd: float | None = None
) -> dict[str, float]:
    """Write lines to a file until one more would be too many, too large or too dear.

    Returns:
        request id -> the most it can cost; empty where not even the first one can be paid.
    """
    filled: dict[str, float] = {}
    size, usd = 0, 0.0
    with path.open("wb") as file:
        while (found := lines.peek()) is not None and len(filled) < most_requests:
            if most_usd is not None and usd + found.usd > most_usd:
                break
            if filled and size + len(found.data) > MOST_BYTES:
                break
            file.write(found.data)
            filled[found.request_id] = found.usd
            size += len(found.data)
            usd += found.usd
            lines.take()
    return filled


# What comes back


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as the provider tells it.

    Attributes:
        status: `validating`, `in_progress`, `finalizing`, `completed`, `failed`, `expired`,
            `cancelling` or `cancelled`.
        results: ids of its files of answers and of errors, in this order.
        errors: (code, message) of what is wrong with its file, where it `failed`; redacted.
    """

    id: str
    status: str
    token: str | None
    created_at: float
    input_file: str | None
    results: tuple[str, ...]
    requests: int
    completed: int
    errors: tuple[tuple[str, str], ...]

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("completed", "failed", "expired", "cancelled")


def _batch(told: dict[str, Any], secrets: Collection[str]) -> Batch:
    if "id" not in told or "status" not in told:
        raise _NoAnswerError(json.dumps(told).encode())
    counts = told.get("request_counts") or {}
    errors = told.get("errors") or {}
    wrong = (errors.get("data") or ()) if isinstance(errors, dict) else (errors,)
    results = (told.get("output_file_id"), told.get("error_file_id"))
    return Batch(
        id=str(told["id"]),
        status=str(told["status"]),
        token=(told.get("metadata") or {}).get(_TOKEN),
        created_at=float(told.get("created_at") or 0),
        input_file=told.get("input_file_id"),
        results=tuple(each for each in results if each),
        requests=int(counts.get("total") or 0),
        completed=int(counts.get("completed") or 0),
        errors=tuple(
            (provider.redacted(code, secrets), provider.redacted(message, secrets))
            for code, message in map(_code_and_message, wrong)
        ),
    )


def _code_and_message(error: object) -> tuple[str, str]:
    """Of an error as it was sent; one that is no object is a message."""
    if not isinstance(error, dict):
        return "", str(error or "")
    return str(error.get("code") or ""), str(error.get("message") or "")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one request.

    Attributes:
        request_id: None: the line does not say, or is no JSON.
        reading: of its answer; None where there is none.
        asked: whether the model may have seen it.
        reason: for people, where there is no answer.
    """

    request_id: str | None
    reading: Reading | None
    asked: bool
    reason: str


def read(path: Path, secrets: Collection[str] = ()) -> Iterator[Result]:
    """The lines of a file of results, in no order at all."""
    with path.open("rb") as file:
        for text in file:
            if text.strip():
                yield _result(text, secrets)


def _result(text: bytes, secrets: Collection[str]) -> Result:
    try:
        row = json.loads(text)
        request_id = row["custom_id"]
    except (ValueError, LookupError, TypeError):
        return Result(None, None, True, "a line of results that names no request")
    response = row.get("response")
    if isinstance(response, dict) and isinstance(response.get("status_code"), int):
        headers = {"x-request-id": str(response.get("request_id") or "")}
        body = json.dumps(response.get("body")).encode()
        reading = provider.of_response(response["status_code"], headers, body, secrets=secrets)
        return Result(str(request_id), reading, True, reading.reason)
    code, message = _code_and_message(row.get("error"))
    why = ": ".join(filter(None, (code, message))) or "neither a response nor an error"
    reason = provider.redacted(why, secrets)
    return Result(str(request_id), None, code not in _NEVER_ASKED, reason)


# The provider


def file_name(token: str) -> str:
    """What the file of requests is called there."""
    return f"facescan-{token}.jsonl"


class Desk:
    """The files and batches of one account.

    Every method tries again what may pass, and raises otherwise:

        UnreachableError: it did not pass in `ATTEMPTS` attempts.
        RefusedError: what is asked for is not accepted.
        AccessDenied: the key is refused, or there is no such API.
        QuotaExhausted: the account has no money left, or is to wait for longer than
            `serving.account.LONGEST_WAIT_S`.
    """

    def __init__(self, options: HostedOptions) -> None:
        """Raises EngineUnavailable where there is no key."""
        from openai import DefaultHttpxClient, OpenAI

        found = hosted.key(options.api_key)
        self.secrets = () if found is None else (found,)
        self._where = hosted.server(options)
        self._client = OpenAI(
            # The SDK insists on one, and a server of one's own may need none.
            api_key=found or "none",
            base_url=options.base_url,
            max_retries=0,
            timeout=options.timeout_s,
            # A redirect would take the pictures to a server that nobody has allowed.
            http_client=DefaultHttpxClient(follow_redirects=False, timeout=options.timeout_s),
        )
        if not hosted.is_openai(options):
            # The SDK takes them from the environment, and they are for OpenAI alone.
            self._client.organization = self._client.project = None

    def upload(self, path: Path, token: str) -> str:
        """Send a file of requests; its id.

        Raises:
            UnreachableError, UncertainError: it may be there all the same.
        """
        name = file_name(token)

        def send() -> str:
            with path.open("rb") as file:
                told = self._client.files.with_raw_response.create(
                    file=(name, file, "application/jsonl"),
                    purpose="batch",
                    timeout=_UPLOAD_TIMEOUT_S,
                )
            return str(_told(told)["id"])

        def withdraw() -> None:
            for each in self.uploads(token):
                self.delete(each)

        return self._made(f"upload of {name}", send, before_again=withdraw)

    def create(self, file_id: str, token: str, began: datetime) -> Batch:
        """Have a file of requests answered; once, also where the answer to that is lost.

        Raises:
            UnreachableError, UncertainError: it may be answered all the same.
        """

        def submit() -> Batch:
            if lost and (found := self.find(token, began)) is not None:
                return found
            told = self._client.batches.with_raw_response.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_TOKEN: token},
            )
            return _batch(_told(told), self.secrets)

        lost = False

        def look_first() -> None:
            nonlocal lost
            lost = True

        return self._made("creation of a batch", submit, before_again=look_first)

    def find(self, token: str, began: datetime) -> Batch | None:
        """The batch with this token in its metadata, if it was created after `began`."""
        oldest = (began - _CLOCKS_DIFFER).timestamp()
        for told in self._listed(self._client.batches.with_raw_response.list, "batches"):
            found = _batch(told, self.secrets)
            if found.token == token:
                return found
            if found.created_at < oldest:
                return None
        return None

    def uploads(self, token: str) -> list[str]:
        """The ids of all files of requests that carry this token."""
        name = file_name(token)
        files = self._client.files.with_raw_response.list
        return [
            str(told["id"])
            for told in self._listed(lambda **page: files(purpose="batch", **page), "files")
            if told.get("filename") == name
        ]

    def look(self, batch_id: str) -> Batch:
        """How far a batch is.

        Raises:
            NotThereError: this account has none of that id.
        """
        batches = self._client.batches.with_raw_response
        return self._until_done(
            f"batch {batch_id}",
            lambda: _batch(_told(batches.retrieve(batch_id)), self.secrets),
            of_one=True,
        )

    def cancel(self, batch_id: str) -> None:
        """Have nothing more of it asked; one that is over stays as it is.

        Raises:
            NotThereError: this account has none of that id.
        """
        from openai import BadRequestError, ConflictError

        def end() -> None:
            try:
                self._client.batches.with_raw_response.cancel(batch_id)
            except (BadRequestError, ConflictError):
                return

        self._until_done(f"cancelling batch {batch_id}", end, of_one=True)

    def download(self, file_id: str, path: Path) -> None:
        """Write a file of results to `path`.

        Raises:
            NotThereError: there is none of that id any more.
        """

        def receive() -> None:
            with self._client.files.with_streaming_response.content(file_id) as response:
                response.stream_to_file(path)

        self._until_done(f"file {file_id}", receive, of_one=True)

    def delete(self, file_id: str) -> None:
        """Delete a file; no error where it is gone already."""
        files = self._client.files.with_raw_response
        try:
            self._until_done(
                f"deletion of file {file_id}", lambda: _told(files.delete(file_id)), of_one=True
            )
        except NotThereError:
            return

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _listed(self, page: Callable[..., Any], what: str) -> Iterator[dict[str, Any]]:
        after: dict[str, Any] = {}
        while True:
            asked = {"limit": _PER_PAGE, **after}
            told = self._until_done(f"list of {what}", partial(_page, page, asked))
            rows = told.get("data") or []
            yield from rows
            if not rows or not told.get("has_more"):
                return
            after = {"after": rows[-1]["id"]}

    def _made(
        self, what: str, call: Callable[[], _Result], before_again: Callable[[], None]
    ) -> _Result:
        """`_until_done`, of what makes something: no other error where an attempt may have."""
        import httpx2
        from openai import APIError

        lost = False

        def heard() -> _Result:
            nonlocal lost
            try:
                return call()
            except (APIError, UnicodeEncodeError, httpx2.RequestError) as error:
                reading = provider.of_failure(error, secrets=self.secrets)
                lost = lost or reading.billed is not False
                raise
            except _NoAnswerError:
                lost = True
                raise

        try:
            return self._until_done(what, heard, before_again)
        except UnreachableError:
            raise
        except FacescanError as error:
            if not lost:
                raise
            raise UncertainError(
                f"{error}. Whether it was made all the same is not known: the same command again "
                "finds out"
            ) from None

    def _until_done(
        self,
        what: str,
        call: Callable[[], _Result],
        before_again: Callable[[], None] = lambda: None,
        of_one: bool = False,
    ) -> _Result:
        """Call until it does not fail for what may pass; `of_one`: of a file or batch by its id."""
        import httpx2
        from openai import APIError, NotFoundError

        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except NotFoundError as error:
                reading = provider.of_failure(error, secrets=self.secrets)
                if of_one:
                    raise NotThereError(f"{self._where}, {what}: {reading.reason}") from None
                raise AccessDenied(
                    f"{self._where}, {what}: {reading.reason}. Does this server have OpenAI's "
                    "Files and Batch API? Without --batch it is asked by single calls"
                ) from None
            except (APIError, UnicodeEncodeError, httpx2.RequestError) as error:
                reading = provider.of_failure(error, secrets=self.secrets)
            except _NoAnswerError as error:
                reading = provider.of_response(200, {}, error.body, secrets=self.secrets)
            if reading.verdict not in (Verdict.RATE, Verdict.TRANSIENT, Verdict.MALFORMED):
                raise self._final(what, reading)
            if (reading.retry_after or 0) > LONGEST_WAIT_S:
                raise QuotaExhausted(
                    f"{self._where}, {what}: asks for a pause of {reading.retry_after:.0f} s: "
                    f"{reading.reason}"
                )
            if attempt == ATTEMPTS:
                raise UnreachableError(
                    f"{self._where}, {what}: failed {ATTEMPTS} times, the last with: "
                    f"{reading.reason}. The same command again continues"
                )
            longest = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2 ** (attempt - 1))
            pause(max(random.uniform(0, longest), reading.retry_after or 0.0))
            before_again()
        raise AssertionError("the last attempt returns or raises")

    def _final(self, what: str, reading: Reading) -> FacescanError:
        message = f"{self._where}, {what}: {reading.reason}"
        if reading.verdict is Verdict.AUTHENTICATION:
            return AccessDenied(message)
        if reading.verdict in (Verdict.QUOTA, Verdict.DAILY):
            return QuotaExhausted(message)
        return RefusedError(message)


def pause(seconds: float) -> None:
    """Let time pass before the next attempt, or the next look at a batch."""
    time.sleep(seconds)


class _NoAnswerError(Exception):
    """Success, they say, but not what was asked for."""

    def __init__(self, body: bytes) -> None:
        super().__init__("not the JSON of a file, a batch or a list")
        self.body = body


def _page(call: Callable[..., Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    return _told(call(**asked))


def _told(raw: Any) -> dict[str, Any]:
    """The JSON of a response; the SDK would hand over anything."""
    body = cast(bytes, raw.http_response.content)
    try:
        told = json.loads(body)
    except ValueError:
        raise _NoAnswerError(body) from None
    if not isinstance(told, dict) or not ("id" in told or "data" in told):
        raise _NoAnswerError(body)
    return told
