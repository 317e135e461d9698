"""Pictures of a dataset, small and encoded anew: nothing of the files they come from but pixels."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from facescan import images
from facescan.decoding import DecodePool
from facescan.errors import BadImage
from facescan.images import Limits
from facescan.shards import RowGroup, Shards

_QUALITY = 80


class Pictures:
    """Thumbnails of the images of a dataset, decoded in child processes.

    Args:
        shards: where they are.
        limits: what a run accepts as an image.
        max_side: longest side of a thumbnail, in pixels.
    """

    def __init__(self, shards: Shards, limits: Limits, max_side: int) -> None:
        self._shards = shards
        self._limits = limits
        self._max_side = max_side
        self._pool = DecodePool(1)

    def close(self) -> None:
        """End the child process."""
        self._pool.close()

    def thumbnails(self, image_ids: Sequence[str]) -> Iterator[tuple[str, bytes | str]]:
        """The JPEG of each image that is there, or why there is none; in the order of the shards.

        Ids of the dataset are read until all are found, pictures only of row groups that hold one.

        Raises:
            DataError: the shards are not what they were.
        """
        wanted = pa.array(sorted(set(image_ids)), pa.string())
        missing = len(wanted)
        for group in self._shards.row_groups:
            here = self._count(group, wanted)
            if here:
                yield from self._of_group(group, wanted)
                missing -= here
            if missing == 0:
                return

    def _count(self, group: RowGroup, wanted: pa.StringArray) -> int:
        tables = self._shards.read([group], ["image_id"])
        return sum(_those(table, wanted).num_rows for table in tables)

    def _of_group(
        self, group: RowGroup, wanted: pa.StringArray
    ) -> Iterator[tuple[str, bytes | str]]:
        columns = ["image_id", "image_sha256", "image"]
        for table in self._shards.read([group], columns):
            for row in _those(table, wanted).to_pylist():
                data = (row["image"] or {}).get("bytes") or b""
                yield row["image_id"], self._thumbnail(data, row["image_sha256"])

    def _thumbnail(self, data: bytes, sha256: str) -> bytes | str:
        # One at a time: pixels of a large picture take a hundred megabytes.
        (checked,) = self._pool.check([(data, sha256)], self._limits).result()
        if isinstance(checked, BadImage):
            return f"cannot be shown: {checked.reason}"
        (pixels,) = self._pool.decode([checked]).result()
        if isinstance(pixels, BadImage):
            return f"cannot be shown: {pixels.reason}"
        return images.encode(pixels, "jpeg", _QUALITY, self._max_side)


def _those(table: pa.Table, wanted: pa.StringArray) -> pa.Table:
    return table.filter(pc.is_in(table.column("image_id"), value_set=wanted))
