"""How long a nearly finished run takes to go on: from the command to its first new reply.

    python -m bench.resume [--images 250000] [--attributes race,gender,age,emotion]

A run over pictures of 16 KB is begun for real (a few requests, fake engine), 99 % of its requests
are then given replies, as if it had got that far, and the same command is given for all. The clock
runs from the start of the process to the first new part in `replies/`; memory is that of the
driver, the one process that has to know what is done.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bench.pictures import jpeg
from facescan import shards
from facescan.run import folder, journal, manifest
from facescan.shards import Contents, ShardRow, ShardWriter
from facescan.types import FinishReason, Reply, request_id

_SIZE = 16 * 1024
_DONE = 0.99
_PER_PART = 50_000
_LONGEST = 600.0


def _make_shards(target: Path, count: int) -> None:
    """One small picture, filled up behind its end to 16 KB with bytes that make it another."""
    if target.is_dir():
        return
    picture = jpeg(0, side=64)
    random_bytes = np.random.default_rng(0)
    with ShardWriter(target, Contents("bench", {})) as writer:
        for number in range(count):
            data = picture + random_bytes.bytes(_SIZE - len(picture))
            writer.add(
                ShardRow(f"picture-{number:07d}", sha256(data).hexdigest(), data, None, "test")
            )


def _answer_most(run: folder.RunFolder, source: Path, engine: str) -> int:
    """Write replies to 99 % of all requests; how many requests there are."""
    data = shards.open(str(source))
    drawn = random.Random(0)
    now = datetime.now(UTC)
    waiting: list[Reply] = []
    requests = parts = 0

    def write() -> None:
        nonlocal parts
        table = journal.table(waiting)
        journal.put(run.replies, f"part-earlier-{parts:06d}", table)
        parts += 1
        waiting.clear()

    for batch in data.labels():
        for digest in batch.column("image_sha256").to_pylist():
            for question in manifest.questions(manifest.read(run)):
                requests += 1
                if drawn.random() >= _DONE:
                    continue
                key = request_id(question.identity, str(digest))
                waiting.append(
                    Reply(key, "White", FinishReason.STOP, engine, "fake", now, latency_s=0.1)
                )
                if len(waiting) == _PER_PART:
                    write()
    write()
    return requests


def _command(source: Path, target: Path, attributes: str, *more: str) -> list[str]:
    flags = ["--dataset", str(source), "--model", "fake", "--attributes", attributes, "--no-score"]
    return [sys.executable, "-m", "jobs.cli", "run", *flags, "--output-dir", str(target), *more]


def _resume(command: list[str], replies: Path) -> tuple[float, float]:
    """Seconds to the first new part, and the driver's peak RSS in MiB until then."""
    before = set(replies.glob("part-*"))
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while set(replies.glob("part-*")) <= before:
                if process.poll() is not None or time.monotonic() - began > _LONGEST:
                    raise RuntimeError(f"no new reply; the command ended with {process.poll()}")
                time.sleep(0.05)
            seconds = time.monotonic() - began
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.kill()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return seconds, int(peak.split()[1]) / 1024


def main(
    images: int = 250_000,
    attributes: str = "race,gender,age,emotion",
    keep: Annotated[bool, typer.Option()] = False,
) -> None:
    """Print the number of requests, the seconds, and the driver's memory."""
    source = Path(tempfile.gettempdir()) / f"facescan-bench-16k-{images}"
    _make_shards(source, images)
    with tempfile.TemporaryDirectory() as made:
        target = Path(made) / "run"
        subprocess.run(
            _command(source, target, attributes, "--limit", "10"),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        run = folder.existing(str(target))
        (combination, *_) = manifest.read(run).combinations
        requests = _answer_most(run, source, combination.engine)
        seconds, peak = _resume(_command(source, target, attributes), target / "replies")
    print(f"{requests:,} requests over {images:,} pictures of 16 KB, {_DONE:.0%} done")
    print(f"first new reply after {seconds:.1f} s; driver's peak RSS until then {peak:.0f} MiB")
    if not keep:
        shutil.rmtree(source)


if __name__ == "__main__":
    typer.run(main)
