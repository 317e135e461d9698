"""Files that are complete under their final name, whatever happens while they are written."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on success it is synced and renamed to `final`.

    After the block the file is on disk under its final name, and stays so through a power loss:
    the file is synced before the rename and the folder after it. If the block raises, `final` is
    as it was and the temporary file is gone.

    Raises:
        OSError: the disk is full, read-only or gone.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(final.parent)


def write_text(final: Path, text: str) -> None:
    """Write a whole small file by `replacing`."""
    with replacing(final) as temporary:
        temporary.write_text(text)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
