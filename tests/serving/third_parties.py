"""What tests with a real vLLM mark themselves with: slow, and others' warnings let through."""

import pytest

VLLM = [
    pytest.mark.slow,
    # torch, of itself, when vLLM imports it.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    # vLLM walks through the attributes of torch.distributed when it looks for kernels.
    pytest.mark.filterwarnings("ignore:.torch.distributed.reduce_op. is deprecated:FutureWarning"),
    # transformers' PaliGemma processor makes numpy arrays of tensors.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]
