"""The images of a source's rows: read, hashed and checked by threads, in the order of the rows."""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from facescan import images
from facescan.datasets import Rejected, SourceRow
from facescan.errors import BadImage, DataError
from facescan.shards import ShardRow

MISSING = "missing_image"
"""Why a row is rejected whose image is not there."""

_THREADS = 2
"""That read and hash files. Of files in the page cache four take 10 us more a row than two, since
each waits for the interpreter after each call; from a cold disk they are not faster."""

_ROWS_AT_ONCE = 16
"""Handed to a thread together: one by one, handing over takes 20 us more a row."""

_PARTS = 2
"""Of so many rows, being read or waiting for their turn, which bounds the memory."""

_LIMITS = images.Limits()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A row with its image read.

    Attributes:
        unusable: why the image will end as `bad_image`; None for a good one.
    """

    where: str
    row: ShardRow
    unusable: str | None


def loaded(
    items: Iterable[SourceRow | Rejected], root: Path | None
) -> Generator[Loaded | Rejected, None, None]:
    """Read the images of rows; what is rejected already passes through.

    The caller closes the generator where it does not come to its end: threads read for it.

    Rejected are rows without an image (`MISSING`) and with one above the limit of bytes, which no
    run would accept. Other images that cannot be used stay.

    Args:
        items: in any number; a few at a time are taken.
        root: that paths start from and must stay below; None where there are no paths.

    Raises:
        DataError: a path is a URL, leads out of `root`, or is there but cannot be read.
    """
    real_root = None if root is None else os.path.join(os.path.realpath(root), "")
    remaining = iter(items)
    waiting = deque[Future[list[Loaded | Rejected]]]()
    with ThreadPoolExecutor(_THREADS) as pool:
        while part := list(islice(remaining, _ROWS_AT_ONCE)):
            waiting.append(pool.submit(_load_all, real_root, part))
            if len(waiting) == _PARTS:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _load_all(root: str | None, items: list[SourceRow | Rejected]) -> list[Loaded | Rejected]:
    return [_load(root, item) for item in items]


def _load(root: str | None, item: SourceRow | Rejected) -> Loaded | Rejected:
    if isinstance(item, Rejected):
        return item
    path = item.image if isinstance(item.image, str) else None
    try:
        data = _read(root, item.image, item.where) if isinstance(item.image, str) else item.image
    except (FileNotFoundError, NotADirectoryError):
        data = None
    except OSError as error:
        raise DataError(f"{item.where}: {error}") from error
    if data is None:
        return Rejected(f"{item.where} ({path or 'no image named'})", MISSING)
    if len(data) > _LIMITS.max_bytes:
        return Rejected(item.where, images.Reason.TOO_MANY_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    row = ShardRow(
        image_id=item.image_id,
        image_sha256=digest,
        data=data,
        path=path,
        split=item.split,
        subject_id=item.subject_id,
        labels=item.labels,
        values=item.values,
        groups=item.groups,
    )
    return Loaded(item.where, row, _unusable(data, digest))


def _unusable(data: bytes, digest: str) -> str | None:
    try:
        images.check(data, digest, _LIMITS)
    except BadImage as error:
        return error.reason
    return None


@lru_cache(maxsize=1024)
def _real_folder(root: str, folder: str) -> str:
    """A folder with its links followed: once, since for each file it took as long as reading."""
    return os.path.join(os.path.realpath(os.path.join(root, folder)), "")


def _read(root: str | None, path: str, where: str) -> bytes:
    """The file at `path` below `root`; of one above the limit, no more than shows that it is."""
    if root is None or "://" in path or "\0" in path:
        raise DataError(f"{where}: '{path}' is not a path below the source; URLs are not followed")
    folder, name = os.path.split(path)
    real = _real_folder(root, folder) + name
    status = os.lstat(real)
    if name == os.pardir or stat.S_ISLNK(status.st_mode):
        real = os.path.realpath(real)
        status = os.stat(real)
    if not real.startswith(root):
        raise DataError(f"{where}: '{path}' leads out of {os.path.dirname(root)}")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{where}: '{path}' is not a file")
    return _first_bytes(real, min(status.st_size, _LIMITS.max_bytes + 1))


def _first_bytes(path: str, size: int) -> bytes:
    """By bare calls: with a file object of Python it takes twice as long, 15 us of 5 KB."""
    file = os.open(path, os.O_RDONLY)
    try:
        data = os.read(file, size)
        while len(data) < size and (more := os.read(file, size - len(data))):
            data += more
    finally:
        os.close(file)
    return data
