"""Ctrl-C and SIGTERM: the first ends a run in good order, the second at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 3
"""Of a command that was stopped and can be continued."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Handles both signals while `stoppable` lasts."""

    def __init__(self) -> None:
        self._stopping = False

    def listen(self) -> None:
        """Take the signals; again after a library has taken them, as Ray does when it starts."""
        if threading.current_thread() is not threading.main_thread():
            return
        for each in _SIGNALS:
            # Whoever has a command run in the background may have Ctrl-C ignored.
            if signal.getsignal(each) is not signal.SIG_IGN:
                signal.signal(each, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._stopping:
            # What is on disk is whole at any moment, so nothing is lost but a minute of work.
            os._exit(EXIT_CODE)
        self._stopping = True
        raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[StopSignals]:
    """In the block the first signal raises KeyboardInterrupt, the second ends the process."""
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    signals = StopSignals()
    signals.listen()
    try:
        yield signals
    finally:
        if threading.current_thread() is threading.main_thread():
            for each, handler in before.items():
                signal.signal(each, handler)
