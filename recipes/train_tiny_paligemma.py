"""Train the tiny PaliGemma that ships with facescan, from nothing, on drawn faces.

    python -m recipes.train_tiny_paligemma --output-dir facescan/models/tiny-paligemma

All of transformers' PaliGemma classes at small sizes: 0.9 million parameters, pictures of 64x64
pixels. About half an hour on two cores.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes import tiny_models
from recipes.tiny_models import IMAGE_SIZE, IMAGE_TOKENS, LAYERS, PATCH_SIZE, WIDTH, Asked, Recipe


def make_processor(folder: Path, asked: list[Asked]) -> Any:
    """See `Recipe`."""
    from transformers import AutoProcessor
    from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

    tokenizer = tiny_models.tokenizer(tiny_models.texts(asked), size=400)
    # PaliGemma's processor adds these when it is loaded: they must be inside the vocabulary.
    tokenizer.add_tokens(EXTRA_TOKENS)
    tokenizer.save_pretrained(folder)
    tiny_models.write_image_processor(
        folder,
        image_processor_type="SiglipImageProcessor",
        processor_class="PaliGemmaProcessor",
        image_seq_length=IMAGE_TOKENS,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )
    return AutoProcessor.from_pretrained(folder, backend="pil")


def make_model(tokenizer: Any) -> Any:
    """See `Recipe`."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        text_config={
            "model_type": "gemma",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 160,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "num_image_tokens": IMAGE_TOKENS,
            # 0.02, the default, is for wide models: at this width the picture would hardly show
            # in the first layers' output, and a thousand steps would go by before it does.
            "initializer_range": 0.08,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 192,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": WIDTH,
            "num_image_tokens": IMAGE_TOKENS,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return PaliGemmaForConditionalGeneration(config)


def text(processor: Any, question: str) -> str:
    """See `Recipe`."""
    del processor
    return f"<image>{question}"


def row(processor: Any, question: str, answer: str) -> Mapping[str, list[int]]:
    """See `Recipe`; the processor itself makes suffix, labels and token types."""
    made = processor(images=tiny_models.blank(), text=text(processor, question), suffix=answer)
    made.pop("pixel_values")
    return {name: values[0] for name, values in made.items()}


RECIPE = Recipe(
    card="tiny-paligemma",
    protocol="facescan-paligemma",
    steps=5_000,
    faces=96_000,
    make_processor=make_processor,
    make_model=make_model,
    text=text,
    row=row,
    renames={
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
)


if __name__ == "__main__":
    tiny_models.command(RECIPE)
