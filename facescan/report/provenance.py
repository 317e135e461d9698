"""Where scores come from: what a report says of a run beside its figures."""

from collections.abc import Mapping
from dataclasses import dataclass


def avoids_refusals(wording: str) -> bool:
    """Whether a question calls the picture fictional so that models refuse less.

    The paper's prompt does. Whoever reads figures of it has to be told.
    """
    return any(word in wording.lower() for word in ("hypothetical", "fictional"))


@dataclass(frozen=True, slots=True)
class Imported:
    """A file of answers that nobody asked for here.

    Attributes:
        file: its name.
        format: how it was read.
        rows: of the file.
        images: of the dataset, that a row was found to be of.
        counted: what was not as it should be -> how often.
    """

    file: str
    sha256: str
    format: str
    rows: int
    images: int
    counted: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """One attribute asked of one model.

    Attributes:
        offered: offered text -> label, in the order offered.
        weights: identity of what answered: a repository and its revision, or a digest.
        engine: as it reported itself; before an answer, its name.
        numerics: settings of the engine that can change an answer.
        imported: None where facescan asked; else prompt, settings and weights are not known.
    """

    model: str
    protocol: str
    attribute: str
    label_set: str
    answer_mode: str
    prompt: str
    offered: Mapping[str, str]
    max_tokens: int
    temperature: float
    preprocessing: str
    weights: str
    engine: str
    numerics: Mapping[str, str]
    imported: Imported | None = None

    @property
    def avoids_refusals(self) -> bool:
        """See `avoids_refusals`."""
        return avoids_refusals(self.prompt)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a run is.

    Attributes:
        run: the name of its folder; no path of the machine it ran on.
        created_at: ISO 8601.
        summary: what was asked about, and when, in a sentence.
        dataset: the same and more, name -> value.
        packages: name -> version.
        hardware: name -> value.
    """

    run: str
    facescan: str
    created_at: str
    summary: str
    dataset: Mapping[str, str]
    asked: tuple[Asked, ...]
    packages: Mapping[str, str]
    hardware: Mapping[str, str]
