"""Folders of finished files, on a local disk or an object store, through one small seam.

A run folder is written through this: its files appear whole, under their final names, or not at
all, whoever is killed while they are written.
"""

import os
import re
from pathlib import Path

from facescan.errors import UsageError
from facescan.storage.contract import Storage
from facescan.storage.local import LocalStorage

__all__ = ["LocalStorage", "Storage", "at"]

SCHEMES = ("s3", "gs", "az")
"""The object stores that are known: Amazon S3 and what speaks like it, Google's, and Azure's."""


def at(location: str | Path) -> Storage:
    """The folder at a path, or at a URI such as `s3://bucket/runs/mine`; it need not exist yet.

    Raises:
        UsageError: a URI of another scheme, or one that names no bucket or no plain folder in it.
    """
    # One slash too: a URI that was taken for a path on its way here has lost the other.
    if not (uri := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)(.*)", str(location))):
        return LocalStorage(os.path.abspath(location))
    scheme, second, place = uri.groups()
    if scheme not in SCHEMES or not second:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UsageError(f"{location}: neither a path nor a URI of a known kind ({known})")
    folders = place.rstrip("/").split("/")
    if any(folder in ("", ".", "..") for folder in folders):
        raise UsageError(f"{location}: needs a bucket and plain names of folders: {scheme}://B/A")
    # Only here: importing an object store's client takes 0.1 s, and most runs need none.
    from facescan.storage.objects import ObjectStorage

    return ObjectStorage(f"{scheme}://{'/'.join(folders)}")
