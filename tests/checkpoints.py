"""Tiny random-weight checkpoints for tests, in the published layouts, each made in a second.

The files have the names and the weight layout of the published checkpoints (what vLLM loads, and
what transformers converts when it loads), a byte-level BPE tokenizer and float32 weights. The
weights are random but not arbitrary: at the usual initial scale such a model repeats one token
whatever it is shown, and a comparison of two engines would prove nothing.
"""

import json
from pathlib import Path
from typing import Any, Literal

from recipes import tiny_models

IMAGE_SIZE = 56
PATCH_SIZE = 14
CORPUS = [
    "answer en what is the age group of the person in the picture?",
    "from 0 to 9, from 10 to 19, from 20 to 29, more than 70",
    "what is the race, the gender, the emotion?",
    "Black, White, Indian, East Asian, Southeast Asian, Middle Eastern, Latino",
    "male, female, happy, sad, neutral, surprise, anger, fear, disgust, contempt",
]


def paligemma(
    folder: Path,
    version: Literal[1, 2] = 1,
    *,
    image_size: int = IMAGE_SIZE,
    width: int = 64,
    layers: int = 2,
    seed: int = 0,
) -> Path:
    """Write a checkpoint into `folder` (made if missing) and return it.

    `image_size` in pixels, a multiple of the patch of 14; `width` of both towers, a multiple of
    32. Version 2 has Gemma 2 as its language model, soft-capped logits and sliding windows
    included.
    """
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder)
    config = _config(tokenizer, version, image_size, width, layers)
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(config).eval()
    _randomise(model)
    _save(model, folder)
    _image_processor(folder, image_size)
    return folder


CHAT_TEMPLATES = {
    "llava": (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for content in message['content'] if content['type'] == 'image' %}"
        "{{ '<image>\n' }}{% endfor %}"
        "{% for content in message['content'] if content['type'] == 'text' %}"
        "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "llava-next": (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
        "{% for content in message['content'] if content['type'] == 'image' %}"
        "{{ '<image>\n' }}{% endfor %}"
        "{% for content in message['content'] if content['type'] == 'text' %}"
        "{{ content['text'] }}{% endfor %}{{ ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'][0]['text'] + '<eos>' }}{% endif %}{% endfor %}"
    ),
}
"""Of the published LLaVA-1.5 and LLaVA-v1.6-Mistral, as far as one turn goes."""


def llava(folder: Path, model: Literal["llava", "llava-next"] = "llava", *, seed: int = 0) -> Path:
    """Write a LLaVA-1.5 (Llama) or a LLaVA-NeXT (Mistral, pictures in tiles) into `folder`."""
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder, begins=True)
    config = _llava_config(tokenizer, model)
    torch.manual_seed(seed)
    made = {
        "llava": LlavaForConditionalGeneration,
        "llava-next": LlavaNextForConditionalGeneration,
    }[model]
    weights = made(config).eval()
    _randomise(weights)
    _save(weights, folder)
    _llava_processor(folder, model)
    return folder


def clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a CLIP into `folder`; its tokenizer has the published form, without merges."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|startoftext|>", "<|endoftext|>"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *special]
    CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
    ).save_pretrained(folder)
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 64,
    }
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config=tower
        | ends
        | {"vocab_size": len(words), "pad_token_id": len(words) - 1, "max_position_embeddings": 77},
        vision_config=tower | {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        projection_dim=64,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    for part in (model.text_model, model.vision_model):
        _randomise(part)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_CLIP_PIXELS, indent=2))
    return folder


_CLIP_PIXELS: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": IMAGE_SIZE},
}


def florence(folder: Path, *, seed: int = 0) -> Path:
    """Write a Florence-2 (DaViT of three stages, BART) into `folder`; a picture is 17 tokens."""
    import torch
    from transformers import Florence2ForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_models.tokenizer(CORPUS, size=336, encoder=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(_florence_config(tokenizer)).eval()
    _randomise(model)
    # Of the published checkpoints.
    model.generation_config.update(
        num_beams=3,
        early_stopping=True,
        no_repeat_ngram_size=3,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_bos_token_id=tokenizer.bos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    side = {"height": 64, "width": 64}
    pixels = _CLIP_PIXELS | {"do_center_crop": False, "image_seq_length": 17, "size": side}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2))
    processor = {"processor_class": "Florence2Processor"}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))
    return folder


def _florence_config(tokenizer: Any) -> Any:
    from transformers import Florence2Config

    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "max_position_embeddings": 128,
        "decoder_start_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "depths": [1, 1, 1],
        "patch_size": [7, 3, 3],
        "patch_stride": [4, 2, 2],
        "patch_padding": [3, 1, 1],
        "patch_prenorm": [False, True, True],
        "embed_dim": [32, 64, 64],
        "num_heads": [1, 2, 2],
        "num_groups": [1, 2, 2],
        "window_size": 4,
        "projection_dim": 64,
    }
    return Florence2Config(
        text_config=text | tokens,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **tokens,
    )


def _llava_config(tokenizer: Any, model: str) -> Any:
    from transformers import LlavaConfig, LlavaNextConfig

    text = {
        "model_type": "llama" if model == "llava" else "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": 64,
    }
    tokens = {
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if model == "llava":
        return LlavaConfig(text_config=text, vision_config=vision, **tokens)
    return LlavaNextConfig(
        text_config=text, vision_config=vision, image_grid_pinpoints=_PINPOINTS, **tokens
    )


_PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def _llava_processor(folder: Path, model: str) -> None:
    next_one = model == "llava-next"
    preprocessor = _CLIP_PIXELS
    if next_one:
        preprocessor = preprocessor | {
            "image_processor_type": "LlavaNextImageProcessor",
            "do_pad": True,
            "image_grid_pinpoints": _PINPOINTS,
        }
    processor = {
        "processor_class": "LlavaNextProcessor" if next_one else "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH_SIZE,
        "vision_feature_select_strategy": "default",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))
    template = json.dumps({"chat_template": CHAT_TEMPLATES[model]}, indent=2)
    (folder / "chat_template.json").write_text(template)


def _tokenizer(folder: Path, begins: bool = False) -> Any:
    # The processor adds these on loading; they must be inside the embedding table.
    from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

    tokenizer = tiny_models.tokenizer(CORPUS, size=336, begins=begins)
    tokenizer.add_tokens(EXTRA_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _config(tokenizer: Any, version: int, image_size: int, width: int, layers: int) -> Any:
    from transformers import PaliGemmaConfig

    image_tokens = (image_size // PATCH_SIZE) ** 2
    text = {
        "model_type": "gemma" if version == 1 else "gemma2",
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "num_image_tokens": image_tokens,
    }
    if version == 2:
        text |= {"query_pre_attn_scalar": 32, "sliding_window": 4096}
    return PaliGemmaConfig(
        text_config=text,
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "image_size": image_size,
            "patch_size": PATCH_SIZE,
            "projection_dim": width,
            "num_image_tokens": image_tokens,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=width,
        hidden_size=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def _randomise(model: Any) -> None:
    """Weights at a scale at which attention is sharp and the picture decides the answer."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                continue
            if "embed_tokens" in name:
                weight.normal_(std=0.05)
            elif "position_embedding" in name:
                weight.normal_(std=0.3)
            elif weight.dim() == 1:
                weight.normal_(std=0.1)
            else:
                weight.normal_(std=2.0 / weight[0].numel() ** 0.5)


def _save(model: Any, folder: Path) -> None:
    """Weights under the names of the published checkpoints, which `save_pretrained` changed."""
    from safetensors.torch import save_file

    renames = (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.image_newline", "image_newline"),
    )
    weights = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        for old, new in renames:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        weights[name] = weight.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = "float32"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def _image_processor(folder: Path, image_size: int) -> None:
    side = {"height": image_size, "width": image_size}
    preprocessor = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "PaliGemmaProcessor",
        "image_seq_length": (image_size // PATCH_SIZE) ** 2,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": side,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
