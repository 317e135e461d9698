"""PaliGemma 1 and 2 by transformers: exact, and where vLLM cannot run.

It takes the same pixels and tokens as the vLLM engine, and answers in the same modes; answers of
the two are equal, so a card may be run by either (`--engine torch`). Requests that ask the same
question have prompts of one length, so batches need no padding and a picture's answer does not
depend on what stands beside it but for rounding.

`engine_options` of a card, all optional:

- `batch_size` (32): pictures of a step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from facescan.decoding import Pixels
from facescan.errors import EngineError, EngineUnavailable
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, FinishReason, Question
from serving import weights
from serving.engine import EngineInfo, EngineSettings, given, uninstalled
from serving.label_tokens import allowed
from serving.prompt_forms import PaliGemmaForm
from serving.steps import Answer, StepEngine, likeliest
from serving.weights import Weights

_MODEL_TYPE = "paligemma"


class Options(BaseModel):
    """A card's `engine_options`; the module's docstring says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(default=32, ge=1)


def missing() -> str | None:
    """See `serving.engine.EngineModule`."""
    return uninstalled("torch", "transformers")


def preprocessing(card: ModelCard) -> str:
    """See `serving.engine.EngineModule`; the words of the vLLM engine, whose pixels these are."""
    del card
    return "upright RGB; the checkpoint's own image processor, on Pillow"


def numerics(card: ModelCard) -> dict[str, str]:
    """See `serving.engine.EngineModule`."""
    card.options(Options)
    return {"dtype": card.dtype}


def cannot_ask(card: ModelCard, question: Question) -> str | None:
    """See `serving.engine.EngineModule`."""
    del card
    if question.answer_schema:
        return "it enforces no JSON schema; `choice` is its way to hold a model to a list"
    if question.decoding.temperature:
        return f"it is greedy; temperature {question.decoding.temperature} needs another engine"
    return None


def load(card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings) -> StepEngine:
    """See `serving.engine.EngineModule`."""
    if (lacking := missing()) is not None:
        raise EngineUnavailable(lacking)
    checkpoint = given(card, checkpoint)
    options = card.options(Options)
    found = weights.find(checkpoint)
    kind = found.config.get("model_type")
    if kind != _MODEL_TYPE:
        raise EngineError(
            f"{checkpoint.path}: a checkpoint of '{kind}'; engine torch runs '{_MODEL_TYPE}'"
        )
    import torch
    from transformers import AutoModelForImageTextToText

    torch.set_num_threads(settings.cpus)
    dtype = card.dtype if card.dtype == "auto" else getattr(torch, card.dtype)
    model = weights.load_model(AutoModelForImageTextToText, found, dtype=dtype)
    network = _PaliGemma(model.to("cuda" if settings.gpus else "cpu"), found)
    return StepEngine(network, options.batch_size, settings)


class _PaliGemma:
    """See `serving.steps.Network`.

    Args:
        model: in evaluation mode, on its device.
        found: its files.
    """

    def __init__(self, model: Any, found: Weights) -> None:
        import torch
        import transformers

        self._model = model
        self._form = PaliGemmaForm(found)
        self._end = self._form.end_tokens[0]
        self.size: tuple[int, int] | None = self._form.size
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

    def see(self, pictures: Sequence[Pixels]) -> Any:
        """Pixels as the processor of the checkpoint scales them, to which the form was held."""
        import torch

        stacked = torch.from_numpy(np.stack(pictures)).to(self._model.device, torch.float32)
        scaled = stacked.permute(0, 3, 1, 2).contiguous() / 127.5 - 1
        return scaled.to(self._model.dtype)

    def ask(self, question: Question, seen: Any) -> list[Answer]:
        """See `serving.steps.Network`."""
        import torch

        prompt = self._form.prompt_tokens(question.prompt)
        labels = {
            tuple(self._form.label_tokens(question.prompt, label)): label
            for label in (question.labels if question.answer_mode is not AnswerMode.FREE else ())
        }
        with torch.inference_mode():
            match question.answer_mode:
                case AnswerMode.SCORE:
                    return self._scores(prompt, labels, seen)
                case AnswerMode.CHOICE:
                    longest = max(map(len, labels))
                    made = self._generate(prompt, seen, longest, list(labels))
                    return [Answer(labels[t], FinishReason.STOP, len(prompt), len(t)) for t in made]
                case AnswerMode.FREE:
                    made = self._generate(prompt, seen, question.decoding.max_tokens, None)
                    return [self._free(len(prompt), tokens) for tokens in made]

    def _free(self, tokens_in: int, tokens: tuple[int, ...]) -> Answer:
        ended = FinishReason.STOP if tokens[-1] == self._end else FinishReason.LENGTH
        return Answer(self._form.text(list(tokens)), ended, tokens_in, len(tokens))

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
    ) -> list[Answer]:
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
        return [
            likeliest(
                zip(labels.values(), row, strict=True), tokens_in=len(prompt), tokens_out=made
            )
            for row in zip(*columns, strict=True)
        ]
