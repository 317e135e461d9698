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

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from facescan.decoding import Pixels
from facescan.errors import EngineError, EngineUnavailable
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, FinishReason, Question
from serving import weights
from serving.engine import EngineInfo, EngineSettings, given, uninstalled
from serving.label_tokens import allowed
from serving.steps import Answer, StepEngine, UnaskableError, likeliest
from serving.weights import Weights

_MODEL_TYPE = "florence2"


class Options(BaseModel):
    """A card's `engine_options`; the module's docstring says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beams: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)


def missing() -> str | None:
    """See `serving.engine.EngineModule`."""
    return uninstalled("torch", "transformers")


def preprocessing(card: ModelCard) -> str:
    """See `serving.engine.EngineModule`."""
    del card
    return "upright RGB; the checkpoint's own image processor, on Pillow"


def numerics(card: ModelCard) -> dict[str, str]:
    """See `serving.engine.EngineModule`."""
    return {"dtype": card.dtype, "beams": str(card.options(Options).beams)}


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
            f"{checkpoint.path}: a checkpoint of '{kind}'; engine florence runs '{_MODEL_TYPE}'"
        )
    import torch
    from transformers import Florence2ForConditionalGeneration

    form = _Form(found)
    torch.set_num_threads(settings.cpus)
    model = weights.load_model(
        Florence2ForConditionalGeneration,
        found,
        hint="a checkpoint in the layout of Microsoft's own code must be converted first, as those "
        "of florence-community are",
        dtype=card.dtype if card.dtype == "auto" else getattr(torch, card.dtype),
    )
    network = _Florence(model.to("cuda" if settings.gpus else "cpu"), form, found, options.beams)
    return StepEngine(network, options.batch_size, settings)


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


class _Florence:
    """See `serving.steps.Network`.

    Args:
        model: in evaluation mode, on its device.
        form: of its processor.
        found: its files.
        beams: of free answers.

    Raises:
        EngineError: processor and model do not agree on how many tokens a picture is.
    """

    def __init__(self, model: Any, form: _Form, found: Weights, beams: int) -> None:
        import torch
        import transformers

        self._model = model
        self._form = form
        self._beams = beams
        self._longest = int(model.config.text_config.max_position_embeddings)
        self.size: tuple[int, int] | None = form.size
        generation = model.generation_config
        first = generation.forced_bos_token_id
        self._begun = [model.config.text_config.decoder_start_token_id]
        self._begun += [] if first is None else [first]
        self.info = EngineInfo(
            f"florence, torch {torch.__version__}, transformers {transformers.__version__} "
            f"({model.device.type})",
            found.resolved,
            {
                "dtype": str(model.dtype).removeprefix("torch."),
                "beams": str(beams),
                "torch": torch.__version__,
            },
        )
        self._check_image_tokens(found)

    def _check_image_tokens(self, found: Weights) -> None:
        seen = self.see([np.zeros((*reversed(self._form.size), 3), np.uint8)]).shape[1]
        places = self._form.prompt_tokens("").count(self._model.config.image_token_id)
        if seen != places:
            raise EngineError(
                f"{found.resolved}: a picture is {seen} tokens of the model, and its processor "
                f"leaves room for {places} (image_seq_length)"
            )

    def see(self, pictures: Sequence[Pixels]) -> Any:
        """Tokens of the encoder, shape (pictures, tokens, width)."""
        import torch

        scaled = torch.from_numpy(self._form.scaled(np.stack(pictures)))
        with torch.inference_mode():
            moved = scaled.to(self._model.device, self._model.dtype)
            return self._model.get_image_features(moved).pooler_output

    def ask(self, question: Question, seen: Any) -> list[Answer]:
        """See `serving.steps.Network`."""
        import torch

        prompt = self._form.prompt_tokens(question.prompt)
        if len(prompt) > self._longest:
            raise UnaskableError(
                f"the picture and the question are {len(prompt)} tokens, and the model reads at "
                f"most {self._longest}"
            )
        labels = {
            self._form.label_tokens(label): label
            for label in (question.labels if question.answer_mode is not AnswerMode.FREE else ())
        }
        with torch.inference_mode():
            encoded = self._encoded(prompt, seen)
            match question.answer_mode:
                case AnswerMode.SCORE:
                    return self._scores(prompt, labels, encoded)
                case AnswerMode.CHOICE:
                    return [
                        Answer(labels[tokens], FinishReason.STOP, len(prompt), len(tokens))
                        for tokens in self._choices(list(labels), encoded)
                    ]
                case AnswerMode.FREE:
                    made = self._generate(
                        encoded, question.decoding.max_tokens, num_beams=self._beams
                    )
                    return [self._free(len(prompt), tokens) for tokens in made]

    def _free(self, tokens_in: int, tokens: tuple[int, ...]) -> Answer:
        ended = FinishReason.STOP if tokens[-1] == self._form.end else FinishReason.LENGTH
        return Answer(self._form.text(tokens), ended, tokens_in, len(tokens))

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

    def _scores(
        self, prompt: list[int], labels: dict[tuple[int, ...], str], encoded: Any
    ) -> list[Answer]:
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
        return [
            likeliest(
                zip(labels.values(), row, strict=True), tokens_in=len(prompt), tokens_out=made
            )
            for row in zip(*columns, strict=True)
        ]
