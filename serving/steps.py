"""An engine for networks that are run here, a batch of pictures a step.

What a network makes of a picture alone is made once, however many questions there are about it;
requests that ask the same question are answered together.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Protocol

from facescan.decoding import Pixels
from facescan.errors import BadImage
from facescan.types import FinishReason, Question, Reply, Request
from serving.engine import EngineInfo, EngineSettings, failed


@dataclass(frozen=True, slots=True)
class Answer:
    """What a network says to a question; `Reply` has the same fields."""

    text: str
    finish_reason: FinishReason
    tokens_in: int | None = None
    tokens_out: int | None = None
    label_logprobs: tuple[tuple[str, float], ...] = ()


def likeliest(
    logprobs: Iterable[tuple[str, float]],
    *,
    tokens_in: int | None = None,
    tokens_out: int | None = None,
) -> Answer:
    """The offered text with the highest log-probability; the first of equal ones."""
    scored = tuple(logprobs)
    best = max(scored, key=lambda pair: pair[1])[0]
    return Answer(best, FinishReason.STOP, tokens_in, tokens_out, scored)


class Network(Protocol):
    """What is run; both functions are called on one thread, one at a time.

    Attributes:
        info: what is answering.
        size: (width, height) in pixels that pictures are decoded to; None: as they are.
    """

    info: EngineInfo
    size: tuple[int, int] | None

    def see(self, pictures: Sequence[Pixels]) -> Any:
        """What questions need of each picture: something that a list of places picks rows of."""
        ...

    def ask(self, question: Question, seen: Any) -> Sequence[Answer]:
        """One question about pictures that were seen; an answer for each, in their order."""
        ...


class StepEngine:
    """See the module's docstring and `serving.engine.Engine`.

    Args:
        network: on its device.
        batch_size: pictures of a step.
        settings: of the run.
    """

    def __init__(self, network: Network, batch_size: int, settings: EngineSettings) -> None:
        self.info = network.info
        self.calls_in_flight: int | None = None
        self._network = network
        self._batch_size = batch_size
        self._decoders = settings.decoders
        # The event loop and the decoders go on meanwhile.
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="steps")

    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """See `serving.engine.Engine`."""
        loop = asyncio.get_running_loop()
        pictures = [list(group) for _, group in groupby(requests, lambda r: r.image.sha256)]
        for start in range(0, len(pictures), self._batch_size):
            began = time.monotonic()
            batch = pictures[start : start + self._batch_size]
            decoding = self._decoders.decode(
                [about[0].image for about in batch], self._network.size
            )
            decoded = await asyncio.wrap_future(decoding)
            good: list[Pixels] = []
            asked: dict[str, list[tuple[Request, int]]] = defaultdict(list)
            for about, pixels in zip(batch, decoded, strict=True):
                if isinstance(pixels, BadImage):
                    seconds = time.monotonic() - began
                    for request in about:
                        yield failed(request.request_id, self.info, pixels, latency_s=seconds)
                    continue
                for request in about:
                    asked[request.question.identity].append((request, len(good)))
                good.append(pixels)
            if not good:
                continue
            seen = await loop.run_in_executor(self._steps, self._network.see, good)
            for group in asked.values():
                question, places = group[0][0].question, [place for _, place in group]
                answers = await loop.run_in_executor(
                    self._steps, self._network.ask, question, seen[places]
                )
                for (request, _), each in zip(group, answers, strict=True):
                    yield self._reply(request, each, time.monotonic() - began)

    async def close(self) -> None:
        """See `serving.engine.Engine`."""
        await asyncio.to_thread(self._steps.shutdown)

    def _reply(self, request: Request, answer: Answer, seconds: float) -> Reply:
        return Reply(
            request_id=request.request_id,
            raw_response=answer.text,
            finish_reason=answer.finish_reason,
            engine=self.info.engine,
            resolved_model=self.info.resolved_model,
            created_at=datetime.now(UTC),
            latency_s=seconds,
            label_logprobs=answer.label_logprobs,
            tokens_in=answer.tokens_in,
            tokens_out=answer.tokens_out,
        )
