"""facescan verify RUN: a line for each check, and an exit code that scripts can rely on."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from facescan import shards
from facescan.run import journal, manifest, predictions
from facescan.run.folder import existing
from facescan.run.selection import Selection
from jobs import cli
from jobs.config import resolve
from jobs.run import run


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def finished(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the fake engine about 8 drawn faces."""
    target = tmp_path_factory.mktemp("finished") / "run"
    flags = {
        "dataset": "sample",
        "limit": 8,
        "model": ["fake"],
        "attributes": ["race", "gender"],
        "output_dir": target,
    }
    run(resolve(flags, None), quiet())
    return target


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def verify(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[object, list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["facescan", "verify", str(run_folder)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    captured = capsys.readouterr()
    return ended.value.code or 0, (captured.out + captured.err).splitlines()


@pytest.mark.slow
def test_a_finished_run_has_one_line_a_check_and_exits_with_0(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = verify(run_folder, capsys)
    assert code == 0
    assert [line.split()[:2] for line in lines[:-1]] == [
        [name, "ok"]
        for name in ("lease", "replies", "keys", "manifest", "dataset", "requests", "predictions")
    ]
    assert "asked: 16; answers: 16; errors: 0" in lines[5]
    assert lines[-1] == f"{run_folder}: nothing is wrong"


@pytest.mark.slow
def test_a_fault_is_named_and_exits_with_1(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (replies,) = run_folder.glob("replies/*.parquet")
    replies.write_bytes(replies.read_bytes()[:-1])
    code, lines = verify(run_folder, capsys)
    assert code == 1
    assert any(line.startswith(f"replies      WRONG  {replies.name}: checksum ") for line in lines)
    assert "predictions  -      not checked" in lines
    assert lines[-1] == f"{run_folder}: faults: 1"


@pytest.mark.slow
def test_an_incomplete_run_says_what_is_open_and_exits_with_0(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run_folder / "replies").iterdir():
        path.unlink()
    folder = existing(str(run_folder))
    record = manifest.read(folder)
    data = shards.open(record.dataset.location)
    predictions.build(folder, data, Selection(), manifest.questions(record))
    code, lines = verify(run_folder, capsys)
    assert code == 0
    (incomplete,) = (line for line in lines if "note   incomplete: " in line)
    assert "requests without a reply yet: 16 (" in incomplete


def test_a_folder_that_is_no_run_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, (line,) = verify(tmp_path, capsys)
    assert code == 2
    assert "not a run folder: it has no manifest.json" in line


def test_what_goes_away_while_it_is_read_exits_with_1_and_says_why_it_may(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError("part-0.parquet: no such file")

    monkeypatch.setattr(journal, "files", gone)
    (tmp_path / "manifest.json").write_text("{}")
    code, lines = verify(tmp_path, capsys)
    assert code == 1
    assert lines[-1] == (
        f"facescan: {tmp_path}: part-0.parquet: no such file. If another command is working on "
        "this run, verify it when that has ended"
    )
