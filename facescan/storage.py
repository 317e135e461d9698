"""Folders of finished files, on a local disk or an object store, through one small seam.

A run folder is written through this: its files appear whole, under their final names, or not at
all, whoever is killed while they are written.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from facescan import durable
from facescan.errors import UsageError

_SCRATCH = ".scratch-"
_LOCK = ".lock"


class Storage(Protocol):
    """One folder. Picklable: it is sent to workers on other machines.

    Names are those of files directly in the folder; one that holds a '/', or is hidden, is a
    mistake of the caller (ValueError). Whatever else goes wrong is an OSError whose message says
    where.
    """

    @property
    def location(self) -> str:
        """An absolute path, or a URI without a slash at its end."""

    def below(self, name: str) -> "Storage":
        """The folder `name` inside this one."""

    def names(self) -> list[str]:
        """The complete files directly in this folder, sorted; none where there is no folder.

        Hidden files, which unfinished ones are, and folders are not among them.
        """

    def exists(self, name: str) -> bool:
        """Whether there is a complete file of this name."""

    def read(self, name: str) -> bytes:
        """The whole content.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def open(self, name: str) -> pa.NativeFile:
        """The file for random access, as Parquet needs it; the caller closes it.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whole and durable when this returns; what was there is replaced."""

    def adopt(self, path: Path, name: str) -> None:
        """Make the finished local file `path` the file `name`, as `write` would; `path` is gone."""

    def scratch(self) -> AbstractContextManager[Path]:
        """A local folder for unfinished work, gone afterwards with what is still in it."""

    def delete(self, name: str) -> None:
        """Remove a file; no error where it is gone already."""

    def version(self, name: str) -> str | None:
        """What changes whenever the content does; None where there is no such file."""

    def swap(self, name: str, data: bytes, expected: str | None) -> str | None:
        """Write only if the version still is `expected` (None: only if there is no such file).

        Atomic between processes and hosts, as long as nobody uses `write`, `adopt` or `delete` on
        the same name. Equal contents may have equal versions: data that must be told from what
        was there before, such as a renewed lease, has to differ from it.

        Returns:
            The new version; None where another was faster, and nothing was written.
        """

    def sweep(self) -> None:
        """Remove what killed processes left unfinished directly in this folder.

        Nobody may be writing meanwhile: for the holder of the run's lease.
        """


def at(location: str | Path) -> Storage:
    """The folder at a path, or at a URI such as `s3://bucket/runs/mine`; it need not exist yet.

    A `Path` is always a local path.

    Raises:
        UsageError: a URI of a kind that is not known.
    """
    if isinstance(location, str) and (found := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)):
        raise UsageError(f"{location}: '{found[1]}://' is not known; give a path")
    return LocalStorage(os.path.abspath(location))


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """A folder of a file system, which may be one that several machines share."""

    location: str

    def below(self, name: str) -> "LocalStorage":
        """See `Storage`."""
        return LocalStorage(str(self._path(name)))

    def names(self) -> list[str]:
        """See `Storage`."""
        try:
            with os.scandir(self.location) as entries:
                return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        return self._path(name).is_file()

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return self._path(name).read_bytes()

    def open(self, name: str) -> pa.NativeFile:
        """See `Storage`."""
        return pa.OSFile(str(self._path(name)), "rb")

    def write(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        with _naming(self._path(name)) as final, durable.replacing(final) as temporary:
            temporary.write_bytes(data)

    def adopt(self, path: Path, name: str) -> None:
        """See `Storage`."""
        final = self._path(name)
        durable.make_folder(final.parent)
        try:
            durable.rename(path, final)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with _naming(final), durable.replacing(final) as temporary:
                shutil.copyfile(path, temporary)
            path.unlink()

    def scratch(self) -> AbstractContextManager[Path]:
        """See `Storage`; inside this folder, so that `adopt` is a rename."""
        return self._scratch()

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        durable.make_folder(Path(self.location))
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=self.location) as folder:
            yield Path(folder)

    def delete(self, name: str) -> None:
        """See `Storage`."""
        self._path(name).unlink(missing_ok=True)

    def version(self, name: str) -> str | None:
        """See `Storage`; a digest of the content."""
        try:
            return _digest(self.read(name))
        except FileNotFoundError:
            return None

    def swap(self, name: str, data: bytes, expected: str | None) -> str | None:
        """See `Storage`; who swaps holds a lock on a hidden file of this folder."""
        with self._locked():
            if self.version(name) != expected:
                return None
            self.write(name, data)
        return _digest(data)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        folder = Path(self.location)
        durable.make_folder(folder)
        # Never removed: two processes could then hold locks on two files of this name.
        with _naming(folder / _LOCK) as lock, lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def sweep(self) -> None:
        """See `Storage`."""
        folder = Path(self.location)
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        for left in folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left)

    def _path(self, name: str) -> Path:
        return Path(self.location, _checked(name))


def _checked(name: str) -> str:
    if not name or name.startswith(".") or "/" in name:
        raise ValueError(f"'{name}' cannot be a name: it is empty, hidden, or holds a '/'")
    return name


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _naming(path: Path) -> Iterator[Path]:
    """Give errors of the block the path that a full disk and the like do not name."""
    try:
        yield path
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
