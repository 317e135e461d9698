"""What papers print: figures as data, with table, page, test set and what is not known of them.

One YAML file per paper, found by its name. Figures stand in percent as they are printed, so that
their rounding is known. What a run measured is put beside them by `facescan.score.published`;
whether they can all be true is asked by `facescan.score.consistency`.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from facescan import registry
from facescan.errors import UsageError

PACKAGE = "facescan.published"

Printed = Annotated[Decimal, Field(ge=0, le=100)]
"""Percent with the digits that are printed."""

FIGURES = (
    *("accuracy", "macro_precision", "macro_recall", "macro_f1"),
    *("precision", "recall", "f1"),
)
"""What a row may print: of a model the first four, of one of its classes the others."""


def rounding(printed: Decimal) -> tuple[float, float]:
    """The fractions that a percentage may have been rounded from, both ends included."""
    exponent = printed.as_tuple().exponent
    assert isinstance(exponent, int)
    half = Decimal(5).scaleb(exponent - 1)
    return float((printed - half) / 100), float((printed + half) / 100)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Examined(_Strict):
    """What a paper tested on."""

    title: str
    pages: str
    editions: dict[str, str]
    """Dataset of facescan -> how it may differ from the paper's; empty where it does not."""
    split: str
    n: int = Field(ge=1)
    supports: dict[str, dict[str, int]]
    """Label set -> label -> images."""


class Asked(_Strict):
    """Who answered, under the name that the paper gives it."""

    cards: tuple[str, ...] = ()
    """Names of models of facescan that stand for it."""
    protocol: str | None = None
    """The protocol that asks as the paper did; None where its wording is not known."""
    not_runnable: str = ""
    """Why facescan cannot run it; empty where it can."""
    differences: tuple[str, ...] = ()


class Row(_Strict):
    """A row of a table; a figure that is not printed is None."""

    model: str
    label: str | None = None
    """The class that the figures are of, in the table's view; None: of all of them."""
    label_as_printed: str | None = None
    """Where it differs from the label."""
    protocol: str | None = None
    """Where it is not the model's; `null` in the file: the wording of this row is not known."""
    accuracy: Printed | None = None
    macro_precision: Printed | None = None
    macro_recall: Printed | None = None
    macro_f1: Printed | None = None
    precision: Printed | None = None
    recall: Printed | None = None
    f1: Printed | None = None
    differences: tuple[str, ...] = ()

    def figures(self) -> Iterator[tuple[str, Decimal]]:
        """The printed figures: metric and percent."""
        for metric in FIGURES:
            printed = getattr(self, metric)
            if printed is not None:
                yield metric, printed


class Highest(_Strict):
    """The claim that a model has the highest accuracy of a table."""

    kind: Literal["highest"]
    model: str
    where: str
    says: str


class Gain(_Strict):
    """The claim that a model has so many more images right than another of the table."""

    kind: Literal["gain"]
    model: str
    over: str
    images: int
    where: str
    says: str


class Table(_Strict):
    """A table, or what a text gives in its place."""

    title: str
    about: str
    pages: str
    """Of the section that holds it."""
    test_set: str
    attribute: str
    view: str
    """The label set that answers and targets are compared in."""
    rows: tuple[Row, ...] = Field(min_length=1)
    summary: str | None = None
    """Of a table of classes: the table that has the model's figures over all of them."""
    differences: tuple[str, ...] = ()
    claims: tuple[Annotated[Highest | Gain, Field(discriminator="kind")], ...] = ()

    def row(self, model: str) -> Row:
        """The row of that model, in a table without classes."""
        (found,) = (row for row in self.rows if row.model == model)
        return found


class Paper(_Strict):
    """A paper; the names of its test sets, models and tables are keys."""

    name: str
    title: str
    authors: str
    edition: str
    differences: tuple[str, ...]
    """What is not known of any of its figures."""
    test_sets: dict[str, Examined]
    models: dict[str, Asked]
    tables: dict[str, Table]

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for name, table in self.tables.items():
            named: list[tuple[str, str, Mapping[str, object]]]
            named = [("test set", table.test_set, self.test_sets)]
            named += [("model", row.model, self.models) for row in table.rows]
            if table.summary is not None:
                named.append(("table", table.summary, self.tables))
            for kind, value, known in named:
                if value not in known:
                    raise ValueError(f"{name}: unknown {kind} '{value}'; known: {', '.join(known)}")
            rows = [row.model for row in table.rows if row.label is None]
            for claim in table.claims:
                for model in (claim.model, getattr(claim, "over", claim.model)):
                    if rows.count(model) != 1:
                        raise ValueError(f"{name}: a claim about '{model}', which is not one row")
        return self

    def protocol(self, row: Row) -> str | None:
        """The protocol that asks as the paper did for this row; None where that is not known."""
        if "protocol" in row.model_fields_set:
            return row.protocol
        return self.models[row.model].protocol


def names() -> tuple[str, ...]:
    """The names of all papers."""
    return registry.names(PACKAGE)


@cache
def _read(file: Path, name: str) -> Paper:
    try:
        return Paper.model_validate(registry.fields(file) | {"name": name})
    except ValidationError as error:
        raise UsageError(f"{file}: not a paper's figures:\n{error}") from error


def load(name: str) -> Paper:
    """The paper of that name.

    Raises:
        UnknownNameError: no file carries the name.
        UsageError: the file does not say what it should.
    """
    return _read(registry.path(PACKAGE, name), name)
