"""How a model takes a picture and a question: one form per architecture.

A form turns text into the exact token ids, and names the pixels, that the model's own processor
would make, so that the processor itself need not run for every request.
"""

from typing import Any, Protocol

import numpy as np

from facescan.errors import EngineError
from serving import paligemma
from serving.weights import Weights


class PromptForm(Protocol):
    """What an engine needs to know of an architecture.

    Attributes:
        hf_overrides: what vLLM is to read differently in the checkpoint's configuration.
        attention: how the model attends, for the run's manifest.
        size: (width, height) in pixels of what the model sees.
        image_span: (offset, length) of the image tokens in every prompt.
        end_token: the token id that ends an answer.
    """

    hf_overrides: dict[str, Any]
    attention: str
    size: tuple[int, int]
    image_span: tuple[int, int]
    end_token: int

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The whole prompt as token ids, image tokens included."""
        ...

    def label_tokens(self, prompt: str, label: str) -> list[int]:
        """The canonical tokens of `label` as an answer to `prompt`, end token included."""
        ...

    def text(self, tokens: list[int]) -> str:
        """An answer's text, without special tokens."""
        ...


class PaliGemmaForm:
    """`<image>` times n, `<bos>`, the prompt, a newline; the answer follows the newline."""

    def __init__(self, weights: Weights) -> None:
        from transformers import AutoProcessor

        self.hf_overrides = paligemma.HF_OVERRIDES
        self.attention = "prefix: both ways over image and prompt"
        # The Pillow backend is what the published checkpoints were made with; the default
        # (torchvision) is up to 20 of 255 levels away from it on noise.
        self._processor = AutoProcessor.from_pretrained(weights.processor, backend="pil")
        side = int(weights.config["vision_config"].get("image_size", 224))
        self.size = (side, side)
        self._blank = np.zeros((side, side, 3), np.uint8)
        self.end_token = int(self._processor.tokenizer.eos_token_id)
        self.image_span = (0, int(self._processor.image_seq_length))
        self._check_pixels()

    def _check_pixels(self) -> None:
        """Hold the arithmetic of `serving.paligemma_model` to this checkpoint's processor."""
        picture = self._blank.copy()
        picture.reshape(-1)[:256] = np.arange(256)
        expected = self._processor.image_processor(images=picture, return_tensors="np")
        ours = (picture.astype(np.float32) / 255 - 0.5) / 0.5
        if not np.array_equal(expected["pixel_values"][0], ours.transpose(2, 0, 1)):
            raise EngineError(
                "the checkpoint's image processor does not scale pixels from -1 to 1 at "
                f"{self.size[0]}x{self.size[1]}, which is what this engine makes"
            )

    def _ids(self, prompt: str, **suffix: str) -> Any:
        made = self._processor(
            images=self._blank, text=f"<image>{prompt}", return_tensors="np", **suffix
        )
        return made["input_ids"][0], made["token_type_ids"][0]

    def prompt_tokens(self, prompt: str) -> list[int]:
        """See `PromptForm`."""
        tokens, _ = self._ids(prompt)
        return [int(token) for token in tokens]

    def label_tokens(self, prompt: str, label: str) -> list[int]:
        """What the processor makes of the label as `suffix`: the form the model is trained on."""
        tokens, in_answer = self._ids(prompt, suffix=label)
        return [int(token) for token in tokens[in_answer == 1]]

    def text(self, tokens: list[int]) -> str:
        """See `PromptForm`."""
        return str(self._processor.tokenizer.decode(tokens, skip_special_tokens=True))


_FORMS: dict[str, type[PaliGemmaForm]] = {"PaliGemmaForConditionalGeneration": PaliGemmaForm}


def form(weights: Weights) -> PromptForm:
    """The form of a checkpoint's architecture.

    Raises:
        EngineError: the architecture has none, or the processor's files are not there.
    """
    names = weights.config.get("architectures") or ["(none named)"]
    if names[0] not in _FORMS:
        raise EngineError(
            f"{weights.resolved}: architecture {names[0]}; known here: {', '.join(_FORMS)}"
        )
    try:
        return _FORMS[names[0]](weights)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{weights.processor}: no usable processor: {error}") from error
