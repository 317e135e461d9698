"""What a folder of finished files can do, wherever it lies."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pyarrow as pa


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
        the same name, and as long as all data is unlike any other, by an id or a count in it:
        equal contents have equal versions, and may pass for one's own.

        Returns:
            The new version; None where another was faster, and nothing was written.
        """

    def sweep(self) -> None:
        """Remove what killed processes left unfinished directly in this folder.

        Nobody may be writing meanwhile: for the holder of the run's lease.
        """


def checked(name: str) -> str:
    """`name`, if it can be that of a file or folder directly in a folder.

    Raises:
        ValueError: it is empty or hidden, or holds a '/'.
    """
    if not name or name.startswith(".") or "/" in name:
        raise ValueError(f"'{name}' cannot be a name: it is empty, hidden, or holds a '/'")
    return name
