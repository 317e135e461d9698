"""Folders of a file system."""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from facescan import durable
from facescan.storage.contract import checked

_SCRATCH = ".scratch-"
_LOCK = ".lock"


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
        return Path(self.location, checked(name))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _naming(path: Path) -> Iterator[Path]:
    """Give errors of the block the path that a full disk and the like do not name."""
    try:
        yield path
    except OSError as error:
        if error.filename is None and error.errno is not None:  # else there is only a message
            error.filename = str(path)
        raise
