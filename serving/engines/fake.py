"""An engine without a model: answers are a function of the request's key. Deterministic and fast.

It is what the pipeline, its tests and its benchmarks run on where the answers do not matter: the
images are really decoded, every answer mode works, and about 1 reply in 32 is not a label, so that
the outcomes other than `answered` are met too.

`engine_options` of a card, all optional:

- `latency_ms` (0.0): how long each answer takes once its picture is decoded; answers run side by
  side.
- `calls_in_flight` (left out: a local engine): see `serving.engine.Engine`.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby

from pydantic import BaseModel, ConfigDict, Field

from facescan import __version__
from facescan.decoding import IMAGES_PER_CHUNK
from facescan.errors import BadImage
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, FinishReason, Question, Reply, Request
from serving.engine import EngineInfo, EngineSettings, failed

_SIZE = (224, 224)
"""What pictures are decoded to, so that large ones are not carried from the decoder's process whole
to be thrown away."""

_NOT_LABELS = ("I'm sorry, but I can't help with that.", "Cannot determine.")


class Options(BaseModel):
    """A card's `engine_options`; the module's docstring says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency_ms: float = Field(default=0.0, ge=0)
    calls_in_flight: int | None = Field(default=None, ge=1)


def missing() -> str | None:
    """It runs everywhere."""
    return None


def preprocessing(card: ModelCard) -> str:
    """Pixels are decoded and thrown away."""
    del card
    return "none"


def numerics(card: ModelCard) -> dict[str, str]:
    """None: its options change no answer."""
    card.options(Options)
    return {}


def cannot_ask(card: ModelCard, question: Question) -> str | None:
    """It answers everything."""
    del card, question
    return None


def load(card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings) -> "FakeEngine":
    """Start the engine; takes no time."""
    del checkpoint
    return FakeEngine(card, settings)


class FakeEngine:
    """See the module's docstring and `serving.engine.Engine`."""

    def __init__(self, card: ModelCard, settings: EngineSettings) -> None:
        options = card.options(Options)
        self.info = EngineInfo(f"fake {__version__}", card.name, {})
        self.calls_in_flight = options.calls_in_flight
        self._latency_s = options.latency_ms / 1000
        self._decoders = settings.decoders

    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """Decode each image once, then answer its requests."""
        started = time.monotonic()
        chunks = [self._answer_images(chunk, started) for chunk in _by_image(requests)]
        for chunk in asyncio.as_completed(chunks):
            for reply in await chunk:
                yield reply

    async def close(self) -> None:
        """There is nothing to give back."""

    async def _answer_images(
        self, chunk: Sequence[Sequence[Request]], started: float
    ) -> list[Reply]:
        decoding = self._decoders.decode([about_one[0].image for about_one in chunk], _SIZE)
        decoded = await asyncio.wrap_future(decoding)
        await asyncio.sleep(self._latency_s)
        replies: list[Reply] = []
        latency = time.monotonic() - started
        now = datetime.now(UTC)
        for about_one, pixels in zip(chunk, decoded, strict=True):
            for request in about_one:
                if isinstance(pixels, BadImage):
                    replies.append(failed(request.request_id, self.info, pixels, latency_s=latency))
                else:
                    replies.append(self._reply(request, latency, now))
        return replies

    def _reply(self, request: Request, latency_s: float, now: datetime) -> Reply:
        draw = int(request.request_id[:8], 16)
        labels = request.question.labels
        logprobs: tuple[tuple[str, float], ...] = ()
        if request.question.answer_mode is AnswerMode.SCORE:
            weights = [1 + (draw >> (3 * i)) % 97 for i in range(len(labels))]
            logprobs = tuple(
                (label, math.log(weight / sum(weights)))
                for label, weight in zip(labels, weights, strict=True)
            )
            text = max(logprobs, key=lambda pair: pair[1])[0]
        elif request.question.answer_mode is AnswerMode.FREE and draw % 64 < len(_NOT_LABELS):
            text = _NOT_LABELS[draw % 64]
        elif request.question.answer_schema:
            fields = json.loads(request.question.answer_schema)["properties"]
            values = {name: each["enum"] for name, each in fields.items()}
            text = json.dumps({k: each[draw // 64 % len(each)] for k, each in values.items()})
        else:
            text = labels[draw // 64 % len(labels)]
        return Reply(
            request_id=request.request_id,
            raw_response=text,
            finish_reason=FinishReason.STOP,
            engine=self.info.engine,
            resolved_model=self.info.resolved_model,
            created_at=now,
            latency_s=latency_s,
            label_logprobs=logprobs,
            tokens_in=len(request.question.prompt.split()),
            tokens_out=len(text.split()),
        )


def _by_image(requests: Sequence[Request]) -> Iterator[list[list[Request]]]:
    grouped = [list(group) for _, group in groupby(requests, lambda r: r.image.sha256)]
    for start in range(0, len(grouped), IMAGES_PER_CHUNK):
        yield grouped[start : start + IMAGES_PER_CHUNK]
