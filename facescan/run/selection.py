"""Which images of a dataset a run asks about: a seeded sample.

A larger limit contains a smaller one, so that a run can grow.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from facescan.shards import Shards


@dataclass(frozen=True, slots=True)
class Selection:
    """All images whose rank is at most `last`.

    A pure function of the id, so that every process decides alike without a list of ids.

    Attributes:
        seed: of the sample.
        last: highest rank taken; None takes all images.
    """

    seed: int = 0
    last: bytes | None = None

    def taken(self, image_ids: Sequence[str]) -> list[bool]:
        """For each image whether it is in the sample."""
        if self.last is None:
            return [True] * len(image_ids)
        return [_rank(image_id, self.seed) <= self.last for image_id in image_ids]


def _rank(image_id: str, seed: int) -> bytes:
    # The id behind the digest makes ranks unique where digests are equal.
    digest = hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()
    return digest + image_id.encode()


def sample(image_ids: Iterable[str], limit: int | None, seed: int) -> Selection:
    """A sample of `limit` images, or of all of them where there are fewer; memory is O(limit)."""
    if limit is None:
        return Selection(seed)
    lowest = heapq.nsmallest(limit, (_rank(image_id, seed) for image_id in image_ids))
    return Selection(seed, lowest[-1]) if len(lowest) == limit else Selection(seed)


def image_ids(shards: Shards) -> Iterator[str]:
    """Of every row, in order; no other column is read."""
    for table in shards.read(shards.row_groups, ("image_id",)):
        yield from map(str, table.column("image_id").to_pylist())
