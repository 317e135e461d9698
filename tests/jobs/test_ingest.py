import hashlib
import io
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from facescan import datasets, registry, shards
from facescan.datasets import Example, Rejected, SourceRow
from facescan.errors import DataError, UsageError
from facescan.images import Limits
from facescan.shards import MANIFEST, IngestManifest
from jobs import ingest as job
from jobs import loading
from tests.facescan.test_fairface import FACES, M4_RACES, m4_names, write

OPTIONS = """
name: my-faces
image: file
labels: {gender: sex}
values: {years: age}
split: fold
licence: CC0
"""


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), number % 256, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


class Workspace:
    """A source of six faces in a CSV, the options that explain it, and where the shards go."""

    def __init__(self, root: Path) -> None:
        self.source, self.out, self.config = root / "source", root / "out", root / "table.yaml"
        self.config.write_text(OPTIONS)
        lines = ["file,sex,age,fold"]
        for number in range(6):
            self.write(f"img/{number}.jpg", jpeg(number))
            sex = ("Male", "female", "")[number % 3]
            lines.append(
                f"img/{number}.jpg,{sex},{20 + number},{'train' if number < 4 else 'test'}"
            )
        self.write("faces.csv", "\n".join(lines).encode())
        self.printed = io.StringIO()

    def write(self, name: str, data: bytes) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def add_line(self, line: str) -> None:
        with (self.source / "faces.csv").open("a") as file:
            file.write(f"\n{line}")

    def ingest(self, **options: Any) -> IngestManifest:
        given: dict[str, Any] = {"source": self.source, "config": self.config} | options
        console = Console(file=self.printed, width=200)
        return job.ingest("table", given.pop("output_dir", self.out), console, **given)

    def refusal(self, **options: Any) -> str:
        with pytest.raises(UsageError) as caught:
            self.ingest(**options)
        assert not self.out.exists(), "nothing may be left behind"
        return str(caught.value)


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_a_source_becomes_shards_with_its_bytes_unchanged(work: Workspace) -> None:
    manifest = work.ingest()
    opened = shards.open(str(work.out))
    found = {
        row["image_id"]: row
        for table in opened.read(opened.row_groups, opened.schema.names)
        for row in table.to_pylist()
    }
    assert sorted(found) == [f"img/{n}.jpg" for n in range(6)]
    row = found["img/4.jpg"]
    assert row["image"] == {"bytes": jpeg(4), "path": "img/4.jpg"}
    assert row["image_sha256"] == hashlib.sha256(jpeg(4)).hexdigest()
    assert (row["dataset"], row["split"]) == ("my-faces", "test")
    assert (row["label_gender"], row["value_years"]) == ("Female", 24.0)
    assert (opened.digest, opened.licence) == (manifest.digest, "CC0")
    assert opened.label_sets == {"gender": "gender-2"}


@pytest.mark.parametrize(
    ("name", "example"),
    [
        pytest.param(name, example, id=f"{name}-{number}")
        for name in datasets.names()
        for number, example in enumerate(datasets.load(name).examples)
    ],
)
def test_the_examples_of_a_dataset_become_shards_row_by_row(
    name: str, example: Example, tmp_path: Path
) -> None:
    rows = [row for row in example.rows if isinstance(row, SourceRow)]
    paths = [row.image for row in rows if isinstance(row.image, str)]
    pictures = {path: jpeg(number) for number, path in enumerate(paths)}
    for path, contents in {**example.files, **pictures}.items():
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / path).write_bytes(contents)
    config = tmp_path / "options.yaml"
    config.write_text(yaml.safe_dump(dict(example.options)))
    manifest = job.ingest(
        name,
        tmp_path / "out",
        Console(file=io.StringIO()),
        source=tmp_path / "source",
        config=config,
    )
    opened = shards.open(str(tmp_path / "out"))
    found = [
        row
        for table in opened.read(opened.row_groups, opened.schema.names)
        for row in table.to_pylist()
    ]
    expected = [
        {
            "image_id": row.image_id,
            "image_sha256": hashlib.sha256(data).hexdigest(),
            "image": {"bytes": data, "path": row.image},
            "dataset": name,
            "split": row.split,
            "subject_id": row.subject_id,
            **{f"label_{key}": value for key, value in row.labels.items()},
            **{f"value_{key}": value for key, value in row.values.items()},
            **{f"group_{key}": value for key, value in row.groups.items()},
        }
        for row, data in zip(rows, pictures.values(), strict=True)
    ]
    # Each split has files of its own.
    assert found == sorted(expected, key=lambda row: str(row["split"]))
    assert manifest.rejected == Counter(
        row.reason for row in example.rows if isinstance(row, Rejected)
    )


def test_two_repositories_that_number_labels_differently_become_the_same_rows(
    tmp_path: Path,
) -> None:
    found = []
    for number, races in enumerate((M4_RACES, sorted(M4_RACES))):
        source, out = tmp_path / f"source-{number}", tmp_path / f"out-{number}"
        write(source / "0.25" / "validation-00000-of-00001.parquet", FACES, m4_names(races))
        manifest = job.ingest("fairface.025", out, Console(file=io.StringIO()), source=source)
        assert manifest.unusable == {"not_an_image": len(FACES)}, "the bytes are only numbers"
        opened = shards.open(str(out))
        (table,) = opened.read(opened.row_groups, opened.schema.names)
        found.append(table.to_pylist())
    assert found[0] == found[1]
    assert [(row["image_id"], row["label_race"]) for row in found[0]] == [
        (f"val/row-{number}", face["race"]) for number, face in enumerate(FACES)
    ]


def test_the_summary_says_what_was_taken_and_what_was_not(work: Workspace) -> None:
    work.write("img/broken.jpg", b"<html>")
    work.add_line("img/broken.jpg,Male,1,train")
    work.add_line("img/gone.jpg,Male,1,train")
    work.ingest(allow_missing=True)
    assert work.printed.getvalue().splitlines() == [
        "left out: faces.csv, line 9 (img/gone.jpg): missing_image",
        "my-faces: 7 images (test 2, train 5)",
        "  gender (gender-2): Female 2, Male 3; without label 2",
        "  cannot be used, will end as bad_image: not_an_image 1",
        "  left out: missing_image 1",
        f"shards: {work.out}",
    ]


def test_the_same_source_makes_the_same_bytes(work: Workspace, tmp_path: Path) -> None:
    work.ingest()
    work.ingest(output_dir=tmp_path / "again")
    names = sorted(path.name for path in work.out.iterdir())
    assert names == [MANIFEST, "test-00000.parquet", "train-00000.parquet"]
    assert all((work.out / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)


def test_rows_keep_the_order_of_the_source_though_threads_read_them(
    work: Workspace, tmp_path: Path
) -> None:
    names = [f"many/{n * 7919 % 500:04d}.jpg" for n in range(500)]
    for number, name in enumerate(names):
        # The first of every window is the slowest to read.
        work.write(name, jpeg(number) + bytes(200_000 if number % 32 == 0 else 0))
    (work.source / "faces.csv").write_text("file\n" + "\n".join(names))
    work.config.write_text("image: file")
    work.ingest()
    opened = shards.open(str(work.out))
    assert [r["image_id"] for b in opened.labels() for r in b.to_pylist()] == names


def test_an_unusable_image_stays_a_row(work: Workspace) -> None:
    good = jpeg(1)
    for name, data in (
        ("empty", b""),
        ("text", b"<html>"),
        ("cut", good[:150]),
        ("gif", b"GIF89a" + bytes(50)),
    ):
        work.write(f"{name}.jpg", data)
        work.add_line(f"{name}.jpg,Male,1,train")
    manifest = work.ingest()
    assert manifest.rows == 10
    assert manifest.unusable == {
        "empty": 1,
        "not_an_image": 1,
        "truncated": 1,
        "unsupported_format": 1,
    }
    assert manifest.rejected == {}


def test_a_file_above_the_limit_of_bytes_is_left_out_and_counted(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_LIMITS", Limits(max_bytes=5_000))
    work.write("huge.jpg", jpeg(1) + bytes(5_000))
    work.add_line("huge.jpg,Male,1,train")
    manifest = work.ingest()
    assert (manifest.rows, manifest.rejected) == (6, {"too_many_bytes": 1})


def test_a_file_that_comes_in_pieces_is_read_whole(
    work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one read of a file on a network may give less than was asked for."""
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, size: read(file, min(size, 100)))
    assert work.ingest().unusable == {}
    opened = shards.open(str(work.out))
    found = [row for t in opened.read(opened.row_groups, ["image"]) for row in t.to_pylist()]
    assert [row["image"]["bytes"] for row in found] == [jpeg(n) for n in (4, 5, 0, 1, 2, 3)]


def test_a_missing_image_stops_the_ingest_by_file_and_row(work: Workspace) -> None:
    work.add_line("img/gone.jpg,Male,1,train")
    assert work.refusal().startswith("faces.csv, line 8 (img/gone.jpg): its image is missing")
    work.add_line("img/0.jpg/below.jpg,Male,1,train")
    work.add_line(",Male,1,train")
    manifest = work.ingest(allow_missing=True)
    assert (manifest.rows, manifest.rejected) == (6, {"missing_image": 3})


def test_an_id_that_comes_twice_is_refused(work: Workspace) -> None:
    work.add_line("img/2.jpg,Male,1,test")
    assert work.refusal() == "faces.csv, line 8: the image id 'img/2.jpg' is there already"


def test_an_ingest_that_is_refused_leaves_no_threads_behind(work: Workspace) -> None:
    before = set(threading.enumerate())
    work.add_line("img/0.jpg,Male,1,train")
    with pytest.raises(UsageError) as caught:
        work.ingest()
    # The error is still there, and holds on to everything that was under way when it came.
    assert "there already" in str(caught.value)
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../secret.jpg", "leads out of"),
        ("img/../../secret.jpg", "leads out of"),
        ("/etc/hostname", "leads out of"),
        ("link.jpg", "leads out of"),
        ("http://127.0.0.1/x.jpg", "URLs are not followed"),
        ("file:///etc/hostname", "URLs are not followed"),
        ("img", "is not a file"),
        ("pipe.jpg", "is not a file"),
    ],
)
def test_no_path_leads_out_of_the_source(
    work: Workspace, tmp_path: Path, path: str, message: str
) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    (work.source / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(work.source / "pipe.jpg")
    work.add_line(f"{path},Male,1,train")
    found = work.refusal(allow_missing=True)
    assert found.startswith(f"faces.csv, line 8: '{path}' ")
    assert message in found


def test_a_link_within_the_source_is_followed(work: Workspace) -> None:
    (work.source / "link.jpg").symlink_to(work.source / "img" / "0.jpg")
    work.add_line("link.jpg,Male,1,train")
    assert work.ingest().rows == 7


def test_an_unknown_label_is_refused_by_file_and_row(work: Workspace) -> None:
    work.add_line("img/0.jpg,Martian,1,train")
    assert work.refusal().startswith("faces.csv, line 8: gender 'Martian' is not a label")


def test_limit_and_split_take_a_part(work: Workspace, tmp_path: Path) -> None:
    assert work.ingest(limit=2).splits == {"train": 2}
    assert work.ingest(split="test", output_dir=tmp_path / "b").splits == {"test": 2}
    assert work.ingest(limit=99, output_dir=tmp_path / "c").rows == 6


def test_a_plain_folder_needs_no_options(work: Workspace) -> None:
    manifest = work.ingest(source=work.source / "img", config=None)
    assert (manifest.dataset, manifest.splits) == ("table", {"all": 6})
    assert manifest.label_sets == {}


def test_what_cannot_work_is_refused_in_words_and_leaves_nothing(
    work: Workspace, tmp_path: Path
) -> None:
    def with_config(text: str) -> str:
        work.config.write_text(text)
        return work.refusal()

    assert "--limit 0: at least 1" in work.refusal(limit=0)
    assert "no split 'val'; known: test, train" in work.refusal(split="val")
    assert "--source is required" in work.refusal(source=None)
    assert "no such folder or file" in work.refusal(source=tmp_path / "nowhere")
    assert "lies inside of --source" in work.refusal(output_dir=work.source / "shards")
    assert "--seed: the dataset 'table' has no such option" in work.refusal(seed=1)
    assert "nowhere.yaml" in work.refusal(config=tmp_path / "nowhere.yaml")
    (tmp_path / "empty").mkdir()
    assert "no images found" in work.refusal(source=tmp_path / "empty", config=None)
    with pytest.raises(UsageError, match="unknown dataset 'tabel'; known:"):
        job.ingest("tabel", work.out, Console(file=work.printed))
    message = with_config("image: file\nlabel: {gender: sex}")
    assert f"{work.config}: label: Extra inputs are not permitted" in message
    assert "known keys: name, table, image" in message
    assert str(work.config) in with_config("image: [")
    assert "must hold `key: value` lines" in with_config("- image")


def test_a_folder_that_is_in_use_is_left_alone(work: Workspace) -> None:
    work.ingest()
    before = (work.out / MANIFEST).read_bytes()
    with pytest.raises(DataError, match="not empty"):
        work.ingest()
    assert (work.out / MANIFEST).read_bytes() == before


def test_a_dataset_of_the_users_own_is_held_to_what_it_declares(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own" / "datasets").mkdir(parents=True)
    (tmp_path / "own" / "datasets" / "mine.py").write_text(
        "from facescan.datasets import Dataset, NoOptions, Rejected, SourceRow\n"
        "def read(source):\n"
        "    yield Rejected('0.txt', 'malformed_name')\n"
        "    yield SourceRow('1', 'one', b'x', 'test', labels={'gender': 'Male'})\n"
        "    yield SourceRow('2', 'two', b'x', 'test', labels={'gender': 'Woman'})\n"
        "DATASET = Dataset('mine', '', 'CC0', '1', NoOptions, read,\n"
        "                  label_sets={'gender': 'gender-2'}, needs_source=False)\n"
    )
    monkeypatch.setattr(registry, "_included", [])
    registry.include(tmp_path / "own")
    console = Console(file=work.printed)
    with pytest.raises(DataError, match="2: gender 'Woman' is not a label of gender-2"):
        job.ingest("mine", work.out, console)
    manifest = job.ingest("mine", work.out, console, limit=1)
    assert (manifest.rows, manifest.rejected) == (1, {"malformed_name": 1})
    with pytest.raises(UsageError, match="is drawn, not read"):
        job.ingest("mine", tmp_path / "b", console, source=work.source)


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """In a process of its own, so that nothing else counts."""
    source = tmp_path / "source"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source / "0000.png")
    for number in range(1, 1_400):
        os.link(source / "0000.png", source / f"{number:04d}.png")
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from rich.console import Console\n"
        "from jobs.ingest import ingest\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "source, out = map(Path, sys.argv[1:])\n"
        "ingest('table', out / 'a', Console(quiet=True), source=source, limit=250)\n"
        "before = peak()\n"
        "ingest('table', out / 'b', Console(quiet=True), source=source)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 60, "MB more for 380 MB of images than for 68 MB"
