"""Train the tiny PaliGemma that ships with facescan, from nothing, on drawn faces.

    python -m recipes.train_tiny_paligemma --output-dir facescan/models/tiny-paligemma

All of transformers' PaliGemma classes at small sizes: 0.9 million parameters, pictures of 64x64
pixels. What it is asked, and the answers it learns, come from the default protocol of the card
`tiny-paligemma`; the pictures from `facescan.datasets.sample`, half of them cut out around the
face as a detector would. About half an hour on two cores.
"""

import hashlib
import json
import random
import time
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from facescan import attributes, models, prompt, protocols
from facescan.datasets import sample
from facescan.types import Question

CARD = "tiny-paligemma"
TRAIN_SEED = 1_000_003
CHECK_SEED = 2_000_003
"""Seeds of the sample set that training and its check draw from; evaluate on any other."""

IMAGE_SIZE, PATCH_SIZE, WIDTH, LAYERS = 64, 8, 128, 3
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of the protocol and the answer that each sample label calls for."""

    attribute: str
    prompt: str
    answers: dict[str, str]


def questions() -> list[Asked]:
    """What the model is taught, in the wording of its card's protocol."""
    card = models.load(CARD)
    protocol = protocols.load(card.protocol)
    return [_asked(each) for each in prompt.questions(card, protocol, card.attributes, "")]


def _asked(question: Question) -> Asked:
    (attribute,), (pairs,), (asked_set,) = (
        question.attributes,
        question.offered,
        question.label_sets,
    )
    view = attributes.load(attribute).view(sample.LABEL_SETS[attribute], asked_set)
    assert view is not None, f"{attribute}: the sample's labels have no view in {asked_set}"
    text_of = {label: text for text, label in pairs}
    return Asked(attribute, question.prompt, {k: text_of[v] for k, v in view.merges.items()})


def face_crop(box: tuple[int, int, int, int], rng: random.Random) -> tuple[int, int, int, int]:
    """A square around a figure's `box` as loosely as a face detector's, with some margin, lies."""
    side = (box[2] - box[0]) * rng.uniform(1.0, 1.5)
    across = (box[0] + box[2]) / 2 + side * rng.uniform(-0.05, 0.05)
    down = (box[1] + box[3]) / 2 + side * rng.uniform(-0.02, 0.12)
    left, top = max(0, round(across - side / 2)), max(0, round(down - side / 2))
    right, bottom = round(across + side / 2), round(down + side / 2)
    return left, top, min(sample.SIDE, right), min(sample.SIDE, bottom)


def picture(seed: int, cropped: float, index: int) -> tuple[Pixels, dict[str, str]]:
    """One face as the model sees it: through JPEG, then bicubic to the model's size.

    `cropped` is the probability that the face is cut out of its picture first.
    """
    rng = random.Random(f"{seed}:{index}")
    pixels, truth = sample.draw(seed, index)
    image = Image.open(BytesIO(sample.encode(pixels, quality=rng.randint(80, 95)))).convert("RGB")
    if rng.random() < cropped:
        image = image.crop(face_crop(truth.box, rng))
    resized = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.array(resized), truth.labels


def pictures(seed: int, cropped: float, count: int) -> tuple[Pixels, list[dict[str, str]]]:
    """The first `count` faces of a seed, drawn by two processes."""
    with get_context("spawn").Pool(2) as pool:
        made = pool.map(partial(picture, seed, cropped), range(count), chunksize=250)
    return np.stack([pixels for pixels, _ in made]), [labels for _, labels in made]


def make_processor(folder: Path, asked: list[Asked]) -> Any:
    """Write a byte-level BPE tokenizer and the image processor's settings; load them back."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as token_models
    from transformers import AutoProcessor, PreTrainedTokenizerFast
    from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

    core = Tokenizer(token_models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        # The newline is one token of its own, as in Gemma's vocabulary; vLLM looks it up as "\n".
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "\n"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([t for q in asked for t in (q.prompt, *q.answers.values())], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        add_bos_token=False,
        add_eos_token=False,
        padding_side="left",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    # PaliGemma's processor adds these when it is loaded: they must be inside the vocabulary.
    tokenizer.add_tokens(EXTRA_TOKENS)
    tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "PaliGemmaProcessor",
        "image_seq_length": IMAGE_TOKENS,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return AutoProcessor.from_pretrained(folder, backend="pil")


def make_model(tokenizer: Any) -> Any:
    """The untrained model."""
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


class Teacher:
    """Makes the batches: random faces, random questions, and what must be answered."""

    def __init__(
        self, processor: Any, asked: list[Asked], faces: tuple[Pixels, list[dict[str, str]]]
    ) -> None:
        blank = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self._asked = asked
        self._pixels, self._labels = faces
        self._pad = int(processor.tokenizer.pad_token_id)
        # The processor's own layout, suffix and token types, made once for each possible answer.
        self._rows = {
            (each.prompt, answer): processor(
                images=blank, text=f"<image>{each.prompt}", suffix=answer
            )
            for each in asked
            for answer in set(each.answers.values())
        }
        self._length = max(len(row["input_ids"][0]) for row in self._rows.values())

    def batch(self, rng: random.Random, size: int) -> dict[str, Any]:
        """The model's inputs and the `labels`, padded on the left."""
        import torch

        chosen = [rng.randrange(len(self._labels)) for _ in range(size)]
        filling = {"input_ids": self._pad, "attention_mask": 0, "token_type_ids": 0, "labels": -100}
        made = {k: np.full((size, self._length), v, np.int64) for k, v in filling.items()}
        for number, face in enumerate(chosen):
            asked = rng.choice(self._asked)
            row = self._rows[asked.prompt, asked.answers[self._labels[face][asked.attribute]]]
            for key, values in made.items():
                values[number, -len(row["input_ids"][0]) :] = row[key][0]
        inputs = {key: torch.from_numpy(values) for key, values in made.items()}
        return inputs | {"pixel_values": to_model(self._pixels[chosen])}


def to_model(pixels: Pixels) -> Any:
    """Pixels (0 to 255, channels last) as the vision tower takes them (-1 to 1, channels first)."""
    import torch

    scaled = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def train(model: Any, teacher: Teacher, steps: int, batch_size: int, rate: float) -> None:
    """AdamW, one cycle of the learning rate; the loss is taken over the answers' tokens only."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
    rng = random.Random(TRAIN_SEED)
    model.train()
    started, shown = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        inputs = teacher.batch(rng, batch_size)
        labels = inputs.pop("labels")[:, 1:]
        hidden = model.model(**inputs).last_hidden_state[:, :-1]
        answered = labels != -100
        # Only where an answer is: the vocabulary over all positions would cost a third more.
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[answered]), labels[answered])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        shown += float(loss.detach())
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps}  loss {shown / 50:.4f}  {seconds:.0f} s", flush=True)
            shown = 0.0


def save(model: Any, folder: Path) -> None:
    """Write the weights in 16 bits under the names that published checkpoints have.

    `save_pretrained` of transformers 5 writes other names, which vLLM does not load; transformers
    itself loads both.
    """
    import torch
    from safetensors.torch import save_file

    renames = {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    weights = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":  # tied to the embeddings
            continue
        old = next(prefix for prefix in renames if name.startswith(prefix))
        weights[renames[old] + name.removeprefix(old)] = weight.to(torch.float16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["PaliGemmaForConditionalGeneration"]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def answer(model: Any, processor: Any, question: str, pixels: Pixels) -> list[str]:
    """What a saved model says to one question about each picture, by transformers' `generate`."""
    import torch

    blank = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    ids = processor(images=blank, text=f"<image>{question}", return_tensors="pt")["input_ids"]
    said: list[str] = []
    for start in range(0, len(pixels), 100):
        part = to_model(pixels[start : start + 100])
        prompts = ids.expand(len(part), -1)
        with torch.inference_mode():
            out = model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                token_type_ids=torch.zeros_like(prompts),
                pixel_values=part,
                max_new_tokens=16,
                do_sample=False,
            )
        answers = out[:, ids.shape[1] :]
        said += processor.batch_decode(answers, skip_special_tokens=True)
    return said


def accuracy(folder: Path, faces: tuple[Pixels, list[dict[str, str]]]) -> dict[str, float]:
    """Share of right answers to each question, of the model saved in `folder`."""
    from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

    model = PaliGemmaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    pixels, labels = faces
    shares = {}
    for asked in questions():
        said = answer(model, processor, asked.prompt, pixels)
        right = [asked.answers[face[asked.attribute]] for face in labels]
        shares[asked.attribute] = float(np.mean([a == b for a, b in zip(said, right, strict=True)]))
    return shares


def main(
    output_dir: Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")],
    steps: Annotated[int, typer.Option(min=1)] = 5000,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: float = 1.5e-3,
    train_faces: Annotated[int, typer.Option(help="Faces drawn to learn from.")] = 96_000,
    check_faces: Annotated[int, typer.Option(help="Unseen faces to be asked about after.")] = 1000,
) -> None:
    """Train, save, and say how many answers about unseen faces are right."""
    import torch

    torch.manual_seed(TRAIN_SEED)
    output_dir.mkdir(parents=True, exist_ok=True)
    asked = questions()
    processor = make_processor(output_dir, asked)
    model = make_model(processor.tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    faces = pictures(TRAIN_SEED, 0.5, train_faces)
    print(f"{train_faces} faces drawn", flush=True)
    train(model, Teacher(processor, asked, faces), steps, batch_size, learning_rate)
    save(model, output_dir)
    for name, cropped in (("whole pictures", 0.0), ("cut-out faces", 1.0)):
        shares = accuracy(output_dir, pictures(CHECK_SEED, cropped, check_faces))
        print(name, {attribute: f"{100 * share:.1f} %" for attribute, share in shares.items()})
    weights = (output_dir / "model.safetensors").read_bytes()
    print("model.safetensors sha256", hashlib.sha256(weights).hexdigest())


if __name__ == "__main__":
    typer.run(main)
