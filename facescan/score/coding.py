"""Columns as numbers: rows are told apart and counted by arithmetic, not string by string."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_SMALL = 1 << 18
"""Distinct values up to which a table is quicker than sorting."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A column as numbers; `values[code]` is what a number stands for, None for null."""

    codes: Ints
    values: Sequence[Any]

    def at(self, rows: Ints) -> list[Any]:
        """The values of these rows."""
        return [self.values[code] for code in self.codes[rows].tolist()]

    def take(self, rows: Ints) -> "Coded":
        """These rows alone."""
        return Coded(self.codes[rows], self.values)

    def known(self) -> npt.NDArray[np.bool_]:
        """Rows that are not null, which only the last value can be."""
        if not len(self.values) or self.values[-1] is not None:
            return np.ones(len(self.codes), np.bool_)
        return np.not_equal(self.codes, len(self.values) - 1)


def coded(column: "pa.Array[Any]") -> Coded:
    """A column of strings, or of dictionaries of strings."""
    whole: Any = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    values, codes = whole.dictionary.to_pylist(), whole.indices
    if codes.null_count:
        codes = codes.cast(pa.int64()).fill_null(len(values))
        values = [*values, None]
    return Coded(codes.to_numpy(zero_copy_only=False).astype(np.int64), values)


def distinct(columns: Sequence[Coded], size: int) -> tuple[Ints, Ints]:
    """A number for each row, equal where all columns are, and the first row of each number."""
    key, radix = np.zeros(size, np.int64), 1
    for column in columns:
        if len(column.values) > 1:
            if radix * len(column.values) > np.iinfo(np.int64).max:
                _, key = np.unique(key, return_inverse=True)
                radix = int(key.max()) + 1
            key = key * len(column.values) + column.codes
            radix *= len(column.values)
    if radix > _SMALL:
        _, first, number = np.unique(key, return_index=True, return_inverse=True)
        return number, first
    row_of = np.full(radix, -1)
    row_of[key[::-1]] = np.arange(size - 1, -1, -1)
    present = np.flatnonzero(row_of >= 0)
    number_of = np.zeros(radix, np.int64)
    number_of[present] = np.arange(len(present))
    return number_of[key], row_of[present]
