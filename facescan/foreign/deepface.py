"""What deepface's `DeepFace.analyze` returns, as JSON (https://github.com/serengil/deepface).

`analyze` gives a list with a dictionary for each face: `region`, `face_confidence`, `age`, and for
gender, race and emotion the probabilities in percent with the likeliest as `dominant_...`. It does
not say of which picture, so a file of its answers must:

- `.json`: `{"val/1.jpg": [{...}], "val/2.jpg": [...]}`, what `analyze` returned for each picture;
- `.jsonl`: a line for each face, `{"img_path": "val/1.jpg", "age": 31, ...}`.

Of several faces the largest is taken. An empty list says that there is no face.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from facescan.errors import DataError
from facescan.foreign import Answered, Foreign, ForeignRow, file_name
from facescan.types import AnswerMode

_PATH = "img_path"

_OFFERED: Mapping[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "race": (
        "race-6",
        (
            ("asian", "Asian"),
            ("indian", "Indian"),
            ("black", "Black"),
            ("white", "White"),
            ("middle eastern", "Middle Eastern"),
            ("latino hispanic", "Latino_Hispanic"),
        ),
    ),
    "gender": ("gender-2", (("Woman", "Female"), ("Man", "Male"))),
    "emotion": (
        "emotion-7",
        (
            ("angry", "anger"),
            *((name, name) for name in ("disgust", "fear", "happy", "sad", "surprise", "neutral")),
        ),
    ),
}
"""Attribute -> the label set, and the words of deepface for its labels."""

_AGE = Answered("age", "age-9", (), AnswerMode.FREE)

_SCORED = tuple(
    Answered(name, label_set, offered, AnswerMode.SCORE)
    for name, (label_set, offered) in _OFFERED.items()
)


def opened(path: Path) -> Foreign:
    """The answers in such a file; what no face has an answer about is left out and counted.

    A `.json` file is held in memory, a `.jsonl` file is not.

    Raises:
        DataError: it is no such file.
    """
    found = {
        each.attribute for _, _, faces in _pictures(path) for face in faces for each in _told(face)
    }
    answered = tuple(each for each in (*_SCORED, _AGE) if each.attribute in found)
    if not answered:
        raise DataError(f"{path}: no face in it has an age, a gender, a race or an emotion")
    oddities = Counter(
        {
            f"no face has an answer about {each.attribute}": 1
            for each in (*_SCORED, _AGE)
            if each.attribute not in found
        }
    )
    return Foreign(answered, _rows(path, answered, oddities), by_name=True, oddities=oddities)


def _told(face: Mapping[str, Any]) -> Iterator[Answered]:
    for each in (*_SCORED, _AGE):
        if _said(face, each):
            yield each


def _said(face: Mapping[str, Any], about: Answered) -> str:
    if about is not _AGE:
        said = face.get(f"dominant_{about.attribute}")
        return "" if said is None else str(said)
    years: Any = face.get("age")
    # In whole years, as people say their age; deepface gives fractions in some versions.
    return str(math.floor(years)) if _is_number(years) else ""


def _is_number(given: Any) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)


_Picture = tuple[str, str, list[Mapping[str, Any]]]
"""Where in the file, what the image is called, and its faces."""


def _pictures(path: Path) -> Iterator[_Picture]:
    try:
        if path.suffix.lower() == ".jsonl":
            yield from _lines(path)
        else:
            yield from _whole(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


def _lines(path: Path) -> Iterator[_Picture]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path.name}, line {number}"
                face = _parsed(line, where)
                if not isinstance(face, dict) or not isinstance(face.get(_PATH), str):
                    raise DataError(
                        f'{where}: expected one face with its picture, {{"{_PATH}": "1.jpg", ...}}'
                    )
                yield where, face[_PATH], [face]


def _whole(path: Path) -> Iterator[_Picture]:
    given = _parsed(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(given, dict) or "region" in given:
        raise DataError(
            f"{path}: does not say which picture each answer is of, as `analyze` does not; write "
            '{"1.jpg": DeepFace.analyze("1.jpg"), ...}, or lines with `img_path` to a .jsonl file'
        )
    for name, faces in given.items():
        faces = [faces] if isinstance(faces, dict) else faces
        if not isinstance(faces, list) or not all(isinstance(face, dict) for face in faces):
            raise DataError(f"{path.name}, '{name}': expected a list of faces, found {faces!r:.60}")
        yield f"{path.name}, '{name}'", name, faces


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def _rows(
    path: Path, answered: tuple[Answered, ...], oddities: Counter[str]
) -> Iterator[ForeignRow]:
    for where, name, faces in _pictures(path):
        names = (name, file_name(name))
        if not faces:
            nothing = ("",) * len(answered), (None,) * len(answered)
            yield ForeignRow(where, names, 0, *nothing, no_face=True)
        # Largest first; lines of one picture meet only later, so the place says how large.
        for face in faces:
            if face.get("face_confidence") == 0:
                oddities["no face found, the whole picture was analysed"] += 1
            scores = tuple(_scores(face, each) for each in answered)
            for each, numbers in zip(answered, scores, strict=True):
                if each is not _AGE and numbers is None and _said(face, each):
                    oddities[f"probabilities of {each.attribute} cannot be read"] += 1
            texts = tuple(_said(face, each) for each in answered)
            yield ForeignRow(where, names, -_area(face), texts, scores)


def _area(face: Mapping[str, Any]) -> int:
    """Square pixels of the face; 0 where it does not say."""
    region = face.get("region")
    sides: list[Any] = [region.get(side) for side in "wh"] if isinstance(region, dict) else []
    return int(sides[0] * sides[1]) if sides and all(map(_is_number, sides)) else 0


def _scores(face: Mapping[str, Any], about: Answered) -> tuple[float, ...] | None:
    given = face.get(about.attribute)
    if about is _AGE or not isinstance(given, dict):
        return None
    numbers: list[Any] = [given.get(text) for text, _ in about.offered]
    if not all(_is_number(number) and number >= 0 for number in numbers):
        return None
    return tuple(float(number) / 100 for number in numbers)
