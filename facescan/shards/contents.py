"""What a folder of shards holds: its columns, its rows, and the manifest that sums them up."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from facescan.types import LABEL_SET_KEY, SHARD_SCHEMA

MANIFEST = "ingest.json"
"""Name of the manifest in a folder of shards."""

LICENCE_KEY = "facescan.licence"
REVISION_KEY = "facescan.revision"
"""Keys of the schema metadata, beside `LABEL_SET_KEY`."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What the shards of one dataset hold, beside the fixed columns.

    Attributes:
        dataset: its name.
        label_sets: attribute -> name of the label set that its labels are in.
        values: names of the numeric truths.
        groups: names of the groupings.
        licence: of the images, in words or as an SPDX identifier.
        revision: which edition of the source this is.
    """

    dataset: str
    label_sets: Mapping[str, str] = field(default_factory=dict)
    values: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    licence: str = ""
    revision: str = ""

    def schema(self) -> pa.Schema:
        """The Arrow schema of the shards, metadata included."""
        columns = [
            *(pa.field(f"label_{name}", pa.string()) for name in self.label_sets),
            *(pa.field(f"value_{name}", pa.float64()) for name in self.values),
            *(pa.field(f"group_{name}", pa.string()) for name in self.groups),
        ]
        metadata: dict[bytes | str, bytes | str] = {
            LICENCE_KEY: self.licence,
            REVISION_KEY: self.revision,
        }
        metadata.update({LABEL_SET_KEY + name: value for name, value in self.label_sets.items()})
        return pa.schema([*SHARD_SCHEMA, *columns], metadata=metadata)


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One image on its way into a shard.

    Attributes:
        image_sha256: hex digest of `data`, of no bytes where there are none.
        data: the encoded file as it is, usable or not; None where the source has no image.
        path: where the image stands in the source, for people.
        labels: attribute -> label in the dataset's label set; None and absent are the same.
    """

    image_id: str
    image_sha256: str
    data: bytes | None
    path: str | None
    split: str
    subject_id: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)
    values: Mapping[str, float | None] = field(default_factory=dict)
    groups: Mapping[str, str | None] = field(default_factory=dict)

    def cells(self, contents: Contents) -> list[Any]:
        """The values of all columns, in the order of the schema; of the image, of its fields."""
        return [
            self.image_id,
            self.image_sha256,
            (self.data, self.path),
            contents.dataset,
            self.split,
            self.subject_id,
            *map(self.labels.get, contents.label_sets),
            *map(self.values.get, contents.values),
            *map(self.groups.get, contents.groups),
        ]


# `json.dumps` would make an encoder for each row, which takes longer than the row.
_compact = json.JSONEncoder(separators=(",", ":")).encode

IMAGE_COLUMN = SHARD_SCHEMA.get_field_index("image")


class RowsDigest:
    """A digest over what rows say, independent of how Parquet packs them.

    The image is in it by its own digest, so no image has to be read to make it.
    """

    def __init__(self, schema: pa.Schema) -> None:
        metadata = {k.decode(): v.decode() for k, v in sorted((schema.metadata or {}).items())}
        self._hash = hashlib.sha256()
        self.update([[name for name in schema.names if name != "image"], metadata])

    def update(self, cells: Sequence[Any]) -> None:
        """Add a row: its cells in the order of the schema, without the image."""
        self._hash.update(_compact(cells).encode() + b"\n")

    def hexdigest(self) -> str:
        """The digest of the rows so far."""
        return self._hash.hexdigest()


def dataset_digest(shard_digests: Iterable[str]) -> str:
    """The digest of a dataset, from those of its shards in the order of their names."""
    return hashlib.sha256("\n".join(shard_digests).encode()).hexdigest()


class ShardEntry(BaseModel):
    """One file of the manifest."""

    model_config = ConfigDict(extra="forbid")

    name: str
    split: str
    rows: int
    digest: str
    """See `RowsDigest`."""


class IngestManifest(BaseModel):
    """`ingest.json`: holds nothing that differs between two ingests of the same source."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    dataset: str
    licence: str
    revision: str
    digest: str
    """Over the digests of the shards."""
    rows: int
    splits: dict[str, int]
    """Split -> rows."""
    label_sets: dict[str, str]
    values: list[str]
    groups: list[str]
    labels: dict[str, dict[str, int]]
    """Attribute -> label -> rows."""
    unlabelled: dict[str, int]
    """Attribute -> rows that have no label for it."""
    rejected: dict[str, int]
    """Why a row of the source is not in the shards -> how many."""
    unusable: dict[str, int]
    """Reason of `facescan.images` -> images in the shards that will end as `bad_image`."""
    shards: list[ShardEntry]
