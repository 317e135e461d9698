"""Whether any bytes can do more to `facescan.images` than be refused: seeded mutations of pictures.

    python -m bench.fuzz_images [--mutations 50000] [--seed 0] [--processes 2] [--only NUMBER]

Small JPEG, PNG and WebP files of all modes are cut, flipped, spliced, their chunks doubled and
their lengths falsified; each result goes through `check` and `decode` in a child process. Every
outcome but `BadImage` and pixels is a failure, and so is a child that dies, hangs, or passes the
bounds below. A mutation depends on its number and the seed alone: `--only` repeats one of them,
in this process.

The mutations are drawn with numpy. Hypothesis shrinks well but spends its time on choosing (about
a millisecond a draw) and forgets a case whose process dies; atheris finds its way by coverage,
which the decoders' C code here does not report, and ends with the process at the first crash.
"""

import hashlib
import io
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np
import typer
from PIL import Image, PngImagePlugin

from facescan.errors import BadImage
from facescan.images import Limits, check, decode

MAX_RSS_MIB = 512.0
"""Of one child process, at any time."""

MAX_SECONDS = 10.0
"""For one file."""

_HANGS_AFTER_SECONDS = 60.0
_LIMITS = Limits()
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def _scene(width: int = 40, height: int = 32) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 // width, y * 255 // height, (x * y) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _saved(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file, its checksum right."""
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


def _sixteen_bit_png() -> bytes:
    rows = b"".join(b"\0" + bytes(range(120)) * 2 for _ in range(32))
    header = struct.pack(">IIBBBBB", 40, 32, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return _PNG_MAGIC + b"".join(png_chunk(name, body) for name, body in chunks)


@cache
def valid_files() -> tuple[tuple[str, bytes], ...]:
    """What is mutated: format and bytes of small pictures, each of another mode or structure."""
    rgb, still = _scene(), _scene().convert("L")
    rgba = rgb.copy()
    rgba.putalpha(still)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a maker"
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a face " * 20, zip=True)
    text.add_itxt("Comment", "a face " * 20, zip=True)
    moving = {"save_all": True, "append_images": [rgb.transpose(Image.Transpose.ROTATE_180)]}
    saved: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", rgb, {"exif": exif, "comment": b"a face"}),
        ("JPEG", rgb, {"progressive": True, "icc_profile": b"profile" * 30}),
        ("JPEG", rgb, {"quality": 95, "subsampling": 0, "restart_marker_blocks": 2}),
        ("JPEG", still, {"optimize": True}),
        ("JPEG", still, {"progressive": True}),
        ("JPEG", rgb.convert("CMYK"), {}),
        ("JPEG", rgb, {"qtables": "web_high", "xmp": b"<x:xmpmeta/>"}),
        ("PNG", rgb, {"exif": exif, "pnginfo": text, "icc_profile": b"profile" * 30}),
        ("PNG", rgba, {}),
        ("PNG", still, {"transparency": 7}),
        ("PNG", rgba.convert("LA"), {}),
        ("PNG", still.convert("1"), {}),
        ("PNG", rgb.quantize(16), {"transparency": bytes(range(16)), "bits": 4}),
        ("PNG", Image.fromarray(np.asarray(still).astype(np.uint16) * 257), {}),
        ("PNG", rgb, moving),
        ("WEBP", rgb, {"quality": 80, "exif": exif}),
        ("WEBP", rgb, {"lossless": True, "icc_profile": b"profile" * 30}),
        ("WEBP", rgba, {"quality": 60}),
        ("WEBP", rgba, {"lossless": True, "xmp": b"<x:xmpmeta/>"}),
        ("WEBP", rgb, moving),
    ]
    files = [(name, _saved(image, name, **options)) for name, image, options in saved]
    return (*files, ("PNG", _sixteen_bit_png()))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of a file that says itself how long it is; offsets into the file."""

    start: int
    length: int
    length_bytes: int
    body: int
    end: int


def _chunks(data: bytes, format_name: str) -> Iterator[_Chunk]:
    at = {"JPEG": 2, "PNG": 8, "WEBP": 12}[format_name]
    while at + 12 <= len(data):
        if format_name == "JPEG":
            if data[at] != 0xFF or data[at + 1] == 0xDA:
                return
            chunk = _Chunk(
                at, at + 2, 2, at + 4, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            )
        elif format_name == "PNG":
            chunk = _Chunk(at, at, 4, at + 8, at + 12 + int.from_bytes(data[at : at + 4], "big"))
        else:
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            chunk = _Chunk(at, at + 4, 4, at + 8, at + 8 + size + size % 2)
        if chunk.end > len(data):
            return
        yield chunk
        at = chunk.end


Random = np.random.Generator


def _flip(data: bytes, _: str, random: Random) -> bytes:
    changed = bytearray(data)
    for at in random.integers(0, len(data), random.integers(1, 9)):
        changed[at] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _overwrite(data: bytes, _: str, random: Random) -> bytes:
    at = int(random.integers(len(data)))
    size = int(random.integers(1, 33))
    patch = (random.bytes(size), b"\0" * size, b"\xff" * size)[random.integers(3)]
    return data[:at] + patch + data[at + size :]


def _truncate(data: bytes, _: str, random: Random) -> bytes:
    return data[: random.integers(len(data))]


def _splice(data: bytes, format_name: str, random: Random) -> bytes:
    others = [other for name, other in valid_files() if name == format_name]
    other = others[random.integers(len(others))]
    return data[: random.integers(len(data))] + other[random.integers(len(other)) :]


def _double_chunk(data: bytes, format_name: str, random: Random) -> bytes:
    if not (chunks := list(_chunks(data, format_name))):
        return data
    source = chunks[random.integers(len(chunks))]
    to = chunks[random.integers(len(chunks))].start
    times = int(random.choice([1, 1, 2, 50]))
    return data[:to] + data[source.start : source.end] * times + data[to:]


def _lie_about_length(data: bytes, format_name: str, random: Random) -> bytes:
    if not (chunks := list(_chunks(data, format_name))):
        return data
    chunk = chunks[random.integers(len(chunks))]
    order: Literal["little", "big"] = "little" if format_name == "WEBP" else "big"
    top = 256**chunk.length_bytes
    end = chunk.length + chunk.length_bytes
    length = int.from_bytes(data[chunk.length : end], order)
    lies = [0, 1, 2, length - 1, length + 1, length + 16, top // 2 - 1, top // 2, top - 1]
    lie: int = lies[random.integers(len(lies))] % top
    return data[: chunk.length] + lie.to_bytes(chunk.length_bytes, order) + data[end:]


def _lie_within_a_header(data: bytes, format_name: str, random: Random) -> bytes:
    """Sizes, depths, counts: the first bytes of a chunk, of which most formats make decisions."""
    if not (chunks := list(_chunks(data, format_name))):
        return data
    chunk = chunks[random.integers(len(chunks))]
    at = chunk.body + int(random.integers(16))
    values = [0, 1, 2, 3, 4, 8, 16, 17, 0x7F, 0x80, 0xFE, 0xFF]
    return data[:at] + bytes([values[random.integers(len(values))]]) + data[at + 1 :]


_MUTATIONS: tuple[Callable[[bytes, str, Random], bytes], ...] = (
    _flip,
    _overwrite,
    _truncate,
    _splice,
    _double_chunk,
    _lie_about_length,
    _lie_within_a_header,
)


def _with_right_checksums(data: bytes) -> bytes:
    """A PNG whose mutations are not all stopped by the checksums that every chunk has."""
    changed = bytearray(data)
    for chunk in _chunks(data, "PNG"):
        body = data[chunk.start + 4 : chunk.end - 4]
        changed[chunk.end - 4 : chunk.end] = zlib.crc32(body).to_bytes(4)
    return bytes(changed)


def mutation(number: int, seed: int) -> bytes:
    """The file with this number: a valid one after one to three mutations."""
    random = np.random.default_rng([seed, number])
    files = valid_files()
    format_name, data = files[number % len(files)]
    for _ in range(int(random.integers(1, 4))):
        if data:
            data = _MUTATIONS[random.integers(len(_MUTATIONS))](data, format_name, random)
    return _with_right_checksums(data) if format_name == "PNG" and random.integers(2) else data


def outcome(data: bytes) -> str:
    """`ok`, a reason of `facescan.images`, or the name of what else was raised."""
    try:
        image = check(data, hashlib.sha256(data).hexdigest(), _LIMITS)
        pixels = decode(image)
    except BadImage as error:
        return str(error.reason)
    except Exception as error:  # noqa: BLE001 - which exceptions come is the question
        return f"{type(error).__name__}: {error}"
    upright = {(image.height, image.width, 3), (image.width, image.height, 3)}
    return "ok" if pixels.shape in upright else f"pixels of shape {pixels.shape}"


@dataclass
class Report:
    """What became of all mutations.

    Attributes:
        outcomes: outcome -> how many.
        failures: mutation's number -> what went wrong, where it must not.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    slowest_seconds: float = 0.0
    slowest: int = 0
    peak_rss_mib: float = 0.0

    def add(self, number: int, found: str, seconds: float, rss_mib: float) -> None:
        """Count one mutation."""
        self.outcomes[found] += 1
        if found not in _EXPECTED:
            self.failures[number] = found
        if seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest = seconds, number
        self.peak_rss_mib = max(self.peak_rss_mib, rss_mib)

    @property
    def good(self) -> bool:
        """Nothing failed, and no bound was passed."""
        bounded = self.slowest_seconds < MAX_SECONDS and self.peak_rss_mib < MAX_RSS_MIB
        return bounded and not self.failures


_EXPECTED = frozenset(
    {
        "ok",
        "empty",
        "not_an_image",
        "unsupported_format",
        "too_many_pixels",
        "too_small",
        "truncated",
        "corrupt",
    }
)


def _high_water_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _work(numbers: range, seed: int, results: Connection) -> None:
    """In a child: each mutation's number before it is tried, and what came of it after."""
    for number in numbers:
        data = mutation(number, seed)
        results.send(number)
        start = time.perf_counter()
        found = outcome(data)
        results.send((found, time.perf_counter() - start, _high_water_mib()))
    results.close()


class _Child:
    """A process that works through every n-th number; started anew behind one that kills it."""

    def __init__(self, numbers: range, seed: int, report: Report) -> None:
        self._seed = seed
        self._report = report
        self._trying: int | None = None
        self._start(numbers)

    def _start(self, numbers: range) -> None:
        # Not forked: the child would begin with this process's memory.
        context = get_context("spawn")
        self._numbers = numbers
        self.results, theirs = context.Pipe(duplex=False)
        self._process: SpawnProcess = context.Process(
            target=_work, args=(numbers, self._seed, theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    def take(self) -> bool:
        """Read one message; False when all numbers are through."""
        try:
            message = self.results.recv()
        except EOFError:
            self._process.join()
            if self._trying is None and self._process.exitcode == 0:
                return False
            return self._go_on(f"the process ended with {self._process.exitcode}")
        if isinstance(message, int):
            self._trying = message
        elif self._trying is not None:
            self._report.add(self._trying, *message)
            self._trying = None
        return True

    def hangs(self) -> bool:
        """Kill it and go on behind what it hangs on; False when there is nothing more."""
        self._process.kill()
        self._process.join()
        return self._go_on(f"no answer within {_HANGS_AFTER_SECONDS:.0f} s")

    def _go_on(self, reason: str) -> bool:
        if self._trying is None:
            raise RuntimeError(f"a child broke outside of a mutation: {reason}")
        self._report.add(self._trying, reason, 0.0, 0.0)
        left = range(self._trying + self._numbers.step, self._numbers.stop, self._numbers.step)
        self._trying = None
        if left:
            self._start(left)
        return bool(left)


def fuzz(mutations: int, seed: int, processes: int) -> Report:
    """Try the mutations 0, 1, 2 ... in child processes."""
    report = Report()
    children = [_Child(range(n, mutations, processes), seed, report) for n in range(processes)]
    while children:
        ready = wait([child.results for child in children], _HANGS_AFTER_SECONDS)
        if not ready:
            children = [child for child in children if child.hangs()]
        for child in [child for child in children if child.results in ready]:
            if not child.take():
                children.remove(child)
    return report


def main(
    mutations: int = 50_000, seed: int = 0, processes: int = 2, only: int | None = None
) -> None:
    """Print how many mutations had which outcome, and the highest memory and time of any."""
    if only is not None:
        print(outcome(mutation(only, seed)))
        return
    report = fuzz(mutations, seed, processes)
    for name, count in report.outcomes.most_common():
        print(f"{count:8,} {name}")
    print(f"peak RSS of a process: {report.peak_rss_mib:.0f} MiB (bound {MAX_RSS_MIB:.0f})")
    print(f"slowest: {report.slowest_seconds:.3f} s, mutation {report.slowest}")
    for number, failure in sorted(report.failures.items()):
        print(f"FAILED: mutation {number}: {failure}")
    raise typer.Exit(0 if report.good else 1)


if __name__ == "__main__":
    typer.run(main)
