"""Florence-2 by transformers' own classes: a DaViT tower before a BART; no code of a repository.

The picture and the question are read by an encoder, the answer is written by a decoder that begins
with the end token and the first one. The vision tower runs once for a picture, the encoder once for
a question about it, however many labels there are. Requests that ask the same question have
prompts of one length, so batches need no padding and a picture's answer does not depend on what
stands beside it but for rounding.

What the checkpoint's `generation_config.json` says of free answers holds (the published ones forbid
to say three tokens twice), but for the number of beams, which is the card's, and for a forced end:
an answer that was cut off says so.

`engine_options` of a card, all optional:

- `beams` (1, greedy): of free answers.
- `batch_size` (8): pictures of a step.
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
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facescan.decoding import Pixels
from facescan.errors import BadImage, EngineError, EngineUnavailable, UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, FinishReason, Question, Reply, Request
from serving import weights
from serving.engine import EngineInfo, EngineSettings, failed
from serving.label_tokens import allowed
from serving.weights import Weights

_MODEL_TYPE = "florence2"


class Options(BaseModel):
    """A card's `engine_options`; the module's docstring says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beams: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)


def missing() -> str | None:
    """See `serving.engine.EngineModule`."""
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            return f"{package} is not installed; install facescan[cpu], or facescan[gpu] for CUDA"
    return None


def preprocessing(card: ModelCard) -> str:
    """See `serving.engine.EngineModule`."""
    del card
    return "upright RGB; the checkpoint's own image processor, on Pillow"


def numerics(card: ModelCard) -> dict[str, str]:
    """See `serving.engine.EngineModule`."""
    return {"dtype": card.dtype, "beams": str(_options(card).beams)}


def cannot_ask(card: ModelCard, question: Question) -> str | None:
    """See `serving.engine.EngineModule`."""
    del card
    if question.answer_schema:
        return "it enforces no JSON schema; `choice` is its way to hold a model to a list"
    if question.decoding.temperature:
        return (
            f"it is greedy or searches with beams; temperature {question.decoding.temperature} "
            "needs another engine"
        )
    return None


def _options(card: ModelCard) -> Options:
    try:
        return Options.model_validate(card.engine_options)
    except ValidationError as error:
        raise UsageError(f"model '{card.name}': engine_options: {error}") from error


def load(
    card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings
) -> "FlorenceEngine":
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
            f"{checkpoint.path}: a checkpoint of '{kind}'; engine florence runs '{_MODEL_TYPE}'"
        )
    form = _Form(found)
    return FlorenceEngine(_model(found, card.dtype, settings), form, found, options, settings)


def _model(found: Weights, dtype: str, settings: EngineSettings) -> Any:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import Florence2ForConditionalGeneration

    torch.set_num_threads(settings.cpus)
    try:
        model, report = Florence2ForConditionalGeneration.from_pretrained(
            found.folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, StrictDataclassError) as error:
        raise EngineError(f"{found.resolved}: transformers cannot load it: {error}") from error
    # transformers fills with random numbers what it does not find under its own names.
    if absent := sorted(report["missing_keys"]):
        raise EngineError(
            f"{found.resolved}: lacks {len(absent)} weights of transformers' Florence-2, such as "
            f"{absent[0]}; a checkpoint in the layout of Microsoft's own code must be converted "
            "first, as those of florence-community are"
        )
    return model.to("cuda" if settings.gpus else "cpu").eval()


class _Form:
    """The picture's tokens, the first token, the question, the end token; its processor's work.

    Attributes:
        size: (width, height) in pixels of what the model sees.
        end: the token id that ends an answer.
    """

    def __init__(self, found: Weights) -> None:
        from transformers import Florence2Processor

        try:
            self._processor = Florence2Processor.from_pretrained(found.processor, backend="pil")
            image_processor = self._processor.image_processor
            self.size = (int(image_processor.size["width"]), int(image_processor.size["height"]))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise EngineError(
                f"{found.processor}: no usable processor of Florence-2: {error}"
            ) from error
        self._mean, self._deviation = (
            np.array(each, np.float32)[:, None, None]
            for each in (image_processor.image_mean, image_processor.image_std)
        )
        self.end = int(self._processor.tokenizer.eos_token_id)
        self._prompts: dict[str, list[int]] = {}
        self._check_pixels(found)

    def _check_pixels(self, found: Weights) -> None:
        """Hold the pixels made here to the checkpoint's processor."""
        picture = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
        expected = self._processor.image_processor(images=picture, return_tensors="np")[
            "pixel_values"
        ]
        resized = Image.fromarray(picture).resize(self.size, Image.Resampling.BICUBIC)
        ours = self.scaled(np.array(resized)[None])
        if ours.shape != expected.shape or np.abs(ours - expected).max() > 1e-5:
            raise EngineError(
                f"{found.processor}: its image processor does more than resize to "
                f"{self.size[0]}x{self.size[1]} (bicubic), scale and normalise, which is what this "
                "engine makes"
            )

    def scaled(self, pixels: Pixels) -> Any:
        """Pictures of `size` as the vision tower takes them: float32, channels first."""
        scaled = pixels.astype(np.float32).transpose(0, 3, 1, 2) / 255
        return (scaled - self._mean) / self._deviation

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The whole prompt, task tokens spelled out, with image tokens for the picture."""
        if prompt not in self._prompts:
            blank = np.zeros((*self.size, 3), np.uint8)
            made = self._processor(images=blank, text=prompt)
            self._prompts[prompt] = [int(token) for token in made["input_ids"][0]]
        return self._prompts[prompt]

    def label_tokens(self, label: str) -> tuple[int, ...]:
        """The canonical tokens of a label as an answer, end token included."""
        tokens = self._processor.tokenizer(label, add_special_tokens=False)["input_ids"]
        return (*map(int, tokens), self.end)

    def text(self, tokens: Sequence[int]) -> str:
        """An answer's text, without special tokens."""
        return str(self._processor.tokenizer.decode(tokens, skip_special_tokens=True))


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    finish_reason: FinishReason
    tokens_out: int
    label_logprobs: tuple[tuple[str, float], ...] = ()


class FlorenceEngine:
    """See the module's docstring and `serving.engine.Engine`.

    Args:
        model: in evaluation mode, on its device.
        form: of its processor.
        found: its files.
        options: of the card.
        settings: of the run.

    Raises:
        EngineError: processor and model do not agree on how many tokens a picture is.
    """

    def __init__(
        self, model: Any, form: _Form, found: Weights, options: Options, settings: EngineSettings
    ) -> None:
        import torch
        import transformers

        self._model = model
        self._form = form
        self._options = options
        self._decoders = settings.decoders
        generation = model.generation_config
        first = generation.forced_bos_token_id
        self._begun = [model.config.text_config.decoder_start_token_id]
        self._begun += [] if first is None else [first]
        self.calls_in_flight: int | None = None
        self.info = EngineInfo(
            f"florence, torch {torch.__version__}, transformers {transformers.__version__} "
            f"({model.device.type})",
            found.resolved,
            {
                "dtype": str(model.dtype).removeprefix("torch."),
                "beams": str(options.beams),
                "torch": torch.__version__,
            },
        )
        self._check_image_tokens(found)
        # One step at a time; the event loop and the decoders go on meanwhile.
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="florence")

    def _check_image_tokens(self, found: Weights) -> None:
        seen = self._see(np.zeros((1, *reversed(self._form.size), 3), np.uint8)).shape[1]
        places = self._form.prompt_tokens("").count(self._model.config.image_token_id)
        if seen != places:
            raise EngineError(
                f"{found.resolved}: a picture is {seen} tokens of the model, and its processor "
                f"leaves room for {places} (image_seq_length)"
            )

    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """See `serving.engine.Engine`."""
        loop = asyncio.get_running_loop()
        pictures = [list(group) for _, group in groupby(requests, lambda r: r.image.sha256)]
        for start in range(0, len(pictures), self._options.batch_size):
            began = time.monotonic()
            batch = pictures[start : start + self._options.batch_size]
            decoding = self._decoders.decode([about[0].image for about in batch], self._form.size)
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
            features = await loop.run_in_executor(self._steps, self._see, np.stack(good))
            for group in asked.values():
                question, places = group[0][0].question, [place for _, place in group]
                answers = await loop.run_in_executor(
                    self._steps, self._ask, question, features[places]
                )
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

    def _see(self, pixels: Pixels) -> Any:
        """Pictures, (pictures, height, width, 3), as tokens of the encoder; on the thread."""
        import torch

        scaled = torch.from_numpy(self._form.scaled(pixels))
        with torch.inference_mode():
            moved = scaled.to(self._model.device, self._model.dtype)
            return self._model.get_image_features(moved).pooler_output

    def _ask(self, question: Question, features: Any) -> list[_Answer]:
        """One question about a batch of pictures, (pictures, tokens, width); on the thread."""
        import torch

        labels = {
            self._form.label_tokens(label): label
            for label in (question.labels if question.answer_mode is not AnswerMode.FREE else ())
        }
        with torch.inference_mode():
            encoded = self._encoded(self._form.prompt_tokens(question.prompt), features)
            match question.answer_mode:
                case AnswerMode.SCORE:
                    return self._scores(labels, encoded)
                case AnswerMode.CHOICE:
                    return [
                        _Answer(labels[tokens], FinishReason.STOP, len(tokens))
                        for tokens in self._choices(list(labels), encoded)
                    ]
                case AnswerMode.FREE:
                    made = self._generate(
                        encoded, question.decoding.max_tokens, num_beams=self._options.beams
                    )
                    return [self._free(tokens) for tokens in made]

    def _free(self, tokens: tuple[int, ...]) -> _Answer:
        ended = FinishReason.STOP if tokens[-1] == self._form.end else FinishReason.LENGTH
        return _Answer(self._form.text(tokens), ended, len(tokens))

    def _encoded(self, prompt: list[int], features: Any) -> Any:
        """What the encoder makes of a question about each picture."""
        import torch

        tokens = torch.tensor([prompt], device=features.device).expand(len(features), -1)
        embedded = self._model.get_input_embeddings()(tokens)
        of_picture = (tokens == self._model.config.image_token_id)[..., None]
        embedded = embedded.masked_scatter(of_picture, features)
        return self._model.get_encoder()(inputs_embeds=embedded)

    def _generate(self, encoded: Any, longest: int, **more: Any) -> list[tuple[int, ...]]:
        """Answers of `longest` tokens at most, end token included where it was reached."""
        out = self._model.generate(
            encoder_outputs=encoded,
            do_sample=False,
            max_new_tokens=len(self._begun) - 1 + longest,
            eos_token_id=self._form.end,
            forced_eos_token_id=None,
            **more,
        )
        return [self._ended(row) for row in out[:, len(self._begun) :].tolist()]

    def _ended(self, tokens: list[int]) -> tuple[int, ...]:
        """Up to the first end token: shorter answers of a batch are filled up."""
        if self._form.end in tokens:
            return tuple(tokens[: tokens.index(self._form.end) + 1])
        return tuple(tokens)

    def _choices(self, sequences: list[tuple[int, ...]], encoded: Any) -> list[tuple[int, ...]]:
        """The sequence that greedy decoding among them arrives at."""

        def following(_: int, tokens: Any) -> list[int]:
            made = [int(token) for token in tokens]
            if len(made) < len(self._begun):
                return [self._begun[len(made)]]
            return list(allowed(sequences, made[len(self._begun) :])) or [self._form.end]

        return self._generate(
            encoded,
            max(map(len, sequences)),
            num_beams=1,
            no_repeat_ngram_size=0,
            prefix_allowed_tokens_fn=following,
        )

    def _scores(self, labels: dict[tuple[int, ...], str], encoded: Any) -> list[_Answer]:
        import torch
        from transformers import DynamicCache, EncoderDecoderCache

        count, device = len(encoded.last_hidden_state), encoded.last_hidden_state.device
        # What the decoder reads of the encoder is computed once, and so is how answers begin.
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        def logprobs(tokens: Sequence[int]) -> Any:
            ids = torch.tensor([tokens], device=device).expand(count, -1)
            out = self._model(
                decoder_input_ids=ids,
                encoder_outputs=encoded,
                past_key_values=cache,
                use_cache=True,
            )
            return out.logits.float().log_softmax(-1)

        begun = logprobs(self._begun)[:, -1:]
        columns = []
        for tokens in labels:
            every = torch.cat([begun, logprobs(tokens[:-1])], 1)
            cache.crop(-(len(tokens) - 1))
            wanted = torch.tensor(tokens, device=device).expand(count, -1)
            columns.append(every.gather(-1, wanted[..., None])[..., 0].sum(-1).tolist())
        made = sum(map(len, labels))
        answers = []
        for row in zip(*columns, strict=True):
            scored = tuple(zip(labels.values(), row, strict=True))
            best = max(scored, key=lambda pair: pair[1])[0]
            answers.append(_Answer(best, FinishReason.STOP, made, scored))
        return answers
