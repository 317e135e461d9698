"""The Engine contract: what a file of `serving/engines/` is, and what its engine promises.

An engine is an ordinary object, the same for batch runs, the online service and tests. It knows
neither Ray nor the journal. A file of `serving/engines/` defines the functions of `EngineModule`.
"""

import math
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Protocol, cast

from facescan import registry
from facescan.decoding import DecodePool
from facescan.errors import BadImage, EngineError, UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.types import Outcome, Question, Reply, Request
from serving.account import Account

PACKAGE = "serving.engines"

_FUNCTIONS = ("missing", "preprocessing", "numerics", "cannot_ask", "load")
"""Of an engine's file; `EngineModule` says what each does."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the run decides about an engine; nothing here may change an answer.

    Attributes:
        decoders: makes all pixels; whoever made it closes it, after the engine.
        gpus: GPUs given to this engine; 0 on a machine without.
        cpus: cores this engine may keep busy with other work than decoding (torch threads).
        account: of the provider, for engines that send requests to one.
    """

    decoders: DecodePool
    gpus: int = 0
    cpus: int = 2
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is answering, as far as it can change an answer; recorded in the run's manifest.

    Attributes:
        engine: name and version, such as `vllm 0.32.0 (cpu)`.
        resolved_model: checkpoint and the commit loaded.
        numerics: dtype, attention, and other settings that can change an answer.
    """

    engine: str
    resolved_model: str
    numerics: dict[str, str]


class Engine(Protocol):
    """Answers requests.

    Attributes:
        info: what is answering.
        calls_in_flight: None: a local engine, which takes whole batches and schedules itself. A
            number: every call costs money; the caller makes at most so many at a time (some may
            wait in the engine), and each reply is durable before its place is given to another.
    """

    info: EngineInfo
    calls_in_flight: int | None

    def answer(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """Yield exactly one reply per request, in completion order, joined by `request_id`.

        May be called again while earlier calls are still being answered. Requests of one image
        stand together, so that its pixels are made once. A request that fails is a Reply with
        `error_kind`; images that do not decode end as `bad_image`.

        Raises:
            EngineError: the engine is dead; nothing asked from now on will be answered.
        """
        ...

    async def close(self) -> None:
        """Give back devices and processes; the engine answers nothing afterwards."""
        ...


class EngineModule(Protocol):
    """What a file of `serving/engines/` defines at module level."""

    def missing(self) -> str | None:
        """Why this engine cannot run here and what would help, or None where it can.

        Imports nothing heavy: it looks for packages and devices.
        """
        ...

    def preprocessing(self, card: ModelCard) -> str:
        """Names how pixels are made for the model; part of every request's identity."""
        ...

    def numerics(self, card: ModelCard) -> dict[str, str]:
        """The settings of a card that can change an answer, not those of speed or memory.

        Raises:
            UsageError: `engine_options` of the card are not what this engine knows.
        """
        ...

    def cannot_ask(self, card: ModelCard, question: Question) -> str | None:
        """Why this engine cannot put this question to the model, or None where it can."""
        ...

    def load(
        self, card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings
    ) -> Engine:
        """Start an engine with these weights; blocks until it can answer.

        Raises:
            EngineUnavailable: a package or device is missing.
            EngineError: the weights cannot be loaded.
            UsageError: `engine_options` of the card are not what this engine knows.
        """
        ...


def names() -> tuple[str, ...]:
    """The names of all engines."""
    return registry.names(PACKAGE)


def module(name: str) -> EngineModule:
    """The file of that name.

    Raises:
        UnknownNameError: no file carries the name.
        UsageError: the file does not define what an engine is.
    """
    found = registry.load(PACKAGE, name)
    absent = [each for each in _FUNCTIONS if not hasattr(found, each)]
    if absent:
        raise UsageError(f"engine '{name}': its file defines no {', '.join(absent)}")
    return cast(EngineModule, found)


def uninstalled(*packages: str) -> str | None:
    """Which of these packages is not there, and which extras bring it; None where all are."""
    for package in packages:
        if find_spec(package) is None:
            return f"{package} is not installed; install facescan[cpu], or facescan[gpu] for CUDA"
    return None


def given(card: ModelCard, checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint, for an engine that needs one.

    Raises:
        UsageError: the card names none.
    """
    if checkpoint is None:
        raise UsageError(
            f"model '{card.name}' names no checkpoint, and engine {card.engine} needs one"
        )
    return checkpoint


def not_numbers(logprobs: Iterable[tuple[str, float]]) -> EngineError | None:
    """What is wrong where a model's log-probabilities are NaN, of which none is the highest."""
    if any(math.isnan(value) for _, value in logprobs):
        return EngineError("a log-probability is not a number; float16 may be too small for it")
    return None


def failed(
    request_id: str,
    info: EngineInfo,
    cause: BaseException,
    *,
    latency_s: float,
    attempts: int = 1,
) -> Reply:
    """The reply of a request that got no answer: `bad_image` for BadImage, else `engine_error`."""
    kind = Outcome.BAD_IMAGE if isinstance(cause, BadImage) else Outcome.ENGINE_ERROR
    message = str(cause) if isinstance(cause, BadImage) else f"{type(cause).__name__}: {cause}"
    return Reply(
        request_id=request_id,
        raw_response=None,
        finish_reason=None,
        engine=info.engine,
        resolved_model=info.resolved_model,
        created_at=datetime.now(UTC),
        latency_s=latency_s,
        attempts=attempts,
        error_kind=kind,
        error=message[:2000],
    )
