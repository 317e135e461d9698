"""The predictions of a run, filtered and a page at a time, with the replies they were read from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import pyarrow as pa

from facescan import attributes
from facescan.errors import UsageError
from facescan.report.browse import Browsed, Choice, Option, Prediction
from facescan.run import journal
from facescan.run.folder import RunFolder
from facescan.storage import LocalStorage, Storage
from facescan.types import RUN_OUTCOMES, Outcome

ROWS = 24
"""Of a page."""

_GROUP_PREFIXES = ("group_", "label_")
_MOST_VALUES = 60
"""Of a column to filter by; one with more is no group."""

_KEYS = ("model", "protocol", "attribute", "result", "outcome", "target", "label")
"""The filters beside the groups."""

_SEPARATOR = ": "
"""Between the column and the value of a group."""

_PAIR = ("attribute", "asked_label_set", "target_label_set", "label", "target")

# What became of a row, in words.
_SEEN = f"""
    CREATE VIEW seen AS SELECT predictions.*,
        CASE WHEN outcome IN ({", ".join(f"'{each}'" for each in sorted(RUN_OUTCOMES))})
             THEN 'failed in the run'
             WHEN target IS NULL THEN 'no target'
             WHEN outcome <> '{Outcome.ANSWERED}' THEN 'no answer'
             WHEN is_right THEN 'right' ELSE 'wrong' END AS result
    FROM predictions LEFT JOIN pairs USING ({", ".join(_PAIR)})
"""

_REPLIES = f"""
    WITH replies AS (FROM all_replies WHERE request_id IN (SELECT unnest($ids)))
    SELECT request_id, raw_response, error FROM ({journal.COUNTING_REPLIES})
"""


class Predictions:
    """Reads the files of a run and writes nothing to it; threads may share one.

    Args:
        folder: the run.

    Raises:
        UsageError: it has no predictions.
        DataError: they name a label set that is not known here.
        OSError: they cannot be reached.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._lock = Lock()
        with ExitStack() as opened:
            scratch = Path(opened.enter_context(TemporaryDirectory(prefix="facescan-view-")))
            files = _local(folder.predictions, folder.predictions.names(), scratch)
            if not files:
                raise UsageError(f"{folder.root.location}: there are no predictions to look at yet")
            replies = _local(folder.replies, journal.files(folder.replies).names, scratch)
            self._sql = opened.enter_context(journal.database(scratch / "spill"))
            self._sql.read_parquet(files, union_by_name=True).create_view("predictions")
            self._has_replies = bool(replies)
            if replies:
                self._sql.read_parquet(replies).create_view("all_replies")
            self._sql.register("pairs", self._pairs())
            self._sql.execute(_SEEN)
            self._groups = self._group_columns()
            self.choices = tuple(self._choices())
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Give back what is held."""
        self._opened.close()

    def page(self, chosen: Mapping[str, str], number: int) -> Browsed:
        """The rows that have all the chosen values, in the order of their images.

        Args:
            chosen: key of one of `choices` -> one of its values.
            number: of the page, from 1; one after the last is the last.

        Raises:
            UsageError: there is no such choice or value.
        """
        condition, values = self._condition(chosen)
        with self._lock:
            (total,) = self._all(f"SELECT count(*) FROM seen WHERE {condition}", values)[0]
            pages = max(1, -(-total // ROWS))
            number = min(max(1, number), pages)
            groups = "".join(f', "{name}"' for name in self._groups)
            found = self._all(
                "SELECT image_id, attribute, model, protocol, result, outcome, label, target, "
                f"request_id{groups} FROM seen WHERE {condition} "
                f"ORDER BY image_id, attribute, model, protocol, person "
                f"LIMIT {ROWS} OFFSET {ROWS * (number - 1)}",
                values,
            )
            replies = self._replied([row[8] for row in found])
        rows = [self._prediction(row, replies.get(row[8], (None, None))) for row in found]
        return Browsed(rows, dict(chosen), number, pages, total)

    def _prediction(self, row: Sequence[Any], reply: tuple[str | None, str | None]) -> Prediction:
        image_id, attribute, model, protocol, result, outcome, label, target, _, *groups = row
        named = zip(self._groups, groups, strict=True)
        return Prediction(
            image_id=image_id,
            attribute=attribute,
            model=model,
            protocol=protocol,
            result=result,
            outcome=outcome,
            label=label,
            target=target,
            groups={name: value for name, value in named if value is not None},
            raw_response=reply[0],
            error=reply[1],
        )

    def _replied(self, ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
        if not self._has_replies or not ids:
            return {}
        return {key: (raw, error) for key, raw, error in self._all(_REPLIES, {"ids": list(ids)})}

    def _condition(self, chosen: Mapping[str, str]) -> tuple[str, list[str]]:
        known = {choice.key: {option.value for option in choice.options} for choice in self.choices}
        conditions, values = ["true"], []
        for key, value in chosen.items():
            if value not in known.get(key, ()):
                raise UsageError(f"no rows can be chosen by {key} = {value}")
            column = key
            if key == "group":
                column, value = value.split(_SEPARATOR, 1)
            conditions.append(f'"{column}" = ?')
            values.append(value)
        return " AND ".join(conditions), values

    def _pairs(self) -> pa.Table:
        """Every answer that is right, in the finest labels that answer and target are seen in."""
        rows = []
        for name, asked, given in self._all(
            "SELECT DISTINCT attribute, asked_label_set, target_label_set FROM predictions "
            "WHERE target_label_set IS NOT NULL ORDER BY ALL",
            [],
        ):
            attribute = attributes.load(name)
            views = [
                (answers, targets)
                for label_set in attribute.label_sets
                if (answers := attribute.view(asked, label_set.name))
                and (targets := attribute.view(given, label_set.name))
            ]
            for answers, targets in views[:1]:
                rows += [
                    (name, asked, given, label, target)
                    for label, seen in answers.merges.items()
                    for target, meant in targets.merges.items()
                    if seen == meant
                ]
        columns = list(zip(*rows, strict=True)) or [()] * len(_PAIR)
        arrays = {
            name: pa.array(column, pa.string()) for name, column in zip(_PAIR, columns, strict=True)
        }
        return pa.table({**arrays, "is_right": pa.array([True] * len(rows), pa.bool_())})

    def _group_columns(self) -> list[str]:
        columns = [row[0] for row in self._all("DESCRIBE predictions", [])]
        return [name for name in columns if name.startswith(_GROUP_PREFIXES)]

    def _choices(self) -> Iterator[Choice]:
        for key in _KEYS:
            if len(options := self._options(key)) > 1:
                yield Choice(key, key, options)
        groups = [
            Option(f"{name}{_SEPARATOR}{option.value}", option.rows)
            for name in self._groups
            for option in self._options(name)
        ]
        if groups:
            yield Choice("group", "group", tuple(groups))

    def _options(self, column: str) -> tuple[Option, ...]:
        found = self._all(
            f'SELECT "{column}", count(*) FROM seen WHERE "{column}" IS NOT NULL '
            f"GROUP BY 1 ORDER BY 1 LIMIT {_MOST_VALUES + 1}",
            [],
        )
        return tuple(Option(*row) for row in found) if len(found) <= _MOST_VALUES else ()

    def _all(self, query: str, values: Any) -> list[Any]:
        found: list[Any] = self._sql.execute(query, values).fetchall()
        return found


def _local(storage: Storage, names: Sequence[str], scratch: Path) -> list[str]:
    """Paths of the Parquet files, copied to `scratch` where they are not on a local disk."""
    wanted = [name for name in names if name.endswith(".parquet")]
    if isinstance(storage, LocalStorage):
        return [f"{storage.location}/{name}" for name in wanted]
    copies = scratch / storage.location.rpartition("/")[2]
    copies.mkdir()
    for name in wanted:
        with storage.open(name) as source, (copies / name).open("wb") as target:
            while block := source.read(1 << 22):
                target.write(block)
    return [str(copies / name) for name in wanted]
