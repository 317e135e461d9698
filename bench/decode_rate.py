"""What decoding in child processes costs beside decoding in threads of the same process.

    python -m bench.decode_rate [--images 2000] [--rounds 5] [--processes 2]

The same JPEGs of 224 pixels in chunks of 32, to pixels of 224 and of 448 in this process's memory;
rounds alternate, medians. Threads are what a crash in a decoder would take everything with.
"""

import hashlib
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import typer

from bench.pictures import jpeg
from facescan import images
from facescan.decoding import IMAGES_PER_CHUNK, DecodePool, Pixels
from facescan.errors import BadImage
from facescan.types import EncodedImage

Size = tuple[int, int]

_CHUNKS_AHEAD = 8


def main(count: int = typer.Option(2000, "--images"), rounds: int = 5, processes: int = 2) -> None:
    """Print both rates and their ratio, for each size."""
    files = [jpeg(number) for number in range(count)]
    pictures = [
        images.check(data, hashlib.sha256(data).hexdigest(), images.Limits()) for data in files
    ]
    threads = ThreadPoolExecutor(processes)
    pool = DecodePool(processes)

    def in_threads(chunk: list[EncodedImage], size: Size) -> "Future[list[Pixels]]":
        return threads.submit(lambda: [images.decode(image, size) for image in chunk])

    def in_children(chunk: list[EncodedImage], size: Size) -> "Future[list[Pixels | BadImage]]":
        return pool.decode(chunk, size)

    for side in (224, 448):
        ways: dict[str, Callable[..., Future[Any]]] = {
            "threads": in_threads,
            "children": in_children,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds + 1):
            for name, way in ways.items():
                rates[name].append(count / _seconds(way, pictures, (side, side)))
        ratios = [b / a for a, b in zip(*rates.values(), strict=True)][1:]
        for name, values in rates.items():
            print(f"{side} pixels, {name}: median {statistics.median(values[1:]):.0f} images/s")
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{side} pixels: ratio: median {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)
    pool.close()
    threads.shutdown()


def _seconds(way: Callable[..., Future[Any]], pictures: list[EncodedImage], size: Size) -> float:
    started = time.monotonic()
    ahead: deque[Future[Any]] = deque()
    for start in range(0, len(pictures), IMAGES_PER_CHUNK):
        ahead.append(way(pictures[start : start + IMAGES_PER_CHUNK], size))
        # As an engine does it: pixels wait for a while, and do not pile up.
        if len(ahead) == _CHUNKS_AHEAD:
            ahead.popleft().result()
    while ahead:
        ahead.popleft().result()
    return time.monotonic() - started


if __name__ == "__main__":
    typer.run(main)
