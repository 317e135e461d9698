"""facescan audit SHARDS: planted copies are found, and what cannot be compared is counted."""

import csv
import hashlib
import io
import sys
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from bench.audit import drawn, found, plant
from facescan.errors import DataError, UsageError
from facescan.shards import Contents, ShardRow, ShardWriter
from jobs import cli
from jobs.audit import audit
from tests.conftest import MakeShards, jpeg


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def shards_of(path: Path, name: str, images: dict[str, tuple[str, bytes]]) -> Path:
    """Images by id, each with its split."""
    with ShardWriter(path, Contents(name, {})) as writer:
        for image_id, (split, data) in images.items():
            digest = hashlib.sha256(data).hexdigest()
            writer.add(ShardRow(image_id, digest, data, None, split))
    return path


def test_planted_copies_are_found_and_unrelated_pictures_are_not(tmp_path: Path) -> None:
    kinds = plant(tmp_path / "planted", list(drawn(60)), 20)
    recall, false = found(tmp_path / "planted", kinds, quiet())
    assert recall["same bytes"] == recall["encoded again"] == 1.0
    assert recall["cropped and resized"] >= 0.95
    assert false <= 0.001


def test_copies_between_splits_and_datasets_are_told_apart(tmp_path: Path) -> None:
    one = {"1": ("train", jpeg(1)), "2": ("train", jpeg(2)), "3": ("test", jpeg(2))}
    first = shards_of(tmp_path / "first", "faces", one)
    second = shards_of(tmp_path / "second", "others", {"x": ("all", jpeg(1))})
    console = quiet()
    output = tmp_path / "copies.csv"
    result = audit([str(first), str(second)], console, output=output)
    assert result.leaks
    lines = [line.split() for line in text(console).splitlines()]
    assert ["faces/train", "others/all", "1", "1", "50.00"] in lines
    assert ["faces/test", "faces/train", "1", "1", "100.00"] in lines
    rows = list(csv.DictReader(output.open()))
    assert {(row["image_id"], row["other_dataset"], row["other_image_id"]) for row in rows} == {
        ("1", "others", "x"),
        ("2", "faces", "3"),
        ("3", "faces", "2"),
        ("x", "faces", "1"),
    }
    assert {(row["equal"], row["distance"]) for row in rows} == {("1", "0")}


def test_the_same_split_in_two_places_is_two_places(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    places = [str(make_shards(3, name=name)) for name in ("mine", "theirs")]
    console = quiet()
    output = tmp_path / "copies.parquet"
    assert audit(places, console, output=output).leaks
    rows = pq.read_table(output).to_pylist()
    assert {(row["location"], row["other_location"]) for row in rows} == {
        (places[0], places[1]),
        (places[1], places[0]),
    }
    assert f"{places[0]}: tiny/test" in text(console)


def test_a_picture_that_cannot_be_decoded_is_compared_by_its_bytes(tmp_path: Path) -> None:
    broken = jpeg(1)[:-300]
    flat = io.BytesIO()
    Image.new("RGB", (48, 48), "white").save(flat, "PNG")
    images = {
        "1": ("train", broken),
        "2": ("test", broken),
        "3": ("train", b"no image"),
        "4": ("train", flat.getvalue()),
        "5": ("test", jpeg(5)),
    }
    console = quiet()
    result = audit([str(shards_of(tmp_path / "shards", "faces", images))], console)
    assert result.uncompared.total() == 3
    assert result.uncompared["no_structure"] == result.uncompared["not_an_image"] == 1
    assert "only the bytes were compared: 3 (" in text(console)
    assert [(each.equal, each.alike) for each in result.copies] == [(1, 1), (1, 1)]


def test_no_copies_are_no_leak(make_shards: MakeShards) -> None:
    console = quiet()
    assert not audit([str(make_shards(5))], console).leaks
    assert "no copies" in text(console)
    assert "no image has a copy in another split" in text(console)


@pytest.mark.parametrize(("same", "code"), [(True, 1), (False, 0)])
def test_the_exit_code_says_whether_there_is_a_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool, code: int
) -> None:
    images = {"1": ("train", jpeg(1)), "2": ("test", jpeg(1 if same else 2))}
    shards = shards_of(tmp_path / "shards", "faces", images)
    monkeypatch.setattr(sys, "argv", ["facescan", "audit", str(shards)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == code


def test_flags_that_cannot_work_are_refused(tmp_path: Path, make_shards: MakeShards) -> None:
    data = str(make_shards(2))
    with pytest.raises(UsageError, match="given twice"):
        audit([data, f"{data}/"], quiet())
    with pytest.raises(UsageError, match="--distance 13: 0 to 12 bits"):
        audit([data], quiet(), distance=13)
    with pytest.raises(UsageError, match=r"a \.parquet or \.csv file"):
        audit([data], quiet(), output=tmp_path / "copies.txt")
    with pytest.raises(DataError):
        audit([str(tmp_path / "nothing")], quiet())
