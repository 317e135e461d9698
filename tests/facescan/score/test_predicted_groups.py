"""Another run's answers as groups."""

from pathlib import Path

import pytest

from facescan import storage
from facescan.errors import DataError, UsageError
from facescan.score.predicted_groups import PredictedGroups
from tests.facescan.score.hats import Row, failed, row, table, write


def other(folder: Path, rows: list[Row], model: str | None = None) -> PredictedGroups:
    write(folder / "1.parquet", rows)
    return PredictedGroups("runs/other", storage.at(folder), model)


def about(image: str, label: str | None, **others: str | int) -> Row:
    if label is None:
        return failed("refused", None, image_id=image, **others)
    return row(label, None, image_id=image, **others)


def joined(groups: PredictedGroups, rows: list[Row]) -> dict[str, list[str | None]]:
    (batch,) = table(rows).to_batches()
    return {name: each.to_pylist() for name, each in groups(batch).items()}


def test_answers_are_found_by_image_and_person(tmp_path: Path) -> None:
    groups = other(
        tmp_path,
        [
            about("1", "cap"),
            about("2", None),
            about("3", "none"),
            about("3", "crown", person=1),
            about("4", "cap", split="train"),
        ],
    )
    assert groups.columns == ("predicted_hat",)
    assert groups.source == "predicted by seer in runs/other"
    rows = [about("3", "cap"), about("3", "cap", person=1), about("1", None)]
    rows += [about("2", "cap"), about("4", "cap"), about("9", "cap")]
    assert joined(groups, rows) == {"predicted_hat": ["none", "crown", "cap", None, None, None]}


def test_whose_answers_must_be_clear(tmp_path: Path) -> None:
    rows = [about("1", "cap"), about("1", "none", model="oracle")]
    rows += [about("1", "crown", model="oracle", protocol="brief")]
    with pytest.raises(UsageError, match=r"hat was asked more than once.*oracle/brief"):
        other(tmp_path, rows)
    assert joined(other(tmp_path, rows, "seer"), rows[:1]) == {"predicted_hat": ["cap"]}
    with pytest.raises(UsageError, match="more than once"):
        other(tmp_path, rows, "oracle")
    assert joined(other(tmp_path, rows, "oracle/brief"), rows[:1]) == {"predicted_hat": ["crown"]}
    with pytest.raises(UsageError, match=r"no answers of 'sage'; there are: oracle/brief"):
        other(tmp_path, rows, "sage")


def test_a_run_without_predictions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs/other: no predictions"):
        PredictedGroups("runs/other", storage.at(tmp_path))


def test_a_file_that_is_no_predictions_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.parquet").write_text("not Parquet")
    with pytest.raises(DataError, match=f"{tmp_path}/1.parquet: cannot be read as predictions"):
        PredictedGroups("runs/other", storage.at(tmp_path))
