"""How many requests may end without an answer."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from facescan import storage
from facescan.errors import TooManyFailures
from jobs.follow import Threshold
from jobs.progress import Progress


def progress(folder: Path, requests: int, failed: int, answered: int = 0) -> Progress:
    done = {"engine_error": failed - failed // 2, "bad_image": failed // 2, "": answered}
    return Progress(storage.at(folder), requests, done, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("fail_on_error", "requests", "borne"),
    [
        (None, 100, 100),
        (0, 100, 0),
        (1, 100, 1),
        (7, 100, 7),
        (0.1, 100, 10),
        (0.29, 100, 29),  # 0.29 * 100 is less than 29
        (0.5, 3, 1),
        (0.001, 100, 0),
    ],
)
def test_a_run_bears_so_many_failures_and_no_more(
    tmp_path: Path, fail_on_error: float | None, requests: int, borne: int
) -> None:
    threshold = Threshold(fail_on_error, requests)
    for failed in range(borne + 1):
        threshold.check(progress(tmp_path, requests, failed))
    if borne < requests:
        with pytest.raises(
            TooManyFailures,
            match=f"{borne + 1} of {requests} requests failed.*is {fail_on_error:g}; .*--retry",
        ):
            threshold.check(progress(tmp_path, requests, borne + 1))


def test_failures_of_this_command_and_of_those_before_it_add_up(tmp_path: Path) -> None:
    threshold = Threshold(5, 100)
    going_on = progress(tmp_path, 100, 3)
    going_on.show({"one": {"": 50, "engine_error": 1}, "other": {"bad_image": 1}})
    threshold.check(going_on)
    going_on.show({"one": {"": 50, "engine_error": 1}, "other": {"bad_image": 2}})
    with pytest.raises(TooManyFailures, match="6 of 100"):
        threshold.check(going_on)


def test_a_run_without_any_answer_fails_at_its_end_whatever_it_bears(tmp_path: Path) -> None:
    for bears in (None, 20, 0.9):
        threshold = Threshold(bears, 10)
        with pytest.raises(TooManyFailures, match=r"all 8 requests failed; .*replies/"):
            threshold.check_end(progress(tmp_path, 10, 8))
        threshold.check_end(progress(tmp_path, 10, 8, answered=1))
        threshold.check_end(progress(tmp_path, 10, 0))


def test_the_end_is_held_to_the_threshold_too(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match="3 of 10 requests failed"):
        Threshold(2, 10).check_end(progress(tmp_path, 10, 3, answered=7))


def test_nothing_to_ask_is_no_failure(tmp_path: Path) -> None:
    Threshold(0.5, 0).check_end(progress(tmp_path, 0, 0))
