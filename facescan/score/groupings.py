"""By which columns rows are compared: what `--group-by` and `--groups-from` ask for.

A group is the rows with the same values in one column or in several together. A column is called
by its short name, `race` for `label_race` or `group_race`; by its full name where both are there.
Columns of another run's answers are called `predicted_race`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from facescan.errors import UsageError

LABELS = "labels"
"""The source of a grouping by columns of the predictions themselves."""

NONE = "none"
"""As the only grouping asked for: no groups."""

GIVEN = ("label_", "group_")
"""Prefixes of the columns that the dataset itself has."""

PREDICTED = "predicted_"
"""Prefix of the columns that hold another run's answers."""

TOGETHER = "+"
"""Joins the names of columns that are taken together."""

_ALWAYS_TOGETHER = ("gender", "race")


@dataclass(frozen=True, slots=True)
class Grouping:
    """Some columns whose values together make the groups.

    Attributes:
        by: their short names.
        columns: their full names, in the same order.
        source: `LABELS`, or whose answers make groups.
    """

    by: tuple[str, ...]
    columns: tuple[str, ...]
    source: str = LABELS


def groupings(
    asked: Sequence[str] | None, present: Iterable[str], predicted: str = ""
) -> tuple[Grouping, ...]:
    """The groupings of rows that have these columns.

    Args:
        asked: such as `["gender,race", "gender+race"]`: each comma-separated part is a grouping,
            `+` takes columns together. None: by every column of labels and groups, and by gender
            and race together; if there are columns of another run's answers, by these instead.
        present: full names of all columns; only those that can make groups are looked at.
        predicted: whose answers the `predicted_` columns are.

    Raises:
        UsageError: a name is not there, or stands twice in one grouping.
    """
    columns = _short(present)
    if asked is None:
        names = _default(columns)
    else:
        names = list(dict.fromkeys(part.strip() for each in asked for part in each.split(",")))
        if names == [NONE]:
            return ()
    return tuple(_grouping(name, columns, predicted) for name in names)


def _short(present: Iterable[str]) -> dict[str, str]:
    """Short name -> full name; full names stand for themselves as well."""
    full = [name for name in present if name.startswith((*GIVEN, PREDICTED))]
    by_short: dict[str, list[str]] = {}
    for name in full:
        short = name if name.startswith(PREDICTED) else name.partition("_")[2]
        by_short.setdefault(short, []).append(name)
    unique = {short: names[0] for short, names in by_short.items() if len(names) == 1}
    ambiguous = {name: name for names in by_short.values() if len(names) > 1 for name in names}
    return unique | ambiguous


def _default(columns: Mapping[str, str]) -> list[str]:
    predicted = [name for name in columns if name.startswith(PREDICTED)]
    names = predicted or list(columns)
    both = [f"{PREDICTED if predicted else ''}{name}" for name in _ALWAYS_TOGETHER]
    together = [TOGETHER.join(both)] if set(both) <= set(names) else []
    return [*sorted(names), *together]


def _grouping(name: str, columns: Mapping[str, str], predicted: str) -> Grouping:
    by = tuple(part.strip() for part in name.split(TOGETHER))
    full = {**columns, **{each: each for each in columns.values()}}
    for part in by:
        if part not in full:
            known = ", ".join(sorted(columns)) or "none; the dataset has no labels and no groups"
            raise UsageError(f"--group-by: no column '{part}' to group by; there are: {known}")
    found = tuple(full[part] for part in by)
    if len(set(found)) < len(found):
        raise UsageError(f"--group-by: '{name}' names a column twice")
    of_another = any(column.startswith(PREDICTED) for column in found)
    short = {column: name for name, column in columns.items()}
    return Grouping(
        tuple(short[column] for column in found), found, predicted if of_another else LABELS
    )
