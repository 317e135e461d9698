from pathlib import Path

import pytest

from facescan import datasets
from facescan.datasets import Rejected, Source, SourceRow
from facescan.errors import DataError


def read(release: str, root: Path) -> list[SourceRow | Rejected]:
    dataset = datasets.load(f"utkface.{release}")
    return list(dataset.rows(Source(root, None, dataset.options())))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    "name",
    [
        "39_1_20170116174525125.jpg.chip.jpg",
        "26__3_20170117175041574.jpg.chip.jpg",
        "26_2_3_20170117175041574.jpg.chip.jpg",
        "26_1_5_20170117175041574.jpg.chip.jpg",
        "117_1_3_20170117175041574.jpg.chip.jpg",
        "-1_1_3_20170117175041574.jpg.chip.jpg",
        "26.5_1_3_20170117175041574.jpg.chip.jpg",
        "26_1_3_.jpg.chip.jpg",
        "26_1_3_20170117175041574_1.jpg.chip.jpg",
        "face.jpg.chip.jpg",
    ],
)
def test_a_name_that_is_not_age_gender_race_and_date_is_counted(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    assert read("aligned", tmp_path) == [Rejected(name, "malformed_name")]


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("wild", "44_1_4_20170116235150272.pg"),
        ("wild", "44_1_4_20170116235150272jpg"),
        ("wild", "44_1_4_20170116235150272.JPG"),
        ("aligned", "44_1_4_20170116235150272.pg.chip.jpg"),
        ("aligned", "44_1_4_20170116235150272.JPG.chip.JPG"),
    ],
)
def test_a_name_with_whole_labels_is_read_however_it_ends(
    tmp_path: Path, release: str, name: str
) -> None:
    touch(tmp_path, name)
    (row,) = read(release, tmp_path)
    assert isinstance(row, SourceRow)
    assert row.image_id == "44_1_4_20170116235150272"
    assert row.labels == {"race": "Others", "gender": "Female", "age": "40-49"}


def test_what_is_neither_a_name_nor_an_image_is_no_image_file(tmp_path: Path) -> None:
    touch(tmp_path, "26_1_3.txt", "26_1_3_2.JPG", "26_1.JPG", "26_1_3_2.jpg.txt")
    assert [row for row in read("wild", tmp_path) if isinstance(row, Rejected)] == [
        Rejected("26_1.JPG", "malformed_name"),
        Rejected("26_1_3.txt", "not_an_image_file"),
        Rejected("26_1_3_2.jpg.txt", "not_an_image_file"),
    ]


@pytest.mark.parametrize(
    ("years", "group"),
    [(0, "0-2"), (3, "3-9"), (19, "10-19"), (20, "20-29"), (69, "60-69"), (116, "more than 70")],
)
def test_an_age_in_years_is_a_value_and_its_group_a_label(
    tmp_path: Path, years: int, group: str
) -> None:
    touch(tmp_path, f"{years}_0_0_20170117175041574.jpg.chip.jpg")
    (row,) = read("aligned", tmp_path)
    assert isinstance(row, SourceRow)
    assert (row.values, row.labels["age"]) == ({"years": float(years)}, group)


def test_ids_are_the_same_wherever_the_source_begins(tmp_path: Path) -> None:
    touch(tmp_path, "UTKFace/part1/26_1_3_20170117175041574.jpg")
    for root in (tmp_path, tmp_path / "UTKFace", tmp_path / "UTKFace" / "part1"):
        (row,) = read("wild", root)
        assert isinstance(row, SourceRow)
        assert row.image_id == "part1/26_1_3_20170117175041574"


def test_the_other_release_is_refused_with_the_name_to_take(tmp_path: Path) -> None:
    touch(tmp_path, "26_1_3_20170117175041574.jpg")
    with pytest.raises(DataError, match=r"but 1 photographs .*: ingest it as utkface\.wild"):
        read("aligned", tmp_path)
    (tmp_path / "26_1_3_20170117175041574.jpg").rename(tmp_path / "26_1_3_2.jpg.chip.jpg")
    with pytest.raises(DataError, match=r"ingest it as utkface\.aligned"):
        read("wild", tmp_path)
