"""vLLM's engine on a thread of this process, fed one generation at a time.

    any thread ──submit──> inbox ──admit──> vLLM's scheduler ──step──> on_done, on this thread

The engine runs inside the process that owns it: no process to leave behind, and no copy of any
picture between processes (docs/engines.md has the measurement). Admission is ours: a generation
enters vLLM only when the KV cache has room for its whole prompt and answer beside those already
in, so that vLLM need not preempt one. It would prefill a preempted one again together with the
tokens it had generated, which a prefix model then reads in both directions: another answer.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from facescan.errors import EngineError

MAX_ATTEMPTS = 4
"""How often a generation is asked before preemption counts as a failure of it."""

_only = threading.Lock()
"""Held by the one open core of this process: vLLM keeps what a forward pass needs in globals, and
closing one engine takes the process groups away from any other."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What one generation came to.

    Attributes:
        tokens: the answer's token ids, the end token included where the model gave it.
        logprob: summed natural-log probability of `tokens`, NaN where not asked for.
        ended: whether the model ended the answer; otherwise it ran into its limit.
        attempts: how often it was asked, more than once only after preemption.
    """

    tokens: tuple[int, ...]
    logprob: float
    ended: bool
    attempts: int


@dataclass(slots=True)
class Generation:
    """One prompt for vLLM.

    Attributes:
        prompt: a rendered input of vLLM (`vllm.inputs.EngineInput`).
        params: `vllm.SamplingParams`; not changed, so it may be shared.
        on_done: called once, on the engine's thread, with the result or with why there is none.
        wanted: asked before the generation enters vLLM; False drops it without `on_done`.
    """

    prompt: Any
    params: Any
    on_done: Callable[[Generated | Exception], None]
    wanted: Callable[[], bool]
    attempts: int = field(default=0, init=False)


def claim() -> None:
    """Become the owner of this process's one core; its thread gives the place back in the end.

    Raises:
        EngineError: another engine of this process is open.
    """
    if not _only.acquire(blocking=False):
        raise EngineError("this process has an open vLLM engine; a second needs its own process")


def disclaim() -> None:
    """Give the place back when no core came of it."""
    _only.release()


class VllmCore:
    """Runs generations; all methods may be called from any thread.

    Args:
        llm: a `vllm.v1.engine.llm_engine.LLMEngine` with its core in this process, keeping
            statistics (the count of preemptions is one).
        after_round: called on the engine's thread after a step and all its `on_done`.
        on_death: called once, on the engine's thread, when the engine can do nothing more.
    """

    def __init__(
        self,
        llm: Any,
        after_round: Callable[[], None],
        on_death: Callable[[EngineError], None],
    ) -> None:
        self._llm = llm
        self._after_round = after_round
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Iterable[Generation] | None] = queue.SimpleQueue()
        self._pending: deque[Generation] = deque()
        self._running: dict[str, Generation] = {}
        self._blocks_used = 0
        self._serial = 0
        self._closing = False
        cache = llm.vllm_config.cache_config
        self._block_size = int(cache.block_size)
        # One block is vLLM's null block.
        self._blocks = int(cache.num_gpu_blocks) - 1
        self._seats = int(llm.vllm_config.scheduler_config.max_num_seqs)
        self._thread = threading.Thread(target=self._run, name="vllm-core", daemon=True)
        self._thread.start()

    def submit(self, generations: Iterable[Generation]) -> None:
        """Queue generations, in order."""
        self._inbox.put(generations)

    def close(self) -> None:
        """Stop after the step that is running; what is still queued is never done."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        import torch._dynamo

        # vLLM compiles a comparison in its sampler even where the model is not compiled: 3 to 18 s
        # at the first request, and a failure where there is no compiler. Holds for this thread.
        torch._dynamo.config.disable = bool(self._llm.model_config.enforce_eager)
        cause: BaseException | None = None
        try:
            while self._receive():
                self._admit()
                if self._running:
                    self._step()
                self._after_round()
        except BaseException as error:
            cause = error
            raise
        finally:
            dead = EngineError("the engine is closed" if cause is None else f"vLLM died: {cause!r}")
            dead.__cause__ = cause
            self._on_death(dead)
            self._llm.engine_core.shutdown()
            self._llm.renderer.shutdown()
            _only.release()

    def _receive(self) -> bool:
        """Take in what was submitted, waiting if there is nothing else to do; False to stop."""
        idle = not self._running and not self._pending
        while idle or not self._inbox.empty():
            generations = self._inbox.get()
            if generations is None:
                return False
            self._pending.extend(generations)
            idle = False
        return True

    def _admit(self) -> None:
        while self._pending and len(self._running) < self._seats:
            generation = self._pending[0]
            blocks = blocks_needed(generation, self._block_size)
            if self._running and self._blocks_used + blocks > self._blocks:
                return
            self._pending.popleft()
            if generation.wanted():
                self._add(generation, blocks)

    def _add(self, generation: Generation, blocks: int) -> None:
        self._serial += 1
        request_id = str(self._serial)
        generation.attempts += 1
        try:
            # A lower number goes first, so a generation asked again outlives the others.
            self._llm.add_request(
                request_id, generation.prompt, generation.params, priority=1 - generation.attempts
            )
        except ValueError as error:  # vLLM's validation of one request
            generation.on_done(error)
            return
        self._running[request_id] = generation
        self._blocks_used += blocks

    def _step(self) -> None:
        for output in self._llm.step():
            if not output.finished:
                continue
            generation = self._running.pop(output.request_id)
            self._blocks_used -= blocks_needed(generation, self._block_size)
            self._finish(generation, output)

    def _finish(self, generation: Generation, output: Any) -> None:
        preemptions = output.metrics.num_preemptions
        if preemptions and generation.attempts < MAX_ATTEMPTS:
            self._pending.appendleft(generation)
        elif preemptions:
            generation.on_done(
                EngineError(f"preempted in each of {MAX_ATTEMPTS} attempts: the KV cache is small")
            )
        else:
            answer = output.outputs[0]
            logprob = answer.cumulative_logprob
            generation.on_done(
                Generated(
                    tokens=tuple(answer.token_ids),
                    logprob=float("nan") if logprob is None else float(logprob),
                    ended=answer.finish_reason == "stop",
                    attempts=generation.attempts,
                )
            )


def blocks_needed(generation: Generation, block_size: int) -> int:
    """KV-cache blocks of the whole prompt and the longest possible answer."""
    tokens = len(generation.prompt["prompt_token_ids"]) + int(generation.params.max_tokens)
    return -(-tokens // block_size)
