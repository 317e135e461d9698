"""PaliGemma 1 and 2 by transformers: exact, and where vLLM cannot run.

It takes the same pixels and tokens as the vLLM engine, and answers in the same modes; answers of
the two are equal, so a card may be run by either (`--engine torch`). Requests that ask the same
question have prompts of one length, so batches need no padding and a picture's answer does not
depend on what stands beside it but for rounding.

`engine_options` of a card, all optional:

- `batch_size` (32): pictures of a step.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facescan.decoding import Pixels
from facescan.errors import BadImage, EngineError, EngineUnavailable, UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, FinishReason, Question, Reply, Request
from serving import weights
from serving.engine import EngineInfo, EngineSettings, failed
from serving.label_tokens import allowed
from serving.prompt_forms import PaliGemmaForm
from serving.weights import Weights

_MODEL_TYPE = "paligemma"


class Options(BaseModel):
    """A card's `engine_options`; the module's docstring says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(default=32, ge=1)


def missing() -> str | None:
    """See `serving.engine.EngineModule`."""
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            return f"{package} is not installed; install facescan[cpu], or facescan[gpu] for CUDA"
    return None


def preprocessing(card: ModelCard) -> str:
    """See `serving.engine.EngineModule`; the words of the vLLM engine, whose pixels these are."""
    del card
    return "upright RGB; the checkpoint's own image processor, on Pillow"


def numerics(card: ModelCard) -> dict[str, str]:
    """See `serving.engine.EngineModule`."""
    _options(card)
    return {"dtype": card.dtype}


def cannot_ask(card: ModelCard, question: Question) -> str | None:
    """See `serving.engine.EngineModule`."""
    del card
    if question.answer_schema:
        return "it enforces no JSON schema; `choice` is its way to hold a model to a list"
    if question.decoding.temperature:
        return f"it is greedy; temperature {question.decoding.temperature} needs another engine"
    return None


def _options(card: ModelCard) -> Options:
    try:
        return Options.model_validate(card.engine_options)
    except ValidationError as error:
        raise UsageError(f"model '{card.name}': engine_options: {error}") from error


def load(card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings) -> "TorchEngine":
    """See `serving.engine.EngineModule`."""
    if (lacking := missing()) is not None:
        raise EngineUnavailable(lacking)
    if checkpoint is None:
        raise UsageError(f"model '{card.name}' names no checkpoint, and this engine needs one")
    options = _options(card)
    found = weights.find(checkpoint)
    kind = found.config.get("model_type")
    if kind != _MODEL_TYPE:
        raise EngineError(
            f"{checkpoint.path}: a checkpoint of '{kind}'; engine torch runs '{_MODEL_TYPE}'"
        )
    return TorchEngine(_model(found, card.dtype, settings), found, options, settings)


def _model(found: Weights, dtype: str, settings: EngineSettings) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    torch.set_num_threads(settings.cpus)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            found.folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EngineError(f"{found.resolved}: transformers cannot load it: {error}") from error
    return model.to("cuda" if settings.gpus else "cpu").eval()


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    finish_reason: FinishReason
    tokens_out: int
    label_logprobs: tuple[tuple[str, float], ...] = ()


class TorchEngine:
    """See the module's docstring and `serving.engine.Engine`.

    Args:
        model: in evaluation mode, on its device.
        found: its files.
        options: of the card.
        settings: of the run.
    """

    def __init__(
        self, model: Any, found: Weights, options: Options, settings: EngineSettings
    ) -> None:
        import torch
        import transformers

        self._model = model
        self._form = PaliGemmaForm(found)
        self._batch_size = options.batch_size
        self._decoders = settings.decoders
        self._end = self._form.end_tokens[0]
        self.calls_in_flight: int | None = None
        self.info = EngineInfo(
            f"torch {torch.__version__}, transformers {transformers.__version__} "
            f"({model.device.type})",
            found.resolved,
            {
                "dtype": str(model.dtype).removeprefix("torch."),
                "attention": self._form.attention,
                "torch": torch.__version__,
            },
        )
        # One step at a time; the event loop and the decoders go on meanwhile.
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="torch")

    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """See `serving.engine.Engine`."""
        loop = asyncio.get_running_loop()
        pictures = [list(group) for _, group in groupby(requests, lambda r: r.image.sha256)]
        for start in range(0, len(pictures), self._batch_size):
            began = time.monotonic()
            batch = pictures[start : start + self._batch_size]
            decoding = self._decoders.decode([about[0].image for about in batch], self._form.size)
            decoded = await asyncio.wrap_future(decoding)
            asked: dict[str, list[tuple[Request, Pixels]]] = defaultdict(list)
            for about, pixels in zip(batch, decoded, strict=True):
                for request in about:
                    if isinstance(pixels, BadImage):
                        seconds = time.monotonic() - began
                        yield failed(request.request_id, self.info, pixels, latency_s=seconds)
                    else:
                        asked[request.question.identity].append((request, pixels))
            for group in asked.values():
                question = group[0][0].question
                together = np.stack([pixels for _, pixels in group])
                answers = await loop.run_in_executor(self._steps, self._ask, question, together)
                for (request, _), each in zip(group, answers, strict=True):
                    yield self._reply(request, each, time.monotonic() - began)

    async def close(self) -> None:
        """See `serving.engine.Engine`."""
        await asyncio.to_thread(self._steps.shutdown)

    def _reply(self, request: Request, answer: _Answer, seconds: float) -> Reply:
        return Reply(
            request_id=request.request_id,
            raw_response=answer.text,
            finish_reason=answer.finish_reason,
            engine=self.info.engine,
            resolved_model=self.info.resolved_model,
            created_at=datetime.now(UTC),
            latency_s=seconds,
            label_logprobs=answer.label_logprobs,
            tokens_in=len(self._form.prompt_tokens(request.question.prompt)),
            tokens_out=answer.tokens_out,
        )

    def _ask(self, question: Question, pixels: Pixels) -> list[_Answer]:
        """One question about a batch of pictures, (pictures, height, width, 3); on the thread."""
        import torch

        prompt = self._form.prompt_tokens(question.prompt)
        labels = {
            tuple(self._form.label_tokens(question.prompt, label)): label
            for label in (question.labels if question.answer_mode is not AnswerMode.FREE else ())
        }
        # As the processor of the checkpoint scales them, to which `PaliGemmaForm` was held.
        scaled = torch.from_numpy(pixels).to(self._model.device, torch.float32).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features = (scaled.contiguous() / 127.5 - 1).to(self._model.dtype)
            match question.answer_mode:
                case AnswerMode.SCORE:
                    return self._scores(prompt, labels, features)
                case AnswerMode.CHOICE:
                    longest = max(map(len, labels))
                    made = self._generate(prompt, features, longest, list(labels))
                    return [_Answer(labels[t], FinishReason.STOP, len(t)) for t in made]
                case AnswerMode.FREE:
                    made = self._generate(prompt, features, question.decoding.max_tokens, None)
                    return [self._free(tokens) for tokens in made]

    def _free(self, tokens: tuple[int, ...]) -> _Answer:
        ended = FinishReason.STOP if tokens[-1] == self._end else FinishReason.LENGTH
        return _Answer(self._form.text(list(tokens)), ended, len(tokens))

    def _inputs(
        self, tokens: Sequence[int], answer: Sequence[int], features: Any
    ) -> dict[str, Any]:
        import torch

        count, device = len(features), self._model.device
        ids = torch.tensor([[*tokens, *answer]], device=device).expand(count, -1)
        in_answer = torch.zeros_like(ids)
        in_answer[:, len(tokens) :] = 1
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": in_answer,
            "pixel_values": features,
        }

    def _generate(
        self,
        prompt: list[int],
        features: Any,
        longest: int,
        sequences: list[tuple[int, ...]] | None,
    ) -> list[tuple[int, ...]]:
        """Greedy answers, end token included where it was reached."""

        def following(_: int, tokens: Any) -> list[int]:
            made = [int(token) for token in tokens[len(prompt) :]]
            return list(allowed(sequences or (), made)) or [self._end]

        out = self._model.generate(
            **self._inputs(prompt, (), features),
            do_sample=False,
            max_new_tokens=longest,
            eos_token_id=list(self._form.end_tokens),
            pad_token_id=self._end,
            prefix_allowed_tokens_fn=None if sequences is None else following,
        )
        return [self._ended(row) for row in out[:, len(prompt) :].tolist()]

    def _ended(self, tokens: list[int]) -> tuple[int, ...]:
        """Up to the first end token: shorter answers of a batch are filled up with it."""
        for place, token in enumerate(tokens):
            if token in self._form.end_tokens:
                return tuple(tokens[: place + 1])
        return tuple(tokens)

    def _scores(
        self, prompt: list[int], labels: dict[tuple[int, ...], str], features: Any
    ) -> list[_Answer]:
        import torch

        columns = []
        for tokens in labels:
            logits = self._model(
                **self._inputs(prompt, tokens, features), logits_to_keep=len(tokens) + 1
            ).logits[:, :-1]
            wanted = torch.tensor(tokens, device=logits.device).expand(len(features), -1)
            logprobs = logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
            columns.append(logprobs.sum(-1).tolist())
        made = sum(map(len, labels))
        answers = []
        for row in zip(*columns, strict=True):
            scored = tuple(zip(labels.values(), row, strict=True))
            best = max(scored, key=lambda pair: pair[1])[0]
            answers.append(_Answer(best, FinishReason.STOP, made, scored))
        return answers
