import hashlib
import json
import pickle
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facescan import shards
from facescan.errors import DataError
from facescan.shards import MANIFEST, Contents, ShardRow, ShardWriter, pages, writing
from facescan.types import LABEL_SET_KEY

CONTENTS = Contents(
    dataset="mine",
    label_sets={"race": "race-7", "gender": "gender-2"},
    values=("years",),
    groups=("site",),
    licence="CC BY 4.0",
    revision="2024-01",
)


def row(number: int, split: str = "test", size: int = 100, **fields: Any) -> ShardRow:
    data = number.to_bytes(4) * (size // 4)
    given: dict[str, Any] = {
        "image_id": f"face-{number:04d}",
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "data": data,
        "path": f"{number}.jpg",
        "split": split,
        "subject_id": f"person-{number // 2}",
        "labels": {"race": "White" if number % 2 else "Black", "gender": None},
        "values": {"years": number / 2},
        "groups": {"site": "north"},
    }
    return ShardRow(**(given | fields))


def write(folder: Path, rows: list[ShardRow], contents: Contents = CONTENTS) -> Path:
    with ShardWriter(folder, contents) as writer:
        for each in rows:
            writer.add(each)
    return folder


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 1_000)
    monkeypatch.setattr(writing, "ROW_GROUPS_PER_SHARD", 2)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "s", [row(1), row(2, data=None, path=None, subject_id=None, values={})])
    opened = shards.open(str(tmp_path / "s"))
    (table,) = opened.read(opened.row_groups, opened.schema.names)
    first, second = table.to_pylist()
    assert first == {
        "image_id": "face-0001",
        "image_sha256": row(1).image_sha256,
        "image": {"bytes": row(1).data, "path": "1.jpg"},
        "dataset": "mine",
        "split": "test",
        "subject_id": "person-0",
        "label_race": "White",
        "label_gender": None,
        "value_years": 0.5,
        "group_site": "north",
    }
    assert second["image"] == {"bytes": None, "path": None}
    assert second["value_years"] is None


def test_an_opened_dataset_knows_what_it_holds_without_reading_rows(tmp_path: Path) -> None:
    rows = [row(n, "train" if n % 3 else "val") for n in range(9)]
    opened = shards.open(str(write(tmp_path / "s", rows)))
    assert opened.rows == 9
    assert opened.splits == ("train", "val")
    assert opened.datasets == ("mine",)
    assert opened.label_sets == {"race": "race-7", "gender": "gender-2"}
    assert (opened.licence, opened.revision) == ("CC BY 4.0", "2024-01")
    assert opened.location == str(tmp_path / "s")
    assert opened.schema.metadata[(LABEL_SET_KEY + "race").encode()] == b"race-7"


def test_one_split_can_be_opened_alone_and_keeps_the_digest_of_the_whole(tmp_path: Path) -> None:
    rows = [row(n, "train" if n % 3 else "val") for n in range(9)]
    folder = str(write(tmp_path / "s", rows))
    alone = shards.open(folder, "val")
    assert [r["image_id"] for b in alone.labels() for r in b.to_pylist()] == [
        "face-0000",
        "face-0003",
        "face-0006",
    ]
    assert alone.digest == shards.open(folder).digest
    assert alone.splits == ("train", "val")


@pytest.mark.usefixtures("small_groups")
def test_row_groups_and_files_are_bounded(tmp_path: Path) -> None:
    opened = shards.open(str(write(tmp_path / "s", [row(n, size=400) for n in range(10)])))
    assert [(Path(g.path).name, g.index, g.rows) for g in opened.row_groups] == [
        ("test-00000.parquet", 0, 3),
        ("test-00000.parquet", 1, 3),
        ("test-00001.parquet", 0, 3),
        ("test-00001.parquet", 1, 1),
    ]
    ids = [r["image_id"] for b in opened.labels() for r in b.to_pylist()]
    assert ids == [f"face-{n:04d}" for n in range(10)]


def test_rows_of_a_group_are_bounded_however_small_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "ROW_GROUP_ROWS", 4)
    opened = shards.open(str(write(tmp_path / "s", [row(n) for n in range(9)])))
    assert [group.rows for group in opened.row_groups] == [4, 4, 1]


def test_many_splits_together_hold_no_more_than_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "BUFFER_BYTES", 1_000)
    rows = [row(n, f"fold-{n % 4}", size=200) for n in range(12)]
    opened = shards.open(str(write(tmp_path / "s", rows)))
    assert len(opened.row_groups) > 4
    assert opened.rows == 12


def test_a_column_that_is_no_split_is_refused(tmp_path: Path) -> None:
    rows = [row(n, f"split-{n}") for n in range(writing.MAX_SPLITS + 1)]
    with pytest.raises(DataError, match="more than 16 splits"):
        write(tmp_path / "s", rows)


def test_a_split_may_have_any_name(tmp_path: Path) -> None:
    opened = shards.open(str(write(tmp_path / "s", [row(1, "../a b/%")])), "../a b/%")
    assert opened.rows == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.usefixtures("small_groups")
def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    rows = [row(n, "train" if n % 3 else "val", size=300) for n in range(20)]
    first, second = (write(tmp_path / name, rows) for name in "ab")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)


@pytest.mark.parametrize(
    "change",
    [
        {"image_sha256": "0" * 64},
        {"labels": {"race": "Indian"}},
        {"values": {"years": 99.0}},
        {"groups": {"site": "south"}},
        {"subject_id": "somebody else"},
        {"image_id": "another id"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_changes_with_anything_a_row_says(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    before = shards.open(str(write(tmp_path / "a", [row(1), row(2)])))
    after = shards.open(str(write(tmp_path / "b", [row(1), row(2, **change)])))
    assert before.digest != after.digest


def test_the_digest_changes_with_the_label_set(tmp_path: Path) -> None:
    other = Contents("mine", {"race": "race-6", "gender": "gender-2"}, ("years",), ("site",))
    digests = {
        shards.open(str(write(tmp_path / name, [row(1)], contents))).digest
        for name, contents in (("a", CONTENTS), ("b", other))
    }
    assert len(digests) == 2


def test_a_single_file_has_the_digest_of_a_folder_that_holds_just_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [row(n) for n in range(5)])
    alone = shards.open(str(folder / "test-00000.parquet"))
    assert alone.rows == 5
    assert alone.digest == shards.open(str(folder)).digest


def test_the_manifest_counts_labels_splits_and_what_was_left_out(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", CONTENTS) as writer:
        for number in range(5):
            writer.add(row(number, "train" if number % 2 else "val"))
        writer.reject("missing_file")
        writer.reject("missing_file")
        writer.unusable("truncated")
    manifest = json.loads((tmp_path / "s" / MANIFEST).read_text())
    assert manifest == writer.manifest.model_dump(mode="json")
    assert manifest["rows"] == 5
    assert manifest["splits"] == {"train": 2, "val": 3}
    assert manifest["labels"] == {"race": {"Black": 3, "White": 2}, "gender": {}}
    assert manifest["unlabelled"] == {"race": 0, "gender": 5}
    assert manifest["rejected"] == {"missing_file": 2}
    assert manifest["unusable"] == {"truncated": 1}
    assert [entry["rows"] for entry in manifest["shards"]] == [2, 3]


@pytest.mark.usefixtures("small_groups")
def test_an_error_takes_back_everything_written(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with ShardWriter(folder, CONTENTS) as writer:
            for number in range(30):
                writer.add(row(number, size=400))
            assert list(folder.glob("*.parquet"))
            raise DataError("row 31")

    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "new", tmp_path / "there"):
        with pytest.raises(DataError, match="row 31"):
            fail(folder)
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("rows", [1, 5, 20], ids=["the last", "with a shard done", "one of many"])
def test_a_row_group_that_cannot_be_written_takes_back_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    write_batch, written = pq.ParquetWriter.write_batch, list[int]()

    def full(self: pq.ParquetWriter, batch: pa.RecordBatch) -> None:
        written.append(batch.num_rows)
        if sum(written) == min(rows, 12):
            raise OSError("no space left")
        write_batch(self, batch)

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "s", [row(number, size=400) for number in range(rows)])
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("small_groups")
def test_rows_are_taken_while_a_row_group_is_written_but_no_more_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_batch, taken, written = pq.ParquetWriter.write_batch, Event(), list[bool]()

    def slow(self: pq.ParquetWriter, batch: pa.RecordBatch) -> None:
        written.append(taken.wait(10))
        write_batch(self, batch)

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", slow)
    with ShardWriter(tmp_path / "s", CONTENTS) as writer:
        for number in range(5):
            writer.add(row(number, size=400))
        Timer(0.2, taken.set).start()
        writer.add(row(5, size=400))
        assert written[0], "the second row group waits for the first"
    assert written == [True, True]
    assert shards.open(str(tmp_path / "s")).rows == 6


@pytest.mark.usefixtures("small_groups")
def test_what_was_killed_in_its_last_moment_is_no_dataset_once_it_is_started_over(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "s", [row(1)])
    (folder / ".unfinished").touch()
    with ShardWriter(folder, CONTENTS) as writer:
        writer.add(row(2))
        with pytest.raises(DataError, match=f"no {MANIFEST} in it"):
            shards.open(str(folder))


@pytest.mark.usefixtures("small_groups")
def test_an_ingest_that_was_killed_is_no_dataset_and_is_started_over(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    killed = ShardWriter(folder, CONTENTS).__enter__()
    for number in range(10):
        killed.add(row(number, size=400))
    assert (folder / "test-00000.parquet").exists()
    with pytest.raises(DataError, match=f"no {MANIFEST} in it"):
        shards.open(str(folder))
    write(folder, [row(1)])
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "test-00000.parquet"]
    assert shards.open(str(folder)).rows == 1


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.parquet").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write(tmp_path, [row(1)])
    assert (tmp_path / "holiday.parquet").read_text() == "mine"


def test_an_opened_dataset_can_be_sent_to_another_process(tmp_path: Path) -> None:
    opened = shards.open(str(write(tmp_path / "s", [row(1)])))
    sent = pickle.loads(pickle.dumps(opened))  # noqa: S301 - our own bytes, as Ray sends them
    assert sent == opened
    assert next(sent.labels()).num_rows == 1


def test_a_uri_and_a_relative_path_find_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "s", [row(1)])
    monkeypatch.chdir(tmp_path)
    relative, uri = shards.open("s"), shards.open(folder.as_uri())
    assert relative.row_groups == uri.row_groups
    assert relative.location == str(folder)


def test_tables_are_small_however_large_a_row_group_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "BATCH_BYTES", 3_000)
    opened = shards.open(str(write(tmp_path / "s", [row(n, size=800) for n in range(20)])))
    tables = list(opened.read(opened.row_groups, ["image_id", "image"]))
    assert max(table.num_rows for table in tables) <= 4
    assert sum(table.num_rows for table in tables) == 20


def refusal(location: Path | str, split: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        shards.open(str(location), split)
    return str(caught.value)


def test_what_is_no_dataset_is_refused_in_words(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [row(1, "train"), row(2, "val")])
    assert refusal(folder, "test").endswith("no split 'test'; known: train, val")
    assert "no such file" in refusal(tmp_path / "nowhere")
    assert MANIFEST in refusal(tmp_path)
    assert "nosuch" in refusal("nosuch://bucket/folder")
    (tmp_path / "a.csv").write_text("file,race\n1.jpg,White\n")
    assert "not a Parquet file" in refusal(tmp_path / "a.csv")
    (tmp_path / "empty").touch()
    assert "not a Parquet file" in refusal(tmp_path / "empty")
    write(tmp_path / "none", [])
    assert "holds no images" in refusal(tmp_path / "none")


def changed(folder: Path, change: Any) -> Path:
    path = next(folder.glob("*.parquet"))
    pq.write_table(change(pq.read_table(path)), path)
    return path


def test_a_file_with_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [row(1)])
    changed(folder, lambda table: table.drop_columns(["image_sha256"]))
    assert "no column 'image_sha256'; found image_id: string" in refusal(folder)

    folder = write(tmp_path / "b", [row(1)])
    changed(folder, lambda table: table.set_column(0, "image_id", pa.array([1])))
    assert "column 'image_id' is not string; found image_id: int64" in refusal(folder)

    folder = write(tmp_path / "c", [row(1)])
    changed(folder, lambda table: table.replace_schema_metadata(None))
    assert "no label set for the column 'label_race'" in refusal(folder)


def test_files_that_disagree_with_each_other_or_the_manifest_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [row(1, "train"), row(2, "val")])
    changed(folder, lambda table: table.drop_columns(["group_site"]))
    assert "other columns or label sets than" in refusal(folder)

    folder = write(tmp_path / "b", [row(1), row(2)])
    changed(folder, lambda table: table.slice(0, 1))
    assert "1 images, but its ingest.json says 2" in refusal(folder)

    folder = write(tmp_path / "c", [row(1)])
    (folder / "test-00000.parquet").unlink()
    assert "no such file" in refusal(folder)

    folder = write(tmp_path / "d", [row(1)])
    (folder / MANIFEST).write_text("{}")
    assert MANIFEST in refusal(folder)


def test_a_row_group_of_several_splits_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [row(1, "train"), row(2, "val")])
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    pq.write_table(pa.concat_tables(tables), tmp_path / "mixed.parquet")
    assert "a row group without one single 'split'" in refusal(tmp_path / "mixed.parquet")


def test_a_file_that_disappears_is_named_when_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [row(1)])
    opened = shards.open(str(folder))
    path = folder / "test-00000.parquet"
    path.unlink()
    with pytest.raises(DataError, match=str(path)):
        next(opened.labels())


class _Loud(pa.ExtensionType):
    """An extension type that notices when a file makes somebody interpret its metadata."""

    interpreted = 0

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "facescan.test.loud")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"a pickle, perhaps"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "_Loud":
        cls.interpreted += 1
        return cls(storage)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loud: loud,
        lambda loud: pa.ListArray.from_arrays([0, 1], loud),
        lambda loud: pa.StructArray.from_arrays([loud], ["inner"]),
    ],
    ids=["column", "in a list", "in a struct"],
)
def test_extension_types_are_refused_before_arrow_interprets_them(
    tmp_path: Path, wrap: Any
) -> None:
    pa.register_extension_type(_Loud(pa.int64()))  # type: ignore[arg-type] # stubs want another
    try:
        folder = write(tmp_path / "a", [row(1)])
        column = wrap(pa.array([None], _Loud(pa.int64())))
        path = changed(folder, lambda table: table.append_column("extra", column))
        _Loud.interpreted = 0
        assert "extension types" in refusal(folder)
        assert "extension types" in refusal(path)
        assert _Loud.interpreted == 0
        pq.ParquetFile(path).close()
        assert _Loud.interpreted > 0, "Arrow on its own would have interpreted it"
    finally:
        pa.unregister_extension_type("facescan.test.loud")


def test_a_footer_that_hides_its_schema_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [row(1)])
    path = folder / "test-00000.parquet"
    data = path.read_bytes()
    at = data.rindex(b"ARROW:schema") + len(b"ARROW:schema")
    for hidden in (data[:at] + b"\x19" + data[at + 1 :], data[: at + 3] + b"!" + data[at + 4 :]):
        path.write_bytes(hidden)
        assert "a form that is not understood" in refusal(path)
