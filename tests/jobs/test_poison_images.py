"""Pictures that end their decoder, in a whole run: each is one error row, and nothing else is."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import MakeShards
from tests.poison import CRASHES, EXHAUSTS, HANGS, environment, poisonous

IMAGES = 1_000
POISONS = {100: CRASHES, 507: HANGS, 508: EXHAUSTS}
SECONDS = 240


@pytest.mark.slow
def test_of_1000_images_three_that_end_their_decoder_are_three_error_rows(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    shards = make_shards(IMAGES, {at: poisonous(marker) for at, marker in POISONS.items()})
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "jobs.cli", "run", "--dataset", shards, "--model", "fake"]
    # A Ray of its own: workers have the environment of whoever starts Ray.
    process = subprocess.Popen(
        [*map(str, command), "--attributes", "race", "--output-dir", str(folder)],
        env=os.environ | environment(tmp_path / "poison"),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        assert process.wait(SECONDS) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = [
        row
        for file in sorted((folder / "predictions").glob("*.parquet"))
        for row in pq.read_table(file, columns=["image_id", "request_id", "outcome"]).to_pylist()
    ]
    bad = {row["image_id"]: row["request_id"] for row in rows if row["outcome"] == "bad_image"}
    assert Counter(row["outcome"] == "bad_image" for row in rows) == {True: 3, False: 997}
    assert not any(row["outcome"] in ("pending", "engine_error") for row in rows)
    replies = {
        row["request_id"]: row
        for file in sorted((folder / "replies").glob("*.parquet"))
        for row in pq.read_table(file, columns=["request_id", "error"]).to_pylist()
    }
    errors = {image: str(replies[request]["error"]) for image, request in bad.items()}
    assert {image: error.partition(":")[0] for image, error in errors.items()} == {
        "image-0100": "decoder_crashed",
        "image-0507": "decoder_timeout",
        "image-0508": "decoder_memory",
    }
    assert "SIGSEGV" in errors["image-0100"]
    assert sum(row["error"] is not None for row in replies.values()) == 3
