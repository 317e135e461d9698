"""The places inside a run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from facescan import storage
from facescan.errors import StorageError, UsageError
from facescan.storage import LocalStorage, Storage

MANIFEST = "manifest.json"
"""What was asked of whom, on what data; its presence makes the folder a run."""

CONFIG = "config.resolved.yaml"
"""The resolved configuration, without secrets."""

STATUS = "status.json"
"""How far the run is."""

LEASE = "lease.json"
"""Who drives the run at the moment; see `facescan.run.lease`."""

_BEFORE_MANIFEST = {"shards", "logs", LEASE}
"""What a run that was stopped before its manifest was written may have left."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder; the layout is part of what users and other tools rely on.

    Attributes:
        root: on a local disk or an object store.
    """

    root: Storage

    @property
    def replies(self) -> Storage:
        """`*.parquet`: what models answered, never altered."""
        return self.root.below("replies")

    @property
    def predictions(self) -> Storage:
        """`*.parquet`: what the replies say; can be rebuilt at any time."""
        return self.root.below("predictions")

    @property
    def scores(self) -> Storage:
        """What the predictions are worth."""
        return self.root.below("scores")

    @property
    def ledger(self) -> Storage:
        """What models behind an API have cost; see `facescan.run.ledger`."""
        return self.root.below("ledger")

    @property
    def is_run(self) -> bool:
        """Whether a run was begun here."""
        return self.root.exists(MANIFEST)


@contextmanager
def writing(folder: RunFolder) -> Iterator[None]:
    """Errors of the file system, here or where engines run, as one that says what to do.

    Raises:
        StorageError: in the place of an OSError.
    """
    try:
        yield
    except (OSError, StorageError) as error:
        raise StorageError(
            f"{folder.root.location}: {error}. What is there is whole: when the cause is gone, "
            "the same command again continues"
        ) from error


def existing(location: str) -> RunFolder:
    """The run at that path or URI.

    Raises:
        UsageError: there is none.
    """
    folder = RunFolder(storage.at(location))
    if not folder.is_run:
        raise UsageError(
            f"{location}: not a run folder: it has no {MANIFEST}. "
            "Start one with `facescan run ... --output-dir`."
        )
    return folder


def startable(location: str) -> RunFolder:
    """A place where a run can begin or go on: a run, an empty folder, or nothing yet.

    Raises:
        UsageError: something else is there.
    """
    folder = RunFolder(storage.at(location))
    if not folder.is_run and _others(folder.root):
        raise UsageError(
            f"--output-dir {location}: what is there is neither empty nor a run (no {MANIFEST}); "
            "give another folder, or empty it"
        )
    return folder


def _others(root: Storage) -> set[str]:
    """What stands where a run is to begin, and no run has left there."""
    if isinstance(root, LocalStorage):
        path = Path(root.location)
        if path.exists() and not path.is_dir():
            return {path.name}
        found = [each.name for each in path.iterdir()] if path.is_dir() else []
    else:
        found = root.names()
    return {name for name in found if not name.startswith(".")} - _BEFORE_MANIFEST
