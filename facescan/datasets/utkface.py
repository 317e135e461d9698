"""UTKFace (https://susanqq.github.io/UTKFace/): age in years, gender and race in the file's name.

Two releases of the same photographs, whose results differ: `utkface.aligned` is the archive
`UTKFace.tar.gz` of aligned and cropped faces (`....jpg.chip.jpg`), `utkface.wild` the archives
`part1` to `part3` of the photographs as they were found (`....jpg`). Names are
`[age]_[gender]_[race]_[date&time]`; a few are published without one of the first three.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from facescan import attributes
from facescan.attributes import LabelSet
from facescan.datasets import Dataset, Example, NoOptions, Rejected, Source, SourceRow, _folder
from facescan.errors import DataError

_GENDERS = ("Male", "Female")
_RACES = ("White", "Black", "Asian", "Indian", "Others")
_OLDEST = 116

# Published are names with a blank, without a dot and without a `j`; their labels are whole.
_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d+) ?\.?j?pg(?:\.chip\.jpg)?", re.IGNORECASE)

_PART = re.compile(r"part\d")

_ALIGNED = ".chip.jpg"
_RELEASES = {
    "aligned": "aligned and cropped faces (....jpg.chip.jpg)",
    "wild": "photographs in the wild (....jpg)",
}


def _read(release: str, source: Source[NoOptions]) -> Iterator[SourceRow | Rejected]:
    root, ages = source.root, attributes.load("age").label_set("age-9")
    root_name = root.resolve().name
    ours = theirs = 0
    for path in _folder.files(root):
        folder, _, name = path.rpartition("/")
        fields = _NAME.fullmatch(name)
        if fields is None and not name.lower().endswith(".jpg"):
            yield Rejected(path, "not_an_image_file")
        elif name.lower().endswith(_ALIGNED) != (release == "aligned"):
            theirs += 1
            yield Rejected(path, "of_the_other_release")
        else:
            ours += 1
            yield _face(path, fields, folder.rpartition("/")[2] or root_name, ages)
    if theirs and not ours:
        (other,) = _RELEASES.keys() - {release}
        raise DataError(
            f"{source.path}: holds no {_RELEASES[release]}, but {theirs} {_RELEASES[other]}: "
            f"ingest it as utkface.{other}"
        )


def _face(
    path: str, fields: re.Match[str] | None, folder: str, ages: LabelSet
) -> SourceRow | Rejected:
    if fields is None or int(fields[1]) > _OLDEST:
        return Rejected(path, "malformed_name")
    years = int(fields[1])
    # Names are not known to be unique over the parts of the wild release.
    part = f"{folder}/" if _PART.fullmatch(folder) else ""
    return SourceRow(
        where=path,
        image_id=part + "_".join(fields.groups()),
        image=path,
        split="all",
        labels={
            "race": _RACES[int(fields[3])],
            "gender": _GENDERS[int(fields[2])],
            "age": ages.covering(years, years),
        },
        values={"years": float(years)},
    )


def _dataset(release: str, example: Example) -> Dataset[NoOptions]:
    return Dataset(
        name=f"utkface.{release}",
        description=f"UTKFace, {_RELEASES[release]}: race, gender, age in years",
        licence="non-commercial research only",
        revision=f"susanqq.github.io/UTKFace, {release}",
        options=NoOptions,
        read=partial(_read, release),
        label_sets={"race": "race-utkface", "gender": "gender-2", "age": "age-9"},
        values=("years",),
        examples=(example,),
    )


def _example_row(path: str, image_id: str, race: str, gender: str, age: str) -> SourceRow:
    return SourceRow(
        where=path,
        image_id=image_id,
        image=path,
        split="all",
        labels={"race": race, "gender": gender, "age": age},
        values={"years": float(Path(path).name.partition("_")[0])},
    )


DATASETS = (
    _dataset(
        "aligned",
        Example(
            files={
                "UTKFace/100_1_0_20170112213303693.jpg.chip.jpg": b"",
                "UTKFace/24_0_1_20170116220224657 .jpg.chip.jpg": b"",
                "UTKFace/55_0_4_20170116232725357jpg.chip.jpg": b"",
                "UTKFace/61_1_20170109142408075.jpg.chip.jpg": b"",
                "UTKFace/.DS_Store": b"",
            },
            rows=(
                _example_row(
                    "UTKFace/100_1_0_20170112213303693.jpg.chip.jpg",
                    "100_1_0_20170112213303693",
                    *("White", "Female", "more than 70"),
                ),
                _example_row(
                    "UTKFace/24_0_1_20170116220224657 .jpg.chip.jpg",
                    "24_0_1_20170116220224657",
                    *("Black", "Male", "20-29"),
                ),
                _example_row(
                    "UTKFace/55_0_4_20170116232725357jpg.chip.jpg",
                    "55_0_4_20170116232725357",
                    *("Others", "Male", "50-59"),
                ),
                Rejected("UTKFace/61_1_20170109142408075.jpg.chip.jpg", "malformed_name"),
            ),
        ),
    ),
    _dataset(
        "wild",
        Example(
            files={
                "landmark_list_part1.txt": b"",
                "part1/1_0_2_20161219140530307.jpg": b"",
                "part1/61_3_20170109150557335.jpg": b"",
                "part2/1_0_2_20161219140530307.jpg": b"",
                "part2/53__0_20170116184028385.jpg": b"",
                "part3/26_1_3_20170117175041574.jpg": b"",
                "part3/44_1_4_20170116235150272.pg": b"",
                "part3/55_0_0_20170116232725357jpg": b"",
                "part3/26_1_3_20170117175041574.jpg.chip.jpg": b"",
            },
            rows=(
                Rejected("landmark_list_part1.txt", "not_an_image_file"),
                _example_row(
                    "part1/1_0_2_20161219140530307.jpg",
                    "part1/1_0_2_20161219140530307",
                    *("Asian", "Male", "0-2"),
                ),
                Rejected("part1/61_3_20170109150557335.jpg", "malformed_name"),
                _example_row(
                    "part2/1_0_2_20161219140530307.jpg",
                    "part2/1_0_2_20161219140530307",
                    *("Asian", "Male", "0-2"),
                ),
                Rejected("part2/53__0_20170116184028385.jpg", "malformed_name"),
                _example_row(
                    "part3/26_1_3_20170117175041574.jpg",
                    "part3/26_1_3_20170117175041574",
                    *("Indian", "Female", "20-29"),
                ),
                Rejected("part3/26_1_3_20170117175041574.jpg.chip.jpg", "of_the_other_release"),
                _example_row(
                    "part3/44_1_4_20170116235150272.pg",
                    "part3/44_1_4_20170116235150272",
                    *("Others", "Female", "40-49"),
                ),
                _example_row(
                    "part3/55_0_0_20170116232725357jpg",
                    "part3/55_0_0_20170116232725357",
                    *("White", "Male", "50-59"),
                ),
            ),
        ),
    ),
)
