import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facescan import datasets
from facescan.datasets import Rejected, Source, SourceRow
from facescan.errors import DataError


def npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(value))
    return file.getvalue()


def write(root: Path, name: str, contents: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(contents)


def face(
    root: Path, *, code: Any = 0, valence: Any = 0.0, arousal: Any = 0.0, image: str = "1"
) -> None:
    """One image of the validation part and its annotations as NumPy files."""
    write(root, f"val_set/images/{image}.jpg", b"")
    for kind, value in (("exp", code), ("val", valence), ("aro", arousal), ("lnd", [0.0] * 136)):
        write(root, f"val_set/annotations/{image}_{kind}.npy", npy(value))


def face_plus(root: Path, contents: Any, image: str = "1") -> None:
    """One image of AffectNet+ and its annotations."""
    write(root, f"validation_set/images/{image}.jpg", b"")
    data = contents if isinstance(contents, bytes) else json.dumps(contents).encode()
    write(root, f"validation_set/annotations/{image}.json", data)


def read(root: Path, edition: str = "8", split: str | None = None) -> list[SourceRow | Rejected]:
    dataset = datasets.load(f"affectnet.{edition}")
    return list(dataset.rows(Source(root, split, dataset.options())))


def row(root: Path, edition: str = "8") -> SourceRow:
    (found,) = read(root, edition)
    assert isinstance(found, SourceRow)
    return found


def refusal(root: Path, edition: str = "8") -> str:
    with pytest.raises(DataError) as caught:
        read(root, edition)
    return str(caught.value)


@pytest.mark.parametrize(
    ("code", "emotion"),
    [
        *((0, "neutral"), (1, "happy"), (2, "sad"), (3, "surprise")),
        *((4, "fear"), (5, "disgust"), (6, "anger"), (7, "contempt")),
    ],
)
def test_codes_are_affectnets(tmp_path: Path, code: int, emotion: str) -> None:
    face(tmp_path, code=code)
    assert row(tmp_path).labels == {"emotion": emotion}
    face_plus(tmp_path, {"human-label": code, "meta-data": {"valence": 0, "arousal": 0}})
    assert row(tmp_path, "plus").labels == {"emotion": emotion}


@pytest.mark.parametrize(
    ("code", "valence", "arousal"),
    [
        (3, 0.5, -0.25),
        ("3", "0.5", "-0.25"),
        (b"3", b"0.5", b"-0.25"),
        (3.0, np.float32(0.5), np.float64(-0.25)),
        ([3], [0.5], [[-0.25]]),
        (np.uint8(3), np.float16(0.5), "-2.5e-1"),
    ],
    ids=["numbers", "text", "bytes", "floats", "of one value", "other types"],
)
def test_numbers_may_be_of_any_type(tmp_path: Path, code: Any, valence: Any, arousal: Any) -> None:
    face(tmp_path, code=code, valence=valence, arousal=arousal)
    assert row(tmp_path).labels == {"emotion": "surprise"}
    assert row(tmp_path).values == {"valence": 0.5, "arousal": -0.25}


def test_ratings_that_are_not_there_are_none(tmp_path: Path) -> None:
    face(tmp_path, valence=-2, arousal="-2")
    assert row(tmp_path).values == {"valence": None, "arousal": None}
    face(tmp_path)
    (tmp_path / "val_set/annotations/1_val.npy").unlink()
    assert row(tmp_path).values == {"valence": None, "arousal": 0.0}
    face_plus(tmp_path, {"human-label": 1, "meta-data": {"valence": None, "arousal": -2}})
    assert row(tmp_path, "plus").values == {"valence": None, "arousal": None}


def test_images_without_an_emotion_are_counted_by_what_annotators_said(tmp_path: Path) -> None:
    for image, code in (("1", 8), ("2", 9), ("3", 10)):
        face(tmp_path, code=code, image=image)
    assert [each.reason for each in read(tmp_path) if isinstance(each, Rejected)] == [
        *("no_listed_emotion", "uncertain_emotion", "not_a_face"),
    ]


def test_what_lacks_its_other_half_is_not_lost(tmp_path: Path) -> None:
    for image in ("1", "2", "3"):
        face(tmp_path, image=image)
    (tmp_path / "val_set/annotations/2_exp.npy").unlink()
    (tmp_path / "val_set/images/3.jpg").unlink()
    first, second, third = read(tmp_path)
    assert isinstance(first, SourceRow)
    assert second == Rejected("val_set/images/2.jpg", "missing_annotation")
    # Its image is found missing when it is to be read.
    assert isinstance(third, SourceRow)
    assert third.image == "val_set/images/3.jpg"


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("kind", ["exp", "val", "aro"])
def test_a_pickled_file_is_refused_by_name_and_not_read(tmp_path: Path, kind: str) -> None:
    face(tmp_path)
    name = f"val_set/annotations/1_{kind}.npy"
    np.save(tmp_path / name, np.array(Trap(tmp_path / "mark"), dtype=object), allow_pickle=True)
    assert refusal(tmp_path).startswith(f"{name}: holds a pickled object")
    assert not (tmp_path / "mark").exists()


def header(shape: str, kind: str = "<f8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "not a NumPy file of one value"),
        (b"0.5", "not a NumPy file of one value"),
        (b"\x80\x04K\x01.", "not a NumPy file of one value"),
        (npy(1)[:-1], "not a NumPy file of one value"),
        (npy([1, 2]), "holds 2 values, not one"),
        (npy([]), "holds 0 values, not one"),
        (header("(10000000000000,)"), "holds 10000000000000 values, not one"),
        (header("()", "<U500000000"), "not a NumPy file of one value"),
        (header("(__import__('os'),)"), "not a NumPy file of one value"),
        (header("(("), "not a NumPy file of one value"),
        (header("()", "<U1") + b"\xff" * 4, "not a NumPy file of one value"),
        (npy("happy"), "'happy' is not a number"),
        (npy(float("nan")), "nan is not a number"),
        (npy(True), "True is not a number"),
        (npy(1) + bytes(1024 * 1024), "larger than 1,048,576 bytes"),
    ],
    ids=lambda given: str(given[:20]) if isinstance(given, bytes) else "",
)
def test_a_file_that_is_no_single_number_is_refused_by_name(
    tmp_path: Path, contents: bytes, message: str
) -> None:
    for kind in ("exp", "aro"):
        face(tmp_path)
        name = f"val_set/annotations/1_{kind}.npy"
        write(tmp_path, name, contents)
        assert refusal(tmp_path).startswith(f"{name}: {message}")


def test_values_that_affectnet_does_not_have_are_refused(tmp_path: Path) -> None:
    for code in (11, -1, 1.5, float("inf")):
        face(tmp_path, code=code)
        assert f"1_exp.npy: {code!r} is none of AffectNet's codes" in refusal(tmp_path)
    for rating in (1.5, -1.25, -3, float("-inf")):
        face(tmp_path, valence=rating)
        assert f"1_val.npy: {rating!r} lies outside of -1 to 1" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ([], "no field 'meta-data'; found list"),
        ({}, "no field 'meta-data'; found none"),
        ({"label": 1, "meta-data": {}}, "no field 'human-label'; found label, meta-data"),
        ({"human-label": 1, "Meta": {}}, "no field 'meta-data'; found human-label, Meta"),
        (
            {"human-label": 1, "meta-data": {"valance": 0, "arousal": 0}},
            "meta-data: no field 'valence'; found valance, arousal",
        ),
        ({"human-label": "happy", "meta-data": {}}, "human-label: 'happy' is not a number"),
        ({"human-label": None, "meta-data": {}}, "human-label: None is not a number"),
        ({"human-label": 12, "meta-data": {}}, "human-label: 12 is none of AffectNet's codes"),
    ],
    ids=lambda given: str(given[:40] if isinstance(given, bytes) else given),
)
def test_json_of_another_form_is_refused_with_what_was_found(
    tmp_path: Path, contents: Any, message: str
) -> None:
    face_plus(tmp_path, contents)
    found = refusal(tmp_path, "plus")
    assert found.startswith("validation_set/annotations/1.json")
    assert message in found


def test_a_folder_that_is_not_the_edition_is_refused(tmp_path: Path) -> None:
    assert "no folder train_set or val_set in it, as affectnet.8 has" in refusal(tmp_path)
    face_plus(tmp_path / "human_annotated", {})
    assert "no folder train_set or val_set" in refusal(tmp_path)
    write(tmp_path, "train_set/images/1.jpg", b"")
    assert f"{tmp_path}/train_set/annotations: no such folder" in refusal(tmp_path)
    write(tmp_path, "train_set/annotations/1.json", b"{}")
    assert "annotations: no file ..._exp.npy in it, as affectnet.8 has" in refusal(tmp_path)


def test_a_split_that_is_not_wanted_is_not_read(tmp_path: Path) -> None:
    face(tmp_path)
    write(tmp_path, "train_set/images/1.jpg", b"")
    assert len(read(tmp_path, split="val")) == 1
    with pytest.raises(DataError, match="train_set/annotations: no such folder"):
        read(tmp_path, split="train")
