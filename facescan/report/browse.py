"""The page that `facescan view` shows: predictions, filters, pictures, a page at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from facescan.report.page import TEMPLATES


@dataclass(frozen=True, slots=True)
class Option:
    """A value that rows can be filtered by, and how many have it in the whole run."""

    value: str
    rows: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A filter: its key in the address, what people call it, and its values."""

    key: str
    title: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row.

    Attributes:
        result: `right`, `wrong`, `no answer`, `failed in the run` or `no target`.
        groups: column -> value.
        raw_response: what the model said; None where it did not.
        error: why it did not, for people.
    """

    image_id: str
    attribute: str
    model: str
    protocol: str
    result: str
    outcome: str
    label: str | None
    target: str | None
    groups: Mapping[str, str]
    raw_response: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Browsed:
    """A page of rows.

    Attributes:
        chosen: key of a `Choice` -> value.
        number: of this page, from 1.
        pages: at least 1.
        total: rows that the filters leave.
    """

    rows: Sequence[Prediction]
    chosen: Mapping[str, str]
    number: int
    pages: int
    total: int


def html(run: str, note: str, choices: Sequence[Choice], browsed: Browsed) -> str:
    """The page; its links and pictures are relative to where it stands."""

    def link(number: int) -> str:
        return "?" + urlencode({**browsed.chosen, "page": number})

    return TEMPLATES.get_template("view.html").render(
        run=run,
        note=note,
        choices=choices,
        browsed=browsed,
        earlier=link(browsed.number - 1) if browsed.number > 1 else None,
        later=link(browsed.number + 1) if browsed.number < browsed.pages else None,
        picture=lambda image_id: "picture?" + urlencode({"id": image_id}),
    )
