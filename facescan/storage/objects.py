"""Folders of an object store: prefixes of its keys."""

import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore, from_url

from facescan.storage.contract import checked

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import ObjectMeta, PutResult

_WHOLE = 8 << 20
"""Bytes up to which an opened object is fetched at once, and not piece by piece."""


@dataclass(frozen=True, slots=True)
class ObjectStorage:
    """A folder of an object store, found through the store's usual environment variables.

    Each process reads the environment for itself: secrets are not in what is pickled. Requests
    that fail for a passing reason are repeated by the client, up to 10 times and 3 minutes.
    """

    location: str

    def below(self, name: str) -> "ObjectStorage":
        """See `Storage`."""
        return ObjectStorage(self._uri(name))

    def names(self) -> list[str]:
        """See `Storage`."""
        prefix = self._key("")
        with _reporting(self.location):
            listed = obstore.list_with_delimiter(self._store, prefix or None)["objects"]
        found = (entry["path"].removeprefix(prefix) for entry in listed)
        return sorted(name for name in found if not name.startswith("."))

    def exists(self, name: str) -> bool:
        """See `Storage`."""
        return self.version(name) is not None

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        with _reporting(self._uri(name)):
            return obstore.get(self._store, self._key(name)).bytes().to_bytes()

    def open(self, name: str) -> pa.NativeFile:
        """See `Storage`; ranges of a large object are fetched as they are read."""
        uri, key = self._uri(name), self._key(name)
        with _reporting(uri):
            got = obstore.get(self._store, key)
            if got.meta["size"] <= _WHOLE:
                return pa.BufferReader(got.bytes())
        return pa.PythonFile(_Ranges(uri, self._store, key, got.meta), mode="r")

    def write(self, name: str, data: bytes) -> None:
        """See `Storage`; one PUT."""
        with _reporting(self._uri(name)):
            obstore.put(self._store, self._key(name), data, use_multipart=False)

    def adopt(self, path: Path, name: str) -> None:
        """See `Storage`; several requests for more than 5 MB."""
        with path.open("rb") as file, _reporting(self._uri(name)):
            obstore.put(self._store, self._key(name), file)
        path.unlink()

    def scratch(self) -> AbstractContextManager[Path]:
        """See `Storage`; where the system keeps temporary files."""
        return _scratch()

    def delete(self, name: str) -> None:
        """See `Storage`."""
        try:
            with _reporting(self._uri(name)):
                obstore.delete(self._store, self._key(name))
        except FileNotFoundError:
            pass  # S3 says nothing of it, others do

    def version(self, name: str) -> str | None:
        """See `Storage`; ETag and generation."""
        try:
            with _reporting(self._uri(name)):
                return _version(obstore.head(self._store, self._key(name)))
        except FileNotFoundError:
            return None

    def swap(self, name: str, data: bytes, expected: str | None) -> str | None:
        """See `Storage`; one conditional PUT (If-None-Match, If-Match)."""
        with _reporting(self._uri(name)):
            try:
                put = obstore.put(
                    self._store,
                    self._key(name),
                    data,
                    mode="create" if expected is None else json.loads(expected),
                    use_multipart=False,
                )
            except (AlreadyExistsError, PreconditionError):
                return self._own(name, data)
            return _version(put)

    def _own(self, name: str, data: bytes) -> str | None:
        """The version of an object that has this content after all.

        Where the answer to a PUT is lost, the client repeats it, and the second is refused for
        what the first has written.
        """
        try:
            got = obstore.get(self._store, self._key(name))
        except FileNotFoundError:
            return None
        return _version(got.meta) if got.bytes().to_bytes() == data else None

    def sweep(self) -> None:
        """See `Storage`; nothing, since unfinished objects have no name here.

        Parts of uploads that were cut short stay in the store, unseen, until a lifecycle rule of
        the bucket removes them.
        """

    @property
    def _store(self) -> ObjectStore:
        scheme, _, place = self.location.partition("://")
        bucket = place.partition("/")[0]
        with _reporting(self.location):
            return _connect(f"{scheme}://{bucket}")

    def _key(self, name: str) -> str:
        folder = self.location.partition("://")[2].partition("/")[2]
        return f"{folder}/{name}" if folder else name

    def _uri(self, name: str) -> str:
        return f"{self.location}/{checked(name)}"


class _Ranges(io.RawIOBase):
    """An object as a file whose every read is one request; it must not change meanwhile."""

    def __init__(self, uri: str, store: ObjectStore, key: str, meta: "ObjectMeta") -> None:
        self._uri, self._store, self._key, self._meta = uri, store, key, meta
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._meta["size"]}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self._meta["size"])
        if end <= self._at:
            return 0
        with _reporting(self._uri):
            got = obstore.get(
                self._store,
                self._key,
                options={"range": (self._at, end), "if_match": self._meta["e_tag"]},
            ).bytes()
        view[: len(got)] = got
        self._at += len(got)
        return len(got)


@lru_cache
def _connect(bucket: str) -> ObjectStore:
    """One pool of connections for each bucket and process."""
    return from_url(bucket)


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="facescan-") as folder:
        yield Path(folder)


def _version(of: "ObjectMeta | PutResult") -> str:
    # Some stores compare the one, some the other; each is given back what it gave.
    return json.dumps({name: of[name] for name in ("e_tag", "version") if of[name] is not None})


@contextmanager
def _reporting(uri: str) -> Iterator[None]:
    """Turn the client's errors into those that a local file would give, with the URI."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{uri}: {_brief(error)}") from error
    except BaseError as error:
        raise OSError(f"{uri}: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    # What follows is the same again, as the client keeps it in memory.
    return " ".join(str(error).partition("\n\nDebug source:")[0].split())
