from pathlib import Path

import pytest

from facescan import datasets
from facescan.datasets import Rejected, Source, SourceRow
from facescan.errors import DataError

LIST = "EmoLabel/list_patition_label.txt"
WHOLE = {
    LIST: "train_00001.jpg 1\n",
    "Image/aligned/train_00001_aligned.jpg": "",
    "Annotation/manual/train_00001_manu_attri.txt": "1 2\n1 2\n1 2\n1 2\n1 2\n0\n0\n0\n",
}


def read(root: Path, files: dict[str, str]) -> list[SourceRow | Rejected]:
    for name, text in (WHOLE | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    dataset = datasets.load("rafdb")
    return list(dataset.rows(Source(root, None, dataset.options())))


@pytest.mark.parametrize(
    ("code", "emotion"),
    list(enumerate(("surprise", "fear", "disgust", "happy", "sad", "anger", "neutral"), 1)),
)
def test_a_code_is_an_emotion(tmp_path: Path, code: int, emotion: str) -> None:
    (row,) = read(tmp_path, {LIST: f"train_00001.jpg {code}\r\n\r\n"})
    assert isinstance(row, SourceRow)
    assert row.labels == {"emotion": emotion}


@pytest.mark.parametrize(
    ("codes", "groups"),
    [
        ("0 0 0", ("Male", "Caucasian", "0-3")),
        ("1 1 1", ("Female", "African-American", "4-19")),
        ("2 2 2", ("Unsure", "Asian", "20-39")),
        ("0 0 3", ("Male", "Caucasian", "40-69")),
        ("0 0 4", ("Male", "Caucasian", "70+")),
    ],
)
def test_the_lines_after_the_landmarks_are_gender_race_and_age(
    tmp_path: Path, codes: str, groups: tuple[str, ...]
) -> None:
    text = "1.5\t2\n" * 5 + "\n".join(codes.split())
    (row,) = read(tmp_path, {"Annotation/manual/train_00001_manu_attri.txt": text})
    assert isinstance(row, SourceRow)
    assert row.groups == dict(zip(("gender", "race", "age"), groups, strict=True))


@pytest.mark.parametrize("line", ["train_0001.jpg 1", "train_00001.jpg", "val_00001.jpg 1", "\xff"])
def test_a_line_that_is_not_a_name_and_a_code_is_counted(tmp_path: Path, line: str) -> None:
    _, rejected = read(tmp_path, {LIST: f"train_00001.jpg 1\n{line}\n"})
    assert rejected == Rejected(f"{LIST}, line 2", "malformed_line")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (LIST, "train_00001.jpg 8\n", "line 1: '8' is none of RAF-DB's codes.*compound"),
        (LIST, "train_00001.jpg 0\n", "line 1: '0' is none"),
        (
            "Annotation/manual/train_00001_manu_attri.txt",
            "1 2\n" * 5 + "0\n3\n0\n",
            "train_00001_manu_attri.txt, race: '3' is none of RAF-DB's codes: 0 Caucasian",
        ),
        (
            "Annotation/manual/train_00001_manu_attri.txt",
            "1 2\n" * 5 + "0\n1\n",
            "train_00001_manu_attri.txt: 2 lines after the 5 of the landmarks, expected 3",
        ),
    ],
)
def test_a_code_that_rafdb_does_not_have_stops_the_ingest(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, {file: text})


@pytest.mark.parametrize("name", [LIST, "Image/aligned", "Annotation/manual"])
def test_a_source_without_one_of_its_parts_is_refused(tmp_path: Path, name: str) -> None:
    for part in {LIST, "Image/aligned", "Annotation/manual"} - {name}:
        (tmp_path / part).mkdir(parents=True)
    dataset = datasets.load("rafdb")
    with pytest.raises(DataError, match=f"no {name} in it; as published"):
        list(dataset.rows(Source(tmp_path, None, dataset.options())))
