"""What stands at the terminal, wide, narrow, or none."""

from collections.abc import Sequence
from io import StringIO

import pytest
from rich.console import Console

from facescan.score import metrics, table
from facescan.score.views import tallies
from tests.facescan.score.hats import Row, counted, failed, load, row


def shown(
    rows: list[Row], width: int = 80, terminal: bool = False, by: Sequence[str] = ("none",)
) -> str:
    console = Console(file=StringIO(), width=width, force_terminal=terminal, color_system=None)
    table.show([metrics.of(tally) for tally in tallies(counted(rows, by), load)], console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


ROWS = [row("cap", "cap")] * 813 + [row("none", "cap")] * 170 + [failed("refused", "cap")] * 17
FIGURES = ("1,000", "983", "1.7", "81.3", "[78.8-83.6]", "82.7", "[80.2-84.9]", "89.7")


def test_a_pipe_gets_one_plain_line_a_row() -> None:
    lines = shown(ROWS, width=40).splitlines()
    assert lines[0] == "seer on people/test, protocol neutral (free)"
    assert lines[2].split() == ["hat-4", *FIGURES]
    assert lines[3].startswith("hat-4 as hat-3  ")
    assert lines[1].split()[-2:] == ["F1", "%"]


@pytest.mark.parametrize("width", [120, 80, 70, 60, 40])
def test_no_figure_is_cut_at_any_width(width: int) -> None:
    text = shown(ROWS, width=width, terminal=True)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text
    for figure in FIGURES:
        assert figure in text
    assert ("─" in text) == (width >= 70)


def test_what_came_instead_of_answers_is_told_in_one_view() -> None:
    text = shown([*ROWS, *[failed("blocked", "cap")] * 250])
    (line,) = (each for each in text.splitlines() if "no answer:" in each)
    assert line == "hat-4: no answer: refused 1.4 [0.9-2.2] %, blocked 20.0 [17.9-22.3] %."
    assert "no answer:" not in shown(ROWS[:813])


def test_an_incomplete_score_is_marked_and_bounded() -> None:
    text = shown([*ROWS, *[failed("pending", "cap")] * 200, failed("engine_error", "cap")])
    assert "\nhat-4*" in text
    assert (
        "* hat-4 incomplete: 201 more rows failed in the run (engine_error 1, pending 200); "
        "with them accuracy is between 67.7 and 84.4 %." in text
    )
    assert "incomplete" not in shown(ROWS)


def test_what_is_not_in_a_figure_is_said() -> None:
    text = shown([row("none", "cap"), row("cap", "none"), row("cap", None, outcome="spurious")])
    assert "hat-4 as hat-2: 1 rows left out, their target is not in the view." in text
    assert "hat-4 as hat-2: 1 answers are not in the view and count as wrong." in text
    assert "hat-4: 1 persons listed who are not there, not in n." in text


def test_without_targets_outcomes_are_told_and_figures_left_open() -> None:
    text = shown([row("cap", None)] * 3 + [failed("refused", None), failed("pending", None)])
    assert text.splitlines()[2].split() == ["hat-4*", "0", "0", "-", "-", "-", "-"]
    assert "5 rows have no target and are not scored (answered 3, refused 1, pending 1)." in text


def test_names_are_shown_as_they_are() -> None:
    """Square brackets are markup to rich, and models may be called anything."""
    text = shown([row("cap", "cap", model="tuned[bold]")], terminal=True)
    assert "tuned[bold] on people/test" in text


def test_models_stand_in_one_table_view_by_view() -> None:
    other = [row("cap", "cap", model="blind", protocol="brief")] * 3
    unlabelled = [row("cap", None, model="blind", protocol="brief")]
    lines = shown([*ROWS, *other, *unlabelled]).splitlines()
    assert lines[:3] == [
        "people/test",
        "blind: protocol brief (free)",
        "seer: protocol neutral (free)",
    ]
    assert lines[3].split()[:3] == ["view", "model", "n"]
    assert lines[4].split()[:5] == ["hat-4", "as", "hat-2", "blind", "3"]
    assert [line.split()[:2] for line in lines[8:10]] == [["hat-4", "blind"], ["hat-4", "seer"]]
    assert "blind: hat-4: 1 rows have no target and are not scored (answered 1)." in lines


def test_one_model_asked_twice_is_told_apart_by_its_protocols() -> None:
    other = [row("cap", "cap", protocol="brief")] * 3
    text = shown([*ROWS, *other])
    assert "\nhat-4           seer brief (free)  " in text
    assert "\nhat-4           seer neutral (free)" in text


def by_light(*, dim: int) -> list[Row]:
    """Of a hundred rows each 80 are right in bright light, and `dim` in dim light."""
    right = [("bright", number < 80) for number in range(100)]
    right += [("dim", number < dim) for number in range(100)]
    return [row("cap" if hit else "none", "cap", group_light=light) for light, hit in right]


def test_findings_by_group_stand_below_the_table_once() -> None:
    """In one view: in the others the same rows say the same."""
    lines = shown(by_light(dim=40), by=["light"]).splitlines()
    (finding,) = (line for line in lines if "differs by" in line)
    assert finding.startswith("hat-4: Accuracy differs by light (p < 0.001): largest gap 3")
    assert any(line.startswith("By group (light): 0 of 1 tests") for line in lines)


def test_without_a_difference_it_is_said_what_was_looked_at() -> None:
    text = shown(by_light(dim=79), by=["light"])
    assert "differs" not in text
    assert "By group (light): 1 of 1 tests of accuracy and outcomes found no difference" in text
    assert "By group" not in shown(ROWS)


def test_how_far_intervals_hold_is_said() -> None:
    assert "Intervals: Subjects are not known: rows are taken as independent." in shown(ROWS)
    known = [row("cap", "cap", subject_id=str(number // 2)) for number in range(20)]
    assert "Intervals: Clustered by 10 subjects.\n" in shown(known)
    some = [*known, row("cap", "cap")]
    assert "Clustered by 10 subjects. 1 rows have no subject and are taken as" in shown(some)


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_no_figure_of_several_models_is_cut_at_any_width(width: int) -> None:
    other = [row("cap", "cap", model="a-model-with-a-long-name")] * 3
    text = shown([*ROWS, *other], width=width, terminal=True)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for figure in (*FIGURES, "a-model-with-a-long-name"):
        assert figure in text
