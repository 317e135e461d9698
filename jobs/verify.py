"""`facescan verify RUN`: whether a run folder holds what it should, check by check."""

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console

from facescan.errors import FacescanError
from facescan.run import folder, verify
from facescan.run.verify import Check


def verify_run(run: str, console: Console) -> bool:
    """Print what each check of the run at the path or URI `run` finds; whether nothing is wrong.

    A request without a reply yet is not wrong: the run is incomplete, and that is said.

    Raises:
        UsageError: `run` is not a run, or asked about an attribute that is not known here.
        FacescanError: it cannot be read.
    """
    place = folder.existing(run)
    faults = 0
    try:
        for check in verify.checks(place, datetime.now(UTC)):
            faults += len(check.faults)
            for line in _lines(check):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    except OSError as error:
        raise FacescanError(
            f"{run}: {error}. If another command is working on this run, verify it when that has "
            "ended"
        ) from error
    said = f"faults: {faults}" if faults else "nothing is wrong"
    console.print(f"{run}: {said}", markup=False, highlight=False, soft_wrap=True)
    return not faults


def _lines(check: Check) -> Iterator[str]:
    for fault in check.faults:
        yield f"{check.name:11}  WRONG  {fault}"
    if not check.faults:
        said = ("ok", check.found) if check.found is not None else ("-", "not checked")
        yield f"{check.name:11}  {said[0]:5}  {said[1]}"
    for note in check.notes:
        yield f"{check.name:11}  note   {note}"
