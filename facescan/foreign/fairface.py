"""The output of FairFace's `predict.py` (https://github.com/dchen236/FairFace).

It finds the faces of a picture by dlib, writes each to a file of its own (`1.jpg` to `1_face0.jpg`,
`1_face1.jpg` ...), and answers about those: a CSV with the columns `face_name_align`, `race`,
`race4`, `gender`, `age` and their probabilities as NumPy prints them. A picture without a face that
it found has no row. `race4` is the answer of another model, and is not read here.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from facescan import attributes, tabular
from facescan.errors import DataError
from facescan.foreign import Answered, Foreign, ForeignRow, file_name
from facescan.types import AnswerMode

_FILE = "face_name_align"
_LABEL_SETS = {"race": "race-7", "gender": "gender-2", "age": "age-9"}
_OTHER_WORDS = {"more than 70": "70+"}

_FACE = re.compile(r"(.+)_face(\d+)")


def opened(path: Path) -> Foreign:
    """The answers in such a file; attributes without a column are left out and counted.

    Raises:
        DataError: it is no such file.
    """
    columns = tabular.columns(path, path.name)
    found = [name for name in _LABEL_SETS if name in columns]
    if not found or _FILE not in columns:
        raise DataError(
            f"{path}: not what FairFace's predict.py writes: expected the columns {_FILE}, "
            f"{', '.join(_LABEL_SETS)}; found {', '.join(columns)}"
        )
    oddities = Counter({f"no column '{name}'": 1 for name in _LABEL_SETS if name not in found})
    answered = tuple(_answered(name, _scores(name) in columns) for name in found)
    return Foreign(answered, _rows(path, answered, oddities), by_name=True, oddities=oddities)


def _scores(attribute: str) -> str:
    return f"{attribute}_scores_fair"


def _answered(attribute: str, scored: bool) -> Answered:
    # The labels stand in the order of the network's outputs, which is that of the label sets.
    labels = attributes.load(attribute).label_set(_LABEL_SETS[attribute]).labels
    return Answered(
        attribute,
        _LABEL_SETS[attribute],
        tuple((_OTHER_WORDS.get(label, label), label) for label in labels),
        AnswerMode.SCORE if scored else AnswerMode.FREE,
    )


def _rows(
    path: Path, answered: tuple[Answered, ...], oddities: Counter[str]
) -> Iterator[ForeignRow]:
    scored = [each for each in answered if each.answer_mode is AnswerMode.SCORE]
    columns = [
        ("image", _FILE),
        *((each.attribute, each.attribute) for each in answered),
        *((_scores(each.attribute), _scores(each.attribute)) for each in scored),
    ]
    for place, cells in tabular.read(path, path.name, columns):
        file = tabular.text(cells[_FILE]) or ""
        name = file_name(file)
        face = _FACE.fullmatch(name)
        scores = []
        for each in answered:
            said = tabular.text(cells[_scores(each.attribute)]) if each in scored else None
            numbers = _numbers(said, len(each.offered))
            if each in scored and numbers is None:
                oddities[f"{_scores(each.attribute)} cannot be read"] += 1
            scores.append(numbers)
        yield ForeignRow(
            where=f"{path.name}, {place}",
            names=(file, name, face[1] if face else name),
            face=int(face[2]) if face else 0,
            texts=tuple(tabular.text(cells[each.attribute]) or "" for each in answered),
            scores=tuple(scores),
        )


def _numbers(said: str | None, count: int) -> tuple[float, ...] | None:
    """The probabilities in a text such as `[0.1 0.9]`; None where it is not `count` of them."""
    try:
        numbers = tuple(float(word) for word in (said or "").strip("[]").split())
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(0 <= each <= 1 for each in numbers) else None
