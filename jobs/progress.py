"""How far a run is: a bar with an ETA on a terminal, plain lines elsewhere, and `status.json`."""

import json
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from facescan import durable

SCHEMA_VERSION = 1

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts replies of a run and shows them; used as a context.

    Args:
        status: the run's `status.json`.
        requests: that are open at the start.
    """

    def __init__(self, status: Path, requests: int, console: Console) -> None:
        self._status = status
        self._requests = requests
        self._counts = Counter[str]()
        self._console = console
        self._shown = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=requests, rate="")

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
        else:
            self._write("failed", str(error))

    def add(self, model: str, replies: dict[str, int]) -> None:
        """Count replies of `model` by error kind ("" for answers), now on disk."""
        self._counts.update(replies)
        done = self._counts.total()
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        # The engine's start is not part of the rate, or every ETA would begin far too high.
        began, before = self._first
        rate = (done - before) / (now - began) if now > began else 0.0
        self._bar.update(self._task, description=model, completed=done, rate=f"{rate:.0f}/s")
        if now - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = now
            self._write("running")
            if not self._console.is_terminal:
                self._line(model, rate)

    def _line(self, model: str, rate: float) -> None:
        done = self._counts.total()
        pace = f", {rate:.0f}/s, {(self._requests - done) / rate:.0f} s left" if rate else ""
        failed = self._counts.total() - self._counts[""]
        self._console.print(
            f"{model}: {done}/{self._requests} requests, {failed} failed{pace}",
            highlight=False,
        )

    def _write(self, state: str, reason: str | None = None) -> None:
        content = {
            "schema_version": SCHEMA_VERSION,
            "state": state,
            "reason": reason,
            "requests": self._requests,
            "answered": self._counts[""],
            "failed": {kind: n for kind, n in sorted(self._counts.items()) if kind},
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        durable.write_text(self._status, json.dumps(content, indent=2) + "\n")
