"""Follows a run while it is answered: shows how far it is, and ends it when it must not go on."""

import threading
from types import TracebackType
from typing import Any, Self

import ray

from facescan.errors import FacescanError, TooManyFailures
from facescan.run.lease import Lease
from jobs.progress import Progress

_SECONDS_BETWEEN_LOOKS = 0.5


class Threshold:
    """How many requests may end without an answer.

    Args:
        fail_on_error: a fraction where below 1, else a count; None: all but all.
        requests: of the command.
    """

    def __init__(self, fail_on_error: float | None, requests: int) -> None:
        self._given = fail_on_error
        self._requests = requests

    def _is_passed(self, failed: int) -> bool:
        if self._given is None or not failed:
            return False
        # Not failed > 0.29 * 100, which is 28.999999999999996.
        return (failed / self._requests if self._given < 1 else failed) > self._given

    def check(self, progress: Progress) -> None:
        """Raises TooManyFailures as soon as there are more than that."""
        if self._is_passed(progress.failed):
            raise TooManyFailures(
                f"{progress.failed} of {progress.requests} requests failed, and --fail-on-error is "
                f"{self._given:g}; `facescan run --retry` asks such requests again"
            )

    def check_end(self, progress: Progress) -> None:
        """As `check`, and whether there is any answer at all."""
        self.check(progress)
        if progress.failed and not progress.answered:
            raise TooManyFailures(
                f"all {progress.failed} requests failed; the reasons are in replies/, column "
                "`error`; `facescan run --retry` asks such requests again"
            )


class Follower:
    """Looks at a run's watch and lease from a thread of its own; used as a context."""

    def __init__(self, watch: Any, progress: Progress, threshold: Threshold, lease: Lease) -> None:
        self._watch = watch
        self._progress = progress
        self._threshold = threshold
        self._lease = lease
        self._reason: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self._look()
            self.check()

    def check(self) -> None:
        """Raises what makes the run end, if anything does."""
        if self._reason is not None:
            raise self._reason

    def _follow(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            self._look()
            if self._reason is not None:
                # The actors are done at once, and their reports make the driver call `check`.
                ray.get(self._watch.stop.remote())
                return

    def _look(self) -> None:
        try:
            self._progress.show(ray.get(self._watch.replies.remote()))
            self._lease.check()
            self._threshold.check(self._progress)
        except (FacescanError, OSError, ray.exceptions.RayError) as error:
            self._reason = error
