"""Train the tiny LLaVA that ships with facescan, from nothing, on drawn faces.

    python -m recipes.train_tiny_llava --output-dir facescan/models/tiny-llava

All of transformers' LLaVA-1.5 classes at small sizes: a CLIP tower, a projector, a Llama, and
LLaVA-1.5's chat template. About half an hour on two cores.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes import tiny_models
from recipes.tiny_models import IMAGE_SIZE, LAYERS, PATCH_SIZE, WIDTH, Asked, Recipe

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- message['role'].upper() + ': ' }}
{%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def make_processor(folder: Path, asked: list[Asked]) -> Any:
    """See `Recipe`."""
    from transformers import AutoProcessor

    tiny_models.tokenizer(tiny_models.texts(asked), size=1000, begins=True).save_pretrained(folder)
    tiny_models.write_image_processor(
        folder,
        image_processor_type="CLIPImageProcessor",
        do_center_crop=True,
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH_SIZE,
        "vision_feature_select_strategy": "default",
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return AutoProcessor.from_pretrained(folder, backend="pil")


def make_model(tokenizer: Any) -> Any:
    """See `Recipe`."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            # 0.02, the default, is for wide models: see `recipes.train_tiny_paligemma`.
            "initializer_range": 0.08,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 192,
            # The last one is not used: LLaVA takes the features before it.
            "num_hidden_layers": LAYERS + 1,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": WIDTH,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaForConditionalGeneration(config)


def text(processor: Any, question: str) -> str:
    """See `Recipe`."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return str(
        processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    )


def row(processor: Any, question: str, answer: str) -> Mapping[str, list[int]]:
    """See `Recipe`; what follows the prompt is learned, the end token included."""
    begun = text(processor, question)
    end = processor.tokenizer.eos_token
    before, whole = (
        processor(images=tiny_models.blank(), text=each)
        for each in (begun, f"{begun} {answer}{end}")
    )
    tokens, length = whole["input_ids"][0], len(before["input_ids"][0])
    return {
        "input_ids": tokens,
        "attention_mask": whole["attention_mask"][0],
        "labels": [-100] * length + tokens[length:],
    }


RECIPE = Recipe(
    card="tiny-llava",
    protocol="neutral",
    steps=3_000,
    faces=48_000,
    make_processor=make_processor,
    make_model=make_model,
    text=text,
    row=row,
    renames={
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
)


if __name__ == "__main__":
    tiny_models.command(RECIPE)
