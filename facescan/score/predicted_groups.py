"""Another run's answers as columns to group by, where a dataset does not label its people itself.

Such groups are a model's view of who is in a picture: wrong for some, and more often for some
groups than for others. So they are always marked as predicted.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facescan.errors import DataError, UsageError
from facescan.score.counts import ROW
from facescan.score.groupings import PREDICTED
from facescan.storage import Storage
from facescan.types import Outcome

_ASKED = ("model", "protocol", "attribute")
_COLUMNS = (*ROW, *_ASKED, "outcome", "label")


class PredictedGroups:
    """What one model of a run answered, by image and person; 0.2 GB for a million images.

    Attributes:
        columns: `predicted_<attribute>`, for each attribute that it was asked.
        source: whose answers they are, for people.
    """

    def __init__(self, run: str, predictions: Storage, model: str | None = None) -> None:
        """Read the predictions of `run`.

        Args:
            run: as the user calls it.
            predictions: where its predictions are.
            model: whose answers are taken, `MODEL` or `MODEL/PROTOCOL`; may be left out where an
                attribute was asked once.

        Raises:
            UsageError: there are no predictions, or it is not clear which are meant.
            DataError: a file is no predictions.
            OSError: they cannot be reached.
        """
        names = [name for name in predictions.names() if name.endswith(".parquet")]
        asked = {each for name in names for each in _asked(predictions, name)}
        chosen = _chosen(run, sorted(asked), model)
        self.columns = tuple(f"{PREDICTED}{attribute}" for attribute in sorted(chosen))
        whose = sorted({f"{who}" for who, _ in chosen.values()})
        self.source = f"predicted by {', '.join(whose)} in {run}"
        self._place: dict[tuple[Any, ...], int] = {}
        self._labels: dict[str, list[str]] = {name: [] for name in self.columns}
        self._codes: dict[str, dict[int, int]] = {name: {} for name in self.columns}
        for name in names:
            for batch in _batches(predictions, name, _COLUMNS):
                self._add(batch, chosen)

    def _add(self, batch: pa.RecordBatch, chosen: Mapping[str, tuple[str, str]]) -> None:
        for *row, model, protocol, attribute, outcome, label in zip(
            *(batch.column(name).to_pylist() for name in _COLUMNS), strict=True
        ):
            if outcome == Outcome.ANSWERED and chosen.get(attribute) == (model, protocol):
                labels = self._labels[f"{PREDICTED}{attribute}"]
                if label not in labels:
                    labels.append(label)
                place = self._place.setdefault(tuple(row), len(self._place))
                self._codes[f"{PREDICTED}{attribute}"][place] = labels.index(label)

    def __call__(self, batch: pa.RecordBatch) -> dict[str, "pa.Array[Any]"]:
        """The columns for the rows of `batch`, which has those of `ROW`; null where unanswered."""
        rows = zip(*(batch.column(name).to_pylist() for name in ROW), strict=True)
        places = [self._place.get(row, -1) for row in rows]
        found: dict[str, pa.Array[Any]] = {}
        for name in self.columns:
            codes = np.array([self._codes[name].get(place, -1) for place in places], np.int32)
            indices: pa.Array[Any] = pa.array(codes, pa.int32(), mask=codes < 0)
            labels = pa.array(self._labels[name], pa.string())
            found[name] = pa.DictionaryArray.from_arrays(indices, labels)
        return found


def _chosen(
    run: str, asked: Sequence[tuple[str, str, str]], model: str | None
) -> dict[str, tuple[str, str]]:
    """Attribute -> the model and protocol whose answers are taken."""
    taken: dict[str, list[tuple[str, str]]] = {}
    for who, protocol, attribute in asked:
        if model in (None, who, f"{who}/{protocol}"):
            taken.setdefault(attribute, []).append((who, protocol))
    known = ", ".join(sorted({f"{who}/{protocol}" for who, protocol, _ in asked}))
    if not taken:
        problem = f"no answers of '{model}'; there are: {known}" if asked else "no predictions"
        raise UsageError(f"--groups-from {run}: {problem}")
    for attribute, whose in taken.items():
        if len(whose) > 1:
            raise UsageError(
                f"--groups-from {run}: {attribute} was asked more than once; say whose answers "
                f"make groups with --groups-model, one of: {known}"
            )
    return {attribute: whose[0] for attribute, whose in taken.items()}


def _asked(predictions: Storage, name: str) -> set[tuple[str, str, str]]:
    found = set[tuple[str, str, str]]()
    for batch in _batches(predictions, name, _ASKED):
        distinct = pa.Table.from_batches([batch]).group_by(list(_ASKED)).aggregate([])
        found.update(zip(*(distinct[each].to_pylist() for each in _ASKED), strict=True))
    return found


def _batches(predictions: Storage, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with predictions.open(name) as file:
        try:
            with pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(columns=list(columns))
        except (pa.ArrowException, OSError, KeyError) as error:
            where = f"{predictions.location}/{name}"
            raise DataError(f"{where}: cannot be read as predictions: {error}") from error
