"""The pool of decoding processes: real crashes, hangs and memory exhaustion, in real processes."""

import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.kills import kill
from facescan import images
from facescan.decoding import DecodePool
from facescan.errors import BadImage, EngineError
from facescan.images import Limits, Reason
from facescan.types import EncodedImage
from tests.conftest import jpeg
from tests.poison import CRASHES, EXHAUSTS, HANGS, environment, poisonous

SECONDS = 2.0
MEMORY = 64 * 1024 * 1024


def checked(data: bytes) -> EncodedImage:
    return images.check(data, hashlib.sha256(data).hexdigest(), Limits())


def named(*files: bytes) -> list[tuple[bytes, str]]:
    return [(data, hashlib.sha256(data).hexdigest()) for data in files]


def same(found: Any, picture: EncodedImage, size: tuple[int, int] | None = None) -> bool:
    return not isinstance(found, BadImage) and np.array_equal(found, images.decode(picture, size))


def here(data: bytes, sha256: str, limits: Limits) -> EncodedImage | tuple[str, str]:
    try:
        return images.check(data, sha256, limits)
    except BadImage as bad:
        return bad.reason, bad.detail


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def children(of: int | str = "self") -> set[int]:
    lists = [task.read_text() for task in Path(f"/proc/{of}/task").glob("*/children")]
    return {int(child) for text in lists for child in text.split()}


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def make_pool() -> Iterator[Callable[..., DecodePool]]:
    made: list[DecodePool] = []

    def make(processes: int = 1, **settings: Any) -> DecodePool:
        made.append(DecodePool(processes, **settings))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def poisoned_pool(
    make_pool: Callable[..., DecodePool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> DecodePool:
    for name, value in environment(tmp_path / "poison").items():
        monkeypatch.setenv(name, value)
    return make_pool(2, seconds=SECONDS, memory_bytes=MEMORY)


@pytest.mark.parametrize("size", [None, (20, 30)])
def test_a_pool_decodes_what_this_process_decodes(
    make_pool: Callable[..., DecodePool], size: tuple[int, int] | None
) -> None:
    pictures = [checked(jpeg(seed, 16 + seed)) for seed in range(70)]
    found = make_pool(2).decode(pictures, size).result()
    assert len(found) == 70
    for picture, pixels in zip(pictures, found, strict=True):
        assert same(pixels, picture, size)
        assert pixels.flags.writeable  # type: ignore[union-attr] # `same` has seen pixels


def test_pixels_are_freed_with_their_last_user_not_by_the_garbage_collector(
    make_pool: Callable[..., DecodePool],
) -> None:
    pool = make_pool(2)
    gc.disable()
    try:
        decoded = pool.decode([checked(jpeg(number)) for number in range(64)]).result()
        pixels = [weakref.ref(each) for each in decoded if not isinstance(each, BadImage)]
        del decoded
        assert len(pixels) == 64
        assert eventually(lambda: not any(each() is not None for each in pixels))
    finally:
        gc.enable()


def test_headers_are_read_as_in_this_process(make_pool: Callable[..., DecodePool]) -> None:
    files = named(jpeg(1), b"", jpeg(2)[:9], b"<html>", jpeg(3, 90), *map(jpeg, range(40)))
    limits = Limits(max_pixels=50 * 50)
    found = make_pool(2).check(files, limits).result()
    assert len(found) == len(files)
    for (data, sha256), each in zip(files, found, strict=True):
        expected = here(data, sha256, limits)
        if isinstance(each, BadImage):
            assert (each.reason, each.detail) == expected
        else:
            assert each == expected
    assert make_pool().check([], limits).result() == []


def test_unusable_pictures_are_told_apart_from_those_that_end_a_decoder(
    make_pool: Callable[..., DecodePool],
) -> None:
    whole = checked(jpeg(1))
    data = jpeg(2, 200)
    cut = EncodedImage(hashlib.sha256(data[:-300]).hexdigest(), data[:-300], "JPEG", 200, 200)
    other = EncodedImage("0" * 64, whole.data, "JPEG", whole.width, whole.height)
    pool = make_pool()
    first, second, third = pool.decode([cut, other, whole]).result()
    assert isinstance(first, BadImage)
    assert first.reason == Reason.TRUNCATED
    assert isinstance(second, BadImage)
    assert second.reason == Reason.HASH_MISMATCH
    assert same(third, whole)


@pytest.mark.slow
def test_each_poison_ends_as_its_own_error_and_the_rest_of_its_chunk_is_decoded(
    poisoned_pool: DecodePool,
) -> None:
    poisons = {
        3: (CRASHES, Reason.DECODER_CRASHED, "SIGSEGV"),
        4: (EXHAUSTS, Reason.DECODER_MEMORY, "64 MiB"),
        29: (HANGS, Reason.DECODER_TIMEOUT, "2 s"),
    }
    pictures = [
        checked(poisonous(poisons[seed][0]) if seed in poisons else jpeg(seed))
        for seed in range(30)
    ]
    headers = poisoned_pool.check(named(*(each.data for each in pictures)), Limits()).result()
    decoded = poisoned_pool.decode(pictures, (24, 24)).result()
    for seed, (header, pixels) in enumerate(zip(headers, decoded, strict=True)):
        if seed in poisons:
            _, reason, detail = poisons[seed]
            for bad in (header, pixels):
                assert isinstance(bad, BadImage)
                assert bad.reason == reason
                assert detail in bad.detail
        else:
            assert header == pictures[seed]
            assert same(pixels, pictures[seed], (24, 24))


@pytest.mark.slow
def test_other_calls_go_on_while_a_picture_hangs(poisoned_pool: DecodePool) -> None:
    hanging = poisoned_pool.decode([checked(poisonous(HANGS))])
    for seed in range(5):
        (pixels,) = poisoned_pool.decode([checked(jpeg(seed))]).result()
        assert not isinstance(pixels, BadImage)
    assert not hanging.done()
    (bad,) = hanging.result()
    assert isinstance(bad, BadImage)


@pytest.mark.slow
def test_a_child_killed_from_outside_costs_no_picture(make_pool: Callable[..., DecodePool]) -> None:
    before = children()
    pool = make_pool(2)
    pictures = [checked(jpeg(seed, 700)) for seed in range(100)]
    pool.decode(pictures[:64]).result()
    for child in children() - before:
        kill(child)
    working = pool.decode(pictures, (8, 8))
    assert eventually(lambda: children() - before)
    # Some of the first may still be listed.
    for child in children() - before:
        kill(child)
    for picture, pixels in zip(pictures, working.result(), strict=True):
        assert same(pixels, picture, (8, 8))


def test_signals_to_the_terminals_processes_do_not_reach_a_decoder(
    make_pool: Callable[..., DecodePool],
) -> None:
    before = children()
    pool = make_pool()
    pool.decode([checked(jpeg(1))]).result()
    (child,) = children() - before
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child, number)
    (pixels,) = pool.decode([checked(jpeg(2))]).result()
    assert not isinstance(pixels, BadImage)
    assert children() - before == {child}


def test_a_pool_closed_in_the_middle_leaves_no_process_and_no_waiting_caller(
    poisoned_pool: DecodePool,
) -> None:
    before = children()
    hanging = poisoned_pool.decode([checked(poisonous(HANGS))])
    waiting = poisoned_pool.decode([checked(jpeg(seed)) for seed in range(500)])
    assert eventually(lambda: children() - before)
    poisoned_pool.close()
    assert children() == before
    for future in (hanging, waiting):
        with pytest.raises(EngineError, match="closed"):
            future.result(timeout=10)
    with pytest.raises(EngineError, match="closed"):
        poisoned_pool.decode([checked(jpeg(1))])


@pytest.mark.slow
def test_decoders_end_with_the_process_that_started_them_even_while_they_hang(
    tmp_path: Path,
) -> None:
    script = (
        "import hashlib, sys\n"
        "from facescan.decoding import DecodePool\n"
        "from facescan.types import EncodedImage\n"
        "pool = DecodePool(2, seconds=100)\n"
        "data = [bytes.fromhex(line) for line in sys.stdin]\n"
        "made = [EncodedImage(hashlib.sha256(d).hexdigest(), d, 'JPEG', 48, 48) for d in data]\n"
        "pool.decode(made[:1]).result()\n"
        "pool.decode(made[1:]).result()\n"
    )
    files = "\n".join(data.hex() for data in (jpeg(1), poisonous(HANGS)))
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        text=True,
        env=os.environ | environment(tmp_path / "poison"),
    )
    try:
        assert parent.stdin is not None
        parent.stdin.write(files)
        parent.stdin.close()
        # Starting takes less processor time than this, so one of them is at the picture that hangs.
        assert eventually(lambda: any(processor_seconds(c) > 2 for c in children(parent.pid)), 60)
        decoders = children(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    gone = eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in decoders))
    for child in set() if gone else decoders:
        os.kill(child, signal.SIGKILL)
    assert gone


def test_a_decoder_imports_no_cluster_no_torch_and_little_else() -> None:
    script = "import sys, facescan.decoder; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"ray", "torch", "transformers", "vllm", "multiprocessing", "duckdb", "cv2"}


def test_decoders_that_cannot_start_are_an_error_of_the_engine_not_of_the_picture(
    make_pool: Callable[..., DecodePool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "numpy.py"
    broken.write_text("raise SystemExit(7)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"exit status 7 \(3 attempts\)"):
        make_pool().decode([checked(jpeg(1))]).result()


def test_calls_from_many_threads_get_their_own_pictures(
    make_pool: Callable[..., DecodePool],
) -> None:
    pool = make_pool(2)
    wrong: list[int] = []

    def work(first: int) -> None:
        pictures = [checked(jpeg(first + number, 20 + first)) for number in range(40)]
        decoded = pool.decode(pictures).result()
        for picture, pixels in zip(pictures, decoded, strict=True):
            if not same(pixels, picture):
                wrong.append(first)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
