"""The files below a folder, in an order that is always the same."""

import os
from collections.abc import Iterator
from pathlib import Path


def files(root: Path) -> Iterator[str]:
    """The paths of all files below `root`, relative to it; hidden ones are passed over."""
    for folder, folders, names in os.walk(root):
        # Sorted in place, `os.walk` goes through the folders in this order.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in sorted(names):
            if not name.startswith("."):
                yield prefix + name
