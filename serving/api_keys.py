"""Who may ask the service: keys from a file or the environment, compared in constant time.

They are read where they are used, by the process that listens. No setting, argument, log or runtime
environment holds one.
"""

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from facescan.errors import UsageError

FILE = "FACESCAN_API_KEYS_FILE"
"""Names a file with one key a line; lines that begin with # do not count."""

KEYS = "FACESCAN_API_KEYS"
"""Holds keys itself, with spaces or commas between them."""

_SHORTEST = 16
"""Characters; `python -c "import secrets; print(secrets.token_urlsafe(32))"` makes 43."""


class ApiKeys:
    """The keys that are good, kept as digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(map(_digest, keys))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, offered: str) -> bool:
        """Whether `offered` is one of them; takes as long whichever it is, if any."""
        digest = _digest(offered)
        return any([hmac.compare_digest(digest, each) for each in self._digests])


def read(environment: Mapping[str, str] = os.environ) -> ApiKeys:
    """The keys that the environment names; none where it names none.

    Raises:
        UsageError: the file cannot be read or has no key, or a key is too short to be one.
    """
    if (file := environment.get(FILE)) is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{FILE}={file}: cannot be read: {type(error).__name__}") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        where = f"{FILE}={file}"
        if not found:
            raise UsageError(f"{where}: has no key; write one a line")
    else:
        found = environment.get(KEYS, "").replace(",", " ").split()
        where = KEYS
    for number, key in enumerate(found, 1):
        if len(key) < _SHORTEST or not key.isascii():
            raise UsageError(
                f"{where}: key {number} has {len(key)} characters; a key has at least {_SHORTEST}, "
                "all of them ASCII"
            )
    return ApiKeys(found)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
