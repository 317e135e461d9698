"""The two files: exact columns, the same bytes for the same predictions, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from facescan import storage
from facescan.score import metrics, output
from facescan.score.views import tallies
from tests.facescan.score.hats import Row, failed, load, row
from tests.facescan.score.test_views import counts

ROWS = [
    row("cap", "cap"),
    row("cap", "beret"),
    row("none", "cap"),
    row("none", "none"),
    failed("refused", "cap"),
    failed("pending", "crown"),
    failed("blocked", None),
    row("crown", None),
]


def written(folder: Path, rows: list[Row]) -> tuple[Path, Path]:
    scores = [metrics.of(tally) for tally in tallies(counts(rows), load)]
    parquet, text = output.write(storage.at(folder), scores)
    return Path(parquet), Path(text)


def figures(path: Path, view: str = "hat-4") -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = pq.read_table(path).to_pylist()
    here = [r for r in rows if r["view"] == view]
    found = {(r["slice"], r["group"], r["metric"]): r for r in here}
    assert len(found) == len(here), "a figure stands twice"
    return found


def test_the_columns_are_those_of_the_design(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path, ROWS)[0])
    assert table.column_names == [
        *("model", "dataset", "split", "attribute", "protocol", "answer_mode"),
        *("asked_label_set", "view", "slice", "group", "metric", "value", "ci_low", "ci_high"),
        *("n", "n_answered"),
    ]
    assert table.schema.metadata[b"facescan.scores_version"] == b"1"


def test_figures_stand_in_long_form(tmp_path: Path) -> None:
    found = figures(written(tmp_path, ROWS)[0])
    accuracy = found["all", "", "accuracy"]
    assert (accuracy["value"], accuracy["n"], accuracy["n_answered"]) == (2 / 5, 5, 4)
    assert accuracy["ci_low"] < 2 / 5 < accuracy["ci_high"]
    assert found["all", "", "accuracy_worst"]["value"] == 2 / 6
    assert found["all", "", "outcome_pending"]["value"] == 1
    assert found["all", "", "n_unlabelled"]["value"] == 2
    assert found["class", "cap", "recall"]["value"] == 1 / 3
    assert found["class", "cap", "recall"]["n"] == 3
    assert found["class", "crown", "recall"]["value"] is None
    assert found["target:cap", "label:none", "confusion"]["value"] == 1
    assert found["target:cap", "outcome:refused", "confusion"]["value"] == 1
    assert found["target:crown", "outcome:pending", "confusion"]["value"] == 1
    assert ("target:crown", "label:crown", "confusion") not in found
    assert found["unlabelled", "", "outcome_blocked"]["value"] == 1
    assert found["unlabelled", "label:crown", "confusion"]["value"] == 1
    outside = figures(tmp_path / "metrics.parquet", "hat-2")
    assert outside["target:soft", "outside_view", "confusion"]["value"] == 1
    assert outside["all", "", "n_excluded"]["value"] == 1


def test_json_says_the_same_as_parquet(tmp_path: Path) -> None:
    parquet, text = written(tmp_path, ROWS)
    document = json.loads(text.read_text())
    assert document["version"] == output.VERSION
    for entry in document["scores"]:
        found = figures(parquet, entry["view"])
        for name in ("n", "n_excluded", "accuracy_best", "macro_f1"):
            assert entry[name] == found["all", "", name]["value"]
        assert entry["accuracy"]["ci_low"] == found["all", "", "accuracy"]["ci_low"]
        matrix = entry["confusion"]
        for target, line in zip(matrix["targets"], matrix["counts"], strict=True):
            for column, n in zip(matrix["columns"], line, strict=True):
                cell = found.get((f"target:{target}", column, "confusion"), {"value": 0})
                assert n == cell["value"]
        assert sum(map(sum, matrix["counts"])) == entry["n"] + entry["n_run_failures"]


def test_json_keys_are_stable(tmp_path: Path) -> None:
    """Taking one away, or giving it another meaning, needs a new version."""
    (entry, *_) = json.loads(written(tmp_path, ROWS)[1].read_text())["scores"]
    assert list(entry) == [
        *("model", "dataset", "split", "attribute", "protocol", "answer_mode"),
        *("asked_label_set", "view", "complete"),
        *("n", "n_answered", "n_correct", "n_outside_view", "n_run_failures", "n_excluded"),
        *("n_unlabelled", "accuracy", "accuracy_answered", "accuracy_worst", "accuracy_best"),
        *("macro_f1", "outcomes", "zero_support", "classes", "confusion", "unlabelled"),
    ]
    assert entry["complete"] is False
    assert entry["zero_support"] == ["crown"]
    assert entry["unlabelled"]["answers"] == {"label:crown": 1}


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    once = written(tmp_path / "1", ROWS)
    again = written(tmp_path / "2", list(reversed(ROWS)))
    for first, second in zip(once, again, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_a_failed_write_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [path.read_bytes() for path in written(tmp_path, ROWS)]

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("facescan.durable.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        written(tmp_path, ROWS[:2])
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir(), reverse=True)] == before
