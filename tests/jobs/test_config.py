"""Flags beat the environment, which beats the file, which beats the defaults."""

from pathlib import Path

import pytest

from facescan.errors import UsageError
from facescan.types import Outcome
from jobs.config import resolve

FLAGS = {"dataset": "sample", "model": ["fake"], "output_dir": Path("r")}


def written(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text)
    return file


def test_each_source_overrides_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "limit: 1\nseed: 2\nsplit: file\nreplicas: 4\n")
    monkeypatch.setenv("FACESCAN_LIMIT", "10")
    monkeypatch.setenv("FACESCAN_SEED", "20")
    config = resolve({**FLAGS, "limit": 100}, file)
    assert (config.limit, config.seed, config.split, config.replicas) == (100, 20, "file", 4)


def test_lists_are_written_with_commas_or_repeated_or_as_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESCAN_ATTRIBUTES", "race, age")
    config = resolve({**FLAGS, "model": ["fake,other", "fake"]}, None)
    assert config.model == ["fake", "other"]
    assert config.attributes == ["race", "age"]
    file = written(tmp_path, "attributes: [gender]")
    monkeypatch.delenv("FACESCAN_ATTRIBUTES")
    assert resolve(FLAGS, file).attributes == ["gender"]


@pytest.mark.parametrize(
    ("flags", "text", "message"),
    [
        ({}, "lmit: 5", "unknown key 'lmit'"),
        ({"limit": 0}, "", "--limit: input should be greater than or equal to 1, got 0"),
        ({"model": []}, "", "name at least one model"),
        (
            {"retry": ["answered"]},
            "",
            "--retry: .*answered is not asked again; possible: bad_image",
        ),
        ({"retry": ["pending"]}, "", "pending is not asked again"),
        ({"retry": ["hiccup"]}, "", "--retry: input should be .*got 'hiccup'"),
        ({"fail_on_error": -1}, "", "--fail-on-error: input should be greater than or equal to 0"),
        ({"fail_on_error": float("nan")}, "", "--fail-on-error: "),
        ({}, "limit: [", "not YAML"),
        ({}, "- a\n- b\n", "expected `key: value` lines"),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, flags: dict[str, object], text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        resolve({**FLAGS, **flags}, written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        resolve(FLAGS, tmp_path / "none.yaml")


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    config = resolve(FLAGS, None)
    assert resolve({}, written(tmp_path, config.dump())) == config


def test_what_is_asked_again_is_written_with_commas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESCAN_RETRY", "bad_image, engine_error")
    monkeypatch.setenv("FACESCAN_FAIL_ON_ERROR", "0.05")
    config = resolve(FLAGS, None)
    assert config.retry == [Outcome.BAD_IMAGE, Outcome.ENGINE_ERROR]
    assert config.fail_on_error == 0.05
    monkeypatch.delenv("FACESCAN_RETRY")
    assert resolve({}, written(tmp_path, config.dump())) == config


@pytest.mark.parametrize("place", ["runs/mine", "s3://bucket/runs/mine"])
def test_a_run_folder_is_a_path_or_a_uri(place: str) -> None:
    assert resolve({**FLAGS, "output_dir": place}, None).output_dir == place
    assert resolve(FLAGS, None).output_dir == "r"
