"""How much memory the largest picture costs: highest RSS of any process, with it and without.

    python -m bench.real_photos --photos FOLDER [--model fake]

FOLDER holds pictures; the run with only the smallest of them is compared with the run with all.
Each is `facescan ingest table` and `facescan run` of its own. The kernel's own high-water mark of
each process (VmHWM) is read, and of each run the process with the highest one counts, by kind.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from bench.memory import descendants

_SECONDS_BETWEEN_SAMPLES = 0.2


def _high_water_mib(pid: int) -> tuple[str, float]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        decodes = b"facescan.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0.0  # it ended while we looked
    fields = dict(line.split(":", 1) for line in text.splitlines())
    name = "decoder" if decodes else fields["Name"].strip()
    return name, int(fields.get("VmHWM", "0 kB").split()[0]) / 1024


def peaks_mib(command: list[str]) -> dict[str, float]:
    """Run a command; by process name the highest RSS that one process of it ever had.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks: dict[str, float] = {}
    while process.poll() is None:
        for pid in descendants(process.pid):
            name, peak = _high_water_mib(pid)
            peaks[name] = max(peak, peaks.get(name, 0.0))
        time.sleep(_SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peaks


def _run(photos: list[Path], model: str, folder: Path) -> dict[str, float]:
    source = folder / "source"
    source.mkdir()
    for photo in photos:
        shutil.copy(photo, source)
    facescan = [sys.executable, "-m", "jobs.cli"]
    shards, run = str(folder / "shards"), str(folder / "run")
    ingest = ["ingest", "table", "--source", str(source), "--output-dir", shards]
    ask = ["run", "--dataset", shards, "--model", model, "--attributes", "race", "--no-score"]
    peaks = peaks_mib([*facescan, *ingest])
    peaks["ingest"] = max(peaks.values())
    return peaks | peaks_mib([*facescan, *ask, "--output-dir", run])


def main(photos: Annotated[Path, typer.Option()], model: str = "fake") -> None:
    """Print, by kind of process, both peaks and what the larger pictures added."""
    pixels: dict[Path, int] = {}
    for path in sorted(photos.rglob("*.jpg")):
        with Image.open(path) as picture:
            pixels[path] = picture.width * picture.height
    ordered = sorted(pixels, key=lambda path: pixels[path])
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        small = _run(ordered[:1], model, Path(one))
        large = _run(ordered, model, Path(other))
    print(f"{len(ordered)} pictures, {pixels[ordered[0]]:,} to {pixels[ordered[-1]]:,} pixels")
    for name in sorted(large, key=lambda name: -large[name])[:10]:
        added = large[name] - small.get(name, 0.0)
        print(f"{name:20} {small.get(name, 0.0):7.0f} -> {large[name]:7.0f} MiB  (+{added:.0f})")


if __name__ == "__main__":
    typer.run(main)
