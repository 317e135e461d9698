"""An engine for networks that are run here, a batch of pictures a step.

What a network makes of a picture alone is made once, however many questions there are about it;
requests that ask the same question are answered together.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Protocol, TypeVar

from facescan.decoding import Pixels
from facescan.errors import BadImage, EngineError, FacescanError
from facescan.types import FinishReason, Question, Reply, Request
from serving.engine import EngineInfo, EngineSettings, failed, not_numbers

_Result = TypeVar("_Result")

_STEP_PIXELS = 16 * 1024 * 1024
"""Of the pictures of a step together, 48 MiB of memory; a larger picture has one for itself."""


class UnaskableError(Exception):
    """A question cannot be put to a network, whatever the picture; another can."""


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
        """One question about pictures that were seen; an answer for each, in their order.

        Raises:
            UnaskableError: it cannot be asked.
        """
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
        for pictures in self._batches(requests):
            for reply in await self._step(pictures):
                yield reply

    async def close(self) -> None:
        """See `serving.engine.Engine`."""
        await asyncio.to_thread(self._steps.shutdown)

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[list[Request]]]:
        """The requests of some pictures, by picture: as many as a step takes."""
        batch: list[list[Request]] = []
        pixels = 0
        for _, group in groupby(requests, lambda request: request.image.sha256):
            about = list(group)
            width, height = self._network.size or (about[0].image.width, about[0].image.height)
            if batch and (len(batch) == self._batch_size or pixels + width * height > _STEP_PIXELS):
                yield batch
                batch, pixels = [], 0
            batch.append(about)
            pixels += width * height
        if batch:
            yield batch

    async def _step(self, pictures: list[list[Request]]) -> list[Reply]:
        began = time.monotonic()
        decoding = self._decoders.decode([about[0].image for about in pictures], self._network.size)
        decoded = await asyncio.wrap_future(decoding)
        replies: list[Reply] = []
        good: list[Pixels] = []
        asked: dict[str, list[tuple[Request, int]]] = defaultdict(list)
        for about, pixels in zip(pictures, decoded, strict=True):
            if isinstance(pixels, BadImage):
                replies += [self._failed(request, pixels, began) for request in about]
                continue
            for request in about:
                asked[request.question.identity].append((request, len(good)))
            good.append(pixels)
        if not good:
            return replies
        seen = await self._on_thread(self._network.see, good)
        for group in asked.values():
            question, places = group[0][0].question, [place for _, place in group]
            try:
                answers = await self._on_thread(self._network.ask, question, seen[places])
            except UnaskableError as error:
                replies += [self._failed(request, error, began) for request, _ in group]
                continue
            replies += [
                self._reply(request, answer, began)
                for (request, _), answer in zip(group, answers, strict=True)
            ]
        return replies

    async def _on_thread(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run a part of a step.

        Raises:
            UnaskableError: the network does.
            FacescanError: the network does; EngineError too in the place of everything else that
                goes wrong, such as a device without memory: nobody knows whether the next step
                would be right.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._steps, function, *arguments
            )
        except (UnaskableError, FacescanError):
            raise
        except Exception as error:  # whatever torch raises
            raise EngineError(f"{self.info.engine}: {type(error).__name__}: {error}") from error

    def _failed(self, request: Request, cause: Exception, began: float) -> Reply:
        seconds = time.monotonic() - began
        return failed(request.request_id, self.info, cause, latency_s=seconds)

    def _reply(self, request: Request, answer: Answer, began: float) -> Reply:
        if (cause := not_numbers(answer.label_logprobs)) is not None:
            return self._failed(request, cause, began)
        return Reply(
            request_id=request.request_id,
            raw_response=answer.text,
            finish_reason=answer.finish_reason,
            engine=self.info.engine,
            resolved_model=self.info.resolved_model,
            created_at=datetime.now(UTC),
            latency_s=time.monotonic() - began,
            label_logprobs=answer.label_logprobs,
            tokens_in=answer.tokens_in,
            tokens_out=answer.tokens_out,
        )
