"""Images read in child processes: one that crashes, hangs or takes all memory ends as one error.

    caller ──chunk──> thread ──socket──> child: facescan.images ──answers──> thread ──> Future

What an image says and looks like is decided by `facescan.images`; here it is only moved to where
it can do no harm. A child that dies, or does not answer in time and is killed, was working on the
first image that it has not answered: that one is done again alone in a fresh child, and only if it
fails there too it is a `BadImage`. The others of its chunk come out as if nothing had been.

A child inherits nothing of this process but its environment. It takes no signal that is sent to
the process group of a terminal, ends when this process does, and may have `memory_bytes` of address
space more than it starts with. What it answers is never unpickled.

`concurrent.futures` and loky break the whole pool when one worker dies, and pebble starts workers
through multiprocessing, which imports the parent's main module (in a Ray worker, Ray's) or forks
its threads.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from facescan.decoder import FRAME, OUT_OF_MEMORY
from facescan.errors import BadImage, EngineError
from facescan.images import Limits, Reason
from facescan.types import EncodedImage

IMAGES_PER_CHUNK = 32
"""Images that a child gets at once: handing over single ones costs more than decoding them (0.3 ms
each at 224 pixels)."""

_CHUNK_BYTES = 32 * 1024 * 1024
"""Bound on the files and pixels of a chunk together; a larger image is a chunk of its own."""

_START_SECONDS = 60.0
"""For a child to start, which takes 0.3 s; longer where files come over a slow network."""

_STARTS = 3
"""Attempts to start a child before there is something wrong with the machine."""

_ENVIRONMENT = {
    # Importing numpy starts a thread for each core, with address space for each.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc would give the memory of a large picture back after each and have it zeroed for the
    # next, which is a third of the work at 448 pixels.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024 * 1024),
}

_CLOSED = "the pool of decoding processes is closed"
_MAX_JSON = 64 * 1024

Pixels = npt.NDArray[np.uint8]
_Answer = TypeVar("_Answer", covariant=True)
_Each = TypeVar("_Each")


_BYTES_PER_PIXEL = 24
"""Address space that decoding takes at most: 17 were seen (WebP, four copies), docs/measured.md."""


def memory_for(limits: Limits) -> int:
    """Bytes of address space in which any image within these limits can be decoded."""
    return max(1 << 30, _BYTES_PER_PIXEL * limits.max_pixels + 2 * limits.max_bytes)


class DecodePool:
    """Child processes that read headers and decode; methods may be called from any thread.

    A returned Future is served by the pool's threads: wait for it on a thread, or on an event loop
    with `asyncio.wrap_future`. It cannot be cancelled. It raises EngineError when children cannot
    be started, or the pool was closed before the work was done; so do all calls afterwards.

    Args:
        processes: children, each started when there is work for it.
        seconds: time an image may take, from the answer before it to its own.
        memory_bytes: address space a child may take beyond what it has once it has started; at
            the default of `Limits.max_pixels` an image needs at most 0.6 GiB. Some pictures that
            need more end as `corrupt`: libjpeg and libwebp do not say that it was the memory.
    """

    def __init__(
        self, processes: int, *, seconds: float = 10.0, memory_bytes: int = 1 << 30
    ) -> None:
        self.processes = processes
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._children: dict[int, _Child] = {}
        self._closed = False
        self._threads = ThreadPoolExecutor(
            processes, thread_name_prefix="decode", initializer=_leave_signals_to_others
        )

    def check(
        self, files: Sequence[tuple[bytes, str]], limits: Limits
    ) -> "Future[list[EncodedImage | BadImage]]":
        """`images.check` of (bytes, SHA-256 hex digest) pairs; answers in the order of `files`."""
        told = asdict(limits)
        return self._answers([_Check(data, sha256, told) for data, sha256 in files])

    def decode(
        self, encoded: Sequence[EncodedImage], size: tuple[int, int] | None = None
    ) -> "Future[list[Pixels | BadImage]]":
        """`images.decode` of each image; answers in the order of `encoded`, all held in memory."""
        return self._answers([_Decode(image, size) for image in encoded])

    def close(self) -> None:
        """End the children; work that is not done raises EngineError."""
        with self._lock:
            self._closed = True
            for child in self._children.values():
                child.kill()
        self._threads.shutdown()
        for child in self._children.values():
            child.bury()

    def _answers(self, tasks: "Sequence[_Task[_Each]]") -> "Future[list[_Each | BadImage]]":
        with self._lock:
            if self._closed:
                raise EngineError(_CLOSED)
            return _joined([self._threads.submit(self._chunk, chunk) for chunk in _chunks(tasks)])

    def _chunk(self, tasks: "Sequence[_Task[_Each]]") -> "list[_Each | BadImage]":
        answers: list[_Each | BadImage] = []
        while len(answers) < len(tasks):
            try:
                for answer in self._child().ask(tasks[len(answers) :]):
                    answers.append(answer)
            except _DiedError:
                answers.append(self._alone(tasks[len(answers)]))
        return answers

    def _alone(self, task: "_Task[_Each]") -> "_Each | BadImage":
        try:
            (answer,) = self._child().ask([task])
        except _DiedError as death:
            return BadImage(death.reason, death.detail)
        return answer

    def _child(self) -> "_Child":
        """The child of this thread; a fresh one if it has none or that has died.

        Raises:
            EngineError: none can be started, or the pool is closed.
        """
        thread = threading.get_ident()
        failure = ""
        for _ in range(_STARTS):
            with self._lock:
                if self._closed:
                    raise EngineError(_CLOSED)
                child = self._children.get(thread)
                if child is not None and child.alive:
                    return child
                try:
                    child = _Child(self._seconds, self._memory_bytes)
                except OSError as error:
                    failure = str(error)
                    continue
                self._children[thread] = child
            try:
                child.wait_until_ready()
            except _DiedError as death:
                failure = death.detail
            else:
                return child
        raise EngineError(
            f"a decoding process ends before it can decode: {failure} ({_STARTS} attempts). "
            f"What it said is on the standard error of process {os.getpid()}; "
            f"'{sys.executable} -c \"import facescan.decoder\"' should work"
        )


class _DiedError(Exception):
    """A child is no more; `reason` and `detail` are as of `BadImage`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class _Task(Protocol[_Answer]):
    """What a child is to do with one file, and how its answer is read.

    Attributes:
        data: the file.
        pixel_bytes: how many the answer has, unless the image is bad.
    """

    @property
    def data(self) -> bytes: ...

    @property
    def pixel_bytes(self) -> int: ...

    def told(self) -> dict[str, Any]: ...

    def answer(self, said: dict[str, Any], pixels: Pixels) -> _Answer: ...


@dataclass(frozen=True, slots=True)
class _Check:
    data: bytes
    sha256: str
    limits: dict[str, int]

    @property
    def pixel_bytes(self) -> int:
        return 0

    def told(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "limits": self.limits}

    def answer(self, said: dict[str, Any], pixels: Pixels) -> EncodedImage:
        del pixels
        return EncodedImage(
            self.sha256, self.data, str(said["format"]), int(said["width"]), int(said["height"])
        )


@dataclass(frozen=True, slots=True)
class _Decode:
    image: EncodedImage
    size: tuple[int, int] | None

    @property
    def data(self) -> bytes:
        return self.image.data

    @property
    def pixel_bytes(self) -> int:
        width, height = self.size or (self.image.width, self.image.height)
        return width * height * 3

    def told(self) -> dict[str, Any]:
        image = self.image
        return {
            "sha256": image.sha256,
            "format": image.format,
            "width": image.width,
            "height": image.height,
            "size": self.size,
        }

    def answer(self, said: dict[str, Any], pixels: Pixels) -> Pixels:
        return pixels.reshape(said["height"], said["width"], 3)


class _Child:
    """One child process, owned by one thread; `kill` may be called from any."""

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self.alive = True
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    # Modules come from where they come from here.
                    "import sys; sys.path[:] = sys.argv[3:]\n"
                    "from facescan.decoder import serve; serve()",
                    str(os.getpid()),
                    str(memory_bytes),
                    *sys.path,
                ],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | _ENVIRONMENT,
            )

    def kill(self) -> None:
        self._process.kill()

    def bury(self) -> int:
        """Give back what there is of it; its exit status, negative for a signal."""
        self.alive = False
        self._process.kill()
        self._socket.close()
        return int(self._process.wait())

    def wait_until_ready(self) -> None:
        self._socket.settimeout(_START_SECONDS)
        try:
            self._receive(bytearray(1))
        except OSError as error:
            raise self._death(error) from None
        self._socket.settimeout(self._seconds)

    def ask(self, tasks: "Sequence[_Task[_Each]]") -> "Iterator[_Each | BadImage]":
        """Yield the answers in order.

        Raises:
            _DiedError: the child died of the first task without an answer.
        """
        try:
            # It reads all before it answers, so neither side waits for the other to read.
            self._socket.sendall(_messages(tasks))
            for task in tasks:
                yield self._answer(task)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._death(error) from None

    def _answer(self, task: "_Task[_Each]") -> "_Each | BadImage":
        head = bytearray(FRAME.size)
        self._receive(head)
        json_bytes, pixel_bytes = FRAME.unpack(head)
        if json_bytes > _MAX_JSON or pixel_bytes not in (0, task.pixel_bytes):
            raise ValueError(f"{pixel_bytes} bytes of pixels, expected {task.pixel_bytes}")
        said_json = bytearray(json_bytes)
        self._receive(said_json)
        said = json.loads(said_json)
        if "bad" in said:
            return BadImage(Reason(said["bad"]), str(said["detail"]))
        pixels = np.empty(pixel_bytes, np.uint8)
        self._receive(pixels.data)
        return task.answer(said, pixels)

    def _receive(self, into: bytearray | memoryview) -> None:
        view = memoryview(into)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionError("closed")
            view = view[count:]

    def _death(self, error: Exception) -> _DiedError:
        """Why there is no answer; the child is dead afterwards if it was not before."""
        if isinstance(error, TimeoutError):
            limit = f"{self._socket.gettimeout():g} s"
            self.bury()
            return _DiedError(Reason.DECODER_TIMEOUT, f"no answer from the decoder in {limit}")
        # Its end of the socket is closed shortly before it has a status.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        status = self.bury()
        if status == OUT_OF_MEMORY:
            limit = f"{self._memory_bytes >> 20} MiB"
            return _DiedError(Reason.DECODER_MEMORY, f"the decoder had no more than {limit}")
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return _DiedError(Reason.DECODER_CRASHED, f"the decoder's process ended with {how}")


def _messages(tasks: "Sequence[_Task[object]]") -> bytes:
    parts = [len(tasks).to_bytes(4, "big")]
    for task in tasks:
        told = json.dumps(task.told()).encode()
        parts += [FRAME.pack(len(told), len(task.data)), told, task.data]
    return b"".join(parts)


def _chunks(tasks: "Sequence[_Task[_Each]]") -> "Iterator[list[_Task[_Each]]]":
    chunk: list[_Task[_Each]] = []
    left = 0
    for task in tasks:
        needed = len(task.data) + task.pixel_bytes
        if chunk and (len(chunk) == IMAGES_PER_CHUNK or needed > left):
            yield chunk
            chunk = []
        if not chunk:
            left = _CHUNK_BYTES
        chunk.append(task)
        left -= needed
    if chunk:
        yield chunk


def _joined(parts: "list[Future[list[_Each]]]") -> "Future[list[_Each]]":
    """The answers of all parts in order, or the first error, when all parts are done."""
    whole: Future[list[_Each]] = Future()
    whole.set_running_or_notify_cancel()
    lock = threading.Lock()
    left = len(parts)

    def one_done(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        error = next((error for part in parts if (error := part.exception())), None)
        answers = [] if error else [answer for part in parts for answer in part.result()]
        # Each part holds this function and this function the parts: without this, what they decoded
        # stays until the garbage collector comes by (1 GiB was seen to wait for it).
        parts.clear()
        if error is None:
            whole.set_result(answers)
        else:
            whole.set_exception(error)

    for part in parts:
        part.add_done_callback(one_done)
    if not parts:
        whole.set_result([])
    return whole


def _leave_signals_to_others() -> None:
    """For a thread of the pool, and inherited by the children that it starts.

    A terminal's Ctrl-C reaches all processes of its group; the parent says what happens then.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
