"""Drawn faces with known labels, as many as wanted, from a seed: nothing to download.

What the labels look like is described in `facescan.datasets._drawing` and shown in
docs/sample.md: the codes are arbitrary, and use nothing by which people are sorted in life. One
(seed, index) is one picture, so a larger set contains every smaller one of its seed. The pixels
are the same on every machine; the JPEG bytes also depend on the JPEG library in Pillow.
"""

import io
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from facescan.datasets import Dataset, Source, SourceRow
from facescan.datasets._drawing import LABEL_SETS, SIDE, Pixels, Truth, draw

__all__ = ["DATASET", "LABEL_SETS", "SIDE", "SampleFace", "Truth", "draw", "encode", "faces"]

JPEG_QUALITY = 92


class SampleFace(NamedTuple):
    """One picture of the set: its id, its JPEG file and what it shows."""

    image_id: str
    data: bytes
    truth: Truth


class Options(BaseModel):
    """How many faces, and which."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**64)


def encode(pixels: Pixels, quality: int = JPEG_QUALITY) -> bytes:
    """The pixels as a JPEG file; equal bytes for equal pixels and one version of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def faces(seed: int, start: int, count: int) -> Iterator[SampleFace]:
    """The pictures `start` to `start + count - 1` of a seed's endless set."""
    for index in range(start, start + count):
        pixels, truth = draw(seed, index)
        yield SampleFace(f"sample-{seed}-{index:07d}", encode(pixels), truth)


def _read(source: Source[Options]) -> Iterator[SourceRow]:
    for face in faces(source.options.seed, 0, source.options.size):
        yield SourceRow(
            where=face.image_id,
            image_id=face.image_id,
            image=face.data,
            split="all",
            labels=face.truth.labels,
            values={"years": float(face.truth.years)},
        )


DATASET = Dataset(
    name="sample",
    description="Drawn faces whose arbitrary colour codes are the labels; no people, no download",
    licence="Apache-2.0",
    revision="1",
    options=Options,
    read=_read,
    label_sets=LABEL_SETS,
    values=("years",),
    needs_source=False,
)
