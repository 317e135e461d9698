"""One replica of the online service: a picture in, what the model says of it out.

    bytes ──check──> Request ──engine──> Reply ──parse──> answer

The same modules as a run's, so an answer is the prediction that a run would have made. Knows
neither Ray nor HTTP.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from facescan import images, models, parse, registry
from facescan.decoding import DecodePool, memory_for
from facescan.errors import BadImage, EngineError, EngineUnavailable, UsageError
from facescan.images import Reason
from facescan.models import ModelCard
from facescan.parse import PARSER_VERSION, Parser
from facescan.types import EncodedImage, Outcome, Question, Reply, Request, request_id
from serving import engine as engines
from serving.catalogue import RESPONSIBLE_USE, Catalogue
from serving.engine import Engine, EngineModule, EngineSettings
from serving.engines import hosted
from serving.refusals import Refusal

NOTE = "Labels are perceived attributes in a dataset's own categories, not facts about people."

_TOO_LARGE = frozenset({Reason.TOO_MANY_BYTES, Reason.TOO_MANY_PIXELS})


class ServiceSettings(BaseModel):
    """What can be set about a service; holds no secret because no field is one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """A card, a folder with one, or an engine and a checkpoint."""
    attributes: tuple[str, ...] | None = None
    """Answered; None: all of the model's, race and emotion only if switched on."""
    enable_sensitive: bool = False
    """Answer about race and emotion too; `purpose` says what for."""
    purpose: str = ""
    """Of answering about race and emotion; stands in the log of each replica."""
    engine: str | None = None
    """Another engine than the card's."""
    include_path: tuple[Path, ...] = ()
    max_image_bytes: int = Field(default=images.Limits().max_bytes, ge=1)
    max_image_pixels: int = Field(default=images.Limits().max_pixels, ge=1)
    running: int = Field(default=16, ge=1)
    """Requests that the engine of a replica has at a time."""
    waiting: int = Field(default=32, ge=0)
    """Requests of a replica beyond these, before it refuses."""
    timeout_s: float = Field(default=60.0, gt=0)
    """For a request, from its arrival at a replica to its answer."""
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    drain_s: float = Field(default=90.0, ge=0)
    """For what a replica has, when it is to end."""
    cpus: int = Field(default=1, ge=1)
    """Of a replica: decoding processes, and threads of its engine."""
    gpus: int | None = Field(default=None, ge=0)
    """Of a replica; None: what the card says, none where the cluster has none."""
    raw: bool = False
    """Serve the model itself too, through Ray Serve's OpenAI-compatible app."""

    def limits(self) -> images.Limits:
        """The image limits, which are a run's."""
        return images.Limits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)


@dataclass(frozen=True, slots=True)
class Plan:
    """What these settings come to, found out before anything is loaded."""

    card: ModelCard
    module: EngineModule
    catalogue: Catalogue


def plan(settings: ServiceSettings) -> Plan:
    """Look up the model and what can be asked of it.

    Raises:
        UsageError: something named does not exist or does not fit.
    """
    for folder in settings.include_path:
        registry.include(folder)
    card = models.load(settings.model)
    if settings.engine is not None:
        card = card.model_copy(update={"engine": settings.engine})
    if card.engine == hosted.NAME:
        raise UsageError(
            f"model {card.name} is behind an API: each picture that anybody sends to the service "
            "would be sent on and paid for, outside the budget and ledger of a run. The service "
            "asks models of its own; ask this one with `facescan run --allow-upload`"
        )
    if settings.enable_sensitive and not settings.purpose.strip():
        raise UsageError(
            "race and emotion are switched on for a purpose, which --purpose has to name; "
            "docs/responsible-use.md says what to consider first"
        )
    if settings.max_replicas < settings.min_replicas:
        raise UsageError(
            f"at most {settings.max_replicas} replicas are fewer than at least "
            f"{settings.min_replicas}"
        )
    module = engines.module(card.engine)
    catalogue = Catalogue(card, module, settings.attributes, settings.enable_sensitive)
    if settings.raw:
        _check_raw(settings, card, catalogue)
    return Plan(card, module, catalogue)


def _check_raw(settings: ServiceSettings, card: ModelCard, catalogue: Catalogue) -> None:
    if not settings.enable_sensitive:
        raise UsageError(
            "a raw model can be asked about race and emotion, which are off: --enable-sensitive "
            f"and --purpose; {RESPONSIBLE_USE} says what to consider first"
        )
    if card.engine != "vllm" or catalogue.checkpoint is None:
        raise UsageError(
            f"model {card.name}, engine {card.engine}: only chat models in vLLM are served raw"
        )


class Service:
    """See the module's docstring; blocks until the engine can answer.

    Raises:
        UsageError: as `plan`.
        EngineError: the engine cannot start.
    """

    def __init__(self, settings: ServiceSettings, gpus: int = 0) -> None:
        planned = plan(settings)
        if (lacking := planned.module.missing()) is not None:
            raise EngineUnavailable(
                f"model {planned.card.name}: engine {planned.card.engine} cannot run here: "
                f"{lacking}"
            )
        self.card = planned.card
        self.catalogue = planned.catalogue
        self._limits = settings.limits()
        self._decoders = DecodePool(settings.cpus, memory_bytes=memory_for(self._limits))
        self._engine: Engine = planned.module.load(
            self.card,
            self.catalogue.checkpoint,
            EngineSettings(self._decoders, gpus, settings.cpus),
        )
        # Else the first requests would wait for decoding processes to start.
        starting = [self._decoders.check([(b"", "")], self._limits) for _ in range(settings.cpus)]
        for process in starting:
            process.result()
        self._parsers: dict[str, Parser] = {}
        self._dead: EngineError | None = None

    def check(self) -> None:
        """Raises EngineError where the engine can answer nothing more."""
        if self._dead is not None:
            raise self._dead

    def description(self) -> dict[str, Any]:
        """The model as `GET /v1/models` tells it."""
        return {
            "id": self.card.name,
            "object": "model",
            "created": 0,
            "owned_by": "facescan",
            "resolved_model": self._engine.info.resolved_model,
            "engine": self._engine.info.engine,
            "attributes": list(self.catalogue.attributes),
            "default_protocol": self.card.protocol,
            "protocols": [
                {
                    "id": entry.name,
                    "answer_mode": entry.answer_mode,
                    "attributes": list(entry.attributes),
                }
                for entry in self.catalogue.entries.values()
            ],
        }

    async def checked(self, data: bytes) -> EncodedImage:
        """A picture whose header has been read, off the event loop.

        Raises:
            Refusal: it cannot be used, with a word of `facescan.images.Reason`; or no process that
                would read it can be started.
        """
        if len(data) > self._limits.max_bytes:
            raise _bad_image(Reason.TOO_MANY_BYTES)
        if len(data) > _HASHED_AT_ONCE:
            digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        else:
            digest = hashlib.sha256(data).hexdigest()
        try:
            checking = self._decoders.check([(data, digest)], self._limits)
            (image,) = await asyncio.wrap_future(checking)
        except EngineError as error:
            raise self._died(error) from error
        if isinstance(image, BadImage):
            raise _bad_image(image.reason)
        return image

    async def answer(
        self, image: EncodedImage, questions: Sequence[Question]
    ) -> list[dict[str, Any]]:
        """One answer for each attribute that the questions are about, in their order.

        Raises:
            Refusal: the picture cannot be decoded, or the engine failed.
        """
        self.check()
        requests = [
            Request(request_id(question.identity, image.sha256), image, question)
            for question in questions
        ]
        replies: dict[str, Reply] = {}
        try:
            async for reply in self._engine.answer(requests):
                replies[reply.request_id] = reply
        except EngineError as error:
            raise self._died(error) from error
        return [
            answer
            for request in requests
            for answer in self._answers(request, replies[request.request_id])
        ]

    def _died(self, error: EngineError) -> Refusal:
        self._dead = error
        return Refusal(
            503, "engine_died", "The engine has died and is started again.", retry_after_s=5
        )

    async def close(self) -> None:
        """Give back the engine and the decoding processes."""
        await self._engine.close()
        await asyncio.to_thread(self._decoders.close)

    def _answers(self, request: Request, reply: Reply) -> list[dict[str, Any]]:
        question = request.question
        if reply.error_kind is Outcome.BAD_IMAGE:
            reason = (reply.error or "").partition(":")[0]
            raise _bad_image(reason if reason in frozenset(Reason) else Reason.CORRUPT)
        if reply.error_kind is not None:
            raise Refusal(500, str(reply.error_kind), "The engine could not answer this request.")
        parser = self._parsers.get(question.identity)
        if parser is None:
            parser = self._parsers[question.identity] = Parser(question)
        readings = parser.readings(reply.raw_response, reply.finish_reason)
        logprobs = dict(reply.label_logprobs)
        return [
            {
                "attribute": attribute,
                "label_set": label_set,
                "outcome": reading.outcome,
                "label": reading.label,
                **_probabilities(offered, logprobs, reading.label),
                "raw_response": reply.raw_response,
                "request_id": request.request_id,
            }
            for attribute, label_set, offered, reading in zip(
                question.attributes,
                question.label_sets,
                question.offered,
                readings,
                strict=True,
            )
        ]


_HASHED_AT_ONCE = 256 * 1024
"""Bytes whose SHA-256 takes the event loop less time than handing them to a thread."""


def about(questions: Sequence[Question]) -> dict[str, Any]:
    """What all answers to these questions have in common."""
    return {
        "model": questions[0].model,
        "protocol": questions[0].protocol,
        "answer_mode": questions[0].answer_mode,
        "parser_version": PARSER_VERSION,
        "note": NOTE,
    }


def _probabilities(
    offered: Sequence[tuple[str, str]], logprobs: Mapping[str, float], label: str | None
) -> dict[str, Any]:
    shares = parse.probabilities(offered, logprobs) if logprobs else {}
    return {
        "probability": None if label is None else shares.get(label),
        "probabilities": shares or None,
    }


def _bad_image(reason: str) -> Refusal:
    too_large = reason in _TOO_LARGE
    return Refusal(
        413 if too_large else 422,
        "bad_image",
        "The picture is larger than this service takes."
        if too_large
        else "The picture cannot be used. JPEG, PNG and WebP are read.",
        more={"reason": str(reason)},
    )
