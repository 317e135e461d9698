"""Flags beat the environment, which beats the file, which beats the defaults."""

from pathlib import Path

import pytest

from facescan.errors import UsageError
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
