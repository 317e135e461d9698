"""Predictions that others have made: what their files say, row by row, in their own words.

A format is a module with `opened`. It knows how such files are laid out, and nothing of runs: which
image a row is of, and what its words mean, is found out when they are imported
(`facescan.run.importing`).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from facescan.types import AnswerMode


@dataclass(frozen=True, slots=True)
class Answered:
    """What a file says about one attribute.

    Attributes:
        attribute: its name.
        label_set: the set that the answers are of.
        offered: pairs (what the file says, label).
        answer_mode: `score` where the file has a probability for each of `offered`: an answer is
            then one of their texts, exactly. `free` elsewhere: an answer is read as a reply is.
    """

    attribute: str
    label_set: str
    offered: tuple[tuple[str, str], ...]
    answer_mode: AnswerMode


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """One face of one image.

    Attributes:
        where: in the file, for people.
        names: what the image may be called, surest first: first its id, then names of files.
        face: which face of the image; of several, the lowest is taken for it.
        texts: for each attribute the answer as it stands in the file; empty where there is none.
        scores: for each attribute the probabilities of its offered texts, or None.
        no_face: whether the file says that there is no face in the image.
    """

    where: str
    names: tuple[str, ...]
    face: int
    texts: tuple[str, ...]
    scores: tuple[tuple[float, ...] | None, ...]
    no_face: bool = False


@dataclass(frozen=True, slots=True)
class Foreign:
    """An opened file.

    Attributes:
        rows: in the order of the file.
        by_name: whether an image may be known by the name of its file alone.
        oddities: what was met so far that is not as it should be, counted; grows with `rows`.
    """

    answered: tuple[Answered, ...]
    rows: Iterator[ForeignRow]
    by_name: bool
    oddities: Counter[str] = field(default_factory=Counter)


def file_name(path: str) -> str:
    """The name of a file without its folders and endings: `val/1.jpg` is `1`."""
    return path.rpartition("/")[2].partition(".")[0]
