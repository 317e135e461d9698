"""Shards: a dataset as Parquet files that every later step reads, and the manifest beside them.

`ShardWriter` makes a folder of them, `open` finds what is in one. A folder of shards has
`ingest.json`, written last: a folder without it is not a dataset.
"""

from facescan.shards.contents import MANIFEST, Contents, IngestManifest, ShardRow
from facescan.shards.reading import RowGroup, Shards, open
from facescan.shards.writing import ShardWriter

__all__ = [
    "MANIFEST",
    "Contents",
    "IngestManifest",
    "RowGroup",
    "ShardRow",
    "ShardWriter",
    "Shards",
    "open",
]
