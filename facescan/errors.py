"""Everything facescan raises, as one tree.

FacescanError
├── UsageError              the command or its configuration cannot work (exit 2)
│   ├── UnknownNameError    a name that no file carries
│   ├── DataError           a source file or shard is not what it should be: says file and row
│   └── RunInUse            another command is working on the run folder: says whose
├── EngineError             an engine cannot start or has died (exit 1)
│   └── EngineUnavailable   a package or device that the engine needs is not here
├── StorageError            a run folder cannot be written: disk full, read-only, gone (exit 1)
├── RunStopped              a run that ended before its end and can be continued (exit 3)
│   ├── BudgetExhausted     the next call might cost more than is left of `--max-cost`
│   └── QuotaExhausted      the account has no money left, or has used its limit of the day
├── AccessDenied            a provider refuses the key, or does not have the model (exit 1)
├── TooManyFailures         more requests failed than the run allows (exit 1)
├── MixingError             the run folder holds answers asked under other settings (exit 4)
└── BadImage                the bytes of one image cannot be used; becomes the outcome `bad_image`
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Self


class FacescanError(Exception):
    """Base of all errors of facescan; its message is written for the person at the terminal."""


class UsageError(FacescanError):
    """A command, flag or configuration that cannot work; nothing was written."""


class UnknownNameError(UsageError):
    """A name of a dataset, model, protocol, attribute, recipe or engine that no file carries."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = get_close_matches(name, names, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        super().__init__(f"unknown {kind} '{name}'; known: {', '.join(names) or 'none'}.{hint}")
        self._of = (kind, name, names)

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, list[str]]]:
        """Pickles from the arguments: Ray carries errors between processes."""
        return (type(self), self._of)


class DataError(UsageError):
    """A source file or shard that is not what it should be."""


class RunInUse(UsageError):
    """Another command holds the lease of the run folder."""


class StorageError(FacescanError):
    """A run folder that cannot be written; what is in it is whole, and the run can be continued."""


class TooManyFailures(FacescanError):
    """More requests ended without an answer than `--fail-on-error` allows."""


class RunStopped(FacescanError):
    """A run that ended before its end; the same command continues it."""


class BudgetExhausted(RunStopped):
    """The next call might cost more than is left of the run's budget."""


class QuotaExhausted(RunStopped):
    """An account that has no money left or has used up its limit of the day."""


class AccessDenied(FacescanError):
    """A provider that refuses the key, or does not have the model."""


class EngineError(FacescanError):
    """An engine that cannot start, or has died and can answer nothing more."""


class EngineUnavailable(EngineError):
    """A package or device the engine needs is missing; the message says how to get it."""


class MixingError(FacescanError):
    """Refused: the run folder holds answers of this combination asked under other settings."""


class BadImage(FacescanError):
    """The bytes of one image cannot be used.

    Attributes:
        reason: one word of a closed set (`facescan.images` lists it), fit for counting.
        detail: for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Pickles from the arguments: Ray carries errors between processes."""
        return (type(self), (self.reason, self.detail))
