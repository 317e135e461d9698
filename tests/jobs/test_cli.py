"""The command line: wrong input says what is wrong, exits with 2 and writes nothing."""

import sys
from pathlib import Path

import pytest

from jobs import cli
from tests.conftest import MakeShards


def invoke(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["facescan", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--model": "faek"}, "unknown model 'faek'; known: "),
        ({"--attributes": "hat"}, "unknown attribute 'hat'; known: age, emotion, gender, race"),
        ({"--protocol": "polite"}, "unknown protocol 'polite'; known: "),
        ({"--engine": "abacus"}, "unknown engine 'abacus'; known: "),
        ({"--limit": "0"}, "--limit: input should be greater than or equal to 1, got 0"),
        ({"--limit": "many"}, "Invalid value for '--limit'"),
        ({"--split": "train"}, "no split 'train'; known: test"),
        ({"--dataset": "nowhere"}, "nowhere"),
        ({"--include-path": "nowhere"}, "not a folder"),
        ({"-C": "nowhere.yaml"}, "no such file"),
        ({"--colour": "red"}, "No such option: --colour"),
        ({"--model": None}, "--model is required"),
        ({"--output-dir": None}, "--output-dir is required"),
    ],
)
def test_wrong_settings_of_a_run_are_named_and_write_nothing(
    tmp_path: Path,
    make_shards: MakeShards,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str | None],
    message: str,
) -> None:
    target = tmp_path / "run"
    right = {"--dataset": make_shards(3), "--model": "fake", "--output-dir": target}
    flags = {name: value for name, value in {**right, **changed}.items() if value is not None}
    words = [word for pair in flags.items() for word in pair]
    assert invoke(monkeypatch, "run", *words) == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).replace("│", " ").split())
    assert not target.exists()


def test_a_model_that_cannot_be_asked_for_an_attribute_says_what_it_answers(
    tmp_path: Path,
    make_shards: MakeShards,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card = tmp_path / "mine" / "models" / "narrow.yaml"
    card.parent.mkdir(parents=True)
    card.write_text("description: x\nengine: fake\nprotocol: neutral\nattributes: [age]\n")
    monkeypatch.setattr("facescan.registry._included", [])
    flags = ["--model", "narrow", "--include-path", tmp_path / "mine"]
    words = ["--dataset", make_shards(3), "--output-dir", tmp_path / "run", "--attributes", "race"]
    assert invoke(monkeypatch, "run", *words, *flags) == 2
    assert "model narrow cannot be asked for 'race'; it answers age" in capsys.readouterr().err
    assert invoke(monkeypatch, "run", *words[:4], *flags) == 2
    assert "the dataset labels race; name --attributes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_a_run_is_left_alone(
    tmp_path: Path,
    make_shards: MakeShards,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("x")
    words = ["--dataset", make_shards(3), "--model", "fake", "--output-dir", tmp_path / "run"]
    assert invoke(monkeypatch, "run", *words) == 2
    assert "neither empty nor a run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_folder_without_shards_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    words = ["--dataset", tmp_path / "pictures", "--model", "fake"]
    assert invoke(monkeypatch, "run", *words, "--output-dir", tmp_path / "run") == 2
    assert "no ingest.json in it" in capsys.readouterr().err


def test_scoring_something_else_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "score", tmp_path) == 2
    assert "not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["datasets", "models", "protocols", "attributes", "recipes"])
def test_names_are_listed_with_what_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert invoke(monkeypatch, "ls", kind) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_flags_may_be_written_with_underscores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(monkeypatch, "run", "--output_dir", tmp_path / "run", "--model", "fake") == 2
    assert "--dataset is required" in capsys.readouterr().err
