"""Real photographs, up to 4406x2937, through ingest, run and scores as a table of one's own."""

import io
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.config import resolve
from jobs.ingest import ingest
from jobs.run import run
from jobs.score import score

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "real_photos"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real photographs are not here"),
    pytest.mark.usefixtures("local_ray"),
]

COLUMNS = """
name: photos
image: file
labels:
  race:
    column: keyword
    label_set: race-7
    map: {Asian: null, Latino: Latino_Hispanic}
licence: CC BY 4.0
table: photos.csv
"""


def test_every_photograph_has_an_outcome_for_every_attribute(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    files = sorted(path.relative_to(PHOTOS).as_posix() for path in PHOTOS.rglob("*.jpg"))
    assert len(files) >= 10
    keywords = [Path(file).stem.removeprefix("race_").removesuffix("_face0") for file in files]
    table = source / "photos.csv"
    lines = [f"{file},{word.replace('_', ' ')}" for file, word in zip(files, keywords, strict=True)]
    table.write_text("\n".join(["file,keyword", *lines]))
    for file in files:
        copy = source / file
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((PHOTOS / file).read_bytes())
    columns = tmp_path / "photos.yaml"
    columns.write_text(COLUMNS)

    quiet = Console(file=io.StringIO())
    ingest("table", tmp_path / "shards", quiet, source=source, config=columns)
    flags = {
        "dataset": str(tmp_path / "shards"),
        "model": ["fake"],
        "attributes": ["race", "gender", "age", "emotion"],
        "output_dir": tmp_path / "run",
    }
    folder = run(resolve(flags, None), quiet)
    rows = [
        row
        for name in folder.predictions.names()
        for row in pq.read_table(folder.predictions.open(name)).to_pylist()
    ]
    assert Counter(row["image_id"] for row in rows) == dict.fromkeys(files, 4)
    assert not any(row["outcome"] in ("bad_image", "pending", "engine_error") for row in rows)
    assert score(folder.root.location, quiet).exists("metrics.json")
