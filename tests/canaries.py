"""Canaries: a key and a picture that can be recognised, and the search for them everywhere."""

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from facescan import images, models
from facescan.decoding import DecodePool
from facescan.errors import BadImage
from serving import chat_request
from serving.tokens import HostedOptions
from tests.conftest import jpeg

KEY = "sk-proj-Kanarie7Vogel3Zq9Wx2Lm5Tb8"
WORDS = "canary-in-the-exif-4711"

PAGES = (
    *("api/jobs/", "nodes?view=summary", "logical/actors", "api/v0/nodes"),
    *("api/v0/actors?detail=1", "api/v0/tasks?detail=1", "api/v0/workers?detail=1", "api/v0/jobs"),
    *("api/v0/objects?detail=1", "api/v0/runtime_envs", "api/v0/placement_groups?detail=1"),
    *("api/v0/tasks/summarize", "api/v0/actors/summarize", "api/v0/tasks/timeline"),
    *("api/cluster_status", "events", "api/data/datasets/02000000", "api/data/datasets/03000000"),
)
"""What the dashboard, its job API and the state API tell."""


def canary_picture(seed: int) -> bytes:
    """A small picture with words in its EXIF."""
    exif = Image.Exif()
    exif[0x010E] = WORDS  # ImageDescription
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(seed))).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def sent(picture: bytes) -> str:
    """The data URI that a provider gets of it."""
    checked = images.check(picture, hashlib.sha256(picture).hexdigest(), images.Limits())
    decoders = DecodePool(1)
    try:
        (pixels,) = decoders.decode([checked]).result()
    finally:
        decoders.close()
    assert not isinstance(pixels, BadImage)
    return chat_request.picture(pixels, models.load("gpt-4o").options(HostedOptions).image)[0]


def canaries(picture: bytes) -> list[bytes]:
    """Words and bytes that must be nowhere: of the key, and of the picture in all its forms."""
    found = [KEY.encode(), KEY[8:].encode(), base64.b64encode(KEY.encode()), WORDS.encode()]
    data = base64.b64decode(sent(picture).partition(",")[2])
    for each in (picture, data):
        text = base64.b64encode(each)
        found += [text[start : start + 40] for start in range(0, len(text) - 40, 80)]
        raw = [each[start : start + 24] for start in range(300, len(each) - 24, 200)]
        found += [*raw, *(repr(part)[2:-1].encode() for part in raw)]
    return found


def hits(places: Mapping[str, bytes], canaries: list[bytes]) -> list[str]:
    return [
        f"{name}: {canary!r}"
        for name, data in places.items()
        for canary in canaries
        if canary in data
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    """All files, those in Parquet also as the values in them."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found[str(path)] = path.read_bytes()
            if path.suffix == ".parquet":
                rows = pq.read_table(path).to_pylist()
                found[f"{path} as values"] = b"\n".join(_bytes_of(rows))
    return found


def _bytes_of(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _bytes_of(each)
    elif isinstance(value, bytes):
        yield value
    else:
        yield str(value).encode()
