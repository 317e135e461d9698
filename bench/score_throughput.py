"""How fast predictions are scored, and with how much memory: rows per second, peak memory.

    python -m bench.score_throughput --rows 15

writes that many million synthetic prediction rows (all columns of a real file, so that what is
skipped is on disk too) and times `facescan score` on them in a process of its own. Linux only.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from facescan import attributes
from facescan.types import PREDICTION_SCHEMA, Outcome
from jobs.score import score

_ROWS_PER_GROUP = 100_000
_GROUPS_PER_FILE = 5
_ATTRIBUTES = ("race", "gender", "age")
_OUTCOMES = (Outcome.ANSWERED, Outcome.REFUSED, Outcome.UNPARSED, Outcome.PROVIDER_ERROR)
_SHARES = (0.97, 0.01, 0.01, 0.01)


def write(run: Path, millions: float) -> int:
    """Make a run folder of about `millions` million predictions; returns how many rows it has."""
    predictions = run / "predictions"
    predictions.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    groups = max(1, round(millions * 1_000_000 / _ROWS_PER_GROUP))
    rng = np.random.default_rng(0)
    for first in range(0, groups, _GROUPS_PER_FILE):
        path = predictions / f"part-{first:05d}.parquet"
        with pq.ParquetWriter(path, PREDICTION_SCHEMA, compression="zstd") as writer:
            for group in range(first, min(first + _GROUPS_PER_FILE, groups)):
                writer.write_table(_rows(group, rng))
    return groups * _ROWS_PER_GROUP


def _rows(group: int, rng: np.random.Generator) -> pa.Table:
    n = _ROWS_PER_GROUP
    attribute = attributes.load(_ATTRIBUTES[group % len(_ATTRIBUTES)])
    label_set = attribute.label_sets[0]
    labels = np.array(label_set.labels)
    target = rng.choice(labels, n)
    outcome = rng.choice([str(o) for o in _OUTCOMES], n, p=_SHARES)
    answer = np.where(rng.random(n) < 0.8, target, rng.choice(labels, n))
    answered = outcome == Outcome.ANSWERED
    digests = [rng.bytes(16).hex() for _ in range(n)]
    constant = {
        "dataset": "synthetic",
        "split": "test",
        "attribute": attribute.name,
        "person": 0,
        "model": f"model-{group // len(_ATTRIBUTES) % 4}",
        "protocol": "neutral",
        "answer_mode": "free",
        "subject_id": None,
        "asked_label_set": label_set.name,
        "target_label_set": label_set.name,
        "parser_version": "1",
    }
    columns = {
        **{name: [value] * n for name, value in constant.items()},
        "image_id": [f"images/{group}/{row}.jpg" for row in range(n)],
        "image_sha256": [digest * 2 for digest in digests],
        "request_id": digests,
        "outcome": outcome.tolist(),
        "label": pa.array(answer, pa.string(), mask=~answered),
        "target": target.tolist(),
    }
    return pa.Table.from_pydict(columns, schema=PREDICTION_SCHEMA)


def _measured(run: Path, rows: int) -> None:
    imported = _peak_mib()
    start = time.perf_counter()
    score(str(run), Console())
    seconds = time.perf_counter() - start
    print(
        f"\n{rows:,} rows in {seconds:.2f} s: {rows / seconds / 1e6:.2f} million rows/s; "
        f"peak memory {_peak_mib():.0f} MiB, {imported:.0f} MiB of it before the first row"
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
    millions = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        rows = write(run, millions)
        # Forked, it would start with the memory that writing took.
        process = multiprocessing.get_context("spawn").Process(target=_measured, args=(run, rows))
        process.start()
        process.join()
    sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
