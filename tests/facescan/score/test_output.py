"""The two files: exact columns, the same bytes for the same predictions, whole or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest

from facescan import storage
from facescan.score import metrics, output
from facescan.score.views import tallies
from tests.facescan.score.hats import Row, counted, failed, load, row

GROUPED: list[Row] = [
    row(
        ("cap", "none", "crown")[number % 3],
        ("cap", "cap", "crown", "none")[number % 4],
        subject_id=f"s{number % 37}" if number % 5 else None,
        probability=(number % 7 + 1) / 9,
        group_light=("dim", "bright", "dark")[number % 11 % 3],
        label_race="White" if number % 2 else "Black",
    )
    for number in range(300)
] + [failed("refused", "cap", group_light="dim", label_race="Black")] * 9
"""With subjects, probabilities and groups."""

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


def written(
    folder: Path, rows: list[Row], by: Sequence[str] = ("none",), min_cell: int = 20
) -> tuple[Path, Path]:
    scores = [metrics.of(tally, min_cell) for tally in tallies(counted(rows, by), load)]
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
    assert table.schema.metadata[b"facescan.scores_version"] == b"3"


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
        for name in ("n", "n_excluded", "accuracy_best"):
            assert entry[name] == found["all", "", name]["value"]
        for name in ("accuracy", "balanced_accuracy", "macro_f1"):
            for bound in ("value", "ci_low", "ci_high"):
                assert entry[name][bound] == found["all", "", name][bound]
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
        *("balanced_accuracy", "macro_f1", "intervals", "outcomes", "outcome_rates"),
        *("zero_support", "classes", "confusion", "ordinal", "calibration", "groups"),
        "unlabelled",
    ]
    assert entry["complete"] is False
    assert entry["zero_support"] == ["crown"]
    assert entry["unlabelled"]["answers"] == {"label:crown": 1}


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    once = written(tmp_path / "1", ROWS)
    again = written(tmp_path / "2", list(reversed(ROWS)))
    for first, second in zip(once, again, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_the_same_rows_with_subjects_and_groups_give_the_same_bytes(tmp_path: Path) -> None:
    shuffled = [*GROUPED]
    Random(1).shuffle(shuffled)
    once = written(tmp_path / "1", GROUPED, ["light", "race", "light+race"])
    again = written(tmp_path / "2", shuffled, ["light", "race", "light+race"])
    for first, second in zip(once, again, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_groups_stand_in_both_files(tmp_path: Path) -> None:
    parquet, text = written(tmp_path, GROUPED, ["light", "light+race"], min_cell=45)
    found = figures(parquet)
    entry = json.loads(text.read_text())["scores"][0]
    assert entry["intervals"]["method"] == "clustered"
    assert [each["by"] for each in entry["groups"]] == [["light"], ["light", "race"]]
    for grouping in entry["groups"]:
        name = f"by:{'+'.join(grouping['by'])}"
        for cell in grouping["cells"]:
            group = "+".join(cell["group"])
            if cell["suppressed"]:
                assert found[name, group, "suppressed"]["value"] == 1
                assert cell["accuracy"] == {"value": None, "ci_low": None, "ci_high": None}
                continue
            accuracy = found[name, group, "accuracy"]
            assert {key: accuracy[key] for key in cell["accuracy"]} == cell["accuracy"]
            assert (accuracy["n"], accuracy["n_answered"]) == (cell["n"], cell["n_answered"])
            rate = found[name, group, "rate_refused"]["value"]
            assert rate == cell["outcome_rates"]["refused"]["value"]
            check_details(found, name, group, cell)
        assert found[name, "", "difference"]["value"] == grouping["largest_gap"]["value"]
        test = grouping["equal_rate"]
        assert found[name, "", "equal_rate_p:accuracy"]["value"] == test["p_holm"]
    assert any(c["suppressed"] for each in entry["groups"] for c in each["cells"])
    assert entry["calibration"]["n"] == 300
    assert found["all", "", "ece"]["value"] == entry["calibration"]["ece"]
    assert sum(each["n"] for each in entry["calibration"]["bins"]) == 300


def check_details(found: dict[tuple[str, str, str], Any], name: str, group: str, cell: Any) -> None:
    """By class, by cell of the confusion matrix and by bin, as in JSON."""
    for metric in ("macro_f1", "balanced_accuracy"):
        assert cell[metric] == {key: found[name, group, metric][key] for key in cell[metric]}
        assert cell[metric]["ci_low"] < cell[metric]["value"] < cell[metric]["ci_high"]
    for c in cell["classes"]:
        recall = found[name, group, f"recall:{c['label']}"]
        assert {key: recall[key] for key in c["recall"]} == c["recall"]
        assert found[name, group, f"support:{c['label']}"]["value"] == c["support"]
    met = [n for columns in cell["confusion"].values() for n in columns.values()]
    assert sum(met) == cell["n"]
    assert (
        found[name, group, "confusion:cap/label:cap"]["value"]
        == (cell["confusion"]["cap"]["label:cap"])
    )
    assert found[name, group, "ece"]["value"] == cell["calibration"]["ece"]
    for each in cell["calibration"]["bins"]:
        share = found[name, group, f"calibration_accuracy:{each['low']:.1f}-{each['high']:.1f}"]
        assert share["value"] == each["accuracy"]["value"]


def test_a_rate_of_each_outcome_stands_beside_the_accuracy(tmp_path: Path) -> None:
    parquet, text = written(tmp_path, ROWS)
    refused = json.loads(text.read_text())["scores"][0]["outcome_rates"]["refused"]
    found = figures(parquet)["all", "", "rate_refused"]
    assert refused == {key: found[key] for key in refused}
    assert refused["value"] == 1 / 5
    assert refused["ci_low"] < 1 / 5 < refused["ci_high"]
    # Outcomes of the run are no share of what the model did.
    assert ("all", "", "rate_pending") not in figures(parquet)


def test_groups_without_targets_have_outcomes_and_selection_in_both_files(tmp_path: Path) -> None:
    rows = [row("cap", None, group_light="dim")] * 80
    rows += [failed("refused", None, group_light="dim")] * 20
    parquet, text = written(tmp_path, rows, ["light"])
    found = figures(parquet)
    cell = json.loads(text.read_text())["scores"][0]["groups"][0]["cells"][0]
    assert (cell["n"], cell["n_answered"]) == (100, 80)
    assert cell["outcomes"] == {"answered": 80, "refused": 20}
    assert cell["selection_rates"]["cap"] == 0.8
    assert found["by:light", "dim", "selection_rate:cap"]["value"] == 0.8
    assert found["by:light", "dim", "outcome_refused"]["value"] == 20
    assert ("by:light", "dim", "accuracy") not in found


def test_what_failed_in_the_run_is_counted_by_group(tmp_path: Path) -> None:
    rows = [row("cap", "cap", group_light=light) for light in ("dim", "dark")] * 70
    rows += [failed("no_face", "cap", group_light="dark")] * 40
    rows += [failed("no_face", "cap", group_light="black")] * 500
    parquet, text = written(tmp_path, rows, ["light"])
    (grouping,) = json.loads(text.read_text())["scores"][0]["groups"]
    cells = {cell["group"][0]: cell for cell in grouping["cells"]}
    assert {name: cell["n_run_failures"] for name, cell in cells.items()} == {
        "black": 500,
        "dark": 40,
        "dim": 0,
    }
    assert (cells["black"]["n"], cells["black"]["suppressed"]) == (0, True)
    assert cells["dark"]["accuracy_worst"] == 70 / 110
    assert figures(parquet)["by:light", "black", "n_run_failures"]["value"] == 500
    assert "Rows that failed in the run are in no rate: black 500, dark 40." in grouping["remarks"]


def test_keys_of_a_grouping_are_stable(tmp_path: Path) -> None:
    entry = json.loads(written(tmp_path, GROUPED, ["light"])[1].read_text())["scores"][0]
    (grouping,) = entry["groups"]
    assert list(grouping) == [
        *("by", "source", "min_cell", "n_ungrouped", "cells", "pooled", "equal_rate"),
        *("largest_gap", "ratio", "worst", "equalized_odds_difference"),
        *("demographic_parity_difference", "outcome_tests", "findings", "remarks"),
    ]
    assert list(grouping["cells"][0]) == [
        *("group", "n", "n_answered", "n_correct", "n_outside_view", "n_run_failures"),
        *("n_excluded", "subjects", "suppressed", "few", "accuracy", "simultaneous"),
        *("accuracy_answered", "accuracy_worst", "accuracy_best", "balanced_accuracy"),
        *("macro_f1", "outcomes", "outcome_rates", "selection_rates", "classes", "confusion"),
        *("ordinal", "calibration"),
    ]
    assert list(grouping["equal_rate"]) == ["method", "statistic", "df", "p", "p_holm"]


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
