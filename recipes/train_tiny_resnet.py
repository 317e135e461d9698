"""Train the tiny ResNet that ships with facescan, from nothing, on drawn faces.

    python -m recipes.train_tiny_resnet --output-dir facescan/models/tiny-resnet

transformers' ResNet at small sizes: one network, 26 outputs, a head for each attribute. It learns
the labels of the sample set, in the order of its card's `heads`. About five minutes on two cores.
"""

import hashlib
import random
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from facescan import attributes
from facescan.datasets import sample
from recipes import tiny_models
from recipes.tiny_models import CHECK_SEED, IMAGE_SIZE, TRAIN_SEED, Pixels

Faces = tuple[Pixels, list[dict[str, str]]]


def heads() -> dict[str, list[str]]:
    """Attribute -> its labels in the order of the outputs, one head after the other."""
    return {
        name: list(attributes.load(name).label_set(label_set).labels)
        for name, label_set in sample.LABEL_SETS.items()
    }


def make_model() -> Any:
    """The untrained network."""
    from transformers import ResNetConfig, ResNetForImageClassification

    labels = [label for head in heads().values() for label in head]
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 2, 1],
        layer_type="basic",
        id2label=dict(enumerate(labels)),
        label2id={label: output for output, label in enumerate(labels)},
    )
    return ResNetForImageClassification(config)


def train(model: Any, faces: Faces, steps: int, batch_size: int, rate: float) -> None:
    """AdamW, one cycle of the learning rate; the loss is the sum of the heads' cross entropies."""
    import torch

    pixels, labels = faces
    truth = {
        name: torch.tensor([head.index(each[name]) for each in labels])
        for name, head in heads().items()
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    rng = random.Random(TRAIN_SEED)
    model.train()
    started, shown = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        chosen = [rng.randrange(len(labels)) for _ in range(batch_size)]
        outputs = model(pixel_values=tiny_models.to_model(pixels[chosen])).logits
        by_head = outputs.split([len(head) for head in heads().values()], dim=1)
        loss = sum(
            torch.nn.functional.cross_entropy(logits, truth[name][chosen])
            for name, logits in zip(truth, by_head, strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        shown += float(loss.detach())
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps}  loss {shown / 50:.4f}  {seconds:.0f} s", flush=True)
            shown = 0.0


def save(model: Any, folder: Path) -> None:
    """Write the weights in 16 bits, and the image processor."""
    import torch
    from safetensors.torch import save_file

    weights = {
        # A batch normalisation's count of batches is a whole number.
        name: (weight.to(torch.float16) if weight.is_floating_point() else weight).contiguous()
        for name, weight in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    tiny_models.write_image_processor(
        folder,
        image_processor_type="ViTImageProcessor",
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )


def accuracy(folder: Path, faces: Faces) -> dict[str, float]:
    """Share of right answers about each attribute, of the network saved in `folder`."""
    import torch
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels, labels = faces
    with torch.inference_mode():
        parts = [
            model(pixel_values=tiny_models.to_model(pixels[start : start + 100])).logits
            for start in range(0, len(pixels), 100)
        ]
    shares, first = {}, 0
    for name, head in heads().items():
        said = torch.cat(parts)[:, first : first + len(head)].argmax(1).tolist()
        right = [head[output] == each[name] for output, each in zip(said, labels, strict=True)]
        shares[name] = float(np.mean(right))
        first += len(head)
    return shares


def main(
    output_dir: Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")],
    steps: Annotated[int, typer.Option(min=1)] = 800,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: float = 2e-3,
    train_faces: Annotated[int, typer.Option(help="Faces drawn to learn from.")] = 16_000,
    check_faces: Annotated[int, typer.Option(help="Unseen faces to be asked about.")] = 1000,
) -> None:
    """Train, save, and say how many answers are right."""
    import torch

    torch.manual_seed(TRAIN_SEED)
    output_dir.mkdir(parents=True, exist_ok=True)
    model = make_model()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    faces = tiny_models.pictures(TRAIN_SEED, 0.5, train_faces)
    print(f"{train_faces} faces drawn", flush=True)
    train(model, faces, steps, batch_size, learning_rate)
    save(model, output_dir)
    for name, cropped in (("whole pictures", 0.0), ("cut-out faces", 1.0)):
        shares = accuracy(output_dir, tiny_models.pictures(CHECK_SEED, cropped, check_faces))
        print(name, {attribute: f"{100 * share:.1f} %" for attribute, share in shares.items()})
    weights = (output_dir / "model.safetensors").read_bytes()
    print("model.safetensors sha256", hashlib.sha256(weights).hexdigest())


if __name__ == "__main__":
    typer.run(main)
