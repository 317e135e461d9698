"""How far a run is: a bar with an ETA on a terminal, plain lines elsewhere, and `status.json`."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from facescan.errors import RunStopped
from facescan.run.folder import STATUS
from facescan.storage import Storage

SCHEMA_VERSION = 2

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts the requests of a command that have replies, and shows them; used as a context.

    Args:
        root: of the run folder.
        requests: all that the command asks for, those that had replies before included.
        done: how many had replies before, by error kind ("" for answers).
    """

    def __init__(
        self, root: Storage, requests: int, done: Mapping[str, int], console: Console
    ) -> None:
        self._root = root
        self._requests = requests
        self._before = Counter(done)
        self._counts = Counter(done)
        self._console = console
        self._shown = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._rate = 0.0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "starting", total=requests, completed=self._counts.total(), rate=""
        )

    def __enter__(self) -> Self:
        self._bar.start()
        self._write("running")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if error is None:
            self._write("answered")
        elif isinstance(error, KeyboardInterrupt):
            self._write("stopped")
        elif isinstance(error, RunStopped):
            self._write("stopped", str(error))
        else:
            self._write("failed", str(error))

    @property
    def failed(self) -> int:
        """Requests of the command that have a reply and no answer."""
        return self._counts.total() - self._counts[""]

    @property
    def answered(self) -> int:
        """Requests of the command that have an answer."""
        return self._counts[""]

    @property
    def requests(self) -> int:
        """All requests of the command."""
        return self._requests

    def show(self, replies: Mapping[str, Mapping[str, int]]) -> None:
        """Show how many replies this command got so far: model -> error kind -> how many."""
        self._counts = Counter(self._before)
        for counts in replies.values():
            self._counts.update(counts)
        model = list(replies)[-1] if replies else "starting"
        done, now = self._counts.total(), time.monotonic()
        if self._first is None and replies:
            self._first = (now, done)
        # The engine's start is not part of the rate, or every ETA would begin far too high.
        began, at_first = self._first or (now, done)
        self._rate = (done - at_first) / (now - began) if now > began else 0.0
        self._bar.update(self._task, description=model, completed=done, rate=f"{self._rate:.0f}/s")
        if now - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = now
            self._write("running")
            if not self._console.is_terminal:
                self._line(model)

    def _line(self, model: str) -> None:
        done = self._counts.total()
        left = self._seconds_left()
        pace = "" if left is None else f", {self._rate:.0f}/s, {left:.0f} s left"
        self._console.print(
            f"{model}: {done}/{self._requests} requests, {self._failures()}{pace}",
            highlight=False,
        )

    def _failures(self) -> str:
        kinds = [f"{n} {kind}" for kind, n in sorted(self._counts.items()) if kind and n]
        return f"failed: {', '.join(kinds)}" if kinds else "0 failed"

    def _seconds_left(self) -> float | None:
        open_requests = self._requests - self._counts.total()
        return open_requests / self._rate if self._rate else None

    def _write(self, state: str, reason: str | None = None) -> None:
        left = self._seconds_left() if state == "running" else None
        content = {
            "schema_version": SCHEMA_VERSION,
            "state": state,
            "reason": reason,
            "requests": self._requests,
            "answered": self._counts[""],
            "failed": {kind: n for kind, n in sorted(self._counts.items()) if kind and n},
            "per_second": round(self._rate, 1),
            "seconds_left": None if left is None else round(left),
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._root.write(STATUS, json.dumps(content, indent=2).encode() + b"\n")
