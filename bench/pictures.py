"""Shards of pictures for benchmarks: 224-pixel JPEGs of about 18 KB, all different."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from facescan.attributes import load
from facescan.shards import Contents, ShardRow, ShardWriter


def jpeg(number: int, side: int = 224) -> bytes:
    """One picture; smooth noise compresses like a photograph of a face."""
    noise = np.random.default_rng(number).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def make_shards(folder: Path, count: int) -> None:
    """Write `count` pictures, labelled in turn, unless they are there already."""
    if folder.is_dir():
        return
    labels = load("race").label_set("race-7").labels
    with ShardWriter(folder, Contents("bench", {"race": "race-7"})) as writer:
        for number in range(count):
            data = jpeg(number)
            writer.add(
                ShardRow(
                    image_id=f"picture-{number:07d}",
                    image_sha256=hashlib.sha256(data).hexdigest(),
                    data=data,
                    path=None,
                    split="test",
                    labels={"race": labels[number % len(labels)]},
                )
            )
