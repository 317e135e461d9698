"""What can be asked about a face: label sets, their synonyms, and the views between them.

One file per attribute, found by its name, each defining `ATTRIBUTE`. Labels are perceived
attributes in a dataset's own categories, not facts about people.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from facescan import registry
from facescan.errors import UsageError
from facescan.types import FinishReason, Outcome

PACKAGE = "facescan.attributes"


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A closed, versioned list of labels. Changing one is a new set with a new name.

    Attributes:
        name: unique over all attributes, such as `race-7`.
        labels: canonical label texts, in a fixed order (ordinal for ages).
        synonyms: what models say instead: lower-case phrase -> label.
        ordinal: whether the order of the labels means something.
        source: where the set comes from.
        bounds: for sets that cut a number into bins, such as years: label -> the first and the
            last whole number it covers (`math.inf` for an open end).
    """

    name: str
    labels: tuple[str, ...]
    synonyms: Mapping[str, str]
    ordinal: bool = False
    source: str = ""
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def covering(self, low: float, high: float) -> str | None:
        """The label whose bin holds every number from `low` to `high`; None where none does."""
        for label, (first, last) in self.bounds.items():
            if first <= low and high <= last:
                return label
        return None


@dataclass(frozen=True, slots=True)
class View:
    """A map from one label set into another, possibly partial.

    Attributes:
        merges: label of `source` -> label of `target`; rows whose label is not a key are left out
            of the view and counted as excluded.
    """

    source: str
    target: str
    merges: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """A reply as models write it and what it must be read as; every attribute file carries some."""

    text: str
    label_set: str
    outcome: Outcome
    label: str | None = None
    finish_reason: FinishReason = FinishReason.STOP


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing asked about a face.

    Attributes:
        noun: how a question names it, such as `age group`.
        abstentions: lower-case phrases by which a model says that it cannot tell this attribute,
            beside those that `facescan.parse` knows for every attribute.
        also_called: other words for the noun, as keys of JSON answers use them.
        off_list: lower-case phrases that name a value which no label set holds, such as `mixed`
            for race: the model answered, but outside the list.
        asides: lower-case phrases that hold a label's word without naming a value, as regular
            expressions; ` ... ` stands for up to three words that describe a thing, so
            `black ... hair` is `black curly hair` too. Hyphens between letters are blanks.
    """

    name: str
    noun: str
    label_sets: tuple[LabelSet, ...]
    views: tuple[View, ...]
    examples: tuple[Example, ...]
    abstentions: tuple[str, ...] = ()
    also_called: tuple[str, ...] = ()
    off_list: tuple[str, ...] = ()
    asides: tuple[str, ...] = ()

    def label_set(self, name: str) -> LabelSet:
        """The label set of that name.

        Raises:
            UsageError: this attribute has no such set.
        """
        for label_set in self.label_sets:
            if label_set.name == name:
                return label_set
        known = ", ".join(s.name for s in self.label_sets)
        raise UsageError(f"attribute '{self.name}' has no label set '{name}'; known: {known}")

    def view(self, source: str, target: str) -> View | None:
        """How labels of set `source` are seen in set `target`; None where no map is defined.

        A set seen in itself is the identity.
        """
        if source == target:
            labels = self.label_set(source).labels
            return View(source, target, dict(zip(labels, labels, strict=True)))
        for view in self.views:
            if (view.source, view.target) == (source, target):
                return view
        return None


def names() -> tuple[str, ...]:
    """The names of all attributes."""
    return registry.names(PACKAGE)


def load(name: str) -> Attribute:
    """The attribute of that name.

    Raises:
        UnknownNameError: no file carries the name.
    """
    attribute = registry.load(PACKAGE, name).ATTRIBUTE
    assert isinstance(attribute, Attribute)
    return attribute
