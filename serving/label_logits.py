"""Restricts a request's answer to given token sequences; imported by vLLM, by name.

One mechanism serves both constrained answer modes. Offered several sequences a request decodes
greedily over their trie (`choice`); offered one it is led along it (`score`). vLLM takes the
log-probabilities it reports before logits processors run, so they are the model's own.
"""

from collections.abc import Callable
from typing import Any

import torch  # noqa: TID253  # vLLM imports this module in the process that samples
from vllm.sampling_params import SamplingParams  # noqa: TID253
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor  # noqa: TID253

from serving.label_tokens import SEQUENCES, allowed


class LabelLogits(AdapterLogitsProcessor):  # type: ignore[misc] # vLLM has no types
    """Requests without `SEQUENCES` among their extra arguments pass untouched."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._device = device
        # Index tensors stay on the device: making one per row and step would wait for a copy.
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}

    def is_argmax_invariant(self) -> bool:
        """False: restricting is the point."""
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """The restriction of one request, or None."""
        sequences = (params.extra_args or {}).get(SEQUENCES)
        if sequences is None:
            return None

        def restrict(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            index = self._index(allowed(sequences, output_ids))
            kept = logits[index]
            logits.fill_(-torch.inf)
            logits[index] = kept
            return logits

        return restrict

    def _index(self, tokens: tuple[int, ...]) -> torch.Tensor:
        index = self._indices.get(tokens)
        if index is None:
            index = torch.tensor(tokens, dtype=torch.long, device=self._device)
            self._indices[tokens] = index
        return index
