"""Models behind an API: OpenAI's, Gemini's in OpenAI's protocol, and any server that speaks it.

A request is one HTTP call, made when the account's limits and the run's budget allow it. What comes
back is read by `serving.provider`; what may pass is tried again with full jitter, by everybody at a
pace of their own, and nothing else is. A refusal is an answer and is asked once. The SDK's own
retries are off: they would call without asking limits or budget.

`engine_options` of a card are `serving.tokens.HostedOptions`; its checkpoint is the name that the
API knows the model by.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from facescan import models
from facescan.errors import AccessDenied, BadImage, EngineUnavailable, QuotaExhausted, UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, EncodedImage, Outcome, Question, Reply, Request
from serving import chat_request, estimate, provider, tokens
from serving.account import LONGEST_WAIT_S, Account, Ended
from serving.engine import EngineInfo, EngineSettings, failed
from serving.estimate import Most
from serving.provider import Reading, Verdict
from serving.tokens import HostedOptions

NAME = "hosted"

GENERIC = "openai-compatible"
"""The card whose options hold for models that have no card."""

_ATTEMPTS = 20
"""Of a request that fails for a reason that may pass: where every other call fails, one request in
a million does so each time."""

_REFUSALS = 50
"""For its rate, of one request, after which the run stops: no pause is long enough."""

_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 60.0

_FREE_RETRIES = 100
_RETRIES_PER_ANSWER = 2.0
"""A provider that fails an engine more often than this is not tried further: the run stops."""

_OPENS_AFTER = 20
"""Failures in a row, without a sign of life, after which calls are tried one at a time: an outage
is waited for, not turned into errors."""

_OUTAGE_S = 900.0
"""Without a sign of life for so long the run stops."""

_ASKED_ONCE = {Verdict.ANSWER, Verdict.REFUSED, Verdict.BLOCKED}


def missing() -> str | None:
    """Why this engine cannot run here, or None where it can."""
    if find_spec("openai") is None:
        return "package openai is not installed: pip install 'facescan[hosted]'"
    return None


def with_account(
    card: ModelCard,
    *,
    base_url: str | None,
    rpm: float | None,
    tpm: float | None,
    connections: int | None,
) -> ModelCard:
    """The card with what the user says of the server and the account; None leaves what it says.

    A card without options, as of `--model hosted:NAME`, gets those of `GENERIC` first.

    Raises:
        UsageError: something given cannot be, or no server is known.
    """
    chosen = dict(card.engine_options or models.load(GENERIC).engine_options)
    limits = chosen.get("limits") or {}
    said = {"rpm": rpm, "tpm": tpm, "connections": connections}
    given = {name: value for name, value in said.items() if value is not None}
    chosen["limits"] = cast(dict[str, Any], limits) | given
    if base_url is not None and base_url != chosen.get("base_url"):
        # What the card says of retention is said of the card's own server.
        chosen |= {"base_url": base_url, "retention": None}
    known = card.model_copy(update={"engine_options": chosen})
    if known.options(HostedOptions).base_url is None:
        raise UsageError(f"model {card.name}: which server? Give --model-base-url")
    api_model(known)
    return known


def api_model(card: ModelCard) -> str:
    """The name that the API knows the model by.

    Raises:
        UsageError: the card does not say.
    """
    if card.checkpoint is None:
        raise UsageError(
            f"model '{card.name}': `checkpoint: {{path: ...}}` must say what the API calls it; "
            f"for a server of your own give --model {NAME}:NAME and --model-base-url"
        )
    return card.checkpoint.path


def preprocessing(card: ModelCard) -> str:
    """How the picture is made that is sent."""
    image = card.options(HostedOptions).image
    quality = f" quality {image.quality}" if image.format == "jpeg" else ""
    return f"{image.format}{quality} at most {image.max_side} px, detail {image.detail}"


def numerics(card: ModelCard) -> dict[str, str]:
    """The server, and further fields of the body."""
    chosen = card.options(HostedOptions)
    extra = {f"extra.{key}": str(value) for key, value in sorted(chosen.extra.items())}
    return {
        "server": server(chosen),
        "max_tokens_field": chosen.max_tokens_field,
        "thinking_tokens": str(chosen.thinking_tokens),
        "temperature": "the protocol's" if chosen.temperature else "the provider's",
        **extra,
    }


def cannot_ask(card: ModelCard, question: Question) -> str | None:
    """Only answers that are generated: no provider gives the log-probabilities of given labels."""
    if question.answer_mode is not AnswerMode.FREE:
        return f"answer mode '{question.answer_mode}' needs a model that runs here"
    if question.answer_schema and not card.options(HostedOptions).structured:
        return "its server enforces no JSON schema (`structured` of the card)"
    return None


def server(chosen: HostedOptions) -> str:
    """Where pictures are sent: the host, with its port where that is given."""
    return urlsplit(chosen.base_url or "").netloc


def is_openai(chosen: HostedOptions) -> bool:
    """Whether the server is OpenAI's own."""
    return urlsplit(chosen.base_url or "").hostname == "api.openai.com"


def terms(chosen: HostedOptions) -> str:
    """What the provider says it does with what is sent to it, for people."""
    return str(chosen.retention or "What it does with them is not known here.")


def key(name: str | None) -> str | None:
    """The API key: of the environment variable of that name, or of the file that NAME_FILE names.

    Raises:
        EngineUnavailable: neither is set, or the file cannot be read.
    """
    if name is None:
        return None
    if found := os.environ.get(name, "").strip():
        return found
    file = os.environ.get(f"{name}_FILE")
    if file is None:
        raise EngineUnavailable(
            f"no API key: set the environment variable {name}, or {name}_FILE to the path of a "
            "file that holds it, where the engines run"
        )
    # What the variable holds is not told: it may be the key itself.
    wrong = "it is empty"
    try:
        found = Path(file).read_text().strip()
    except UnicodeDecodeError:
        wrong = "it is no text"
    except OSError as error:
        wrong = error.strerror or type(error).__name__
    if not found:
        raise EngineUnavailable(
            f"no API key: the file that {name}_FILE names: {wrong}; set {name}_FILE to the path of "
            f"a file that holds the key, or {name} to the key itself"
        )
    return found


def load(
    card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings
) -> "HostedEngine":
    """Make the client; nothing is sent yet."""
    del checkpoint
    if (lacking := missing()) is not None:
        raise EngineUnavailable(lacking)
    return HostedEngine(card, settings)


_Picture = tuple[str, tuple[int, int]]
"""What `chat_request.picture` makes."""


@dataclass(slots=True)
class _Attempts:
    """What has become of one request so far."""

    began: float
    made: int = 0
    refused: int = 0
    """For the rate, which is no failure of this request."""
    usd: float = 0.0

    @property
    def failed(self) -> int:
        return self.made - self.refused

    def pause(self, retry_after: float | None) -> float:
        """Full jitter, so that those who failed together do not come back together."""
        longest = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2 ** (max(1, self.failed) - 1))
        return (retry_after or 0.0) + random.uniform(0, longest)


class HostedEngine:
    """See the module's docstring and `serving.engine.Engine`."""

    def __init__(self, card: ModelCard, settings: EngineSettings) -> None:
        """Raises EngineUnavailable where there is no key."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        if settings.account is None:
            raise UsageError(f"engine {NAME} needs an account")
        self._options = card.options(HostedOptions)
        self._model = api_model(card)
        self._account: Account = settings.account
        self._decoders = settings.decoders
        self.info = EngineInfo(
            f"{NAME} openai {version('openai')}",
            f"{self._model} at {server(self._options)}",
            numerics(card),
        )
        # Twice what may be called at a time: the next, its picture made, takes its turn while the
        # reply before it is written. Of 32 connections 28.0 are in use so, 25 with as many places
        # (bench.hosted_vllm).
        self.calls_in_flight: int | None = 2 * self._options.limits.connections
        found = key(self._options.api_key)
        self._secrets = () if found is None else (found,)
        self._client = AsyncOpenAI(
            # The SDK insists on one, and a server of one's own may need none.
            api_key=found or "none",
            base_url=self._options.base_url,
            max_retries=0,
            timeout=self._options.timeout_s,
            # A redirect would take the picture to a server that nobody has allowed.
            http_client=DefaultAsyncHttpxClient(
                follow_redirects=False, timeout=self._options.timeout_s
            ),
        )
        if not is_openai(self._options):
            # The SDK takes them from the environment, and they are for OpenAI alone.
            self._client.organization = self._client.project = None
        self._priced = estimate.price(self._options) is not None
        # As some of OPENAI_LOG's levels would have it, every picture would be in the log.
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Made once for all requests of a picture that are being answered at a time.
        self._pictures: WeakValueDictionary[str, asyncio.Task[_Picture | BadImage]] = (
            WeakValueDictionary()
        )
        self._answers = self._retries = self._failures = 0
        self._alive = time.monotonic()
        self._trial = asyncio.Lock()

    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """One call for each request, side by side.

        An error ends the calls of all requests given, which are billed: a run gives one at a time.

        Raises:
            NotAskedError: the account says to stop.
            RunStopped: the budget or the account's quota is used up.
            AccessDenied: the provider refuses the key, or does not have the model.
        """
        asking = [asyncio.ensure_future(self._answer(request)) for request in requests]
        try:
            for done in asyncio.as_completed(asking):
                yield await done
        finally:
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _answer(self, request: Request) -> Reply:
        began = time.monotonic()
        making = self._pictures.get(request.image.sha256)
        if making is None:
            making = asyncio.ensure_future(self._picture(request.image))
            self._pictures[request.image.sha256] = making
        picture = await asyncio.shield(making)
        if isinstance(picture, BadImage):
            seconds = time.monotonic() - began
            return failed(request.request_id, self.info, picture, latency_s=seconds)
        uri, size = picture
        body = chat_request.body(self._options, self._model, request.question, uri)
        most = estimate.at_most(self._options, request.question, size)
        attempts = _Attempts(began)
        while True:
            reading = await self._when_alive(body, most, attempts)
            if reading.verdict in _ASKED_ONCE:
                self._answers += 1
                return self._reply(request, reading, attempts)
            if reading.verdict is Verdict.BAD_REQUEST or attempts.failed >= _ATTEMPTS:
                return self._failed(request, reading, attempts)
            self._check_retries(reading, attempts)
            # Where the rate was the reason the limiter makes everybody wait.
            asked = None if reading.verdict is Verdict.RATE else reading.retry_after
            await self._account.pause(attempts.pause(asked))

    async def _picture(self, image: EncodedImage) -> _Picture | BadImage:
        """See `chat_request.picture`."""
        (pixels,) = await asyncio.wrap_future(self._decoders.decode([image]))
        if isinstance(pixels, BadImage):
            return pixels
        return await asyncio.to_thread(chat_request.picture, pixels, self._options.image)

    async def _when_alive(self, body: dict[str, Any], most: Most, attempts: _Attempts) -> Reading:
        """One call; as long as the provider seems dead nobody else makes one meanwhile."""
        if self._failures >= _OPENS_AFTER:
            async with self._trial:
                if self._failures >= _OPENS_AFTER:
                    self._stop_after_outage()
                    beyond = self._failures - _OPENS_AFTER
                    longest = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2 ** min(beyond, 10))
                    await self._account.pause(random.uniform(longest / 2, longest))
                    return await self._attempt(body, most, attempts)
        return await self._attempt(body, most, attempts)

    def _stop_after_outage(self) -> None:
        silence = time.monotonic() - self._alive
        if silence > _OUTAGE_S:
            raise QuotaExhausted(
                f"{server(self._options)}: {self._failures} calls in a row failed, for "
                f"{silence / 60:.0f} minutes"
            )

    async def _attempt(self, body: dict[str, Any], most: Most, attempts: _Attempts) -> Reading:
        """One call, when it may be made; what it was is told to the limiter and the ledger.

        Where this is cancelled during the call its reservation stands: it may be billed.
        """
        account = self._account
        if self._priced and estimate.price(self._options) is None:
            raise QuotaExhausted(
                f"{self._model}: its price has ended, and the next is not known: write it into the "
                "card (`price`), with its day"
            )
        # Where no price is known there is nothing to keep a ledger of, and it would take a third of
        # the time that a call takes here (two actor calls and their share of a write).
        number = await account.money.hold(most.usd) if self._priced else None
        try:
            turn = await account.turn(most.tokens_in + most.tokens_out)
        except BaseException:
            if number is not None:
                await account.money.release(number)
            raise
        if number is not None:
            await account.money.reserve(number, most.usd)
        reading = await self._call(body)
        attempts.made += 1
        attempts.refused += reading.verdict is Verdict.RATE
        cost = self._cost(reading, most)
        attempts.usd += cost
        if reading.verdict in (Verdict.TRANSIENT, Verdict.MALFORMED):
            self._failures += 1
        else:
            self._failures, self._alive = 0, time.monotonic()
        await self._tell(turn, reading)
        if number is not None:
            await account.money.settle(number, cost)
        self._stop_for(reading)
        return reading

    async def _call(self, body: dict[str, Any]) -> Reading:
        import httpx2
        from openai import APIError

        try:
            # The SDK's own limit is of a read, and a server may send a byte now and then.
            async with asyncio.timeout(self._options.timeout_s):
                # Not `chat.completions.create`: it refuses fields that it does not know, does not
                # send those called like an option of its own, and looks through all of the others,
                # an eighth of this process's time.
                response = await self._client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=body
                )
        except (APIError, TimeoutError, UnicodeEncodeError) as error:
            return provider.of_failure(error, secrets=self._secrets)
        return provider.of_response(
            response.status_code,
            dict(response.headers),
            response.content,
            secrets=self._secrets,
        )

    async def _tell(self, turn: int, reading: Reading) -> None:
        if reading.verdict is Verdict.RATE:
            ended = Ended("limited", retry_after=reading.retry_after, told=reading.told)
        elif reading.verdict in (Verdict.TRANSIENT, Verdict.MALFORMED):
            ended = Ended("failed", retry_after=reading.retry_after)
        else:
            used = None
            if reading.tokens_in is not None:
                used = reading.tokens_in + (reading.tokens_out or 0)
            ended = Ended("answered", tokens=used, told=reading.told)
        await self._account.turns.ended(turn, ended)

    def _cost(self, reading: Reading, most: Most) -> float:
        """What the call has cost in USD; the most it can where nobody can say.

        That is so too where its price has ended since it was reserved; 0 where none was known.
        """
        if reading.billed is False:
            return 0.0
        price = estimate.price(self._options)
        if price is None or reading.tokens_in is None:
            return most.usd
        made = most.tokens_out if reading.tokens_out is None else reading.tokens_out
        return tokens.cost_usd(price, reading.tokens_in, made)

    def _stop_for(self, reading: Reading) -> None:
        where = f"{server(self._options)} on {self._model}"
        if reading.verdict is Verdict.AUTHENTICATION:
            raise AccessDenied(f"{where}: {reading.reason}")
        if reading.verdict in (Verdict.QUOTA, Verdict.DAILY):
            raise QuotaExhausted(f"{where}: {reading.reason}")
        if reading.retry_after is not None and reading.retry_after > LONGEST_WAIT_S:
            raise QuotaExhausted(
                f"{where} asks for a pause of {reading.retry_after:.0f} s: {reading.reason}"
            )

    def _check_retries(self, reading: Reading, attempts: _Attempts) -> None:
        if attempts.refused >= _REFUSALS:
            raise QuotaExhausted(
                f"{server(self._options)} refused one request {attempts.refused} times for its "
                f"rate: {reading.reason}"
            )
        if reading.verdict is Verdict.RATE:
            return
        self._retries += 1
        if self._retries > _FREE_RETRIES + _RETRIES_PER_ANSWER * self._answers:
            raise QuotaExhausted(
                f"{server(self._options)}: {self._retries} calls failed beside {self._answers} "
                f"answers, the last with: {reading.reason}"
            )

    def _reply(self, request: Request, reading: Reading, attempts: _Attempts) -> Reply:
        return Reply(
            request_id=request.request_id,
            raw_response=reading.text,
            finish_reason=reading.finish_reason,
            engine=self.info.engine,
            resolved_model=reading.model or self._model,
            created_at=datetime.now(UTC),
            latency_s=time.monotonic() - attempts.began,
            tokens_in=reading.tokens_in,
            tokens_out=reading.tokens_out,
            cost_usd=attempts.usd if self._priced else None,
            attempts=attempts.made,
            error=reading.reason or None,
            provider_request_id=reading.request_id,
        )

    def _failed(self, request: Request, reading: Reading, attempts: _Attempts) -> Reply:
        return Reply(
            request_id=request.request_id,
            raw_response=None,
            finish_reason=None,
            engine=self.info.engine,
            resolved_model=self._model,
            created_at=datetime.now(UTC),
            latency_s=time.monotonic() - attempts.began,
            cost_usd=attempts.usd if self._priced else None,
            attempts=attempts.made,
            error_kind=Outcome.PROVIDER_ERROR,
            error=reading.reason,
            provider_request_id=reading.request_id,
        )
