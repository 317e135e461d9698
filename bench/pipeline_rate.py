"""How much of a bare Ray Data job's rate a whole facescan run keeps, with an engine that is free.

    python -m bench.pipeline_rate [--images 20000] [--rounds 3]

Both read the same shards. The bare job reads, hashes and decodes each picture in a pool of two
actors and writes a constant answer as Parquet. facescan checks, decodes, asks the fake engine one
question, journals the replies, merges them and builds the predictions. Rounds alternate; medians.
Ray is started once, before.
"""

import hashlib
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import typer
from PIL import Image
from rich.console import Console

from bench.pictures import make_shards
from jobs import cluster
from jobs.config import resolve
from jobs.run import run

_QUIET = Console(file=io.StringIO())


class _Decode:
    def __call__(self, batch: pa.Table) -> pa.Table:
        digests = []
        for data in cast(
            "list[bytes]", pc.struct_field(batch.column("image"), "bytes").to_pylist()
        ):
            digests.append(hashlib.sha256(data).hexdigest())
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        answers = pa.array(["White"] * batch.num_rows)
        return pa.table({"image_id": batch.column("image_id"), "sha": digests, "answer": answers})


def bare(source: Path, target: Path) -> None:
    """Read, hash, decode, write; nothing else."""
    files = sorted(str(path) for path in source.glob("*.parquet"))
    rows = ray.data.read_parquet(files).select_columns(["image_id", "image"])
    rows.map_batches(
        _Decode,
        batch_size=128,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    ).write_parquet(str(target))


def whole(source: Path, target: Path) -> None:
    """`facescan run` without the scores."""
    flags = {"dataset": str(source), "model": ["fake"], "attributes": ["race"]}
    run(resolve({**flags, "output_dir": target}, None), _QUIET)


def _rate(job: Callable[[Path, Path], None], source: Path, count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        job(source, Path(folder) / "out")
        return count / (time.monotonic() - began)


def main(
    count: Annotated[int, typer.Option("--images")] = 20_000,
    rounds: int = 3,
) -> None:
    """Print both rates, their ratio."""
    source = Path(tempfile.gettempdir()) / f"facescan-bench-{count}"
    make_shards(source, count)
    cluster.connect(None, 512 * 1024 * 1024, None)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rates: dict[str, list[float]] = {"bare": [], "facescan": []}
    for number in range(rounds):
        rates["bare"].append(_rate(bare, source, count))
        rates["facescan"].append(_rate(whole, source, count))
        print(f"round {number}: " + ", ".join(f"{k} {v[-1]:.0f}/s" for k, v in rates.items()))
    ratios = [ours / theirs for ours, theirs in zip(rates["facescan"], rates["bare"], strict=True)]
    for name, values in rates.items():
        print(f"{name}: median {statistics.median(values):.0f} images/s")
    print(f"ratio: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    shutil.rmtree(source)


if __name__ == "__main__":
    typer.run(main)
