"""Open rows of shards -> lines of the files that batches are made of."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Self, cast

import pyarrow as pa

from facescan.decoding import DecodePool, Pixels, memory_for
from facescan.errors import BadImage
from facescan.run.plan import Plan
from facescan.types import EncodedImage, Question, request_id
from jobs import pipeline
from jobs.engine_actor import Leg
from jobs.pipeline import Work
from serving import batches, chat_request, estimate
from serving.batches import Line
from serving.engines import hosted
from serving.tokens import HostedOptions, ImageSettings

_IMAGES_AT_ONCE = 64
_PIXEL_BYTES_AT_ONCE = 256 * 1024 * 1024
"""Of decoded images together; a larger one is alone."""

Asked = list[tuple[str, Question]]
"""Key and question of each request about one image."""


class Preparation:
    """Makes lines on all cores of this machine; used as a context.

    Args:
        work: whose shards are read.
        unusable: is told of each request about an image that cannot be sent: leg, key and why.
    """

    def __init__(self, work: Work, unusable: Callable[[Leg, str, BadImage], None]) -> None:
        self._work = work
        self._unusable = unusable
        self._held = ExitStack()

    def __enter__(self) -> Self:
        cores = os.cpu_count() or 1
        self._decoders = DecodePool(cores, memory_bytes=memory_for(self._work.limits))
        self._held.enter_context(closing(self._decoders))
        self._threads = self._held.enter_context(ThreadPoolExecutor(cores))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()

    def lines(self, leg: Leg, plan: Plan, wanted: Callable[[str], bool]) -> Iterator[Line]:
        """The wanted requests of a plan, made as they are taken.

        Raises:
            DataError: a shard is gone or damaged.
        """
        options, model = leg.card.options(HostedOptions), hosted.api_model(leg.card)
        share = batches.share(options)
        for some in self._images(leg, plan, wanted):
            decoded = self._decoders.decode([image for image, _ in some]).result()
            pictures = self._threads.map(_picture, decoded, [options.image] * len(decoded))
            for (_, asked), picture in zip(some, pictures, strict=True):
                for key, question in asked:
                    if isinstance(picture, BadImage):
                        self._unusable(leg, key, picture)
                        continue
                    uri, size = picture
                    body = chat_request.body(options, model, question, uri)
                    most = estimate.at_most(options, question, size)
                    yield batches.line(key, body, share * most.usd)

    def _images(
        self, leg: Leg, plan: Plan, wanted: Callable[[str], bool]
    ) -> Iterator[list[tuple[EncodedImage, Asked]]]:
        """Usable images with what is wanted of them, as many as may be decoded at once."""
        groups = [
            {"group": index, "rows": rows.rows.tobytes(), "questions": rows.questions.tobytes()}
            for index, rows in plan.groups.items()
        ]
        some: list[tuple[EncodedImage, Asked]] = []
        size = 0
        for group in groups:
            for table in pipeline.read(pa.Table.from_pylist([group]), self._work.shards):
                for image, asked in self._checked(leg, table, wanted):
                    pixel_bytes = image.width * image.height * 3
                    full = size + pixel_bytes > _PIXEL_BYTES_AT_ONCE
                    if some and (full or len(some) == _IMAGES_AT_ONCE):
                        yield some
                        some, size = [], 0
                    some.append((image, asked))
                    size += pixel_bytes
        if some:
            yield some

    def _checked(
        self, leg: Leg, table: pa.Table, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[EncodedImage, Asked]]:
        encoded = cast("list[dict[str, bytes | None]]", table.column("image").to_pylist())
        digests = cast("list[str]", table.column("image_sha256").to_pylist())
        masks = cast("list[int]", table.column("questions").to_pylist())
        asked = [
            [
                (key, question)
                for index, question in enumerate(leg.questions)
                if mask >> index & 1 and wanted(key := request_id(question.identity, digest))
            ]
            for digest, mask in zip(digests, masks, strict=True)
        ]
        rows = [number for number, of_one in enumerate(asked) if of_one]
        files = [(encoded[number]["bytes"] or b"", digests[number]) for number in rows]
        checked = self._decoders.check(files, self._work.limits).result()
        for number, image in zip(rows, checked, strict=True):
            if isinstance(image, BadImage):
                for key, _ in asked[number]:
                    self._unusable(leg, key, image)
            else:
                yield image, asked[number]


def _picture(
    pixels: Pixels | BadImage, settings: ImageSettings
) -> tuple[str, tuple[int, int]] | BadImage:
    return pixels if isinstance(pixels, BadImage) else chat_request.picture(pixels, settings)
