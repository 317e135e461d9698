"""What a run of a given size needs: the table of docs/scale.md, and the measurements behind it.

    python -m bench.scale                      the table
    python -m bench.scale --gpu-hour 2.5       with another price
    python -m bench.scale measure              what the driver costs, on this machine

The table is arithmetic over the constants below: rates of GPUs that were computed and not measured
(`Model`), and costs of the driver that were measured here by `measure` (`DRIVER`). Object-store
requests are counted at a real S3 server on loopback.
"""

import json
import math
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pyarrow import fs

from bench.pictures import make_shards
from facescan import models, prompt, protocols, shards
from facescan.run import folder, journal, predictions
from facescan.run.plan import _by_group, plan
from facescan.run.selection import Selection
from facescan.shards import Contents, RowGroup, ShardRow, Shards, ShardWriter, writing
from facescan.types import FinishReason, Question, Reply, request_id

GPU_HOUR = 4.0
"""US dollars; an input, not a price list."""

PUT_COST = 0.005 / 1_000
GET_COST = 0.0004 / 1_000
"""US dollars a request, PUT and LIST the former; inputs as well."""

ATTRIBUTES = "race,gender,age,emotion"
QUESTIONS = 4
IMAGE_BYTES = 16 * 1024
"""Of a crop of 224 pixels as JPEG."""

HEAD_BYTES = 32 * 2**30
"""Memory of the head in cluster.yaml."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is asked about, and with how many GPUs."""

    name: str
    images: int
    gpus: int


DATASETS = (
    Dataset("FairFace", 108_501, 1),
    Dataset("AffectNet", 291_650, 1),
    Dataset("FaceCaption-15M's size", 15_000_000, 8),
    Dataset("1 billion", 1_000_000_000, 256),
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model on one H100 or H200.

    Attributes:
        bound: images per second with four questions each that its arithmetic allows at 788 TFLOP/s.
        share: of it that is reckoned with.
    """

    name: str
    bound: float
    share: float = 0.5

    @property
    def images_per_second(self) -> float:
        """Of one GPU."""
        return self.bound * self.share


# PaliGemma encodes a picture once and reads it anew for each question; LLaVA's prefix is shared.
MODELS = (Model("PaliGemma 3B, 224 pixels", 173.0), Model("LLaVA-1.5 7B", 76.0))


@dataclass(frozen=True, slots=True)
class Driver:
    """What the one process that plans and merges costs, on one core.

    Attributes:
        bytes_fixed: memory whatever the size, DuckDB's 512 MB in it.
        bytes_per_request: more for each open request.
        bytes_per_group: more for each row group.
        plan_s: seconds a request, before the first is asked.
        merge_s: seconds a request, at the end.
        block_s: seconds a row group, while the run goes on.
        gets_per_shard: object-store requests that read, of one shard of 8 row groups.
        writes_per_part: PUT and DELETE for each 2,000 replies: batches of 512 are written, joined,
            merged and deleted.
    """

    bytes_fixed: float
    bytes_per_request: float
    bytes_per_group: float
    plan_s: float
    merge_s: float
    block_s: float
    gets_per_shard: float
    writes_per_part: float


# Of 2026-11-22, by `measure`; see docs/measured.md.
DRIVER = Driver(
    bytes_fixed=800 * 2**20,
    bytes_per_request=27.0,
    bytes_per_group=33_000.0,
    plan_s=4.8e-6,
    merge_s=32e-6,
    block_s=11e-3,
    gets_per_shard=570.0,
    writes_per_part=10.0,
)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run needs.

    Attributes:
        files: shards.
        groups: row groups, each a block of Ray Data.
        gpu_hours: of all GPUs together.
        hours: of the GPUs' work, with as many as `Dataset.gpus`.
        driver_hours: before the first request and after the last, while GPUs may be idle.
        stored_requests: reading and writing ones at the object store.
    """

    files: int
    groups: int
    requests: int
    parts: int
    gpu_hours: float
    hours: float
    driver_hours: float
    memory: float
    stored_requests: tuple[int, int]
    dollars: float


def needs(dataset: Dataset, model: Model, gpu_hour: float = GPU_HOUR) -> Needs:
    """Arithmetic; everything grows in proportion with the images."""
    per_group = min(writing.ROW_GROUP_ROWS, writing.ROW_GROUP_BYTES // IMAGE_BYTES)
    groups = math.ceil(dataset.images / per_group)
    files = math.ceil(groups / writing.ROW_GROUPS_PER_SHARD)
    requests = dataset.images * QUESTIONS
    parts = math.ceil(requests / journal.FLUSH_REPLIES)
    gpu_hours = dataset.images / model.images_per_second / 3_600
    memory = DRIVER.bytes_fixed + DRIVER.bytes_per_request * requests
    reads = int(files * DRIVER.gets_per_shard + 2 * parts)
    writes = int(parts * DRIVER.writes_per_part)
    return Needs(
        files=files,
        groups=groups,
        requests=requests,
        parts=parts,
        gpu_hours=gpu_hours,
        hours=gpu_hours / dataset.gpus,
        driver_hours=requests * (DRIVER.plan_s + DRIVER.merge_s) / 3_600,
        memory=memory + DRIVER.bytes_per_group * groups,
        stored_requests=(reads, writes),
        dollars=gpu_hours * gpu_hour + reads * GET_COST + writes * PUT_COST,
    )


def limits(model: Model) -> dict[str, str]:
    """What one run meets first, each limit by itself, and where."""
    one = needs(Dataset("", 100_000_000, 1), model)
    growth = (one.memory - DRIVER.bytes_fixed) / 100_000_000
    full = (HEAD_BYTES - DRIVER.bytes_fixed) / growth
    day = 24 / one.driver_hours * 100_000_000
    fed = 100_000_000 / one.groups / DRIVER.block_s / model.images_per_second
    return {
        "the driver needs more than the head's 32 GiB": f"{_round(full)} images",
        "planning and merging take a day": f"{_round(day)} images",
        "GPUs wait for the driver to hand out row groups": f"{_round(fed)} GPUs",
    }


def _round(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.0f}"


def table(gpu_hour: float = GPU_HOUR) -> str:
    """The page's tables, in Markdown."""
    lines = [
        "| | " + " | ".join(each.name for each in DATASETS) + " |",
        "|---" * (len(DATASETS) + 1) + "|",
    ]

    def row(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    first = [needs(each, MODELS[0], gpu_hour) for each in DATASETS]
    row("images", [f"{each.images:,}" for each in DATASETS])
    row("shards of 8 row groups", [f"{each.files:,}" for each in first])
    row("encoded pictures", [_size(each.images * IMAGE_BYTES) for each in DATASETS])
    row("requests (4 questions)", [f"{each.requests:,}" for each in first])
    row("files of 2,000 replies", [f"{each.parts:,}" for each in first])
    row("reading requests to the store", [f"{each.stored_requests[0]:,}" for each in first])
    row("writing requests to the store", [f"{each.stored_requests[1]:,}" for each in first])
    row("driver's memory", [_size(each.memory) for each in first])
    row("driver plans and merges", [_time(each.driver_hours) for each in first])
    row("GPUs", [str(each.gpus) for each in DATASETS])
    for model in MODELS:
        here = [needs(each, model, gpu_hour) for each in DATASETS]
        row(f"{model.name}: GPU hours", [f"{each.gpu_hours:,.1f}" for each in here])
        row("their time", [_time(each.hours) for each in here])
        row(f"cost at ${gpu_hour:.2f} a GPU hour", [f"${each.dollars:,.0f}" for each in here])
    lines += ["", "| of one run | at |", "|---|---|"]
    lines += [f"| {what} | {where} |" for what, where in limits(MODELS[0]).items()]
    return "\n".join(lines)


def _size(bytes_: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if bytes_ < 1_000:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1_000
    return f"{bytes_:.3g} TB"


def _time(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.2g} min"
    return f"{hours:.2g} h" if hours < 48 else f"{hours / 24:.2g} days"


# What was measured


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _groups(images: int) -> Shards:
    """As `shards.open` would give them of so many images, without any file."""
    per_group = writing.ROW_GROUP_BYTES // IMAGE_BYTES
    made = tuple(
        RowGroup(
            f"bucket/shards/train-{number // writing.ROW_GROUPS_PER_SHARD:05d}.parquet",
            number % writing.ROW_GROUPS_PER_SHARD,
            min(per_group, images - number * per_group),
            16 << 20,
            "train",
        )
        for number in range(-(-images // per_group))
    )
    schema = Contents("scale").schema()
    return Shards("x", fs.LocalFileSystem(), made, schema, {}, ("scale",), ("train",), "", "", "")


def measure_memory(images: int) -> None:
    """What a plan of so many images, all open, keeps in the driver and hands to Ray Data."""
    before = _peak()
    data = _groups(images)
    positions = np.arange(images * QUESTIONS, dtype=np.int64)
    began = time.monotonic()
    groups = _by_group(data, positions, QUESTIONS)
    items = [
        {"group": index, "rows": rows.rows.tobytes(), "questions": rows.questions.tobytes()}
        for index, rows in groups.items()
    ]
    seconds = time.monotonic() - began
    grown = _peak() - before
    sent = len(pickle.dumps(data)) / len(items)
    print(
        f"plan of {images:,} images in {len(items):,} row groups: {seconds:.1f} s, "
        f"{grown / 2**20:,.0f} MiB, {grown / images / QUESTIONS:.1f} bytes a request; what every "
        f"reading task gets of the shards: {sent:.0f} bytes a row group"
    )


def measure_blocks(count: int) -> None:
    """How long Ray Data takes to hand out so many blocks of 1,024 rows that need no work."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    before = _peak()
    rows = np.arange(1_024, dtype=np.uint32).tobytes()
    began = time.monotonic()
    items = [{"group": number, "rows": rows, "questions": rows} for number in range(count)]
    stream = ray.data.from_items(items, override_num_blocks=count)
    listed = time.monotonic() - began
    done = sum(
        batch.num_rows
        for batch in stream.map_batches(
            lambda table: table.select(["group"]), batch_format="pyarrow", num_cpus=0.25
        ).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    seconds = time.monotonic() - began
    grown = _peak() - before
    print(
        f"{done:,} blocks through Ray Data: {listed:.1f} s until it is set up, {seconds:.1f} s in "
        f"all, {seconds / count * 1e3:.2f} ms a block; driver's RSS +{grown / 2**20:.0f} MiB, "
        f"{grown / count:,.0f} bytes a block"
    )
    ray.shutdown()


def measure_driver(images: int) -> None:
    """Planning, merging and predictions of a run whose requests all have replies."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        with ShardWriter(place / "shards", Contents("scale", {"race": "race-7"})) as writer:
            for number in range(images):
                writer.add(ShardRow(f"{number:09d}", f"{number:064x}", b"x", None, "train"))
        data = shards.open(str(place / "shards"))
        card = models.load("fake")
        asked = prompt.questions(card, protocols.load(card.protocol), ATTRIBUTES.split(","), "")
        run = folder.startable(str(place / "run"))
        requests = images * len(asked)
        began = time.monotonic()
        open_ = plan(data, Selection(), asked, run.replies)
        planned = time.monotonic() - began
        assert open_.requests == requests
        _answer(run, data, asked)
        began = time.monotonic()
        parts = len(journal.files(run.replies).names)
        journal.compact(run.replies)
        merged = time.monotonic() - began
        began = time.monotonic()
        predictions.build(run, data, Selection(), asked)
        built = time.monotonic() - began
    print(
        f"{requests:,} requests, {parts} files of replies: planned in {planned:.1f} s, merged in "
        f"{merged:.1f} s, predictions in {built:.1f} s; {planned / requests * 1e6:.1f}, "
        f"{merged / requests * 1e6:.1f} and {built / requests * 1e6:.1f} us a request; peak RSS "
        f"{_peak() / 2**20:.0f} MiB"
    )


def _answer(run: folder.RunFolder, data: Shards, asked: tuple[Question, ...]) -> None:
    now = datetime.now(UTC)
    waiting: list[Reply] = []
    written = 0
    for batch in data.labels():
        for digest in batch.column("image_sha256").to_pylist():
            for question in asked:
                key = request_id(question.identity, str(digest))
                waiting.append(Reply(key, "White", FinishReason.STOP, "fake", "fake", now, 0.1))
            if len(waiting) >= journal.FLUSH_REPLIES:
                journal.put(run.replies, f"part-scale-{written:06d}", journal.table(waiting))
                waiting, written = [], written + 1
    if waiting:
        journal.put(run.replies, f"part-scale-{written:06d}", journal.table(waiting))


def measure_store(files: int) -> None:
    """Requests of a whole run to an S3 on loopback, by kind; shards of true size."""
    from tests.s3 import serving

    per_file = writing.ROW_GROUPS_PER_SHARD * (writing.ROW_GROUP_BYTES // IMAGE_BYTES)
    with tempfile.TemporaryDirectory() as made, serving() as (server, rights):
        os.environ.update(rights)
        place, remote = Path(made) / "shards", f"s3://{server.bucket}"
        make_shards(place, files * per_file)
        from bench.cluster import upload

        upload(place, f"{remote}/shards")
        before = len(server.requests)
        words = ["run", "--dataset", f"{remote}/shards", "--model", "fake", "--no-score"]
        words += ["--attributes", ATTRIBUTES, "--output-dir", f"{remote}/run"]
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "jobs.cli", *words], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.monotonic() - began
        found = Counter[str]()
        for line in server.requests[before:]:
            method, _, path = line.partition(" ")
            where = next((name for name in ("shards", "replies") if f"/{name}/" in path), "other")
            found[f"{method} {where}"] += 1
        shown = len(list(place.glob("*.parquet")))
    print(f"{shown} shards, {files * per_file:,} images, {seconds:.0f} s: {json.dumps(found)}")


app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    gpu_hour: Annotated[float, typer.Option(help="US dollars.")] = GPU_HOUR,
) -> None:
    """Print the table."""
    if context.invoked_subcommand is None:
        print(table(gpu_hour))


@app.command()
def measure(
    images: Annotated[int, typer.Option(help="For times.")] = 100_000,
    planned: Annotated[int, typer.Option(help="For memory.")] = 15_000_000,
    shard_files: int = 2,
) -> None:
    """Measure what the driver costs; each figure in a process of its own."""
    blocks = -(-planned // (writing.ROW_GROUP_BYTES // IMAGE_BYTES))
    for call in (
        f"measure_memory({planned})",
        f"measure_driver({images})",
        f"measure_blocks({blocks})",
        f"measure_store({shard_files})",
    ):
        subprocess.run([sys.executable, "-c", f"from bench import scale; scale.{call}"], check=True)


if __name__ == "__main__":
    app()
