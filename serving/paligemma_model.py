"""The model behind `serving.paligemma`; imported by vLLM, by name, and by nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch  # noqa: TID253  # vLLM imports this module when it builds the model
from vllm.model_executor.layers.attention import PrefillPrefixLMAttention  # noqa: TID253
from vllm.model_executor.models import gemma, gemma2  # noqa: TID253
from vllm.model_executor.models.paligemma import (  # noqa: TID253
    PaliGemmaDummyInputsBuilder,
    PaliGemmaForConditionalGeneration,
    PaliGemmaMultiModalProcessor,
    PaliGemmaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: TID253


@contextmanager
def _prefix_attention() -> Iterator[None]:
    """Within it, decoder layers of Gemma 1 and 2 are built with prefix attention."""
    stock = [(module, module.Attention) for module in (gemma, gemma2)]
    try:
        for module, _ in stock:
            module.Attention = PrefillPrefixLMAttention
        yield
    finally:
        for module, attention in stock:
            module.Attention = attention


@MULTIMODAL_REGISTRY.register_processor(
    PaliGemmaMultiModalProcessor,
    info=PaliGemmaProcessingInfo,
    dummy_inputs=PaliGemmaDummyInputsBuilder,
)
class PrefixPaliGemma(PaliGemmaForConditionalGeneration):  # type: ignore[misc] # vLLM has no types
    """PaliGemma 1 and 2 with attention in both directions over image and prompt.

    Beside normalised float pixels it takes `pixel_values` as uint8, shape (images, height, width,
    3): a quarter of the bytes between processes, normalised where the model is.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        text = vllm_config.model_config.hf_config.text_config
        if text.model_type == "gemma2":
            # PaliGemma 2 was tuned without the soft-capping it was pre-trained with, and
            # transformers caps neither its attention (by default) nor its logits.
            text.attn_logit_softcapping = None
            text.final_logit_softcapping = None
        with _prefix_attention():
            super().__init__(vllm_config=vllm_config, prefix=prefix)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Image features, one row per image token; see vLLM's interface."""
        pixels = kwargs.get("pixel_values")
        if isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8:
            # (x / 255 - 0.5) / 0.5 of SigLIP's image processor (Pillow backend), bit for bit, for
            # only powers of two are moved; in place it takes two thirds of the time.
            scaled = pixels.permute(0, 3, 1, 2).to(
                torch.float32, memory_format=torch.contiguous_format
            )
            kwargs["pixel_values"] = scaled.div_(127.5).sub_(1)
        return super().embed_multimodal(**kwargs)
