"""AffectNet (http://mohammadmahoor.com/affectnet/): emotion, valence and arousal of faces.

Two editions, whose images and labels are not the same: `affectnet.8` is the release of the eight
labelled emotions (March 2021), with a NumPy file for each annotation of an image; `affectnet.plus`
is the human-annotated part of AffectNet+ (2024), with a JSON file for each image. Of the JSON the
fields are known from public code that reads it, not from its documentation, which only licensees
have: `human-label` holds AffectNet's code, `meta-data` holds `valence` and `arousal`. Its age,
gender and race were estimated by models, and are not read.

The official validation part is the split `val`; papers test on it.
"""

import io
import json
import math
import os
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from facescan.datasets import Dataset, Example, NoOptions, Rejected, Source, SourceRow
from facescan.errors import DataError

# Its stubs have no types.
_npy_format: Any = np.lib.format

# What it and NumPy raise on bytes that somebody else made.
_NUMPY_ERRORS = (ValueError, TypeError, SyntaxError, SystemError, tokenize.TokenError)

_EMOTIONS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
"""By code."""

_NO_EMOTION = {8: "no_listed_emotion", 9: "uncertain_emotion", 10: "not_a_face"}
"""By code: what annotators said instead; AffectNet+ holds these images too."""

_NOT_RATED = -2.0
"""Valence and arousal of an image without any."""

_MAX_BYTES = 1024 * 1024
"""Of one annotation file; real ones have a few KB."""


@dataclass(frozen=True, slots=True)
class _Annotation:
    code: int
    valence: float | None
    arousal: float | None


@dataclass(frozen=True, slots=True)
class _Edition:
    """How an edition is laid out.

    Attributes:
        name: of the dataset.
        above: folder that may lie above those of the splits.
        folders: folder -> split; each holds `images` and `annotations`.
        suffix: behind an image's id, the name of the file that must be there to label it.
        read: the annotations of one image, from the folder's path, its name and the image's id.
    """

    name: str
    above: str
    folders: Mapping[str, str]
    suffix: str
    read: Callable[[Path, str, str], _Annotation]


def _read(edition: _Edition, source: Source[NoOptions]) -> Iterator[SourceRow | Rejected]:
    root = source.root
    above = edition.above if (root / edition.above).is_dir() else ""
    found = [
        (f"{above}{folder}", split)
        for folder, split in edition.folders.items()
        if (root / above / folder).is_dir()
    ]
    if not found:
        raise DataError(
            f"{source.path}: no folder {' or '.join(edition.folders)} in it, as {edition.name} has"
        )
    # Where the wanted split is not among them, those that are must become known.
    for folder, split in [each for each in found if source.split in (None, each[1])] or found:
        yield from _faces(edition, root, folder, split)


def _faces(
    edition: _Edition, root: Path, folder: str, split: str
) -> Iterator[SourceRow | Rejected]:
    images = _ids(root, f"{folder}/images", ".jpg")
    annotated = _ids(root, f"{folder}/annotations", edition.suffix)
    if not annotated:
        raise DataError(
            f"{root / folder / 'annotations'}: no file ...{edition.suffix} in it, as "
            f"{edition.name} has for each image"
        )
    for image in sorted(images | annotated):
        path = f"{folder}/images/{image}.jpg"
        if image not in annotated:
            yield Rejected(path, "missing_annotation")
            continue
        annotation = edition.read(root, f"{folder}/annotations", image)
        if annotation.code in _NO_EMOTION:
            yield Rejected(path, _NO_EMOTION[annotation.code])
            continue
        yield SourceRow(
            where=path,
            image_id=f"{split}/{image}",
            image=path,
            split=split,
            labels={"emotion": _EMOTIONS[annotation.code]},
            values={"valence": annotation.valence, "arousal": annotation.arousal},
        )


def _ids(root: Path, folder: str, suffix: str) -> set[str]:
    try:
        names = os.listdir(root / folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{root / folder}: no such folder") from error
    # Files of other kinds are passed over: an image has several annotation files.
    return {
        name.removesuffix(suffix)
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    }


def _code(given: Any, where: str) -> int:
    number = _number(given, where)
    if number not in range(len(_EMOTIONS) + len(_NO_EMOTION)):
        raise DataError(f"{where}: {given!r} is none of AffectNet's codes, which are 0 to 10")
    return int(number)


def _rating(given: Any, where: str) -> float | None:
    """Valence or arousal; None where there is none."""
    if given is None:
        return None
    number = _number(given, where)
    if number == _NOT_RATED:
        return None
    if not -1 <= number <= 1:
        raise DataError(f"{where}: {given!r} lies outside of -1 to 1")
    return number


def _number(given: Any, where: str) -> float:
    """The number that a number or a text says."""
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise DataError(f"{where}: {given!r} is not a number")
    return number


def _contents(path: Path, where: str) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise DataError(f"{where}: larger than {_MAX_BYTES:,} bytes, too much for an annotation")
    return data


# NumPy files


def _numpy_annotation(root: Path, folder: str, image: str) -> _Annotation:
    def value(kind: str) -> tuple[Any, str]:
        name = f"{folder}/{image}_{kind}.npy"
        return _scalar(root / name, name), name

    return _Annotation(
        code=_code(*value("exp")), valence=_rating(*value("val")), arousal=_rating(*value("aro"))
    )


def _scalar(path: Path, where: str) -> Any:
    """The only value of an array, a number or a text; None where the file is not there.

    Nothing is ever unpickled, and what the header announces is not allocated.
    """
    try:
        file = io.BytesIO(_contents(path, where))
    except FileNotFoundError:
        return None
    try:
        one = _npy_format.read_magic(file) == (1, 0)
        read = _npy_format.read_array_header_1_0 if one else _npy_format.read_array_header_2_0
        shape, _, kind = read(file)
        if kind.hasobject:
            raise DataError(f"{where}: holds a pickled object, which could run code when read")
        if math.prod(shape) != 1:
            raise DataError(f"{where}: holds {math.prod(shape)} values, not one")
        return np.frombuffer(file.read(kind.itemsize), kind, count=1)[0].item()
    except _NUMPY_ERRORS as error:
        raise DataError(f"{where}: not a NumPy file of one value ({error})") from error


# JSON files


def _json_annotation(root: Path, folder: str, image: str) -> _Annotation:
    where = f"{folder}/{image}.json"
    try:
        given = json.loads(_contents(root / where, where))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON ({error})") from error
    ratings = _field(given, "meta-data", where)
    return _Annotation(
        code=_code(_field(given, "human-label", where), f"{where}, human-label"),
        valence=_rating(_field(ratings, "valence", f"{where}, meta-data"), f"{where}, valence"),
        arousal=_rating(_field(ratings, "arousal", f"{where}, meta-data"), f"{where}, arousal"),
    )


def _field(given: Any, key: str, where: str) -> Any:
    if not isinstance(given, dict) or key not in given:
        found = ", ".join(map(str, given)) if isinstance(given, dict) else type(given).__name__
        raise DataError(f"{where}: no field '{key}'; found {found or 'none'}")
    return given[key]


def _npy(value: str) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(value))
    return file.getvalue()


def _example_row(
    path: str, emotion: str, valence: float | None, arousal: float | None
) -> SourceRow:
    return SourceRow(
        where=path,
        image_id=f"{'train' if 'train_set' in path else 'val'}/{Path(path).stem}",
        image=path,
        split="train" if "train_set" in path else "val",
        labels={"emotion": emotion},
        values={"valence": valence, "arousal": arousal},
    )


def _json(code: int, valence: float, arousal: float) -> bytes:
    ratings = {"age": 31, "valence": valence, "arousal": arousal}
    return json.dumps({"human-label": code, "soft-label": [], "meta-data": ratings}).encode()


def _dataset(edition: _Edition, description: str, revision: str, example: Example) -> Dataset[Any]:
    return Dataset(
        name=edition.name,
        description=f"{description}: emotion, valence, arousal",
        licence="by agreement with the authors, research only",
        revision=revision,
        options=NoOptions,
        read=partial(_read, edition),
        label_sets={"emotion": "emotion-8"},
        values=("valence", "arousal"),
        examples=(example,),
    )


_NPY_EXAMPLE = Example(
    files={
        "train_set/images/17.jpg": b"",
        "train_set/images/5.jpg": b"",
        "train_set/annotations/17_exp.npy": _npy("1"),
        "train_set/annotations/17_val.npy": _npy("0.785714"),
        "train_set/annotations/17_aro.npy": _npy("-0.055556"),
        "train_set/annotations/17_lnd.npy": _npy("0"),
        "val_set/images/17.jpg": b"",
        "val_set/annotations/17_exp.npy": _npy("7"),
        "val_set/annotations/17_val.npy": _npy("-2"),
        "val_set/annotations/17_aro.npy": _npy("-2"),
    },
    rows=(
        _example_row("train_set/images/17.jpg", "happy", 0.785714, -0.055556),
        Rejected("train_set/images/5.jpg", "missing_annotation"),
        _example_row("val_set/images/17.jpg", "contempt", None, None),
    ),
)
_JSON_EXAMPLE = Example(
    files={
        "human_annotated/train_set/images/0.jpg": b"",
        "human_annotated/train_set/images/1.jpg": b"",
        "human_annotated/train_set/images/2.jpg": b"",
        "human_annotated/train_set/annotations/0.json": _json(6, -0.5, 0.75),
        "human_annotated/train_set/annotations/1.json": _json(10, -2, -2),
        "human_annotated/validation_set/images/0.jpg": b"",
        "human_annotated/validation_set/annotations/0.json": _json(0, 0, 0),
    },
    rows=(
        _example_row("human_annotated/train_set/images/0.jpg", "anger", -0.5, 0.75),
        Rejected("human_annotated/train_set/images/1.jpg", "not_a_face"),
        Rejected("human_annotated/train_set/images/2.jpg", "missing_annotation"),
        _example_row("human_annotated/validation_set/images/0.jpg", "neutral", 0, 0),
    ),
)

DATASETS = (
    _dataset(
        _Edition(
            "affectnet.8",
            "",
            {"train_set": "train", "val_set": "val"},
            "_exp.npy",
            _numpy_annotation,
        ),
        "AffectNet-8, the eight labelled emotions (npy)",
        "AffectNet-8, March 2021",
        _NPY_EXAMPLE,
    ),
    _dataset(
        _Edition(
            "affectnet.plus",
            "human_annotated/",
            {"train_set": "train", "validation_set": "val"},
            ".json",
            _json_annotation,
        ),
        "AffectNet+, the human-annotated part (JSON)",
        "AffectNet+, 2024",
        _JSON_EXAMPLE,
    ),
)
