"""An engine without a model: answers are a function of the request's key. Deterministic and fast.

It is what the pipeline, its tests and its benchmarks run on where the answers do not matter: the
images are really decoded, every answer mode works, and about 1 reply in 32 is not a label, so that
the outcomes other than `answered` are met too. It has no `engine_options`.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import groupby

from facescan import __version__, images
from facescan.errors import BadImage
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, EncodedImage, FinishReason, Reply, Request
from serving.engine import EngineInfo, EngineSettings, failed

_IMAGES_PER_JOB = 32
"""Images decoded by one job of the pool: handing over single images costs more than decoding them
(0.3 ms each at 224 pixels)."""

_NOT_LABELS = ("I'm sorry, but I can't help with that.", "Cannot determine.")


def missing() -> str | None:
    """It runs everywhere."""
    return None


def preprocessing(card: ModelCard) -> str:
    """Pixels are decoded and thrown away."""
    del card
    return "none"


def load(card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings) -> "FakeEngine":
    """Start the engine; takes no time."""
    del checkpoint
    return FakeEngine(card, settings)


class FakeEngine:
    """See the module's docstring and `serving.engine.Engine`."""

    def __init__(self, card: ModelCard, settings: EngineSettings) -> None:
        self.info = EngineInfo(f"fake {__version__}", card.name, {})
        self._pool = ThreadPoolExecutor(settings.cpus, thread_name_prefix="decode")

    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """Decode each image once, then answer its requests."""
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        jobs = [
            loop.run_in_executor(self._pool, self._answer_images, chunk, started)
            for chunk in _by_image(requests)
        ]
        for job in asyncio.as_completed(jobs):
            for reply in await job:
                yield reply

    async def close(self) -> None:
        """End the decode pool."""
        self._pool.shutdown()

    def _answer_images(self, chunk: Sequence[Sequence[Request]], started: float) -> list[Reply]:
        replies: list[Reply] = []
        for about_one in chunk:
            bad = _decoding_error(about_one[0].image)
            latency = time.monotonic() - started
            now = datetime.now(UTC)
            for request in about_one:
                if bad is None:
                    replies.append(self._reply(request, latency, now))
                else:
                    replies.append(failed(request.request_id, self.info, bad, latency_s=latency))
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
    for start in range(0, len(grouped), _IMAGES_PER_JOB):
        yield grouped[start : start + _IMAGES_PER_JOB]


def _decoding_error(image: EncodedImage) -> BadImage | None:
    try:
        images.decode(image)
    except BadImage as error:
        return error
    return None
