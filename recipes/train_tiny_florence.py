"""Train the tiny Florence-2 that ships with facescan, from nothing, on drawn faces.

    python -m recipes.train_tiny_florence --output-dir facescan/models/tiny-florence

All of transformers' Florence-2 classes at small sizes: a DaViT tower of three stages, a projector
with its positions, a BART, and the task token in the question. A quarter of an hour on two cores.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes import tiny_models
from recipes.tiny_models import IMAGE_SIZE, WIDTH, Asked, Recipe

LAYERS = 2
"""Of BART's encoder, and of its decoder."""

IMAGE_TOKENS = 4 * 4 + 1
"""One for each position that DaViT's last stage leaves of 64x64 pixels, one for their mean."""

TASK = "<DocVQA>"
"""Stands before every question, by the `prompt` of the card."""


def make_processor(folder: Path, asked: list[Asked]) -> Any:
    """See `Recipe`."""
    from transformers import AutoProcessor

    corpus = [TASK, *tiny_models.texts(asked)]
    tiny_models.tokenizer(corpus, size=500, encoder=True).save_pretrained(folder)
    tiny_models.write_image_processor(
        folder,
        image_processor_type="CLIPImageProcessor",
        image_seq_length=IMAGE_TOKENS,
        do_center_crop=False,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )
    processor = {"processor_class": "Florence2Processor"}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    return AutoProcessor.from_pretrained(folder, backend="pil")


def make_model(tokenizer: Any) -> Any:
    """See `Recipe`."""
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    config = Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": WIDTH,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS,
            "encoder_ffn_dim": 256,
            "decoder_ffn_dim": 256,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 256,
            "dropout": 0.0,
            # 0.02, the default, is for wide models: see `recipes.train_tiny_paligemma`.
            "init_std": 0.08,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            # As in the published ones: an answer begins with the end token and the first one.
            "decoder_start_token_id": tokenizer.eos_token_id,
            "forced_eos_token_id": None,
        },
        vision_config={
            # Stages of 16x16, 8x8 and 4x4 positions.
            "depths": [1, 1, 1],
            "patch_size": [7, 3, 3],
            "patch_stride": [4, 2, 2],
            "patch_padding": [3, 1, 1],
            "patch_prenorm": [False, True, True],
            "embed_dim": [48, 96, WIDTH],
            "num_heads": [3, 3, 4],
            "num_groups": [3, 3, 4],
            "window_size": 4,
            "mlp_ratio": 2.0,
            "drop_path_rate": 0.0,
            "projection_dim": WIDTH,
            "max_position_embeddings": 4,
            "max_temporal_embeddings": 1,
            "initializer_range": 0.08,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = tokenizer.eos_token_id
    model.generation_config.forced_bos_token_id = tokenizer.bos_token_id
    return model


def text(processor: Any, question: str) -> str:
    """See `Recipe`."""
    del processor
    return TASK + question


def row(processor: Any, question: str, answer: str) -> Mapping[str, list[int]]:
    """See `Recipe`; the decoder's tokens stand beside those of the encoder."""
    made = processor(images=tiny_models.blank(), text=text(processor, question))
    tokenizer = processor.tokenizer
    said = tokenizer(answer, add_special_tokens=False)["input_ids"]
    answered = [tokenizer.bos_token_id, *said, tokenizer.eos_token_id]
    return {
        "input_ids": made["input_ids"][0],
        "attention_mask": made["attention_mask"][0],
        "decoder_input_ids": [tokenizer.eos_token_id, *answered],
        "labels": [-100, *answered],
    }


RECIPE = Recipe(
    card="tiny-florence",
    protocol="paper-florence",
    steps=2_500,
    faces=24_000,
    make_processor=make_processor,
    make_model=make_model,
    text=text,
    row=row,
    renames={"model.": "model."},
    # BART normalises after it adds, and bears no more: at 1.5e-3 age and emotion were not learned.
    rate=5e-4,
)


if __name__ == "__main__":
    tiny_models.command(RECIPE)
