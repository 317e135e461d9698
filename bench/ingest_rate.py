"""How near `facescan ingest` comes to disk and hashing, and whether its memory grows.

    python -m bench.ingest_rate [--images 100000] [--fewer 20000] [--rounds 3] [--cold]

The source has the layout of UTKFace's aligned crops: JPEGs of about 5 KB, all different, each
a file of its own. The bound is a bare loop in one thread that reads the same files
in the same order, hashes them and writes them one behind the other into synced files of 128 MB.
Rounds alternate; medians. Every pass is a process of its own, whose processor time and peak RSS
are taken. Files just made are in the page cache, so the bound is hashing and writing rather than
reading, as it is for a source that was just unpacked. With --cold their contents are dropped from
it before each pass, and the bound is the disk, as it is for a source that has lain there.
"""

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from bench.pictures import jpeg

_PICTURES = 256
"""Drawn; every file is one of them with its number behind it, where a JPEG has ended."""

_SIDE = 80
_FILE_BYTES = 128 * 1024 * 1024


def make_source(folder: Path, count: int) -> None:
    """Write the files, unless they are there already."""
    if folder.is_dir():
        return
    pictures = [jpeg(number, _SIDE) for number in range(_PICTURES)]
    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir()
    for number in range(count):
        labels = f"{number % 117}_{number % 2}_{number % 5}"
        path = unfinished / f"{labels}_{20170000000000000 + number}.jpg.chip.jpg"
        path.write_bytes(pictures[number % _PICTURES] + number.to_bytes(8, "big"))
    unfinished.rename(folder)


def drop(source: Path) -> None:
    """Have the contents of the files forgotten that the page cache holds."""
    os.sync()  # what is not on disk yet cannot be dropped
    for entry in os.scandir(source):
        file = os.open(entry.path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def bare(source: Path, target: Path) -> None:
    """Read, hash, write; nothing else."""
    target.mkdir()
    names = sorted(os.listdir(source))
    digests = set()
    while names:
        with (target / str(len(names))).open("wb") as file:
            while names and file.tell() < _FILE_BYTES:
                data = (source / names.pop()).read_bytes()
                digests.add(hashlib.sha256(data).digest())
                file.write(data)
            file.flush()
            os.fsync(file.fileno())


def ours(source: Path, target: Path, limit: int | None) -> None:
    """`facescan ingest`, of the first `limit` images."""
    from rich.console import Console

    from jobs.ingest import ingest

    ingest("utkface.aligned", target, Console(quiet=True), source=source, limit=limit)


class _Pass(NamedTuple):
    """What one pass took, its start-up not counted in the seconds."""

    seconds: float
    processor_seconds: float
    peak_mib: float


def _pass(what: str, source: Path, limit: int | None = None) -> _Pass:
    with tempfile.TemporaryDirectory() as folder:
        arguments = [what, str(source), str(Path(folder) / "out"), str(limit or 0)]
        command = [sys.executable, "-c", _CHILD, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, processor_seconds, kilobytes = map(float, done.stdout.split())
    return _Pass(seconds, processor_seconds, kilobytes / 1024)


_CHILD = """
import resource, sys, time
from pathlib import Path
import jobs.ingest
from bench.ingest_rate import bare, ours
what, source, target, limit = sys.argv[1:]
began, busy = time.monotonic(), time.process_time()
if what == "bare":
    bare(Path(source), Path(target))
else:
    ours(Path(source), Path(target), int(limit) or None)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.monotonic() - began, time.process_time() - busy, peak)
"""


def main(
    count: Annotated[int, typer.Option("--images")] = 100_000,
    fewer: int = 20_000,
    rounds: int = 3,
    cold: Annotated[bool, typer.Option("--cold")] = False,
    keep: Annotated[bool, typer.Option("--keep")] = False,
) -> None:
    """Print both rates, their ratio, and peak RSS at both sizes."""
    source = Path(tempfile.gettempdir()) / f"facescan-bench-files-{count}"
    began = time.monotonic()
    make_source(source, count)
    print(f"{count} files: made in {time.monotonic() - began:.0f} s", flush=True)
    passes: dict[str, list[_Pass]] = {"bare": [], "facescan": []}
    for number in range(rounds):
        for name, done in passes.items():
            if cold:
                drop(source)
            done.append(_pass(name, source))
        rates = (f"{name} {count / done[-1].seconds:.0f}/s" for name, done in passes.items())
        print(f"round {number}: {', '.join(rates)}", flush=True)
    for name, done in passes.items():
        rate = statistics.median(count / each.seconds for each in done)
        processor = statistics.median(each.processor_seconds for each in done) / count
        print(f"{name}: median {rate:.0f} images/s, {processor * 1e6:.0f} us of processor an image")
    ratios = [b.seconds / o.seconds for b, o in zip(*passes.values(), strict=True)]
    print(f"ratio: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    less = _pass("facescan", source, fewer).peak_mib
    most = max(each.peak_mib for each in passes["facescan"])
    print(f"peak RSS: {less:.0f} MiB at {fewer} images, {most:.0f} MiB at {count}")
    if not keep:
        shutil.rmtree(source)


if __name__ == "__main__":
    typer.run(main)
