"""How fast predictions are scored, and with how much memory: rows per second, peak memory.

    python -m bench.score_throughput --rows 15
    python -m bench.score_throughput --rows 15 --subjects 1000000

writes that many million synthetic predictions (four models about race, gender and age of the same
images, all columns of a real file, so that what is skipped is on disk too) and times `facescan
score` on them in a process of its own: by each label, by a group column and by gender and race
together, and every two models compared. Linux only.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from facescan import attributes
from facescan.types import PREDICTION_SCHEMA, Outcome
from jobs.score import score

_ROWS_PER_GROUP = 125_000
_MODELS = 4
_ATTRIBUTES = ("race", "gender", "age")
_OUTCOMES = (Outcome.ANSWERED, Outcome.REFUSED, Outcome.UNPARSED, Outcome.PROVIDER_ERROR)
_SHARES = (0.97, 0.01, 0.01, 0.01)
_LIGHT = ("bright", "dim", "dark")
_GROUP_COLUMNS = (*(f"label_{name}" for name in _ATTRIBUTES), "group_light")
_SCHEMA = pa.schema([*PREDICTION_SCHEMA, *(pa.field(name, pa.string()) for name in _GROUP_COLUMNS)])


def write(run: Path, millions: float, subjects: int) -> int:
    """Make a run folder of about `millions` million predictions; returns how many rows it has.

    Args:
        run: new.
        millions: of predictions.
        subjects: how many people the images are of; 0 where that is not known.
    """
    predictions = run / "predictions"
    predictions.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    files = [(model, name) for model in range(_MODELS) for name in _ATTRIBUTES]
    groups = max(1, round(millions * 1_000_000 / len(files) / _ROWS_PER_GROUP))
    writers = {
        (model, name): pq.ParquetWriter(
            predictions / f"model-{model}.neutral.{name}.parquet", _SCHEMA, compression="zstd"
        )
        for model, name in files
    }
    for group in range(groups):
        images = _images(group, subjects)
        for (model, name), writer in writers.items():
            writer.write_table(_rows(images, group, model, name))
    for writer in writers.values():
        writer.close()
    return groups * _ROWS_PER_GROUP * len(files)


def _images(group: int, subjects: int) -> dict[str, Any]:
    """The columns that all predictions about some images share."""
    n, rng = _ROWS_PER_GROUP, np.random.default_rng(group)
    digests = [rng.bytes(16).hex() for _ in range(n)]
    people = rng.integers(0, max(subjects, 1), n)
    labels = {
        f"label_{name}": rng.choice(attributes.load(name).label_sets[0].labels, n)
        for name in _ATTRIBUTES
    }
    return {
        "image_id": pa.array([f"images/{group}/{row}.jpg" for row in range(n)]),
        "image_sha256": pa.array([digest * 2 for digest in digests]),
        "request_id": pa.array(digests),
        "subject_id": pa.array([f"person-{who}" for who in people] if subjects else [None] * n),
        "group_light": rng.choice(_LIGHT, n),
        **labels,
    }


def _rows(images: dict[str, Any], group: int, model: int, name: str) -> pa.Table:
    n, rng = _ROWS_PER_GROUP, np.random.default_rng((group, model, _ATTRIBUTES.index(name)))
    label_set = attributes.load(name).label_sets[0]
    target = images[f"label_{name}"]
    outcome = rng.choice([str(o) for o in _OUTCOMES], n, p=_SHARES)
    answer = np.where(rng.random(n) < 0.8, target, rng.choice(label_set.labels, n))
    constant = {
        "dataset": "synthetic",
        "split": "test",
        "attribute": name,
        "person": 0,
        "model": f"model-{model}",
        "protocol": "neutral",
        "answer_mode": "free",
        "probability": None,
        "asked_label_set": label_set.name,
        "target_label_set": label_set.name,
        "parser_version": "1",
    }
    columns = {
        **{each: [value] * n for each, value in constant.items()},
        **images,
        "outcome": outcome,
        "label": pa.array(answer, pa.string(), mask=outcome != Outcome.ANSWERED),
        "target": target,
    }
    return pa.Table.from_pydict(columns, schema=_SCHEMA)


def _measured(run: Path, rows: int) -> None:
    imported = _peak_mib()
    start, worked = time.perf_counter(), time.process_time()
    score(str(run), Console())
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    print(
        f"\n{rows:,} rows in {seconds:.2f} s: {rows / seconds / 1e6:.2f} million rows/s; "
        f"{worked:.1f} s of processor time; peak memory {_peak_mib():.0f} MiB, "
        f"{imported:.0f} MiB of it before the first row"
    )


def _peak_mib() -> float:
    # Not getrusage: its peak survives exec, so that a child begins with its parent's.
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Write the rows, then measure in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=float, default=15, help="millions of prediction rows")
    parser.add_argument("--subjects", type=int, default=0, help="people in the images")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        rows = write(run, given.rows, given.subjects)
        # Forked, it would start with the memory that writing took.
        process = multiprocessing.get_context("spawn").Process(target=_measured, args=(run, rows))
        process.start()
        process.join()
    sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
