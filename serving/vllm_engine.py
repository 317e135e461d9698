"""The engine of `serving.engines.vllm`: requests in, replies out, around one `VllmCore`.

answer ──> decoding processes: pixels, once per picture ──> core: generations ──> replies ──> answer
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from typing import Any

from facescan.decoding import IMAGES_PER_CHUNK, DecodePool, Pixels
from facescan.errors import BadImage, EngineError
from facescan.types import AnswerMode, FinishReason, Question, Reply, Request
from serving.engine import EngineInfo, failed, not_numbers
from serving.label_tokens import SEQUENCES
from serving.prompt_forms import PromptForm
from serving.vllm_core import Generated, Generation, VllmCore

_CHUNK_BYTES = 32 * 1024 * 1024
"""Of pixels that are decoded together, above which no further picture is taken: a chat model's
pictures come as large as they are, and each thread holds a chunk of them."""


@dataclass(slots=True, eq=False)
class _Call:
    """One call of `answer`: replies gather here until the end of a step, then wake its loop."""

    loop: asyncio.AbstractEventLoop
    inbox: "asyncio.Queue[list[Reply] | BaseException]" = field(default_factory=asyncio.Queue)
    replies: list[Reply] = field(default_factory=list)
    open: bool = True

    def wanted(self) -> bool:
        return self.open

    def put(self, item: list[Reply] | BaseException) -> None:
        if not self.open:
            return
        try:
            self.loop.call_soon_threadsafe(self.inbox.put_nowait, item)
        except RuntimeError:  # the loop has been closed, so nobody waits any more
            self.open = False

    def flush(self) -> None:
        if self.replies:
            replies, self.replies = self.replies, []
            self.put(replies)

    def prepared(self, future: "Future[None]") -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self.put(error)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question as vLLM gets it, made once and shared by its requests.

    Attributes:
        tokens: the prompt, as the form makes it.
        labels: (text, canonical tokens) of each offered label; empty in `free`.
        params: one for each generation: one, or in `score` one for each label.
    """

    tokens: list[int]
    labels: tuple[tuple[str, tuple[int, ...]], ...]
    params: tuple[Any, ...]


@dataclass(slots=True)
class _Answer:
    """The generations of one request, as they come in on the engine's thread."""

    request: Request
    asked: _Asked
    prompt_length: int
    call: _Call
    started: float
    results: list[Generated | Exception | None]

    def done(self, engine: "VllmEngine", index: int, result: Generated | Exception) -> None:
        self.results[index] = result
        if None not in self.results:
            self.call.replies.append(engine.reply(self))


class VllmEngine:
    """See `serving.engine.Engine`.

    Args:
        llm: see `VllmCore`.
        prompt_form: of the model that `llm` runs.
        info: see `serving.engine.Engine`.
        decoders: makes the pixels; its owner closes it.
    """

    def __init__(
        self, llm: Any, prompt_form: PromptForm, info: EngineInfo, decoders: DecodePool
    ) -> None:
        self.info = info
        self.calls_in_flight: int | None = None
        self.form = prompt_form
        self._renderer = llm.renderer
        self._max_len = int(llm.model_config.max_model_len)
        # Requests ahead of the engine, enough for two rounds: their pictures are in memory.
        self._ahead = 2 * int(llm.vllm_config.scheduler_config.max_num_seqs)
        self._questions: dict[str, _Asked] = {}
        self._calls: set[_Call] = set()
        self._dead: EngineError | None = None
        self._decoders = decoders
        # Each waits for the pixels of some pictures. One more than there are decoding processes, so
        # that these have something to do while what they decoded is handed to the core.
        self._pool = ThreadPoolExecutor(decoders.processes + 1, thread_name_prefix="prepare")
        self._core = VllmCore(llm, self._flush, self._died)

    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """See `serving.engine.Engine`."""
        call = _Call(asyncio.get_running_loop())
        self._calls.add(call)
        try:
            pictures = _by_image(requests)
            left, ahead = len(requests), 0
            while left:
                if self._dead is not None:
                    raise self._dead
                while chunk := self._next(pictures, self._ahead - ahead):
                    ahead += sum(map(len, chunk))
                    self._pool.submit(self._prepare, chunk, call).add_done_callback(call.prepared)
                replies = await call.inbox.get()
                if isinstance(replies, BaseException):
                    raise replies
                left -= len(replies)
                ahead -= len(replies)
                for reply in replies:
                    yield reply
        finally:
            call.open = False
            self._calls.discard(call)

    async def close(self) -> None:
        """See `serving.engine.Engine`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._core.close)

    def _flush(self) -> None:
        for call in list(self._calls):
            call.flush()

    def _died(self, cause: EngineError) -> None:
        self._dead = cause
        for call in list(self._calls):
            call.put(cause)

    def _next(self, pictures: Iterator[list[Request]], room: int) -> list[list[Request]]:
        """Pictures to decode together: one whose requests do not fit any more is the last."""
        chunk: list[list[Request]] = []
        pixel_bytes = 0
        while (
            room > 0
            and pixel_bytes < _CHUNK_BYTES
            and len(chunk) < IMAGES_PER_CHUNK
            and (picture := next(pictures, None))
        ):
            chunk.append(picture)
            room -= len(picture)
            image = picture[0].image
            width, height = self.form.size or (image.width, image.height)
            pixel_bytes += width * height * 3
        return chunk

    def _prepare(self, chunk: list[list[Request]], call: _Call) -> None:
        """On a thread of the pool: have pictures decoded and submit the requests about them."""
        if not call.wanted():
            return
        started = time.monotonic()
        decoded = self._decoders.decode([about[0].image for about in chunk], self.form.size)
        for about, pixels in zip(chunk, decoded.result(), strict=True):
            if isinstance(pixels, BadImage):
                self._fail(about, pixels, call, started)
            else:
                self._submit(about, pixels, call, started)

    def _submit(self, requests: list[Request], pixels: Pixels, call: _Call, started: float) -> None:
        """Submit the requests that share a picture."""
        asked: list[tuple[Request, _Asked]] = []
        for request in requests:
            try:
                asked.append((request, self._asked(request.question)))
            except ValueError as error:
                self._fail([request], error, call, started)
        if not asked:
            return
        prompts = [each.tokens for _, each in asked]
        sha256 = requests[0].image.sha256
        try:
            inputs = self.form.inputs(self._renderer, sha256, pixels, prompts)
        except ValueError as error:
            self._fail([request for request, _ in asked], error, call, started)
            return
        generations: list[Generation] = []
        for (request, each), prompt in zip(asked, inputs, strict=True):
            length = len(prompt["prompt_token_ids"])
            answer = _Answer(request, each, length, call, started, [None] * len(each.params))
            generations += [
                Generation(prompt, params, partial(answer.done, self, index), call.wanted)
                for index, params in enumerate(each.params)
            ]
        self._core.submit(generations)

    def _fail(self, requests: list[Request], cause: Exception, call: _Call, started: float) -> None:
        seconds = time.monotonic() - started
        call.put([failed(one.request_id, self.info, cause, latency_s=seconds) for one in requests])

    def _asked(self, question: Question) -> _Asked:
        """Tokens and parameters of a question.

        Raises:
            ValueError: it cannot be asked: too long, or no labels where the mode needs them.
        """
        asked = self._questions.get(question.identity)
        if asked is None:
            asked = self._ask(question)
            self._questions[question.identity] = asked
        return asked

    def _ask(self, question: Question) -> _Asked:
        tokens = self.form.prompt_tokens(question.prompt)
        labels: tuple[tuple[str, tuple[int, ...]], ...] = ()
        if question.answer_mode is not AnswerMode.FREE:
            labels = tuple(
                (label, tuple(self.form.label_tokens(question.prompt, label)))
                for label in question.labels
            )
            if not labels:
                raise ValueError(f"answer mode '{question.answer_mode}' without offered labels")
        asked = _Asked(tokens, labels, tuple(self._parameters(question, labels)))
        longest = len(tokens) + max(params.max_tokens for params in asked.params)
        if longest > self._max_len:
            raise ValueError(f"{longest} tokens of prompt and answer, limit {self._max_len}")
        return asked

    def _parameters(
        self, question: Question, labels: Sequence[tuple[str, tuple[int, ...]]]
    ) -> Iterator[Any]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        make = partial(
            SamplingParams,
            temperature=0.0,
            detokenize=False,
            stop_token_ids=list(self.form.end_tokens),
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        sequences = [tokens for _, tokens in labels]
        match question.answer_mode:
            case AnswerMode.FREE:
                decoding = question.decoding
                yield make(
                    max_tokens=decoding.max_tokens,
                    temperature=decoding.temperature,
                    seed=int(question.identity[:8], 16) if decoding.temperature else None,
                )
            case AnswerMode.CHOICE:
                longest = max(map(len, sequences))
                yield make(max_tokens=longest, extra_args={SEQUENCES: sequences})
            case AnswerMode.SCORE:
                for tokens in sequences:
                    yield make(max_tokens=len(tokens), logprobs=0, extra_args={SEQUENCES: [tokens]})

    def reply(self, answer: _Answer) -> Reply:
        """The reply of a request all of whose generations are done."""
        seconds = time.monotonic() - answer.started
        results = [result for result in answer.results if isinstance(result, Generated)]
        attempts = max((result.attempts for result in results), default=1)
        for result in answer.results:
            if isinstance(result, Exception):
                return failed(
                    answer.request.request_id,
                    self.info,
                    result,
                    latency_s=seconds,
                    attempts=attempts,
                )
        text, logprobs = self._text(answer, results)
        if (cause := not_numbers(logprobs)) is not None:
            return failed(
                answer.request.request_id,
                self.info,
                cause,
                latency_s=seconds,
                attempts=attempts,
            )
        return Reply(
            request_id=answer.request.request_id,
            raw_response=text,
            finish_reason=FinishReason.STOP if results[0].ended else FinishReason.LENGTH,
            engine=self.info.engine,
            resolved_model=self.info.resolved_model,
            created_at=datetime.now(UTC),
            latency_s=seconds,
            label_logprobs=logprobs,
            tokens_in=answer.prompt_length,
            tokens_out=sum(len(result.tokens) for result in results),
            attempts=attempts,
        )

    def _text(
        self, answer: _Answer, results: list[Generated]
    ) -> tuple[str, tuple[tuple[str, float], ...]]:
        labels = answer.asked.labels
        match answer.request.question.answer_mode:
            case AnswerMode.FREE:
                return self.form.text(list(results[0].tokens)), ()
            case AnswerMode.CHOICE:
                return next(text for text, tokens in labels if tokens == results[0].tokens), ()
            case AnswerMode.SCORE:
                scored = tuple(
                    (text, result.logprob)
                    for (text, _), result in zip(labels, results, strict=True)
                )
                return max(scored, key=lambda pair: pair[1])[0], scored


def _by_image(requests: Sequence[Request]) -> Iterator[list[Request]]:
    for _, group in groupby(requests, key=lambda request: request.image.sha256):
        yield list(group)
