"""How a model takes a picture and a question: one form per architecture.

A form turns text into the exact token ids, and names the pixels, that the model's own processor
would make, so that the processor itself need not run for every request.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from facescan.decoding import Pixels
from facescan.errors import EngineError
from serving import paligemma
from serving.chat_form import ChatForm
from serving.weights import Weights

_TEXT_ROOM = 512


class PromptForm(Protocol):
    """What an engine needs to know of an architecture.

    Attributes:
        vllm_arguments: of `vllm.engine.arg_utils.EngineArgs`, beside those that every model has.
        attention: how the model attends, for the run's manifest.
        size: (width, height) in pixels of what the model sees; None: pictures come as they are.
        max_model_len: tokens that are enough for any picture, a question and its answer.
        max_num_seqs: requests of a step, with their pictures in memory.
        end_tokens: the token ids that end an answer; the first is the one labels end with.
    """

    vllm_arguments: dict[str, Any]
    attention: str
    size: tuple[int, int] | None
    max_model_len: int
    max_num_seqs: int
    end_tokens: tuple[int, ...]

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The whole prompt as token ids, with what `inputs` takes for the picture's place."""
        ...

    def label_tokens(self, prompt: str, label: str) -> list[int]:
        """The canonical tokens of `label` as an answer to `prompt`, end token included."""
        ...

    def text(self, tokens: list[int]) -> str:
        """An answer's text, without special tokens."""
        ...

    def inputs(
        self, renderer: Any, sha256: str, pixels: Pixels, prompts: Sequence[list[int]]
    ) -> list[dict[str, Any]]:
        """Each of these prompts about a picture as vLLM's `EngineInput`, with shared features.

        Called from several threads.

        Args:
            renderer: the engine's.
            sha256: of the picture; inputs with the same one share features in vLLM, too.
            pixels: of `size`.
            prompts: from `prompt_tokens`.

        Raises:
            ValueError: vLLM cannot take the picture, such as one of too many tokens.
        """
        ...


class PaliGemmaForm:
    """`<image>` times n, `<bos>`, the prompt, a newline; the answer follows the newline."""

    def __init__(self, weights: Weights) -> None:
        from transformers import AutoProcessor

        self.vllm_arguments: dict[str, Any] = {
            "hf_overrides": paligemma.HF_OVERRIDES,
            # Of PaliGemma 2. A window as long as the longest sequence is none, and the attention
            # over a whole prefix knows none.
            "disable_sliding_window": True,
        }
        self.attention = "prefix: both ways over image and prompt"
        # The Pillow backend is what the published checkpoints were made with; the default
        # (torchvision) is up to 20 of 255 levels away from it on noise.
        self._processor = AutoProcessor.from_pretrained(weights.processor, backend="pil")
        side = int(weights.config["vision_config"].get("image_size", 224))
        self.size: tuple[int, int] | None = (side, side)
        self._blank = np.zeros((side, side, 3), np.uint8)
        self.end_tokens: tuple[int, ...] = (int(self._processor.tokenizer.eos_token_id),)
        self._image_tokens = int(self._processor.image_seq_length)
        self.max_model_len = self._image_tokens + _TEXT_ROOM
        self.max_num_seqs = 512
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
                f"{picture.shape[1]}x{picture.shape[0]}, which is what this engine makes"
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

    def inputs(
        self, renderer: Any, sha256: str, pixels: Pixels, prompts: Sequence[list[int]]
    ) -> list[dict[str, Any]]:
        """See `PromptForm`; uint8 pixels are all that `serving.paligemma_model` needs."""
        import torch
        from vllm.multimodal.inputs import (
            MultiModalBatchedField,
            MultiModalFieldElem,
            MultiModalKwargsItem,
            MultiModalKwargsItems,
            PlaceholderRange,
        )

        element = MultiModalFieldElem(data=torch.from_numpy(pixels), field=MultiModalBatchedField())
        item = MultiModalKwargsItem({"pixel_values": element})
        picture = {
            "type": "multimodal",
            "mm_kwargs": MultiModalKwargsItems({"image": [item]}),
            "mm_hashes": {"image": [sha256]},
            "mm_placeholders": {"image": [PlaceholderRange(0, self._image_tokens)]},
        }
        return [picture | {"prompt_token_ids": tokens} for tokens in prompts]


_FORMS: dict[str, Callable[[Weights], PromptForm]] = {
    "PaliGemmaForConditionalGeneration": PaliGemmaForm
}
"""Architectures with a form of their own; all others are chat models."""


def form(weights: Weights) -> PromptForm:
    """The form of a checkpoint's architecture.

    Raises:
        EngineError: the processor's files are not there, or it is no chat model with pictures.
    """
    names = weights.config.get("architectures") or ["(none named)"]
    try:
        return _FORMS.get(names[0], ChatForm)(weights)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise EngineError(
            f"{weights.processor}: no usable processor for {names[0]}: {error}"
        ) from error
