"""A run by batches that is killed or signalled at a named step, in a process of its own.

The steps are around each call to the provider and each thing that is made durable.
"""

import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jobs.run  # noqa: F401  for whoever imports this once and forks often
from facescan.run.journal import Journal
from facescan.run.ledger import Ledger
from jobs import batch_records, batches, cli
from serving.batches import Desk

_CALLS = ("upload", "create", "look", "download", "delete")

STEPS = (
    "before written made",
    "after written made",
    "before reserve",
    "after reserve",
    "before upload",
    "after upload",
    "before written uploaded",
    "after written uploaded",
    "before create",
    "after create",
    "before written submitted",
    "after written submitted",
    "before look",
    "after look",
    "before download",
    "after download",
    "before durable",
    "after durable",
    "before settle",
    "after settle",
    "before written settled",
    "after written settled",
    "before delete",
    "after delete",
    "before written closed",
    "after written closed",
)
"""In the order in which a run of one batch passes them first."""


def main(
    flags: Sequence[str], environment: Mapping[str, str], log: Path, step: str, how: signal.Signals
) -> None:
    """Run `facescan` with these flags and send this process a signal at a step.

    Args:
        flags: of the command.
        environment: variables to be set.
        log: is given the steps that were passed; `log`.said what the command has said.
        step: empty for none.
        how: the signal.
    """
    # Whoever runs the tests in the background has SIGINT ignored, which children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= environment
    said = os.open(log.with_suffix(".said"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)

    def passed(name: str) -> None:
        with log.open("a") as file:
            file.write(f"{name}\n")
        if name == step:
            os.kill(os.getpid(), how)

    def around(owner: Any, attribute: str, named: Callable[..., str]) -> None:
        function = getattr(owner, attribute)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            passed(f"before {named(*args)}")
            result = function(*args, **kwargs)
            passed(f"after {named(*args)}")
            return result

        async def awaiting(*args: Any, **kwargs: Any) -> Any:
            passed(f"before {named(*args)}")
            result = await function(*args, **kwargs)
            passed(f"after {named(*args)}")
            return result

        is_async = inspect.iscoroutinefunction(function)
        setattr(owner, attribute, awaiting if is_async else wrapper)

    for call in _CALLS:
        around(Desk, call, lambda *_, call=call: call)
    around(batch_records.Book, "write", lambda _, each: f"written {each.stage}")
    # What these write, the batches wait for.
    around(Journal, "_write", lambda *_: "durable")
    around(Ledger, "reserve", lambda *_: "reserve")
    around(Ledger, "settle", lambda *_: "settle")
    batches.FIRST_PAUSE_S = batches.LONGEST_PAUSE_S = 0.01
    sys.argv = ["facescan", *flags]
    cli.main()
