"""facescan compare RUN [RUN...], on label sets that ship."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from facescan.errors import UnknownNameError, UsageError
from jobs.compare import FILE, compare_runs
from tests.facescan.score.hats import Row, failed, row, write

SETS = {"attribute": "race", "asked_label_set": "race-7", "target_label_set": "race-7"}


def run_of(path: Path, *models: str, right: int = 8, first: int = 0) -> Path:
    """Each model is asked about 10 pictures; the first is right on `right`, the others on one."""
    rows: list[Row] = []
    for position, model in enumerate(models):
        for image in range(first, first + 10):
            label = "White" if image - first < (1 if position else right) else "Black"
            rows.append(row(label, "White", image_id=str(image), model=model, **SETS))
    write(path / "predictions" / "0.parquet", rows)
    (path / "manifest.json").write_text("{}")
    return path


def text(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def quiet() -> Console:
    return Console(file=StringIO(), width=80)


def test_the_models_of_a_run_are_compared_and_written_beside_its_scores(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "seer", "poet")
    console = quiet()
    compare_runs([str(run)], console, views=["race-7"])
    document = json.loads((run / "scores" / FILE).read_text())
    (found,) = document["comparisons"]
    assert (found["a"]["model"], found["b"]["model"]) == ("poet", "seer")
    assert (found["view"], found["n"]) == ("race-7", 10)
    assert found["difference"]["value"] == pytest.approx(-0.7)
    assert found["mcnemar"]["a_only"] == 0
    assert found["mcnemar"]["b_only"] == 7
    line = next(line for line in text(console).splitlines() if line.startswith("race-7"))
    assert line.split()[1:6] == ["poet", "seer", "10", "10.0", "80.0"]
    assert "-70.0 [-" in line
    assert line.split()[-2:] == ["0.016", "65.7"]
    assert text(console).rstrip().endswith(f"{run}/scores/{FILE}")


def test_what_came_instead_of_answers_stands_beside_the_accuracies(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "seer", "poet")
    refusals = [
        failed("refused", "White", image_id=str(image), model="poet", **SETS) for image in (10, 11)
    ]
    answers = [row("White", "White", image_id=str(i), model="seer", **SETS) for i in (10, 11)]
    write(run / "predictions" / "1.parquet", [*refusals, *answers])
    console = quiet()
    compare_runs([str(run)], console, views=["race-7"])
    lines = text(console).splitlines()
    line = next(line for line in lines if line.startswith("race-7"))
    assert line.split()[4:9] == ["8.3", "83.3", "16.7", "/", "0.0"]
    assert "poet and seer, race-7: no answer of poet: refused 16.7 %." in lines


def test_outcomes_of_one_model_under_two_protocols_are_told_apart(tmp_path: Path) -> None:
    asked = [("neutral", 2), ("brief", 1)]
    rows = [
        (failed if image < refused else row)(
            *(("refused", "White") if image < refused else ("White", "White")),
            **{"image_id": str(image), "protocol": protocol, **SETS},
        )
        for protocol, refused in asked
        for image in range(10)
    ]
    write(tmp_path / "run" / "predictions" / "0.parquet", rows)
    (tmp_path / "run" / "manifest.json").write_text("{}")
    console = quiet()
    compare_runs([str(tmp_path / "run")], console, views=["race-7"])
    said = [line.partition("race-7: ")[2] for line in text(console).splitlines()]
    assert "no answer of seer brief: refused 10.0 %." in said
    assert "no answer of seer neutral: refused 20.0 %." in said


def test_runs_are_told_apart_and_what_only_one_has_is_said(tmp_path: Path) -> None:
    before = run_of(tmp_path / "before", "seer")
    after = run_of(tmp_path / "after", "seer", right=3, first=2)
    console = quiet()
    output = tmp_path / "found.json"
    compare_runs([str(before), str(after)], console, views=["race-7"], output=output)
    (found,) = json.loads(output.read_text())["comparisons"]
    assert found["not_compared"]["rows_only_a"] == 2
    assert found["not_compared"]["rows_only_b"] == 2
    assert "after: seer" in text(console)
    assert "2 rows are of after: seer only; not compared." in text(console)
    assert not (before / "scores").exists()


def test_a_terminal_gets_a_table_that_it_can_show(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "seer", "poet")
    console = Console(file=StringIO(), width=100, force_terminal=True)
    compare_runs([str(run)], console)
    assert max(Text.from_ansi(line).cell_len for line in text(console).splitlines()) <= 100


def test_what_is_not_wanted_is_in_no_family(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "seer", "poet", "third")
    everything = compare_runs([str(run)], quiet())
    some = compare_runs([str(run)], quiet(), wanted_attributes=["race"], views=["race-7"])
    assert {each.family for each in everything} == {len(everything)}
    assert {each.family for each in some} == {3}


def test_names_that_nothing_has_are_refused(tmp_path: Path) -> None:
    run = str(run_of(tmp_path / "run", "seer", "poet"))
    with pytest.raises(UnknownNameError, match="shoe"):
        compare_runs([run], quiet(), wanted_attributes=["shoe"])
    with pytest.raises(UsageError, match=r"--views race-9: no such label set; known: .*race-7"):
        compare_runs([run], quiet(), views=["race-9"])
    with pytest.raises(UsageError, match="twice"):
        compare_runs([run, f"{run}/"], quiet())
    with pytest.raises(UsageError, match="not a run folder"):
        compare_runs([str(tmp_path)], quiet())


def test_a_run_with_nothing_to_compare_says_so_and_writes_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "seer")
    write(run / "predictions" / "1.parquet", [failed("refused", None, model="poet", **SETS)])
    with pytest.raises(UsageError, match="nothing to compare"):
        compare_runs([str(run)], quiet())
    assert not (run / "scores").exists()
