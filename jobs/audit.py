"""`facescan audit SHARDS [SHARDS...]`: copies within and between splits and datasets."""

import csv
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from facescan import duplicates, durable, shards
from facescan.decoding import DecodePool, Pixels
from facescan.duplicates import Copies, Duplicates
from facescan.errors import BadImage, UsageError
from facescan.fingerprints import SIDE, Hashes, hashes
from facescan.images import Limits
from facescan.shards import Shards

_FLAT = "no_structure"
_WORDS = 2

_COLUMNS = (
    *("location", "dataset", "split", "image_id", "sha256"),
    *("other_location", "other_dataset", "other_split", "other_image_id", "other_sha256"),
    *("equal", "alike", "distance"),
)
_FIELDS: list[tuple[str, pa.DataType]] = [
    (name, pa.int64() if name in _COLUMNS[-3:] else pa.string()) for name in _COLUMNS
]
_SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True, slots=True)
class Place:
    """A split of a dataset, where it was found."""

    location: str
    dataset: str
    split: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What came of an audit.

    Attributes:
        places: in the order given; `copies` has their positions.
        images: how many of each place.
        copies: where there are any.
        uncompared: pictures of which only the bytes were compared, by why.
    """

    places: tuple[Place, ...]
    images: tuple[int, ...]
    copies: tuple[Copies, ...]
    uncompared: Counter[str]

    @property
    def leaks(self) -> bool:
        """Whether an image has a copy in another place."""
        return any(each.place != each.other for each in self.copies)


def audit(
    locations: Sequence[str],
    console: Console,
    *,
    distance: int = duplicates.DISTANCE,
    output: Path | None = None,
    processes: int | None = None,
) -> Audit:
    """Find the copies in some shards, print how many there are, and write which.

    Args:
        locations: folders of shards, each once.
        console: for the table.
        distance: bits of 64 in which pictures that are alike may differ.
        output: file of copies, `.parquet` or `.csv`; None for none.
        processes: that decode; default: one for each core.

    Raises:
        UsageError: the flags cannot work.
        DataError: shards are not what they should be, or nearly everything in them is alike.
        EngineError: decoding processes cannot be started.
        OSError: the disk for temporary files is full, or `output` cannot be written.
    """
    opened = _opened(locations)
    if not 0 <= distance <= duplicates.MAX_DISTANCE:
        raise UsageError(f"--distance {distance}: 0 to {duplicates.MAX_DISTANCE} bits")
    if output is not None and output.suffix not in (".parquet", ".csv"):
        raise UsageError(f"--output {output}: a .parquet or .csv file")
    with duplicates.opened(distance) as collection:
        places, images = _add_images(collection, opened)
        pool = DecodePool(processes or os.cpu_count() or 1)
        with closing(pool):
            uncompared = _add_hashes(collection, opened, pool)
        found = Audit(tuple(places), tuple(images), tuple(collection.compare()), uncompared)
        for line in _lines(found, distance):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if output is not None:
            _write(output, places, collection.copies())
            console.print(str(output), markup=False, highlight=False, soft_wrap=True)
    return found


def _opened(locations: Sequence[str]) -> list[Shards]:
    opened = [shards.open(location) for location in locations]
    places = [each.location for each in opened]
    if len(set(places)) < len(places):
        raise UsageError(f"shards are given twice: {', '.join(places)}")
    return opened


def _add_images(collection: Duplicates, opened: Sequence[Shards]) -> tuple[list[Place], list[int]]:
    """Every image with its place, in the order in which `_pictures` has them."""
    images: Counter[Place] = Counter()
    numbers: dict[Place, int] = {}
    for data in opened:
        for table in data.read(data.row_groups, ("dataset", "split", "image_id", "image_sha256")):
            # Of one row group, so of one dataset and split.
            dataset, split = (str(table.column(name)[0]) for name in ("dataset", "split"))
            place = Place(data.location, dataset, split)
            images[place] += table.num_rows
            collection.add_images(
                numbers.setdefault(place, len(numbers)),
                cast("list[str]", table.column("image_id").to_pylist()),
                cast("list[str]", table.column("image_sha256").to_pylist()),
            )
    return list(numbers), [images[place] for place in numbers]


def _add_hashes(collection: Duplicates, opened: Sequence[Shards], pool: DecodePool) -> Counter[str]:
    """The hashes of every picture, once for equal bytes; why some have none."""
    uncompared: Counter[str] = Counter()
    repeated = collection.repeated()
    waiting: deque[tuple[list[int], Future[list[Pixels | BadImage]]]] = deque()

    def finish() -> None:
        numbers, decoded = waiting.popleft()
        found = [
            (n, _hashed(each, uncompared))
            for n, each in zip(numbers, decoded.result(), strict=True)
        ]
        hashed = [(number, each) for number, each in found if each is not None]
        collection.add_hashes([n for n, _ in hashed], [each for _, each in hashed])

    for first, table in _pictures(opened):
        files = [
            (first + position, (image["bytes"] or b"", digest))
            for position, (image, digest) in enumerate(_files(table))
            if not repeated[first + position]
        ]
        checked = pool.check([file for _, file in files], Limits()).result()
        good = []
        for (number, _), each in zip(files, checked, strict=True):
            if isinstance(each, BadImage):
                uncompared[each.reason] += 1
            else:
                good.append((number, each))
        # Of the next pictures while these are hashed.
        waiting.append(([n for n, _ in good], pool.decode([e for _, e in good], (SIDE, SIDE))))
        if len(waiting) > 1:
            finish()
    while waiting:
        finish()
    return uncompared


def _pictures(opened: Sequence[Shards]) -> Iterator[tuple[int, pa.Table]]:
    """The number of the first image of each table, and the table."""
    first = 0
    for data in opened:
        for table in data.read(data.row_groups, ("image", "image_sha256")):
            yield first, table
            first += table.num_rows


def _files(table: pa.Table) -> Iterator[tuple[dict[str, Any], str]]:
    images = table.column("image").to_pylist()
    digests = table.column("image_sha256").to_pylist()
    for image, digest in zip(images, digests, strict=True):
        yield cast("dict[str, Any]", image or {"bytes": b""}), str(digest)


def _hashed(decoded: Pixels | BadImage, uncompared: Counter[str]) -> Hashes | None:
    if isinstance(decoded, BadImage):
        uncompared[decoded.reason] += 1
        return None
    found = hashes(decoded)
    if found is None:
        uncompared[_FLAT] += 1
    return found


def _lines(found: Audit, distance: int) -> Iterator[str]:
    names = _names(found.places)
    total = sum(found.images)
    counted = ", ".join(f"{name} {n:,}" for name, n in zip(names, found.images, strict=True))
    yield f"{total:,} images: {counted}"
    if not found.copies:
        yield f"no copies: none has the bytes of another, none is alike (up to {distance} bits)"
    else:
        rows = [
            ("images of", "with a copy in", "same bytes", "same or alike", "% of them"),
            *(_row(found, names, each) for each in found.copies),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [
                cell.ljust(width) if position < _WORDS else cell.rjust(width)
                for position, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            yield "  ".join(cells)
    if found.uncompared:
        why = ", ".join(f"{reason} {n:,}" for reason, n in sorted(found.uncompared.items()))
        total = found.uncompared.total()
        yield f"pictures of which only the bytes were compared: {total:,} ({why})"
    some = "images have" if found.leaks else "no image has"
    yield f"{some} a copy in another split or dataset"


def _row(found: Audit, names: Sequence[str], each: Copies) -> tuple[str, ...]:
    share = 100 * each.alike / found.images[each.place]
    equal, alike = f"{each.equal:,}", f"{each.alike:,}"
    return names[each.place], names[each.other], equal, alike, f"{share:.2f}"


def _names(places: Sequence[Place]) -> list[str]:
    """The shortest names by which all places differ."""
    names = [f"{place.dataset}/{place.split}" for place in places]
    if len(set(names)) == len(names):
        return names
    return [f"{place.location}: {name}" for place, name in zip(places, names, strict=True)]


def _write(output: Path, places: Sequence[Place], copies: pa.RecordBatchReader) -> None:
    with durable.replacing(output) as temporary, ExitStack() as files:
        if output.suffix == ".csv":
            lines = csv.writer(files.enter_context(temporary.open("w", newline="")))
            lines.writerow(_COLUMNS)
            for batch in copies:
                lines.writerows(_named(places, row) for row in batch.to_pylist())
            return
        parquet = files.enter_context(pq.ParquetWriter(temporary, _SCHEMA, compression="zstd"))
        for batch in copies:
            rows = [_named(places, row) for row in batch.to_pylist()]
            columns = [list(column) for column in zip(*rows, strict=True)]
            parquet.write_table(pa.table(columns, schema=_SCHEMA))


def _named(places: Sequence[Place], row: dict[str, Any]) -> tuple[Any, ...]:
    """A row of copies in the order of `_COLUMNS`."""
    here, there = places[row["place"]], places[row["other_place"]]
    return (
        *(here.location, here.dataset, here.split, row["image_id"], row["sha256"]),
        *(there.location, there.dataset, there.split, row["other_image_id"], row["other_sha256"]),
        *(row["equal"], row["alike"], row["distance"]),
    )
