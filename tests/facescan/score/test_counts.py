"""Counts add, whatever files the rows are in."""

import tempfile
from collections import Counter as Bag
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescan import storage
from facescan.attributes import load as shipped
from facescan.errors import DataError
from facescan.score import counts as counting
from facescan.score.counts import CELL, COMBINATION, Counts, count
from facescan.score.groupings import groupings
from facescan.types import PREDICTION_SCHEMA
from tests.facescan.score.hats import Row, counted, failed, load, row, table, write

ROWS = st.builds(
    row,
    label=st.sampled_from(["none", "cap", None]),
    target=st.sampled_from(["none", "cap", None]),
    model=st.sampled_from(["seer", "oracle"]),
    split=st.sampled_from(["test", "train"]),
    outcome=st.sampled_from(["answered", "refused", "pending"]),
    target_label_set=st.sampled_from(["hat-4", None]),
    subject_id=st.sampled_from(["ann", "bea", "cem", None]),
    probability=st.sampled_from([None, 0.0, 0.05, 0.1, 0.1 + 1e-12, 1 / 3, 0.7, 1.0]),
    group_light=st.sampled_from(["dim", "bright", None]),
    label_race=st.sampled_from(["White", "Black"]),
)
BY = ("light", "race", "light+race")


def plain(counts: Counts) -> dict[str, Any]:
    """What is counted; rows that differ in nothing but their group may stand in any order."""
    found = asdict(counts)
    groups = [
        {
            "groups": each.groups,
            "sums": sorted(
                zip(
                    *(column.tolist() for column in (each.part, each.cell, each.n)),
                    *(each.probability, each.squares),
                    strict=True,
                )
            ),
            "given_up": each.given_up,
        }
        for each in counts.grouped
    ]
    rows = []
    if counts.subjects is not None:
        columns = [counts.subjects.subject.tolist(), counts.subjects.cell.tolist()]
        columns += [each.rows.tolist() for each in counts.grouped if each.rows is not None]
        rows = sorted(zip(*columns, strict=True))
    return {**found, "n": counts.n.tolist(), "grouped": groups, "subjects": rows}


def same(some: Sequence[Counts], others: Sequence[Counts]) -> bool:
    return [plain(each) for each in some] == [plain(each) for each in others]


def of_parts(*parts: list[Row]) -> list[Counts]:
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(parts):
            pq.write_table(table(part), Path(folder) / f"{number}.parquet", row_group_size=5)
        names = [f"{number}.parquet" for number in range(len(parts))]
        by = groupings(BY, ["group_light", "label_race"])
        return count(storage.at(folder), names, load, by)


def cells(found: Sequence[Counts]) -> Bag[tuple[Any, ...]]:
    bag: Bag[tuple[Any, ...]] = Bag()
    for each in found:
        for cell, n in zip(each.cells, each.n.tolist(), strict=True):
            bag[(*each.combination, *cell[: len(CELL)])] += n
    return bag


def here(folder: Path, *names: str) -> list[Counts]:
    return count(storage.at(folder), names, load)


@settings(max_examples=25)
@given(st.lists(st.lists(ROWS, max_size=12), min_size=1, max_size=4), st.randoms())
def test_any_split_of_the_rows_counts_the_same(parts: list[list[Row]], random: Random) -> None:
    """To the last bit: groups, subjects and sums of probabilities too."""
    whole = [row for part in parts for row in part]
    random.shuffle(whole)
    together = of_parts(whole)
    assert same(together, of_parts(*parts))
    assert cells(together) == Bag(
        tuple(row.get(name) for name in COMBINATION + CELL) for row in whole
    )


def test_rows_are_counted_by_group_without_those_that_have_none() -> None:
    rows = [
        row("cap", "cap", group_light="dim", label_race="White"),
        row("cap", "cap", group_light="dim", label_race="Black"),
        row("none", "cap", group_light=None, label_race="Black"),
    ]
    (found,) = counted(rows, BY)
    light, race, both = found.grouped
    assert (light.groups, light.n.tolist()) == ((("dim",),), [2])
    assert race.groups == (("Black",), ("White",))
    assert sorted(zip(race.part.tolist(), race.n.tolist(), strict=True)) == [(0, 1), (0, 1), (1, 1)]
    assert both.groups == (("dim", "Black"), ("dim", "White"))


def test_sums_of_a_group_are_exact_however_many_and_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces that are summed now and then, and above what 64 bits hold."""
    monkeypatch.setattr(counting, "PROBABILITY_UNIT", 1 << 60)
    monkeypatch.setattr(counting, "_KEYS_AT_ONCE", 4)
    rows = [
        row("cap", "cap", group_light=light, label_race="x", probability=1.0)
        for light in ("dim", "bright", "dim")
    ]
    (found,) = of_parts(*[rows] * 20)
    light = found.grouped[0]
    assert light.groups == (("bright",), ("dim",))
    assert light.n.tolist() == [20, 40]
    assert light.probability == light.squares == (20 << 60, 40 << 60)


def test_a_grouping_with_too_many_groups_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("cap", "cap", group_light=str(number), label_race="x") for number in range(8)]
    monkeypatch.setattr(counting, "MOST_GROUPS", 7)
    (found,) = counted(rows, BY)
    assert [each.given_up for each in found.grouped] == [True, False, True]
    assert found.grouped[0].groups == ()
    (found,) = counted(rows[:7], BY)
    assert not any(each.given_up for each in found.grouped)


def test_rows_of_a_subject_stand_together_and_those_without_are_left_out() -> None:
    rows = [row("cap", "cap", subject_id=who) for who in ("b", None, "a", "b")]
    (found,) = counted([*rows, row("none", "cap", subject_id="b")])
    assert found.subjects is not None
    assert found.subjects.number == 2
    assert found.subjects.subject.tolist() == [0, 1, 1, 1]
    assert [found.cells[cell].label for cell in found.subjects.cell] == [
        "cap",
        "cap",
        "cap",
        "none",
    ]
    (found,) = counted(rows[1:2])
    assert found.subjects is None


def test_true_ages_are_counted_where_labels_are_bins_of_years() -> None:
    asked = {"asked_label_set": "age-5", "target_label_set": "age-9"}
    aged = row("0-9", "3-9", attribute="age", value_years=7.25, **asked)
    (found,) = counted([aged, {**aged, "value_years": None}], load=shipped)
    assert [cell.years for cell in found.cells] == [725, None]
    (found,) = counted([row("cap", "cap", value_years=7.0)])
    assert [cell.years for cell in found.cells] == [None]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(tmp_path: Path, wrong: float) -> None:
    path = write(tmp_path / "1.parquet", [row("cap", "cap", probability=wrong)])
    with pytest.raises(DataError, match=f"{path}: holds the probability {wrong}"):
        here(tmp_path, "1.parquet")


def test_files_from_before_a_column_was_there_are_counted(tmp_path: Path) -> None:
    written = pq.read_table(write(tmp_path / "1.parquet", [row("cap", "cap")]))
    pq.write_table(written.drop_columns(["probability", "subject_id"]), tmp_path / "2.parquet")
    assert same(here(tmp_path, "1.parquet"), here(tmp_path, "2.parquet"))


def test_counts_are_sorted(tmp_path: Path) -> None:
    rows = [row("cap", "cap"), failed("refused", "cap"), row("cap", "cap", model="a")]
    write(tmp_path / "1.parquet", rows)
    write(tmp_path / "2.parquet", reversed(rows))
    found = here(tmp_path, "1.parquet")
    assert [each.combination[0] for each in found] == ["a", "seer"]
    assert [cell.outcome for cell in found[1].cells] == ["answered", "refused"]
    assert same(found, here(tmp_path, "2.parquet"))


def test_columns_are_found_by_name_and_others_are_not_read(tmp_path: Path) -> None:
    one = pq.read_table(write(tmp_path / "1.parquet", [row("cap", "cap")]))
    other = one.select(list(reversed(one.column_names)))
    pq.write_table(other.append_column("group_light", pa.array(["dim"])), tmp_path / "2.parquet")
    (found,) = here(tmp_path, "1.parquet", "2.parquet")
    assert found.n.tolist() == [2]


def test_dictionary_columns_count_like_plain_ones(tmp_path: Path) -> None:
    rows = [row("cap", "cap"), failed("refused", None)]
    plain_ = pq.read_table(write(tmp_path / "1.parquet", rows))
    for name in ("model", "label", "target"):
        position = plain_.column_names.index(name)
        plain_ = plain_.set_column(position, name, plain_[name].dictionary_encode())
    pq.write_table(plain_, tmp_path / "2.parquet")
    assert same(here(tmp_path, "2.parquet"), here(tmp_path, "1.parquet"))


@pytest.mark.parametrize("name", ["try[2]", "all*", "what?", "model=other", "o'clock"])
def test_a_folder_of_any_name_is_read_as_it_stands(tmp_path: Path, name: str) -> None:
    write(tmp_path / "all of them" / "1.parquet", [row("none", "none")])
    write(tmp_path / name / "1.parquet", [row("cap", "cap")])
    (found,) = here(tmp_path / name, "1.parquet")
    assert [cell.label for cell in found.cells] == ["cap"]


def test_a_file_that_is_no_predictions_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "1.parquet"
    broken.write_text("not Parquet")
    with pytest.raises(DataError, match=f"{broken}: cannot be read as predictions"):
        here(tmp_path, "1.parquet")
    schema = PREDICTION_SCHEMA.remove(PREDICTION_SCHEMA.get_field_index("outcome"))
    pq.write_table(schema.empty_table(), broken)
    with pytest.raises(DataError, match=f"{broken}: .*no column outcome"):
        here(tmp_path, "1.parquet")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    damaged = write(tmp_path / "1.parquet", [row("cap", "cap")])
    data = bytearray(damaged.read_bytes())
    data[4:40] = bytes(36)
    damaged.write_bytes(data)
    with pytest.raises(DataError, match=f"{damaged}: cannot be read as predictions"):
        here(tmp_path, "1.parquet")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/1.parquet"):
        here(tmp_path, "1.parquet")
