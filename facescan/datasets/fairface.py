"""FairFace (https://github.com/joojs/fairface): race, gender and age group of 97,698 faces.

Published with two paddings around the face, whose results differ: `fairface.025` and
`fairface.125`. Where the name of a folder tells the padding it must be the one asked for.

Read are the original layout, `fairface_label_train.csv` and `fairface_label_val.csv` beside the
unpacked archive `fairface-img-margin025-trainval` (or in it), and the Parquet files of Hugging Face
repositories with the same columns: labels as text (`ryanramos/fairface`) or as numbers that the
files or the README.md explain (`HuggingFaceM4/FairFace`).

The official validation part is the split `val` everywhere, as its own files name it. Papers test
on it, arXiv 2410.24148 among them: FairFace has no other part with labels.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from facescan import attributes, tabular
from facescan.datasets import (
    Dataset,
    Example,
    NoOptions,
    Source,
    SourceRow,
    _class_labels,
    _folder,
)
from facescan.errors import DataError

_PADDINGS = {"025": "0.25", "125": "1.25"}
_LABEL_SETS = {"race": "race-7", "gender": "gender-2", "age": "age-9"}
_GROUP = "service_test"

_SPLITS = {"train": "train", "val": "val", "validation": "val"}
"""What files and folders are called -> split."""

_OTHER_WORDS = {"70+": "more than 70"}

# fairface-img-margin025-trainval, padding_1.25, data-0.25, 125, fairface.125; but no version v1.25,
# and no count such as sample_125.
_TELLS_PADDING = re.compile(
    r"(?:(?:margin|padding)[\W_]*|(?<![^\W_])(?<!\d\.)(?=\d\.)|^(?:fairface\.)?(?=\d+$))"
    r"([01])[._]?25(?![^\W_]|\.\d)",
    re.IGNORECASE,
)
_PART = re.compile(r".*-(\d{5})-of-(\d{5})\b.*")
_FILE_NAME = re.compile(r"\d+\.jpg")


def _read(padding: str, source: Source[NoOptions]) -> Iterator[SourceRow]:
    root = source.root
    if root != source.path:
        raise DataError(f"{source.path}: give the folder that it is in")
    if tables := _label_files(root, padding):
        prefix = _image_folder(root, padding)
        yield from _original(root, prefix, _wanted(tables, source))
        return
    files = _parquet_files(root, padding)
    if not files:
        raise DataError(
            f"{root}: neither fairface_label_train.csv nor fairface_label_val.csv in it, and no "
            "Parquet files"
        )
    yield from _hugging_face(root, _wanted(files, source))


def _wanted(files: list[tuple[str, str]], source: Source[NoOptions]) -> list[tuple[str, str]]:
    """The (split, path) of the split that is wanted; of all where it is not among them."""
    return [each for each in files if source.split in (None, each[0])] or files


def _told(path: Path) -> set[str]:
    """The paddings that the names of folders on a path tell; a name with both tells none."""
    told = (set(_TELLS_PADDING.findall(part)) for part in path.parts)
    return {f"{digit}25" for digits in told if len(digits) == 1 for digit in digits}


def _other_padding(where: Path, padding: str) -> DataError:
    (other,) = _PADDINGS.keys() - {padding}
    return DataError(
        f"{where}: by its name the padding is {_PADDINGS[other]}; ingest it as fairface.{other}"
    )


class _Labels:
    """The label that a text means; an unknown one is returned as it is, and refused later."""

    def __init__(self, attribute: str) -> None:
        label_set = attributes.load(attribute).label_set(_LABEL_SETS[attribute])
        self._known = {label.casefold(): label for label in label_set.labels} | _OTHER_WORDS

    def label(self, cell: Any) -> str | None:
        text = tabular.text(cell)
        return None if text is None else self._known.get(text.casefold(), text)


# The original layout


def _label_files(root: Path, padding: str) -> list[tuple[str, str]]:
    """(split, path below the root) of the CSV files."""
    for folder in ("", f"fairface-img-margin{padding}-trainval/"):
        files = [(split, f"{folder}fairface_label_{split}.csv") for split in ("train", "val")]
        if found := [each for each in files if (root / each[1]).is_file()]:
            return found
    return []


def _image_folder(root: Path, padding: str) -> str:
    """What comes before the paths that the CSV files hold."""
    (other,) = _PADDINGS.keys() - {padding}
    archive = f"fairface-img-margin{padding}-trainval"
    if (root / archive).is_dir():
        return f"{archive}/"
    other_archive = root / f"fairface-img-margin{other}-trainval"
    for folder in (other_archive, root.resolve()):
        if folder.is_dir() and _told(Path(folder.name)) == {other}:
            raise _other_padding(folder, padding)
    return ""


def _original(root: Path, prefix: str, tables: list[tuple[str, str]]) -> Iterator[SourceRow]:
    labels = {attribute: _Labels(attribute) for attribute in _LABEL_SETS}
    columns = [("image", "file"), *((name, name) for name in (*labels, _GROUP))]
    for split, table in tables:
        for place, cells in tabular.read(root / table, table, columns):
            file = tabular.text(cells["file"])
            yield SourceRow(
                where=f"{table}, {place}",
                image_id=file or "",
                image=file and f"{prefix}{file}",
                split=split,
                labels={name: each.label(cells[name]) for name, each in labels.items()},
                groups={_GROUP: tabular.text(cells[_GROUP])},
            )


# Hugging Face


def _parquet_files(root: Path, padding: str) -> list[tuple[str, str]]:
    """(split, path below the root) of the files of this padding, in order."""
    files = [file for file in _folder.files(root) if file.endswith(".parquet")]
    here = Path(root.resolve().name)
    told = {file: _told(here / Path(file).parent) for file in files}
    ours = [file for file in files if told[file] == {padding}]
    # A folder's name that tells it counts for more than one that says nothing.
    ours = ours or [file for file in files if not told[file]]
    if files and not ours:
        raise _other_padding(root / files[0], padding)
    found = [(_split(root, file), file) for file in ours]
    _check_parts(root, found)
    return found


def _split(root: Path, file: str) -> str:
    """Of `0.25/validation-00000-of-00001.parquet` and `0.25/validation/0000.parquet`: `val`."""
    path = PurePosixPath(file)
    for word in (re.split(r"[-.]", path.name)[0], path.parent.name):
        if word in _SPLITS:
            return _SPLITS[word]
    raise DataError(
        f"{root / file}: neither file nor folder is called after a split ({', '.join(_SPLITS)})"
    )


def _check_parts(root: Path, files: list[tuple[str, str]]) -> None:
    """Each split is there whole and once: its rows are known by their number in it."""
    for split in dict.fromkeys(split for split, _ in files):
        names = [file for each, file in files if each == split]
        parts = sorted((part[1], part[2]) for part in map(_PART.fullmatch, names) if part)
        total = len(names)
        whole = parts == [(f"{number:05d}", f"{total:05d}") for number in range(total)]
        if (parts and not whole) or len({PurePosixPath(name).parent for name in names}) > 1:
            raise DataError(
                f"{root}: the split '{split}' must be in one folder, with all of its parts, and "
                f"each once; found {', '.join(names)}"
            )


def _hugging_face(root: Path, files: list[tuple[str, str]]) -> Iterator[SourceRow]:
    labels = {attribute: _Labels(attribute) for attribute in _LABEL_SETS}
    numbers = Counter[str]()
    for split, file in files:
        schema = tabular.schema(root / file, file)
        image = "image" if "image" in schema.names else "file"
        columns = [("image", image), *((name, name) for name in (*labels, _GROUP))]
        names = _numbered(schema, root, file)
        for place, cells in tabular.read(root / file, file, columns):
            where = f"{file}, {place}"
            data, path = tabular.image(cells[image], where)
            texts = {name: _text(name, cells[name], names, where) for name in labels}
            yield SourceRow(
                where=where,
                image_id=f"{split}/{_file_name(path) or f'row-{numbers[split]}'}",
                image=data,
                split=split,
                labels={name: each.label(texts[name]) for name, each in labels.items()},
                groups={_GROUP: tabular.text(cells[_GROUP])},
            )
            numbers[split] += 1


def _numbered(schema: pa.Schema, root: Path, file: str) -> dict[str, tuple[str, ...]]:
    """Attribute -> what its numbers stand for, where it is written as numbers."""
    return {
        name: _class_labels.names(schema, name, root, file)
        for name in _LABEL_SETS
        if name in schema.names and pa.types.is_integer(schema.field(name).type)
    }


def _text(
    attribute: str, cell: Any, names: Mapping[str, tuple[str, ...]], where: str
) -> str | None:
    if attribute not in names or cell is None:
        return tabular.text(cell)
    number, known = int(cell), names[attribute]
    if number == _class_labels.NO_LABEL:
        return None
    if not 0 <= number < len(known):
        raise DataError(
            f"{where}: {attribute} is number {number}, but there are {len(known)}: "
            f"{', '.join(known)}"
        )
    return known[number]


def _file_name(path: str | None) -> str | None:
    """The file's name in the original archives, where a repository has kept it."""
    name = PurePosixPath(path or "").name
    return name if _FILE_NAME.fullmatch(name) else None


def _example(padding: str, old_age: str) -> Example:
    archive = f"fairface-img-margin{padding}-trainval"
    header = "file,age,gender,race,service_test\n"

    def row(table: str, line: int, file: str, service_test: str, **labels: str) -> SourceRow:
        return SourceRow(
            where=f"{table}, line {line}",
            image_id=file,
            image=f"{archive}/{file}",
            split=file.partition("/")[0],
            labels=labels,
            groups={_GROUP: service_test},
        )

    train, val = "fairface_label_train.csv", "fairface_label_val.csv"
    return Example(
        files={
            **{f"{archive}/{file}": b"" for file in ("train/1.jpg", "train/2.jpg", "val/1.jpg")},
            train: f"{header}train/1.jpg,50-59,Male,East Asian,True\n"
            f"train/2.jpg,{old_age},Female,Latino_Hispanic,False\n".encode(),
            val: f"{header}val/1.jpg,3-9,Male,Southeast Asian,False\n".encode(),
        },
        rows=(
            row(train, 2, "train/1.jpg", "True", race="East Asian", gender="Male", age="50-59"),
            row(
                *(train, 3, "train/2.jpg", "False"),
                race="Latino_Hispanic",
                gender="Female",
                age="more than 70",
            ),
            row(val, 2, "val/1.jpg", "False", race="Southeast Asian", gender="Male", age="3-9"),
        ),
    )


def _dataset(padding: str, example: Example) -> Dataset[NoOptions]:
    return Dataset(
        name=f"fairface.{padding}",
        description=f"FairFace, faces with padding {_PADDINGS[padding]}: race, gender, age group",
        licence="CC-BY-4.0",
        revision=f"github.com/joojs/fairface, padding {_PADDINGS[padding]}",
        options=NoOptions,
        read=partial(_read, padding),
        label_sets=_LABEL_SETS,
        groups=(_GROUP,),
        examples=(example,),
    )


DATASETS = (
    _dataset("025", _example("025", "more than 70")),
    _dataset("125", _example("125", "70+")),
)
