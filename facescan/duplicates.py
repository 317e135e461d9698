"""Which images are copies of which, within splits and between them.

Images are the same where their bytes are (SHA-256), and alike where the hashes of their pictures
(`facescan.fingerprints`) differ in few bits. Hashes are not compared each with each: two that
differ in at most d bits agree in at least two of any d + 2 groups of bits, so only those that share
two groups are looked at. All of it happens on disk in bounded memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from facescan.errors import DataError
from facescan.fingerprints import Hashes

DISTANCE = 4
"""Bits of 64 in which pictures that are alike may differ."""

MAX_DISTANCE = 12
"""Beyond, unrelated pictures are alike and nothing is gained by not comparing all."""

_BITS = 64
_MEMORY_LIMIT = "1GB"
_MAX_LINKS = 20_000_000
"""Of pictures that are alike; more than that says that the pictures or the distance are not for
this."""

_IMAGE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("number", pa.int64()),
    ("place", pa.int32()),
    ("image_id", pa.string()),
    ("sha256", pa.string()),
]
_IMAGES = pa.schema(_IMAGE_FIELDS)

_HASH_FIELDS: list[tuple[str, pa.DataType]] = [
    ("number", pa.int64()),
    ("part", pa.int16()),
    ("hash", pa.int64()),
]
_HASHES = pa.schema(_HASH_FIELDS)

_FIRST = "CREATE TABLE first AS SELECT sha256, min(number) AS number FROM images GROUP BY sha256"
_REPEATED = "SELECT number FROM images ANTI JOIN first USING (number)"

# Equal hashes are one class, of which the first picture stands for all: a thousand blank walls are
# not half a million pairs. A picture without a hash is a class of its own.
_WHOLE = "CREATE TABLE whole AS SELECT number, hash FROM hashes WHERE part = 0"
_CLASSES = """
    CREATE TABLE classes AS
    SELECT first.sha256, min(first.number) OVER (PARTITION BY hash) AS class
    FROM first JOIN whole USING (number)
    UNION ALL SELECT sha256, number FROM first ANTI JOIN whole USING (number)
"""
_MEMBERS = """
    CREATE TABLE members AS
    SELECT number, place, image_id, sha256, class FROM images JOIN classes USING (sha256)
"""
_COMPARED = """
    CREATE TABLE compared AS
    SELECT number AS class, part, hash FROM hashes SEMI JOIN classes ON number = class
"""
_LINKS = "CREATE TABLE links (one BIGINT, other BIGINT, distance TINYINT)"
_LINK = """
    INSERT INTO links
    SELECT least(a.class, b.class), greatest(a.class, b.class),
           min(bit_count(xor(a.hash, b.hash)))
    FROM (FROM compared WHERE part = 0) AS a
    JOIN compared AS b ON a.hash & {mask} = b.hash & {mask}
    WHERE a.class <> b.class AND bit_count(xor(a.hash, b.hash)) <= {distance}
    GROUP BY ALL
"""
_NEIGHBOURS = """
    CREATE TABLE neighbours AS
    WITH found AS (SELECT one, other, min(distance) AS distance FROM links GROUP BY ALL)
    SELECT one AS class, other, distance FROM found
    UNION ALL SELECT other, one, distance FROM found
    UNION ALL SELECT DISTINCT class, class, 0 FROM members
"""
_PLACED = """
    CREATE TABLE placed AS
    SELECT class, place, count(*) AS images, min(number) AS first, max(number) AS last
    FROM members GROUP BY ALL
"""
_SAME = """
    CREATE TABLE same AS
    SELECT sha256, place, count(*) AS images, min(number) AS first, max(number) AS last
    FROM members GROUP BY ALL
"""
_COPIES = """
    CREATE TABLE copies AS
    WITH alike AS (
        SELECT member.number, placed.place AS other_place,
               sum(placed.images - (member.class = placed.class
                                    AND member.place = placed.place)::BIGINT) AS alike,
               min(distance) AS distance,
               arg_min(CASE WHEN placed.first = member.number THEN placed.last
                            ELSE placed.first END, (distance, placed.first)) AS alike_to
        FROM members AS member
        JOIN neighbours USING (class)
        JOIN placed ON placed.class = neighbours.other
        WHERE NOT (placed.first = member.number AND placed.images = 1)
        GROUP BY ALL
    ), equal AS (
        SELECT member.number, same.place AS other_place,
               same.images - (member.place = same.place)::BIGINT AS equal,
               CASE WHEN same.first = member.number THEN same.last ELSE same.first END AS equal_to
        FROM members AS member JOIN same USING (sha256)
        WHERE NOT (same.first = member.number AND same.images = 1)
    )
    SELECT number, other_place, coalesce(equal, 0) AS equal, alike, distance,
           coalesce(equal_to, alike_to) AS partner
    FROM alike LEFT JOIN equal USING (number, other_place)
"""
_BY_PLACE = """
    SELECT place, other_place, count(*) FILTER (equal > 0), count(*)
    FROM copies JOIN members USING (number) GROUP BY ALL ORDER BY ALL
"""
_TABLE = """
    SELECT member.place, member.image_id, member.sha256, other_place,
           other.image_id AS other_image_id, other.sha256 AS other_sha256, equal, alike, distance
    FROM copies
    JOIN members AS member USING (number)
    JOIN members AS other ON other.number = partner
    ORDER BY number, other_place
"""


@dataclass(frozen=True, slots=True)
class Copies:
    """Images of one place that have copies in another, or in the same.

    Attributes:
        place: as numbered by the caller.
        other: the place of the copies.
        equal: images of `place` with the same bytes as another one in `other`.
        alike: images of `place` that are the same as or alike another one in `other`.
    """

    place: int
    other: int
    equal: int
    alike: int


class Duplicates:
    """Images and hashes are added, then compared; `opened` makes one."""

    def __init__(self, connection: Any, distance: int) -> None:
        self._connection = connection
        self._distance = distance
        for name, schema in (("images", _IMAGES), ("hashes", _HASHES)):
            connection.register("batch", schema.empty_table())
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM batch")
        self._images = 0

    def add_images(self, place: int, image_ids: Sequence[str], sha256: Sequence[str]) -> None:
        """Images of one place, which are numbered from 0 in the order in which they are added."""
        count = len(image_ids)
        numbers = np.arange(self._images, self._images + count)
        columns = {
            "number": numbers,
            "place": [place] * count,
            "image_id": image_ids,
            "sha256": sha256,
        }
        self._insert("images", pa.table(columns, schema=_IMAGES))
        self._images += count

    def repeated(self) -> npt.NDArray[np.bool_]:
        """For each image whether an earlier one has its bytes: its picture need not be hashed."""
        self._connection.execute(_FIRST)
        found = np.zeros(self._images, np.bool_)
        found[self._connection.sql(_REPEATED).fetchnumpy()["number"]] = True
        return found

    def add_hashes(self, numbers: Sequence[int], hashes: Sequence[Hashes]) -> None:
        """The hashes of some images, each by its number."""
        if numbers:
            parts = len(hashes[0])
            columns = {
                "number": np.repeat(np.asarray(numbers, np.int64), parts),
                "part": np.tile(np.arange(parts, dtype=np.int16), len(numbers)),
                "hash": np.concatenate(hashes).astype(np.int64),
            }
            self._insert("hashes", pa.table(columns, schema=_HASHES))

    def compare(self) -> list[Copies]:
        """Find the copies; how many images have some, by place and place of the copies.

        Raises:
            DataError: nearly everything is alike.
        """
        for query in (_WHOLE, _CLASSES, _MEMBERS, _COMPARED, _LINKS):
            self._connection.execute(query)
        for mask in masks(self._distance):
            self._connection.execute(_LINK.format(mask=mask, distance=self._distance))
            (links,) = self._connection.execute("SELECT count(*) FROM links").fetchall()[0]
            if links > _MAX_LINKS:
                raise DataError(
                    f"more than {_MAX_LINKS:,} pairs of pictures differ in at most "
                    f"{self._distance} bits: they are too alike to tell copies; give a smaller "
                    "--distance"
                )
        for query in (_NEIGHBOURS, _PLACED, _SAME, _COPIES):
            self._connection.execute(query)
        return [Copies(*row) for row in self._connection.execute(_BY_PLACE).fetchall()]

    def copies(self) -> pa.RecordBatchReader:
        """After `compare`: for each image and each place with copies of it one row, in order.

        Columns: `place`, `image_id`, `sha256`; `other_place`, and `other_image_id` and
        `other_sha256` of the nearest copy there; `equal` and `alike`: how many copies there have
        the same bytes, and how many in all; `distance`: bits in which the nearest differs.
        """
        return cast("pa.RecordBatchReader", self._connection.sql(_TABLE).to_arrow_reader(10_000))

    def _insert(self, name: str, rows: pa.Table) -> None:
        self._connection.register("batch", rows)
        self._connection.execute(f"INSERT INTO {name} SELECT * FROM batch")


def masks(distance: int) -> Iterator[int]:
    """The pairs of groups of bits, as signed 64-bit masks, one of which two near hashes share."""
    groups = np.array_split(np.arange(_BITS), distance + 2)
    for one, other in combinations(groups, 2):
        mask = sum(1 << int(bit) for bit in (*one, *other))
        yield mask - (1 << _BITS) if mask >> (_BITS - 1) else mask


@contextmanager
def opened(distance: int = DISTANCE) -> Iterator[Duplicates]:
    """An empty collection; pictures are alike that differ in at most `distance` bits."""
    with TemporaryDirectory(prefix="facescan-audit-") as place:
        settings = {"memory_limit": _MEMORY_LIMIT, "temp_directory": str(Path(place, "spill"))}
        with duckdb.connect(str(Path(place, "images")), config=settings) as connection:
            # Nothing of it is to outlive this: without it every statement waits for the disk.
            connection.begin()
            yield Duplicates(connection, distance)
