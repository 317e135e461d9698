"""FairFace in its original layout and in those of Hugging Face repositories."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facescan import datasets
from facescan.datasets import Source, SourceRow
from facescan.errors import DataError

AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
GENDERS = ("Male", "Female")
M4_RACES = (
    *("East Asian", "Indian", "Black", "White", "Middle Eastern"),
    *("Latino_Hispanic", "Southeast Asian"),
)
CSV_RACES = (
    *("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian"),
    *("Indian", "Middle Eastern"),
)
FACES = [
    {"race": race, "gender": GENDERS[number % 2], "age": AGES[number]}
    for number, race in enumerate(CSV_RACES)
]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Names = Mapping[str, Sequence[str]]
"""Column -> what its numbers stand for."""


def m4_names(races: Sequence[str] = M4_RACES, ages: Sequence[str] = AGES) -> Names:
    return {"race": races, "gender": GENDERS, "age": ages}


def metadata(names: Names) -> dict[str, str]:
    features: dict[str, Any] = {
        column: {"names": list(labels), "_type": "ClassLabel"} for column, labels in names.items()
    }
    features["image"] = {"_type": "Image"}
    features["service_test"] = {"dtype": "bool", "_type": "Value"}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def front_matter(configurations: Mapping[str, Names]) -> str:
    lines = ["---", "license: cc-by-4.0", "dataset_info:"]
    for configuration, names in configurations.items():
        lines += [f"- config_name: '{configuration}'", "  features:", "  - name: image"]
        lines += ["    dtype: image"]
        for column, labels in names.items():
            lines += [f"  - name: {column}", "    dtype:", "      class_label:", "        names:"]
            lines += [f"          '{number}': {label}" for number, label in enumerate(labels)]
    return "\n".join([*lines, "configs: []", "---", "# Dataset Card"]) + "\n"


def write(
    path: Path,
    faces: Iterable[Mapping[str, str | None]],
    names: Names,
    *,
    image: str = "image",
    paths: Sequence[str | None] = (),
    explained: bool = True,
) -> None:
    """A Parquet file as `push_to_hub` writes it; columns without names hold text."""
    faces = list(faces)
    columns: dict[str, Any] = {
        image: pa.array(
            [
                {"bytes": b"image %d" % number, "path": paths[number] if paths else None}
                for number in range(len(faces))
            ],
            IMAGE,
        )
    }
    for column in ("age", "gender", "race"):
        texts = [face[column] for face in faces]
        columns[column] = (
            pa.array([-1 if t is None else names[column].index(t) for t in texts], pa.int64())
            if column in names
            else pa.array(texts, pa.string())
        )
    columns["service_test"] = [number % 2 == 0 for number in range(len(faces))]
    table = pa.table(columns)
    if names and explained:
        table = table.replace_schema_metadata(metadata(names))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def read(root: Path, padding: str = "025", split: str | None = None) -> list[SourceRow]:
    dataset = datasets.load(f"fairface.{padding}")
    found = list(dataset.rows(Source(root, split, dataset.options())))
    assert all(isinstance(row, SourceRow) for row in found)
    return [row for row in found if isinstance(row, SourceRow)]


def refusal(root: Path, padding: str = "025", split: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read(root, padding, split)
    return str(caught.value)


def labels(rows: Iterable[SourceRow]) -> list[dict[str, str | None]]:
    return [dict(row.labels) for row in rows]


def original(root: Path, archive: str = "") -> None:
    """The CSV files at the top, and the folders of images below `archive`."""
    header = "file,age,gender,race,service_test"
    for split in ("train", "val"):
        (root / archive / split).mkdir(parents=True)
        lines = [
            f"{split}/{number}.jpg,{face['age']},{face['gender']},{face['race']},True"
            for number, face in enumerate(FACES)
        ]
        (root / f"fairface_label_{split}.csv").write_text("\n".join([header, *lines]) + "\n")


def test_the_original_layout_is_read_wherever_the_archive_was_unpacked(tmp_path: Path) -> None:
    archive = "fairface-img-margin025-trainval"
    original(tmp_path / "beside", archive)
    original(tmp_path / "plain")
    original(tmp_path / archive)
    for root, prefix in (("beside", f"{archive}/"), ("plain", ""), (archive, "")):
        rows = read(tmp_path / root)
        assert [row.image for row in rows[:2]] == [f"{prefix}train/0.jpg", f"{prefix}train/1.jpg"]
        assert [row.image_id for row in rows[-2:]] == ["val/5.jpg", "val/6.jpg"]
        assert labels(rows) == FACES * 2
    inside = tmp_path / "inside" / archive
    (tmp_path / "inside").mkdir()
    (tmp_path / archive).rename(inside)
    assert read(tmp_path / "inside")[0].image == f"{archive}/train/0.jpg"


def test_a_padding_that_a_folder_contradicts_is_refused(tmp_path: Path) -> None:
    archive = "fairface-img-margin125-trainval"
    original(tmp_path / "beside", archive)
    original(tmp_path / archive)
    write(tmp_path / "hf" / "1.25" / "train-00000-of-00001.parquet", FACES, m4_names())
    for root in ("beside", archive, "hf"):
        assert "by its name the padding is 1.25; ingest it as fairface.125" in refusal(
            tmp_path / root
        )
        assert read(tmp_path / root, "125")


@pytest.mark.parametrize(
    "name",
    [
        *("125", "1.25", "margin125", "margin_125", "margin-1.25", "Padding 1_25", "padding=1.25"),
        *("fairface_val_padding_125", "data-1.25", "data_1.25_v2", "fairface.125", "FairFace-1.25"),
        *("fairface-img-margin125-trainval", "fairface-img-margin125-val"),
    ],
)
def test_names_of_folders_that_tell_the_padding(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "train.parquet", FACES, {}, image="file")
    assert "by its name the padding is 1.25; ingest it as fairface.125" in refusal(tmp_path / name)
    assert "by its name the padding is 1.25; ingest it as fairface.125" in refusal(tmp_path)
    assert read(tmp_path / name, "125")


@pytest.mark.parametrize(
    "name",
    [
        *("data", "sample_125", "part-00125", "fairface125k", "v1.25", "3.1.25", "1.25.0", "11.25"),
        *("margin1255", "margin_125px", "2025", "margins", "0.25 and 1.25", "margin025_margin125"),
    ],
)
def test_names_of_folders_that_tell_no_padding(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "train.parquet", FACES, {}, image="file")
    for padding in ("025", "125"):
        assert read(tmp_path / name, padding)


def test_one_folder_may_hold_both_paddings(tmp_path: Path) -> None:
    original(tmp_path / "csv", "fairface-img-margin025-trainval")
    (tmp_path / "csv" / "fairface-img-margin125-trainval").mkdir()
    for padding in ("025", "125"):
        name = f"fairface-img-margin{padding}-trainval/train/0.jpg"
        assert read(tmp_path / "csv", padding)[0].image == name
    for number, folder in enumerate(("margin025", "margin125", "data")):
        path = tmp_path / "hf" / folder / "val-00000-of-00001.parquet"
        write(path, FACES[number : number + 1], {}, image="file")
    assert labels(read(tmp_path / "hf", "025")) == FACES[:1]
    assert labels(read(tmp_path / "hf", "125")) == FACES[1:2]


def test_layouts_with_other_numbers_for_the_labels_give_the_same_labels(tmp_path: Path) -> None:
    one = tmp_path / "one" / "0.25" / "train-00000-of-00001-dd3cb68164727418.parquet"
    other = tmp_path / "other" / "0.25" / "train-00000-of-00001.parquet"
    text = tmp_path / "text" / "margin025" / "train-00000-of-00001.parquet"
    write(one, FACES, m4_names())
    reordered = {"race": sorted(M4_RACES), "gender": GENDERS[::-1], "age": AGES[::-1]}
    write(other, FACES, reordered)
    write(text, FACES, {}, image="file")
    races = [pq.read_table(path).column("race").to_pylist() for path in (one, other)]
    assert races[0] != races[1], "the files themselves must differ"
    for root in ("one", "other", "text"):
        assert labels(read(tmp_path / root)) == FACES


def test_names_come_from_the_readme_where_the_file_has_none(tmp_path: Path) -> None:
    names = {"0.25": m4_names(), "1.25": m4_names(sorted(M4_RACES))}
    (tmp_path / "README.md").write_text(front_matter(names))
    for folder, of_folder in names.items():
        path = tmp_path / folder / "train-00000-of-00001.parquet"
        write(path, FACES, of_folder, explained=False)
    assert labels(read(tmp_path, "025")) == FACES
    assert labels(read(tmp_path, "125")) == FACES


def test_the_file_itself_counts_for_more_than_the_readme(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(front_matter({"0.25": m4_names(sorted(M4_RACES))}))
    write(tmp_path / "0.25" / "train.parquet", FACES, m4_names())
    assert labels(read(tmp_path)) == FACES


def test_numbers_that_nothing_explains_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.25" / "train.parquet"
    write(path, FACES, m4_names(), explained=False)
    message = refusal(tmp_path)
    assert "0.25/train.parquet: the column 'race' holds numbers" in message
    assert "put the README.md of the repository there" in message
    (tmp_path / "README.md").write_text("# FairFace\n")
    assert "README.md: does not begin with YAML" in refusal(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    assert "holds numbers" in refusal(tmp_path)
    (tmp_path / "README.md").write_text(
        front_matter({"a": m4_names(), "b": m4_names(sorted(M4_RACES))})
    )
    assert "numbers the labels of 'race' in several ways (a, b)" in refusal(tmp_path)
    table = pq.read_table(path).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, path)
    assert "its metadata 'huggingface' is no JSON" in refusal(tmp_path)


def test_a_number_without_a_name_is_refused_by_row_and_minus_one_is_no_label(
    tmp_path: Path,
) -> None:
    path = tmp_path / "train.parquet"
    unlabelled: dict[str, str | None] = {"race": None, "gender": "Male", "age": "0-2"}
    faces: list[Mapping[str, str | None]] = [unlabelled, *FACES]
    write(path, faces, m4_names())
    assert labels(read(tmp_path))[0] == unlabelled
    table = pq.read_table(path)
    numbers = pa.array([0, *[7] * len(FACES)], pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("race"), "race", numbers), path)
    assert "train.parquet, row 2: race is number 7, but there are 7: East Asian" in refusal(
        tmp_path
    )


def test_labels_that_are_not_fairfaces_are_refused_by_row(tmp_path: Path) -> None:
    odd = [FACES[0], FACES[1] | {"age": "9-Mar"}]
    write(tmp_path / "val.parquet", odd, {}, image="file")
    assert "val.parquet, row 2: age '9-Mar' is not a label of age-9" in refusal(tmp_path)


@pytest.mark.parametrize("age", ["more than 70", "70+", "More than 70"])
def test_the_oldest_group_has_two_names(tmp_path: Path, age: str) -> None:
    write(tmp_path / "train.parquet", [FACES[0] | {"age": age}], {}, image="file")
    assert read(tmp_path)[0].labels["age"] == "more than 70"


def test_ids_are_file_names_where_a_repository_kept_them_and_row_numbers_elsewhere(
    tmp_path: Path,
) -> None:
    original(tmp_path / "csv")
    for number in range(2):
        path = tmp_path / "kept" / f"train-0000{number}-of-00002.parquet"
        kept = [f"{2 * number}.jpg", f"data/{2 * number + 1}.jpg"]
        write(path, FACES[2 * number : 2 * number + 2], {}, image="file", paths=kept)
        path = tmp_path / "lost" / f"train-0000{number}-of-00002-dd3cb68164727418.parquet"
        lost = [None, "tmp4x_1.jpg"]
        write(path, FACES[2 * number : 2 * number + 2], {}, image="file", paths=lost)
    assert [r.image_id for r in read(tmp_path / "kept")] == [
        r.image_id for r in read(tmp_path / "csv")[:4]
    ]
    assert [r.image_id for r in read(tmp_path / "lost")] == [f"train/row-{n}" for n in range(4)]


def test_the_validation_part_is_one_split_whatever_it_is_called(tmp_path: Path) -> None:
    for number, name in enumerate(
        ("val-00000-of-00001.parquet", "validation-00000-of-00001-951dbd63c8724ee1.parquet")
    ):
        write(tmp_path / str(number) / "0.25" / name, FACES, m4_names())
    write(tmp_path / "2" / "0.25" / "validation" / "0000.parquet", FACES, m4_names())
    for root in map(str, range(3)):
        assert {row.split for row in read(tmp_path / root)} == {"val"}
    assert "no split 'test'; known: val" in refusal(tmp_path / "0", split="test")


def test_only_the_files_of_the_wanted_split_are_read(tmp_path: Path) -> None:
    write(tmp_path / "0.25" / "validation-00000-of-00001.parquet", FACES, m4_names())
    (tmp_path / "0.25" / "train-00000-of-00001.parquet").write_text("not downloaded")
    assert len(read(tmp_path, split="val")) == len(FACES)
    assert "not a Parquet file" in refusal(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["0.25/train-00001-of-00002.parquet"],
        ["0.25/train-00000-of-00001-a.parquet", "0.25/train-00000-of-00001-b.parquet"],
        ["0.25/train-00000-of-00001.parquet", "0.25/train-00000-of-00002.parquet"],
        ["0.25/train.parquet", "margin025/train.parquet"],
        ["0.25/train.parquet", "0.25/train-00000-of-00001.parquet"],
    ],
)
def test_a_split_that_is_not_whole_or_twice_there_is_refused(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        write(tmp_path / name, FACES, m4_names())
    message = refusal(tmp_path)
    assert "the split 'train' must be in one folder, with all of its parts, and each" in message
    assert all(name in message for name in names)


def test_hostile_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.25" / "train.parquet"
    write(path, FACES, m4_names())
    hidden: dict[str | bytes, str | bytes] = {
        b"ARROW:extension:name": b"ray.data.arrow_pickled_object",
        b"ARROW:extension:metadata": b"",
    }
    table = pq.read_table(path)
    field = table.schema.field("race").with_metadata(hidden)
    at = table.schema.get_field_index("race")
    pq.write_table(table.cast(table.schema.set(at, field)), path)
    assert "has Arrow extension types" in refusal(tmp_path)


def test_a_source_that_is_not_fairface_is_refused(tmp_path: Path) -> None:
    assert "neither fairface_label_train.csv nor fairface_label_val.csv" in refusal(tmp_path)
    write(tmp_path / "faces.parquet", FACES, m4_names())
    assert "is called after a split (train, val, validation)" in refusal(tmp_path)
    assert "give the folder that it is in" in refusal(tmp_path / "faces.parquet")
    (tmp_path / "fairface_label_val.csv").write_text("file,age,gender,race\n")
    assert "fairface_label_val.csv: no column 'service_test'" in refusal(tmp_path)
    (tmp_path / "fairface_label_val.csv").write_text(
        "file,age,gender,race,service_test\nval/1.jpg,9-Mar,Male,White,True\n"
    )
    assert "fairface_label_val.csv, line 2: age '9-Mar' is not a label of age-9" in refusal(
        tmp_path
    )
