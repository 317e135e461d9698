"""What a run knows of its batches: one record for each, written before anything is sent.

    made       the money is set aside; a file of this token may be at the provider, and a batch
    uploaded   the file is there; a batch may be
    submitted  the batch is there
    settled    its replies are durable and it is paid; its files may still be there
    closed     they are not

So whoever goes on after a crash knows of every batch that may exist: it is looked for by its token,
and adopted or, where there is none, cleared away. None is ever submitted twice.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facescan.errors import DataError
from facescan.models import ModelCard
from facescan.run.folder import RunFolder
from facescan.storage import Storage

FOLDER = "batches"
"""Of a run: one file for each batch."""


class Stage(StrEnum):
    """How far a batch is; see the module's docstring."""

    MADE = "made"
    UPLOADED = "uploaded"
    SUBMITTED = "submitted"
    SETTLED = "settled"
    CLOSED = "closed"


class Record(BaseModel):
    """`batches/<token>.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    token: str
    stage: Stage = Stage.MADE
    card: ModelCard
    """With the server and the name of its key's variable, so that anybody can go on with it."""
    questions: tuple[str, ...]
    """Identities of what is asked."""
    round: int
    """1 where none of its requests was in a batch before."""
    made_at: datetime
    count: int
    """Of its requests."""
    requests: dict[str, float] = Field(default_factory=dict)
    """Request -> the most it can cost, in US dollars; empty once it is closed."""
    reserved_usd: float
    file_id: str | None = None
    batch_id: str | None = None
    results: tuple[str, ...] = ()
    """Ids of the provider's files of results."""
    status: str | None = None
    """The last that the provider told."""
    cost_usd: float | None = None
    """None before it is settled."""
    replied: int = 0
    """Requests with a reply by it."""
    unknown: int = 0
    """Lines of results that name no request of it."""
    doubled: int = 0
    """Lines of results about requests that had one already."""


class Book:
    """The records of a run's batches."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def open(self) -> list[Record]:
        """Of batches that are not closed.

        Raises:
            DataError: a record is damaged.
        """
        found = []
        for name in self.storage.names():
            try:
                each = Record.model_validate_json(self.storage.read(name))
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                raise DataError(
                    f"{self.storage.location}/{name}: damaged: {first['msg']}. It names a batch "
                    "that the provider may be working on: look there for the batch whose metadata "
                    "say facescan: " + name.removesuffix(".json") + ", cancel it, and delete this "
                    "file"
                ) from error
            if each.stage is not Stage.CLOSED:
                found.append(each)
        return found

    def write(self, each: Record) -> None:
        """Durable when this returns."""
        self.storage.write(f"{each.token}.json", each.model_dump_json(indent=1).encode() + b"\n")


def at(folder: RunFolder) -> Book:
    """The batches of a run."""
    return Book(folder.root.below(FOLDER))


def described(found: Sequence[Record]) -> str:
    """How many batches, and of how many requests, for people."""
    requests = sum(each.count for each in found)
    noun = "batch" if len(found) == 1 else "batches"
    return f"{len(found)} {noun} at the provider with {requests:,} requests"
