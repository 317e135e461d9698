"""Files of predictions that others have made, as their formats are documented."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facescan.errors import DataError, UsageError
from facescan.foreign import ForeignRow, deepface, fairface, table
from facescan.foreign.table import Columns
from facescan.types import AnswerMode

REAL = (
    Path(__file__).parents[3] / "shared" / "data" / "real_photos" / "fairface_resnet34_outputs.csv"
)

FAIRFACE = (
    "face_name_align,race,race4,gender,age,race_scores_fair,race_scores_fair_4,"
    "gender_scores_fair,age_scores_fair\n"
    'detected/1_face0.jpg,Indian,Indian,Male,70+,"[0. 0. 0. 0. 0.25\n 0.5 0.25]",[0. 0. 0. 1.],'
    '[9.0e-01 1.0e-01],"[0. 0. 0. 0. 0. 0. 0.\n 0. 1.]"\n'
)

FACE: dict[str, Any] = {
    "region": {"x": 1, "y": 2, "w": 30, "h": 40, "left_eye": None, "right_eye": None},
    "face_confidence": 0.9,
    "age": 31,
    "gender": {"Woman": 0.5, "Man": 99.5},
    "dominant_gender": "Man",
    "race": {
        "asian": 2.0,
        "indian": 3.0,
        "black": 5.0,
        "white": 20.0,
        "middle eastern": 30.0,
        "latino hispanic": 40.0,
    },
    "dominant_race": "latino hispanic",
    "emotion": {
        "angry": 96.0,
        "disgust": 0.0,
        "fear": 1.0,
        "happy": 0.0,
        "sad": 1.0,
        "surprise": 1.0,
        "neutral": 1.0,
    },
    "dominant_emotion": "angry",
}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# FairFace


def test_fairface_says_labels_and_probabilities_in_its_own_words(tmp_path: Path) -> None:
    foreign = fairface.opened(written(tmp_path / "out.csv", FAIRFACE))
    assert [(each.attribute, each.label_set) for each in foreign.answered] == [
        ("race", "race-7"),
        ("gender", "gender-2"),
        ("age", "age-9"),
    ]
    assert {each.answer_mode for each in foreign.answered} == {AnswerMode.SCORE}
    assert dict(foreign.answered[2].offered)["70+"] == "more than 70"
    (row,) = foreign.rows
    assert row.names == ("detected/1_face0.jpg", "1_face0", "1")
    assert row.texts == ("Indian", "Male", "70+")
    race, gender, age = row.scores
    assert race is not None
    assert race[5] == 0.5
    assert gender == (0.9, 0.1)
    assert age is not None
    assert age[8] == 1.0
    assert not foreign.oddities


@pytest.mark.skipif(not REAL.is_file(), reason="FairFace's output is not here")
def test_in_fairface_s_real_output_the_likeliest_label_is_the_one_it_says() -> None:
    foreign = fairface.opened(REAL)
    rows = list(foreign.rows)
    assert len(rows) == 5
    assert not foreign.oddities
    for row in rows:
        for each, text, scores in zip(foreign.answered, row.texts, row.scores, strict=True):
            assert scores is not None
            assert sum(scores) == pytest.approx(1, abs=1e-4)
            assert each.offered[scores.index(max(scores))][0] == text


def test_of_several_faces_each_has_its_number(tmp_path: Path) -> None:
    second = FAIRFACE.splitlines(keepends=True)[0] + FAIRFACE.partition("\n")[2].replace(
        "1_face0", "a.b_face12"
    )
    (row,) = fairface.opened(written(tmp_path / "out.csv", second)).rows
    assert (row.names[2], row.face) == ("a", 0)
    third = second.replace("a.b_face12", "a_face12")
    (row,) = fairface.opened(written(tmp_path / "out.csv", third)).rows
    assert (row.names[2], row.face) == ("a", 12)


def test_fairface_without_probabilities_or_an_attribute_is_read_and_said(tmp_path: Path) -> None:
    path = written(tmp_path / "out.csv", "face_name_align,race,gender\n1.jpg,White,Male\n")
    foreign = fairface.opened(path)
    assert [each.answer_mode for each in foreign.answered] == [AnswerMode.FREE] * 2
    assert foreign.oddities == {"no column 'age'": 1}
    (row,) = foreign.rows
    assert row.scores == (None, None)


def test_probabilities_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    broken = FAIRFACE.replace("[9.0e-01 1.0e-01]", "[9.0e-01 ...]")
    foreign = fairface.opened(written(tmp_path / "out.csv", broken))
    (row,) = foreign.rows
    assert (row.texts[1], row.scores[1]) == ("Male", None)
    assert foreign.oddities == {"gender_scores_fair cannot be read": 1}


def test_another_table_is_not_taken_for_fairface_s(tmp_path: Path) -> None:
    path = written(tmp_path / "out.csv", "file,race\n1.jpg,White\n")
    with pytest.raises(DataError, match=r"predict\.py writes.*found file, race"):
        fairface.opened(path)


# deepface


def test_deepface_says_labels_probabilities_and_years(tmp_path: Path) -> None:
    path = written(tmp_path / "out.json", json.dumps({"val/1.jpg": [FACE]}))
    foreign = deepface.opened(path)
    sets = {each.attribute: (each.label_set, each.answer_mode) for each in foreign.answered}
    assert sets == {
        "race": ("race-6", AnswerMode.SCORE),
        "gender": ("gender-2", AnswerMode.SCORE),
        "emotion": ("emotion-7", AnswerMode.SCORE),
        "age": ("age-9", AnswerMode.FREE),
    }
    (row,) = foreign.rows
    assert row.names == ("val/1.jpg", "1")
    assert row.texts == ("latino hispanic", "Man", "angry", "31")
    offered = [dict(each.offered) for each in foreign.answered]
    assert offered[0]["latino hispanic"] == "Latino_Hispanic"
    assert (offered[1]["Man"], offered[2]["angry"]) == ("Male", "anger")
    assert row.scores[0] == (0.02, 0.03, 0.05, 0.2, 0.3, 0.4)
    assert row.scores[1] == (0.005, 0.995)
    assert row.scores[3] is None
    assert not foreign.oddities


def test_of_several_faces_the_largest_comes_first(tmp_path: Path) -> None:
    larger = FACE | {"region": {"x": 0, "y": 0, "w": 100, "h": 100}, "age": 8.9}
    path = written(tmp_path / "out.json", json.dumps({"1.jpg": [FACE, larger]}))
    rows = list(deepface.opened(path).rows)
    assert min(rows, key=lambda row: row.face).texts[3] == "8"


def test_lines_of_faces_name_their_picture(tmp_path: Path) -> None:
    lines = [json.dumps({"img_path": f"{n}.jpg"} | FACE) for n in (1, 2)]
    rows = list(deepface.opened(written(tmp_path / "out.jsonl", "\n\n".join(lines))).rows)
    assert [row.names[0] for row in rows] == ["1.jpg", "2.jpg"]
    assert rows[1].where == "out.jsonl, line 3"


def test_no_face_is_told_from_an_answer(tmp_path: Path) -> None:
    whole = FACE | {"face_confidence": 0}
    path = written(
        tmp_path / "out.json", json.dumps({"1.jpg": [], "2.jpg": [whole], "3.jpg": FACE})
    )
    foreign = deepface.opened(path)
    assert [row.no_face for row in foreign.rows] == [True, False, False]
    assert foreign.oddities == {"no face found, the whole picture was analysed": 1}


def test_actions_that_were_left_out_are_said(tmp_path: Path) -> None:
    some = {"dominant_emotion": "sad", "emotion": {"sad": "nan"}}
    foreign = deepface.opened(written(tmp_path / "out.json", json.dumps({"1.jpg": [some]})))
    assert [each.attribute for each in foreign.answered] == ["emotion"]
    (row,) = foreign.rows
    assert (row.texts, row.scores) == (("sad",), (None,))
    assert foreign.oddities == {
        "no face has an answer about race": 1,
        "no face has an answer about gender": 1,
        "no face has an answer about age": 1,
        "probabilities of emotion cannot be read": 1,
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("out.json", json.dumps([FACE]), "does not say which picture"),
        ("out.json", json.dumps(FACE), "does not say which picture"),
        ("out.json", json.dumps({"1.jpg": "sad"}), "'1.jpg': expected a list of faces"),
        ("out.json", json.dumps({"1.jpg": []}), "no face in it has"),
        ("out.json", "{", "not JSON"),
        ("out.jsonl", json.dumps(FACE), "line 1: expected one face with its picture"),
    ],
)
def test_json_of_another_form_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list(deepface.opened(written(tmp_path / name, text)).rows)


# Tables


def columns(**given: Any) -> Columns:
    return Columns.model_validate({"id": "file", "labels": {"gender": "sex"}} | given)


def test_a_table_is_read_by_its_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "file,sex,x\nval/1.jpg,woman,\n2.jpg,,\n")
    foreign = table.opened(path, columns(), {})
    assert foreign.answered[0].label_set == "gender-2"
    assert foreign.answered[0].answer_mode is AnswerMode.FREE
    assert not foreign.by_name
    assert list(foreign.rows) == [
        ForeignRow("t.csv, line 2", ("val/1.jpg", "1"), 0, ("woman",), (None,)),
        ForeignRow("t.csv, line 3", ("2.jpg", "2"), 0, ("",), (None,)),
    ]


def test_a_map_explains_what_a_table_says(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"file": ["1", "2", "3"], "sex": [0, 1, 9]}), path)
    mapped = {"column": "sex", "map": {0: "Male", 1: "Female", 9: None}}
    foreign = table.opened(path, columns(labels={"gender": mapped}), {})
    assert dict(foreign.answered[0].offered) == {
        "Male": "Male",
        "Female": "Female",
        "0": "Male",
        "1": "Female",
    }
    assert [row.texts for row in foreign.rows] == [("0",), ("1",), ("",)]


def test_a_label_set_is_that_of_the_dataset_unless_said(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "file,r\n1,White\n")

    def label_set(given: object, known: dict[str, str]) -> str:
        return table.opened(path, columns(labels={"race": given}), known).answered[0].label_set

    assert label_set("r", {"race": "race-utkface"}) == "race-utkface"
    assert label_set({"column": "r", "label_set": "race-4"}, {"race": "race-7"}) == "race-4"
    with pytest.raises(UsageError, match="say which label_set"):
        label_set("r", {})


def test_columns_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "image,race\n1,White\n")
    with pytest.raises(
        DataError, match=r"no column 'file' \(id\), 'sex' \(gender\); columns: image"
    ):
        table.opened(path, columns(), {})
