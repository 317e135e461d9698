"""What a child process of `facescan.decoding` does: reads images for its parent until that is gone.

Both sides send messages of JSON and bytes. Nothing is pickled: what a child says may have been made
up by the image that it decodes. A child that can get no more memory ends with `OUT_OF_MEMORY`.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from facescan import images
from facescan.errors import BadImage
from facescan.images import Limits
from facescan.types import EncodedImage

OUT_OF_MEMORY = 81
"""Exit status of a child that could get no more memory; nothing else uses it."""

FRAME = struct.Struct("!IQ")
"""Of each message, both ways: bytes of JSON, then bytes of the file or the pixels."""

_PR_SET_PDEATHSIG = 1


def serve() -> None:
    """What a child does: answers its parent on descriptor 0 until that closes.

    `sys.argv` begins with the parent's process id, and the bytes of address space that may be taken
    from now on.
    """
    _end_with(int(sys.argv[1]))
    _limit_memory(int(sys.argv[2]))
    with socket.socket(fileno=0) as channel, contextlib.suppress(ConnectionError):
        channel.sendall(b"\1")
        try:
            while count := channel.recv(4, socket.MSG_WAITALL):
                files = [_file(channel) for _ in range(int.from_bytes(count, "big"))]
                for told, data in files:
                    _serve_one(channel, told, data)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)


def _end_with(parent: int) -> None:
    # The end of the socket is not noticed by a decoder that hangs. The signal comes when the thread
    # ends that started this process; the pool's threads live as long as the pool.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def _limit_memory(more_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # A core file of each crash would take more disk and time than the crash.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _file(channel: socket.socket) -> tuple[dict[str, Any], bytes]:
    json_bytes, data_bytes = FRAME.unpack(_exactly(channel, FRAME.size))
    told = json.loads(_exactly(channel, json_bytes))
    return told, _exactly(channel, data_bytes)


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = channel.recv(count, socket.MSG_WAITALL) if count else b""
    if len(data) < count:
        raise ConnectionError("closed within a message")
    return data


def _serve_one(channel: socket.socket, told: dict[str, Any], data: bytes) -> None:
    pixels = np.empty((0, 0, 3), np.uint8)
    said: dict[str, Any]
    try:
        if "limits" in told:
            image = images.check(data, told["sha256"], Limits(**told["limits"]))
            said = {"format": image.format, "width": image.width, "height": image.height}
        else:
            size = told.pop("size")
            pixels = images.decode(EncodedImage(data=data, **told), size and tuple(size))
            said = {"height": pixels.shape[0], "width": pixels.shape[1]}
    except BadImage as error:
        said = {"bad": error.reason, "detail": error.detail[:1000]}
    words = json.dumps(said).encode()
    channel.sendall(FRAME.pack(len(words), pixels.nbytes) + words)
    channel.sendall(pixels.data)
