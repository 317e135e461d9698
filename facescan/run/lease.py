"""One driver per run folder: who writes to a run holds its lease, and says so in `lease.json`.

The lease is written by `Storage.swap`, so of several that want it one gets it. It is renewed while
it is held. What a dead holder has left can be taken over: at once where its process can be seen to
be gone, which is on the same host; elsewhere after `LIFETIME` seconds without a renewal.
"""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from facescan.errors import FacescanError, RunInUse
from facescan.run.folder import LEASE
from facescan.storage import Storage

LIFETIME = 60.0
"""Seconds after its last renewal for which a lease holds. The clocks of hosts that share a run
folder have to agree to much less than this."""

RENEWAL = 10.0
"""Seconds between renewals."""


class Holder(BaseModel):
    """`lease.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    lease: str
    """Unique for each time that a lease is taken."""
    host: str
    processes: str
    """Which processes the id below is one of: boot of the machine and PID namespace."""
    pid: int
    started: str
    """When the process began, in the kernel's clock ticks, as ids are used again."""
    since: datetime
    renewed: datetime

    def __str__(self) -> str:
        """For people."""
        since = self.since.strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} on {self.host}, since {since}"

    def is_gone(self, now: datetime) -> bool:
        """Whether somebody else may take the lease."""
        if (self.host, self.processes) == (socket.gethostname(), processes()):
            return _started(self.pid) != self.started
        return now - self.renewed > timedelta(seconds=LIFETIME)


class Lease:
    """A lease that is held; `hold` makes one."""

    def __init__(self, storage: Storage, holder: Holder, version: str) -> None:
        self._storage = storage
        self._holder = holder
        self._version = version
        self._lost: str | None = None
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises FacescanError where the lease was lost; whoever goes on would not be alone."""
        if self._lost is not None:
            raise FacescanError(
                f"{self._storage.location}: this command lost the run's lease: {self._lost}. "
                "What was answered is kept; the same command again continues"
            )

    def release(self) -> None:
        """Give it back."""
        self._released.set()
        self._thread.join()
        # Of a process that slept too long it may be another's by now.
        if self._lost is None and self._storage.version(LEASE) == self._version:
            self._storage.delete(LEASE)

    def _renew_regularly(self) -> None:
        while not self._released.wait(RENEWAL):
            try:
                self.renew()
            except OSError as error:
                age = datetime.now(UTC) - self._holder.renewed
                if age > timedelta(seconds=LIFETIME - RENEWAL):
                    self._lost = str(error)
            if self._lost is not None:
                return

    def renew(self) -> None:
        """Say that the holder is alive.

        Raises:
            OSError: it cannot be written; the lease holds until its time is over.
        """
        renewed = self._holder.model_copy(update={"renewed": datetime.now(UTC)})
        version = self._storage.swap(LEASE, _text(renewed), self._version)
        if version is None:
            self._lost = f"it was taken by {_read(self._storage) or 'somebody who deleted it'}"
            return
        self._holder, self._version = renewed, version


@contextmanager
def hold(storage: Storage) -> Iterator[Lease]:
    """Hold the lease of the run in this folder.

    Raises:
        RunInUse: somebody else holds it.
        FacescanError: `lease.json` is not what it should be.
        OSError: it cannot be written.
    """
    lease = _taken(storage)
    try:
        yield lease
    finally:
        lease.release()


def _taken(storage: Storage) -> Lease:
    version = storage.version(LEASE)
    now = datetime.now(UTC)
    holder = _read(storage)
    if holder is not None and not holder.is_gone(now):
        raise RunInUse(
            f"{storage.location}: another command is working on this run: {holder}. "
            "Wait for it, or stop it"
        )
    mine = Holder(
        lease=uuid.uuid4().hex,
        host=socket.gethostname(),
        processes=processes(),
        pid=os.getpid(),
        started=_started(os.getpid()) or "",
        since=now,
        renewed=now,
    )
    written = storage.swap(LEASE, _text(mine), version)
    if written is None:
        raise RunInUse(
            f"{storage.location}: another command was faster: "
            f"{_read(storage) or 'it has ended meanwhile; give the command again'}"
        )
    return Lease(storage, mine, written)


def _read(storage: Storage) -> Holder | None:
    try:
        return Holder.model_validate_json(storage.read(LEASE))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise FacescanError(
            f"{storage.location}/{LEASE}: damaged: {error.errors()[0]['msg']}. "
            "Delete it if no other command is working on this run"
        ) from error


def _text(holder: Holder) -> bytes:
    return holder.model_dump_json(indent=2).encode() + b"\n"


def processes() -> str:
    """Among which processes an id of this one is unique: boot of the machine and PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if not boot.exists():  # no Linux: a host can be told by its name only
        return ""
    return f"{boot.read_text().strip()} {os.readlink(namespace)}"


def _started(pid: int) -> str | None:
    """When that process of this host began; None where there is none."""
    try:
        # The name stands in brackets and may hold anything; the start is the 22nd field of all.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    return fields[19]
