"""RAF-DB, basic (http://www.whdeng.cn/RAF/model1.html): seven emotions, and who shows them.

Read is the folder `basic` as it is published: `EmoLabel/list_patition_label.txt` (that spelling),
`Image/aligned/train_00001_aligned.jpg` and `Annotation/manual/train_00001_manu_attri.txt`: five
lines with the places of eyes, nose and mouth, then a line each for the code of gender, race and
age. The compound emotions of RAF-DB are another set with the same file names, which is not read.

Gender, race and age are groups, in RAF-DB's own words, and no labels. Its annotators could say
`Unsure` of a gender, which no label set holds and which as a missing label would vanish from a
comparison of groups; everybody had to be one of three races; and its age groups cut across those
that models are asked in. They tell whom a model sees the emotions of, and less well what a model
should have answered about the person.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from facescan.datasets import Dataset, Example, NoOptions, Rejected, Source, SourceRow
from facescan.errors import DataError

_LIST = "EmoLabel/list_patition_label.txt"
_IMAGES = "Image/aligned"
_ANNOTATIONS = "Annotation/manual"

_EMOTIONS = {
    "1": "surprise",
    "2": "fear",
    "3": "disgust",
    "4": "happy",
    "5": "sad",
    "6": "anger",
    "7": "neutral",
}
"""By code. RAF-DB says happiness and sadness; the labels are those of `emotion-7`."""

_GROUPS: Mapping[str, tuple[str, ...]] = {
    "gender": ("Male", "Female", "Unsure"),
    "race": ("Caucasian", "African-American", "Asian"),
    "age": ("0-3", "4-19", "20-39", "40-69", "70+"),
}
"""In the order of their lines, each by code from 0."""

_LANDMARKS = 5
"""Lines above those of the groups."""

# Those of the compound set have other numbers of digits.
_LINE = re.compile(r"(?P<id>train_\d{5}|test_\d{4})\.jpg\s+(?P<code>\S+)")


def _read(source: Source[NoOptions]) -> Iterator[SourceRow | Rejected]:
    root = source.root
    above = "basic/" if (root / "basic").is_dir() else ""
    for needed in (_LIST, _IMAGES, _ANNOTATIONS):
        if not (root / above / needed).exists():
            raise DataError(
                f"{source.path}: no {above}{needed} in it; as published, the folder 'basic' has "
                f"{_LIST}, {_IMAGES} and {_ANNOTATIONS}, the last two unpacked"
            )
    listed = set[str]()
    # Names and codes are ASCII; what is not is a malformed line, and no error of the file.
    with (root / above / _LIST).open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{above}{_LIST}, line {number}"
            if (found := _LINE.fullmatch(line.strip())) is not None:
                listed.add(found["id"])
                yield _face(root, above, found, where)
            elif line.strip():
                yield Rejected(where, "malformed_line")
    for image in sorted(path.name for path in (root / above / _IMAGES).glob("*.jpg")):
        if image.removesuffix("_aligned.jpg") not in listed:
            yield Rejected(f"{above}{_IMAGES}/{image}", "not_listed")


def _face(root: Path, above: str, found: re.Match[str], where: str) -> SourceRow | Rejected:
    image_id, code = found["id"], found["code"]
    if code not in _EMOTIONS:
        raise DataError(
            f"{where}: '{code}' is none of RAF-DB's codes, which are 1 to 7; the compound "
            "emotions, which have 11, are not read"
        )
    groups = _groups(root, f"{above}{_ANNOTATIONS}/{image_id}_manu_attri.txt")
    if groups is None:
        return Rejected(where, "missing_annotation")
    return SourceRow(
        where=where,
        image_id=image_id,
        image=f"{above}{_IMAGES}/{image_id}_aligned.jpg",
        split=image_id.partition("_")[0],
        labels={"emotion": _EMOTIONS[code]},
        groups=groups,
    )


def _groups(root: Path, file: str) -> dict[str, str] | None:
    """What one annotation file says of the person; None where it is not there."""
    try:
        text = (root / file).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    codes = [line.strip() for line in text.strip().splitlines()[_LANDMARKS:]]
    if len(codes) != len(_GROUPS):
        raise DataError(
            f"{file}: {len(codes)} lines after the {_LANDMARKS} of the landmarks, expected "
            f"{len(_GROUPS)}: {', '.join(_GROUPS)}"
        )
    return {
        name: _word(words, code, f"{file}, {name}")
        for (name, words), code in zip(_GROUPS.items(), codes, strict=True)
    }


def _word(words: tuple[str, ...], code: str, where: str) -> str:
    known = {str(number): word for number, word in enumerate(words)}
    if code not in known:
        named = ", ".join(f"{number} {word}" for number, word in known.items())
        raise DataError(f"{where}: '{code}' is none of RAF-DB's codes: {named}")
    return known[code]


def _annotation(gender: int, race: int, age: int) -> bytes:
    landmarks = b"37.2\t46.5\n66.9\t46.4\n52.2\t63.8\n39.9\t79.6\n64.6\t79.4\n"
    return landmarks + f"{gender}\n{race}\n{age}\n".encode()


def _example(above: str) -> Example:
    label_list = f"{above}{_LIST}"

    def image(image_id: str) -> str:
        return f"{above}{_IMAGES}/{image_id}_aligned.jpg"

    def annotation(image_id: str) -> str:
        return f"{above}{_ANNOTATIONS}/{image_id}_manu_attri.txt"

    def row(line: int, image_id: str, emotion: str, gender: str, race: str, age: str) -> SourceRow:
        return SourceRow(
            where=f"{label_list}, line {line}",
            image_id=image_id,
            image=image(image_id),
            split=image_id.partition("_")[0],
            labels={"emotion": emotion},
            groups={"gender": gender, "race": race, "age": age},
        )

    there = ("test_0001", "train_00001", "train_00002", "train_00003", "train_00004")
    return Example(
        files={
            label_list: b"train_00001.jpg 5\ntrain_00002.jpg 4\ntrain_00003.jpg 4\n"
            b"train_0004.jpg 4\ntest_0001.jpg 7\n",
            **{image(image_id): b"" for image_id in there},
            annotation("train_00001"): _annotation(1, 0, 2),
            annotation("train_00002"): _annotation(2, 2, 0),
            annotation("test_0001"): _annotation(0, 1, 4),
        },
        rows=(
            row(1, "train_00001", "sad", "Female", "Caucasian", "20-39"),
            row(2, "train_00002", "happy", "Unsure", "Asian", "0-3"),
            Rejected(f"{label_list}, line 3", "missing_annotation"),
            Rejected(f"{label_list}, line 4", "malformed_line"),
            row(5, "test_0001", "neutral", "Male", "African-American", "70+"),
            Rejected(image("train_00004"), "not_listed"),
        ),
    )


DATASET: Dataset[NoOptions] = Dataset(
    name="rafdb",
    description="RAF-DB, basic: seven emotions; gender, race and age group as groups",
    licence="non-commercial research only, by agreement",
    revision="whdeng.cn/RAF/model1.html, basic, aligned",
    options=NoOptions,
    read=_read,
    label_sets={"emotion": "emotion-7"},
    groups=tuple(_GROUPS),
    examples=(_example("basic/"), _example("")),
)
