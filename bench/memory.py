"""Whether memory grows with the dataset: peak PSS of all processes of a run together.

    python -m bench.memory [--small 20000] [--large 80000]

Each run is a command of its own (fake engine, real decoding, one question). PSS counts a page
shared by n processes as 1/n in each, so the sum over processes counts it once; RSS would count
Ray's object store several times.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.pictures import make_shards

_SECONDS_BETWEEN_SAMPLES = 0.5


def descendants(root: int) -> set[int]:
    """The process `root` and all processes below it, at this moment."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        parents[int(stat.parent.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it ended while we looked
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


def peak_pss_bytes(command: list[str]) -> int:
    """Run a command; the highest sum over it and all its descendants.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    # Ray's daemons are children of the driver that starts them, so they are among these.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_pss_bytes(pid) for pid in descendants(process.pid)))
        time.sleep(_SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def main(
    small: int = 20_000, large: int = 80_000, keep: Annotated[bool, typer.Option()] = False
) -> None:
    """Print both peaks and their ratio."""
    peaks = {}
    for count in (small, large):
        source = Path(tempfile.gettempdir()) / f"facescan-bench-{count}"
        make_shards(source, count)
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--dataset", source, "--model", "fake", "--attributes", "race"]
            command = [sys.executable, "-m", "jobs.cli", "run", *flags, "--output-dir", folder]
            peaks[count] = peak_pss_bytes([str(word) for word in command])
        print(f"{count} images: peak PSS {peaks[count] / 2**20:.0f} MiB", flush=True)
        if not keep:
            shutil.rmtree(source)
    print(f"ratio: {peaks[large] / peaks[small]:.3f}")


if __name__ == "__main__":
    typer.run(main)
