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
    as it was and the temporary file is gone. Only a killed process leaves one: a hidden file that
    ends in `.tmp`.

    Raises:
        OSError: the disk is full, read-only or gone.
    """
    make_folder(final.parent)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        rename(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename(finished: Path, final: Path) -> None:
    """Make a finished file of the same file system `final`, on disk when this returns.

    Raises:
        OSError: the disk is full, read-only or gone.
    """
    _sync(finished)
    os.replace(finished, final)
    _sync(final.parent)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it where they are absent, on disk when this returns.

    Raises:
        OSError: a file is in the way, or the disk is full, read-only or gone.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def write_text(final: Path, text: str) -> None:
    """Write a whole small file by `replacing`."""
    with replacing(final) as temporary:
        temporary.write_text(text)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # which fsync does not know
        raise
    finally:
        os.close(descriptor)
