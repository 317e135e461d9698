"""facescan score RUN, on label sets that ship."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from facescan import storage
from facescan.errors import DataError, UnknownNameError, UsageError
from jobs.score import score
from tests.facescan.score.hats import Row, failed, row, table, write


def race(label: str | None, target: str, outcome: str = "answered") -> Row:
    sets = {"attribute": "race", "asked_label_set": "race-7", "target_label_set": "race-7"}
    return row(label, target, outcome=outcome, **sets)


def run_of(folder: Path, *parts: list[Row]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "predictions").mkdir()
    for number, rows in enumerate(parts):
        write(folder / "predictions" / f"{number}.parquet", rows)
    return folder


def quiet() -> Console:
    return Console(file=StringIO(), width=80)


def test_a_run_is_scored_in_every_view_and_told_where(tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "run",
        [race("White", "White"), race("East Asian", "Southeast Asian")],
        [race(None, "Black", "refused")],
    )
    console = quiet()
    folder = score(str(run), console)
    assert folder.location == f"{run}/scores"
    entries = json.loads(folder.read("metrics.json"))["scores"]
    found = {entry["view"]: entry["accuracy"]["value"] for entry in entries}
    assert found["race-7"] == 1 / 3
    assert found["race-6"] == 2 / 3
    assert pq.read_table(folder.open("metrics.parquet")).num_rows > 0
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "Labels are perceived attributes in the dataset's own categories" in text
    assert f"{run}/scores/metrics.parquet" in text
    assert text.rstrip().endswith(f"{run}/scores/metrics.json")


def test_a_run_on_an_object_store_is_scored_like_one_on_a_disk(
    tmp_path: Path, object_store: str
) -> None:
    parts = [race("White", "White")], [race("Black", "White"), race(None, "Black", "refused")]
    run = run_of(tmp_path / "run", *parts)
    remote = storage.at(object_store)
    remote.write("manifest.json", b"{}")
    for path in (run / "predictions").iterdir():
        remote.below("predictions").write(path.name, path.read_bytes())
    local, console = score(str(run), quiet()), quiet()
    folder = score(object_store, console)
    assert folder.names() == ["metrics.json", "metrics.parquet"]
    for name in folder.names():
        assert folder.read(name) == local.read(name)
    assert isinstance(console.file, StringIO)
    assert f"{object_store}/scores/metrics.json" in console.file.getvalue()


def test_answers_in_years_groups_meet_finer_targets(tmp_path: Path) -> None:
    asked = {"attribute": "age", "asked_label_set": "age-5", "target_label_set": "age-9"}
    run = run_of(tmp_path / "run", [row("0-9", "3-9", **asked)])
    folder = score(str(run), quiet())
    (entry,) = json.loads(folder.read("metrics.json"))["scores"]
    assert (entry["asked_label_set"], entry["view"]) == ("age-5", "age-5")
    assert entry["accuracy"]["value"] == 1.0


def test_scoring_again_replaces_the_scores(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [race("White", "White")])
    before = score(str(run), quiet()).read("metrics.json")
    assert score(str(run), quiet()).read("metrics.json") == before
    write(run / "predictions" / "9.parquet", [race("White", "Black")])
    assert score(str(run), quiet()).read("metrics.json") != before
    assert sorted(path.name for path in (run / "scores").iterdir()) == [
        "metrics.json",
        "metrics.parquet",
    ]


def test_an_unfinished_file_of_the_run_is_not_read(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [race("White", "White")])
    (run / "predictions" / ".1.parquet.0123abcd.tmp").write_text("half")
    score(str(run), quiet())


def grouped(run: Path, **flags: Any) -> list[dict[str, Any]]:
    folder = score(str(run), quiet(), **flags)
    entries = json.loads(folder.read("metrics.json"))["scores"]
    found: list[dict[str, Any]] = next(e for e in entries if e["view"] == "race-7")["groups"]
    return found


def people(folder: Path) -> Path:
    rows = [
        {
            **race("White" if number % 3 else "Black", "White"),
            "image_id": str(number),
            "label_race": "White",
            "group_gender": "Female" if number % 2 else "Male",
        }
        for number in range(60)
    ]
    run = run_of(folder)
    pq.write_table(table(rows), run / "predictions" / "1.parquet")
    return run


def test_scores_are_by_every_column_of_people_unless_others_are_asked_for(tmp_path: Path) -> None:
    run = people(tmp_path / "run")
    assert [each["by"] for each in grouped(run)] == [["gender"], ["race"], ["gender", "race"]]
    assert grouped(run, group_by=["none"]) == []
    (only,) = grouped(run, group_by=["gender"], min_cell=25)
    assert [(c["group"], c["n"]) for c in only["cells"]] == [(["Female"], 30), (["Male"], 30)]
    assert (only["min_cell"], only["source"]) == (25, "labels")
    with pytest.raises(UsageError, match="no column 'shoe'"):
        grouped(run, group_by=["shoe"])


def test_another_run_s_answers_can_make_groups(tmp_path: Path) -> None:
    run, other = people(tmp_path / "run"), people(tmp_path / "other")
    (found,) = grouped(run, groups_from=str(other), groups_model="seer")
    assert (found["by"], found["source"]) == (["predicted_race"], f"predicted by seer in {other}")
    assert [(c["group"], c["n"]) for c in found["cells"]] == [(["Black"], 20), (["White"], 40)]
    with pytest.raises(UsageError, match="not a run folder"):
        grouped(run, groups_from=str(tmp_path))
    with pytest.raises(UsageError, match="give both"):
        grouped(run, groups_model="seer")


def test_models_that_were_asked_the_same_are_compared(tmp_path: Path) -> None:
    both = [race("White", "White"), {**race("Black", "White"), "model": "oracle"}]
    run = run_of(tmp_path / "run", both)
    document = json.loads(score(str(run), quiet()).read("metrics.json"))
    assert {(c["a"]["model"], c["b"]["model"]) for c in document["comparisons"]} == {
        ("oracle", "seer")
    }
    alone = run_of(tmp_path / "alone", both[:1])
    assert json.loads(score(str(alone), quiet()).read("metrics.json"))["comparisons"] == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not a run folder.*facescan run"):
        score(str(tmp_path), quiet())


@pytest.mark.parametrize("parts", [[], [[]]])
def test_a_run_without_predictions_is_told_how_to_get_them(
    tmp_path: Path, parts: list[list[Row]]
) -> None:
    run = run_of(tmp_path / "run", *parts)
    with pytest.raises(UsageError, match=r"no predictions to score.*facescan run"):
        score(str(run), quiet())
    assert not (run / "scores").exists()


def test_bad_predictions_write_no_scores(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [race("Martian", "White")])
    with pytest.raises(DataError, match="Martian"):
        score(str(run), quiet())
    other = run_of(tmp_path / "other", [failed("refused", None, attribute="shoe")])
    with pytest.raises(UnknownNameError, match="shoe"):
        score(str(other), quiet())
    assert not (run / "scores").exists()


def test_scoring_needs_neither_ray_nor_an_engine() -> None:
    heavy = "{'ray', 'torch', 'vllm', 'transformers', 'sklearn', 'scipy.stats', 'pandas'}"
    check = f"import sys, jobs.score; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], check=True)
