"""How many planted copies `facescan audit` finds, how often it errs, and how long it takes.

    python -m bench.audit [--images 1000] [--planted 50] [--photos FOLDER] [--at-scale 100000]

Draws faces (those of `facescan ingest sample`), or takes the photographs in a folder, and plants
copies of some in another split: the same bytes; encoded again as JPEG or WebP at quality 50 to 95;
and with up to 5 % of width and height cut off, resized to 0.5 to 1.5 times. Told are the share of
each that is found as the copy of its original, and how many of all pairs of unrelated pictures are
flagged. Drawn faces are the hard case: they are all alike but for what they show.

With --at-scale it also times the search among so many pictures of noise.
"""

import hashlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Annotated

import pyarrow.parquet as pq
import typer
from PIL import Image
from rich.console import Console

from bench.pictures import jpeg
from facescan import datasets
from facescan.datasets import Source, SourceRow
from facescan.shards import Contents, ShardRow, ShardWriter
from jobs.audit import audit

_SIDE_AT_SCALE = 96


def _encoded(picture: Image.Image, kind: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def encoded_again(data: bytes, random: Random) -> bytes:
    """The picture, encoded by another encoder or with another quality."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return _encoded(picture, random.choice(["JPEG", "WEBP"]), random.randint(50, 95))


def cropped_and_resized(data: bytes, random: Random) -> bytes:
    """The picture less up to 5 % of its width and height, smaller or larger."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    left, top, right, bottom = 0.0, 0.0, float(picture.width), float(picture.height)
    cut_x, cut_y = (random.uniform(0, 0.05) * side for side in picture.size)
    left, top = random.random() * cut_x, random.random() * cut_y
    right, bottom = right - cut_x + left, bottom - cut_y + top
    part = picture.crop((round(left), round(top), round(right), round(bottom)))
    scale = random.uniform(0.5, 1.5)
    width, height = (max(32, round(side * scale)) for side in part.size)
    resized = part.resize((width, height), Image.Resampling.BICUBIC)
    return _encoded(resized, "JPEG", random.randint(75, 95))


KINDS: dict[str, Callable[[bytes, Random], bytes]] = {
    "same bytes": lambda data, random: data,
    "encoded again": encoded_again,
    "cropped and resized": cropped_and_resized,
}


def drawn(count: int) -> Iterator[bytes]:
    """The faces of `facescan ingest sample`."""
    sample = datasets.load("sample")
    for row in sample.rows(Source(None, None, sample.options(size=count))):
        assert isinstance(row, SourceRow)
        assert isinstance(row.image, bytes)
        yield row.image


def plant(folder: Path, originals: Sequence[bytes], planted: int) -> dict[str, str]:
    """Shards with the originals in `train` and copies in `test`; the kind of each copy by its id.

    A copy is called after its original: `7 encoded again 0` is of `7`. Where there are fewer
    originals than copies, some have several.
    """
    random = Random(0)
    kinds: dict[str, str] = {}
    with ShardWriter(folder, Contents("planted", {})) as writer:

        def add(image_id: str, data: bytes, split: str) -> None:
            digest = hashlib.sha256(data).hexdigest()
            writer.add(ShardRow(image_id, digest, data, None, split))

        for number, data in enumerate(originals):
            add(str(number), data, "train")
        for kind, copy in KINDS.items():
            order = random.sample(range(len(originals)), len(originals))
            for copies in range(planted):
                number = order[copies % len(order)]
                image_id = f"{number} {kind} {copies}"
                kinds[image_id] = kind
                add(image_id, copy(originals[number], random), "test")
    return kinds


def found(folder: Path, kinds: dict[str, str], console: Console) -> tuple[dict[str, float], float]:
    """By kind the share of copies whose nearest is their original; the share of false pairs."""
    output = folder.with_suffix(".parquet")
    result = audit([str(folder)], console, output=output)
    rows = [
        row
        for row in pq.read_table(output).to_pylist()
        if (row["split"], row["other_split"]) == ("test", "train")
    ]
    right = {
        row["image_id"] for row in rows if row["image_id"].split(" ")[0] == row["other_image_id"]
    }
    recall = {
        kind: sum(kinds[image_id] == kind for image_id in right)
        / sum(each == kind for each in kinds.values())
        for kind in KINDS
    }
    train, test = result.images
    false = sum(row["alike"] for row in rows) - len(right)
    return recall, false / (train * test - len(kinds))


def main(
    images: Annotated[int, typer.Option(help="Originals.")] = 1_000,
    planted: Annotated[int, typer.Option(help="Copies of each kind.")] = 50,
    photos: Annotated[Path | None, typer.Option(help="Folder with originals to take.")] = None,
    at_scale: Annotated[int, typer.Option(help="Pictures of noise to time the search on.")] = 0,
) -> None:
    """Plant, audit, and print what was found."""
    with tempfile.TemporaryDirectory() as place:
        if photos is None:
            originals = list(drawn(images))
        else:
            originals = [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))]
        kinds = plant(Path(place, "planted"), originals, planted)
        recall, false = found(Path(place, "planted"), kinds, Console())
        for kind, share in recall.items():
            print(f"{kind}: {100 * share:.1f} % found")
        print(f"unrelated pairs flagged: {100 * false:.4f} %")
        if at_scale:
            _time(Path(place, "many"), at_scale)


def _time(folder: Path, count: int) -> None:
    with ShardWriter(folder, Contents("noise", {})) as writer:
        for number in range(count):
            data = jpeg(number, _SIDE_AT_SCALE)
            digest = hashlib.sha256(data).hexdigest()
            writer.add(ShardRow(str(number), digest, data, None, "all"))
    start = time.perf_counter()
    audit([str(folder)], Console())
    print(f"{count:,} pictures: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
