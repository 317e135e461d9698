"""What the recipes of the tiny models share: drawn faces, questions, and training from nothing.

A recipe (`train_tiny_paligemma.py`, `_llava.py`, `_florence.py`) says how its architecture is
built and fed. What a model is asked, and the answers it learns, come from the default protocol of
its card; the pictures from `facescan.datasets.sample`, half of them cut out around the face as a
detector would.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping
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

from facescan import attributes, prompt, protocols
from facescan.datasets import sample
from facescan.models import ModelCard
from facescan.types import Question

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


@dataclass(frozen=True, slots=True)
class Recipe:
    """One tiny model.

    Attributes:
        card: its name.
        protocol: how it is asked, its card's default.
        steps: of training.
        faces: drawn to learn from.
        make_processor: writes tokenizer and image processor into a folder and loads them back.
        make_model: the untrained model, for the processor's tokenizer.
        text: (processor, question) -> the text that the processor takes.
        row: (processor, question, answer) -> the model's inputs beside the pixels, and `labels`
            with -100 where nothing is learned.
        renames: beginnings of names of weights, as transformers has them -> as published
            checkpoints do. `save_pretrained` of transformers 5 writes the former, which vLLM does
            not load; transformers itself loads both.
        rate: of learning, at its height.
    """

    card: str
    protocol: str
    steps: int
    faces: int
    make_processor: Callable[[Path, list[Asked]], Any]
    make_model: Callable[[Any], Any]
    text: Callable[[Any, str], str]
    row: Callable[[Any, str, str], Mapping[str, list[int]]]
    renames: Mapping[str, str]
    rate: float = 1.5e-3


def questions(recipe: Recipe) -> list[Asked]:
    """What the model is taught, in the wording of its protocol."""
    # Its card may not be there yet, nor the weights that the card names.
    card = ModelCard(
        name=recipe.card,
        description="",
        engine="vllm",
        protocol=recipe.protocol,
        attributes=tuple(sample.LABEL_SETS),
    )
    protocol = protocols.load(recipe.protocol)
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


def texts(asked: list[Asked]) -> list[str]:
    """All that is said, by both sides."""
    return [text for each in asked for text in (each.prompt, *each.answers.values())]


def tokenizer(corpus: list[str], size: int, begins: bool = False, encoder: bool = False) -> Any:
    """A byte-level BPE tokenizer.

    Args:
        corpus: what it is trained on, so what it has few tokens for.
        size: tokens at most, those for single bytes included.
        begins: whether it puts `<bos>` before every text.
        encoder: whether it is one of Florence-2: its BART counts positions from the left, so it
            pads on the right, and its processor looks for the image's token by a name.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers import models as token_models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(token_models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        # The newline is one token of its own, as in Gemma's vocabulary; vLLM looks it up as "\n".
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "\n"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    if begins:
        bos = ("<bos>", core.token_to_id("<bos>"))
        core.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[bos])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        add_bos_token=begins,
        add_eos_token=False,
        padding_side="right" if encoder else "left",
        extra_special_tokens={"image_token": "<image>"} if encoder else ["<image>"],
    )
    made.add_tokens(["<image>"], special_tokens=True)
    return made


def write_image_processor(folder: Path, **settings: Any) -> None:
    """Write `preprocessor_config.json` of a processor that scales pixels from -1 to 1."""
    whole = {
        **settings,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(whole, indent=2) + "\n")


class Teacher:
    """Makes the batches: random faces, random questions, and what must be answered."""

    def __init__(
        self,
        recipe: Recipe,
        processor: Any,
        asked: list[Asked],
        faces: tuple[Pixels, list[dict[str, str]]],
    ) -> None:
        self._asked = asked
        self._pixels, self._labels = faces
        # The processor's own layout, made once for each possible answer.
        self._rows = {
            (each.prompt, answer): recipe.row(processor, each.prompt, answer)
            for each in asked
            for answer in set(each.answers.values())
        }
        self._filling = {"input_ids": int(processor.tokenizer.pad_token_id), "labels": -100}
        self._lengths = {
            name: max(len(row[name]) for row in self._rows.values())
            for name in next(iter(self._rows.values()))
        }
        self._left = processor.tokenizer.padding_side == "left"

    def batch(self, rng: random.Random, size: int) -> dict[str, Any]:
        """The model's inputs and the `labels`, padded on the tokenizer's side."""
        import torch

        chosen = [rng.randrange(len(self._labels)) for _ in range(size)]
        made = {
            name: np.full((size, length), self._filling.get(name, 0), np.int64)
            for name, length in self._lengths.items()
        }
        for number, face in enumerate(chosen):
            asked = rng.choice(self._asked)
            row = self._rows[asked.prompt, asked.answers[self._labels[face][asked.attribute]]]
            for name, values in made.items():
                tokens = row[name]
                place = slice(-len(tokens), None) if self._left else slice(len(tokens))
                values[number, place] = tokens
        inputs = {name: torch.from_numpy(values) for name, values in made.items()}
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


def save(recipe: Recipe, model: Any, folder: Path) -> None:
    """Write the weights in 16 bits under the names that published checkpoints have."""
    import torch
    from safetensors.torch import save_file

    weights = {}
    for name, weight in model.state_dict().items():
        if name in model.all_tied_weights_keys:
            continue
        old = next(prefix for prefix in recipe.renames if name.startswith(prefix))
        new = recipe.renames[old] + name.removeprefix(old)
        weights[new] = weight.to(torch.float16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def blank() -> Pixels:
    """A picture for a processor that is only wanted for its tokens."""
    return np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def answer(recipe: Recipe, model: Any, processor: Any, question: str, pixels: Pixels) -> list[str]:
    """What a saved model says to one question about each picture, by transformers' `generate`."""
    import torch

    text = recipe.text(processor, question)
    inputs = processor(images=blank(), text=text, return_tensors="pt")
    inputs.pop("pixel_values")
    said: list[str] = []
    for start in range(0, len(pixels), 100):
        part = to_model(pixels[start : start + 100])
        prompts = {name: values.expand(len(part), -1) for name, values in inputs.items()}
        with torch.inference_mode():
            out = model.generate(**prompts, pixel_values=part, max_new_tokens=16, do_sample=False)
        # An encoder's tokens are not repeated.
        begun = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        answers = out[:, begun:]
        said += processor.batch_decode(answers, skip_special_tokens=True)
    return [each.strip() for each in said]


def accuracy(
    recipe: Recipe, folder: Path, faces: tuple[Pixels, list[dict[str, str]]]
) -> dict[str, float]:
    """Share of right answers to each question, of the model saved in `folder`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    pixels, labels = faces
    shares = {}
    for asked in questions(recipe):
        said = answer(recipe, model, processor, asked.prompt, pixels)
        right = [asked.answers[face[asked.attribute]] for face in labels]
        shares[asked.attribute] = float(np.mean([a == b for a, b in zip(said, right, strict=True)]))
    return shares


def command(recipe: Recipe) -> None:
    """The command line of a recipe: train, save, and say how many answers are right."""

    def main(
        output_dir: Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")],
        steps: Annotated[int, typer.Option(min=1)] = recipe.steps,
        batch_size: Annotated[int, typer.Option(min=1)] = 64,
        learning_rate: float = recipe.rate,
        train_faces: Annotated[int, typer.Option(help="Faces drawn to learn from.")] = recipe.faces,
        check_faces: Annotated[int, typer.Option(help="Unseen faces to be asked about.")] = 1000,
    ) -> None:
        import torch

        torch.manual_seed(TRAIN_SEED)
        output_dir.mkdir(parents=True, exist_ok=True)
        asked = questions(recipe)
        processor = recipe.make_processor(output_dir, asked)
        model = recipe.make_model(processor.tokenizer)
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
        faces = pictures(TRAIN_SEED, 0.5, train_faces)
        print(f"{train_faces} faces drawn", flush=True)
        train(model, Teacher(recipe, processor, asked, faces), steps, batch_size, learning_rate)
        save(recipe, model, output_dir)
        for name, cropped in (("whole pictures", 0.0), ("cut-out faces", 1.0)):
            shares = accuracy(recipe, output_dir, pictures(CHECK_SEED, cropped, check_faces))
            print(name, {attribute: f"{100 * share:.1f} %" for attribute, share in shares.items()})
        weights = (output_dir / "model.safetensors").read_bytes()
        print("model.safetensors sha256", hashlib.sha256(weights).hexdigest())

    typer.run(main)
