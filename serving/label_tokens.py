"""Labels as token sequences, and how the vLLM engine names them to its logits processor."""

from collections.abc import Sequence

SEQUENCES = "facescan_sequences"
"""Key among a request's extra arguments: the token sequences its answer may be, end included."""

LOGITS_PROCESSOR = "serving.label_logits:LabelLogits"
"""The processor's name as vLLM imports it."""


def allowed(sequences: Sequence[Sequence[int]], output_ids: list[int]) -> tuple[int, ...]:
    """The tokens with which some sequence goes on after `output_ids`, ascending."""
    length = len(output_ids)
    following = {
        sequence[length]
        for sequence in sequences
        if len(sequence) > length and list(sequence[:length]) == output_ids
    }
    return tuple(sorted(following))
