"""Counts add, whatever files the rows are in."""

import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescan import storage
from facescan.errors import DataError
from facescan.score.counts import CELL, COMBINATION, COUNTS_SCHEMA, count
from facescan.types import PREDICTION_SCHEMA
from tests.facescan.score.hats import Row, failed, row, write

Cells = Counter[tuple[str | None, ...]]

ROWS = st.builds(
    row,
    label=st.sampled_from(["none", "cap", None]),
    target=st.sampled_from(["none", "cap", None]),
    model=st.sampled_from(["seer", "oracle"]),
    split=st.sampled_from(["test", "train"]),
    outcome=st.sampled_from(["answered", "refused", "pending"]),
    target_label_set=st.sampled_from(["hat-4", None]),
)


def cells(counts: pa.Table) -> Cells:
    found: Cells = Counter()
    for counted in counts.to_pylist():
        found[tuple(counted[name] for name in COMBINATION + CELL)] += counted["n"]
    return found


def counted(*parts: list[Row]) -> Cells:
    with tempfile.TemporaryDirectory() as folder:
        for i, part in enumerate(parts):
            write(Path(folder) / f"{i}.parquet", part)
        return cells(count(storage.at(folder), [f"{i}.parquet" for i in range(len(parts))]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(ROWS, max_size=12), min_size=1, max_size=4), st.randoms())
def test_counts_of_parts_add_to_the_counts_of_the_whole(
    parts: list[list[Row]], random: Random
) -> None:
    whole = [row for part in parts for row in part]
    random.shuffle(whole)
    together = counted(whole)
    assert sum((counted(part) for part in parts), Cells()) == together
    assert counted(*parts) == together
    assert together == Counter(tuple(row.get(name) for name in COMBINATION + CELL) for row in whole)


def test_counts_are_sorted_and_of_one_schema(tmp_path: Path) -> None:
    rows = [row("cap", "cap"), failed("refused", "cap"), row("cap", "cap", model="a")]
    write(tmp_path / "1.parquet", rows)
    write(tmp_path / "2.parquet", reversed(rows))
    counts = count(storage.at(tmp_path), ["1.parquet"])
    assert counts.schema == COUNTS_SCHEMA
    assert counts["model"].to_pylist() == ["a", "seer", "seer"]
    assert counts == count(storage.at(tmp_path), ["2.parquet"])


def test_columns_are_found_by_name_and_others_are_not_read(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "1.parquet", [row("cap", "cap")]))
    table = table.select(list(reversed(table.column_names)))
    pq.write_table(table.append_column("group_light", pa.array(["dim"])), tmp_path / "2.parquet")
    counts = count(storage.at(tmp_path), ["1.parquet", "2.parquet"])
    assert counts["n"].to_pylist() == [2]


def test_dictionary_columns_count_like_plain_ones(tmp_path: Path) -> None:
    rows = [row("cap", "cap"), failed("refused", None)]
    table = pq.read_table(write(tmp_path / "1.parquet", rows))
    for name in ("model", "label", "target"):
        position = table.column_names.index(name)
        table = table.set_column(position, name, table[name].dictionary_encode())
    pq.write_table(table, tmp_path / "2.parquet")
    folder = storage.at(tmp_path)
    assert count(folder, ["2.parquet"]) == count(folder, ["1.parquet"])


@pytest.mark.parametrize("name", ["try[2]", "all*", "what?", "model=other", "o'clock"])
def test_a_folder_of_any_name_is_read_as_it_stands(tmp_path: Path, name: str) -> None:
    write(tmp_path / "all of them" / "1.parquet", [row("none", "none")])
    write(tmp_path / name / "1.parquet", [row("cap", "cap")])
    counts = count(storage.at(tmp_path / name), ["1.parquet"])
    assert counts.to_pylist()[0]["model"] == "seer"
    assert counts["label"].to_pylist() == ["cap"]


def test_a_file_that_is_no_predictions_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "1.parquet"
    broken.write_text("not Parquet")
    folder = storage.at(tmp_path)
    with pytest.raises(DataError, match=f"{broken}: cannot be read as predictions"):
        count(folder, ["1.parquet"])
    schema = PREDICTION_SCHEMA.remove(PREDICTION_SCHEMA.get_field_index("outcome"))
    pq.write_table(schema.empty_table(), broken)
    with pytest.raises(DataError, match=f"{broken}: .*no column outcome"):
        count(folder, ["1.parquet"])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    damaged = write(tmp_path / "1.parquet", [row("cap", "cap")])
    data = bytearray(damaged.read_bytes())
    data[4:40] = bytes(36)
    damaged.write_bytes(data)
    with pytest.raises(DataError, match=f"{damaged}: cannot be read as predictions"):
        count(storage.at(tmp_path), ["1.parquet"])


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/1.parquet"):
        count(storage.at(tmp_path), ["1.parquet"])
