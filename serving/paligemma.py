"""PaliGemma's own attention for vLLM: a general plugin that adds one architecture name.

PaliGemma is a prefix language model: the tokens of image and prompt attend to each other in both
directions, and only the answer is causal. vLLM's own PaliGemma attends in both directions over
image tokens at most. The plugin registers a subclass with the right attention under a name of its
own, so other users of the environment keep vLLM's; an engine asks for ours with `HF_OVERRIDES`.
"""

ARCHITECTURE = "FacescanPaliGemmaForConditionalGeneration"
"""The name in vLLM's model registry."""

HF_OVERRIDES = {"architectures": [ARCHITECTURE], "is_mm_prefix_lm": False}
"""What turns a published PaliGemma configuration into ours. `is_mm_prefix_lm` makes vLLM build a
mask over image tokens, which would take the place of the whole prefix."""


def register() -> None:
    """Add the architecture to vLLM's registry; vLLM calls this once in each of its processes."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # By name: importing the model here would cost every vLLM process of the environment.
        ModelRegistry.register_model(ARCHITECTURE, "serving.paligemma_model:PrefixPaliGemma")
