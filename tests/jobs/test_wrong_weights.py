"""What a user sees of a card and weights that do not fit: one message, and a second try."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from facescan import models
from jobs import cli
from recipes import train_tiny_resnet
from tests.conftest import MakeShards
from tests.serving.third_parties import VLLM

pytestmark = [*VLLM, pytest.mark.usefixtures("local_ray")]

Asked = Callable[[], tuple[int, str]]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A model folder of the user's own, and good: the ResNet that ships."""
    shipped = models.load("tiny-resnet").checkpoint
    assert shipped is not None
    shutil.copytree(shipped.path, tmp_path / "mine")
    write_card(tmp_path / "mine", train_tiny_resnet.heads())
    return tmp_path / "mine"


def write_card(folder: Path, heads: dict[str, list[str]], **options: Any) -> None:
    card = {
        "description": "mine",
        "engine": "classifier",
        "protocol": "label-probabilities",
        "attributes": ["race", "gender"],
        "checkpoint": {"path": "./"},
        "engine_options": {"architecture": "transformers", "heads": heads} | options,
        "gpus": 0,
    }
    (folder / models.FOLDER_CARD).write_text(yaml.safe_dump(card, sort_keys=False))


@pytest.fixture
def asked(
    tmp_path: Path,
    mine: Path,
    make_shards: MakeShards,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Asked:
    """Gives the same command each time: its exit code and all it printed, as one line."""
    words = ["run", "--dataset", make_shards(6), "--model", mine, "--output-dir", tmp_path / "run"]

    def ask() -> tuple[int, str]:
        # Each command is a process of its own, and reads the card anew.
        models._read.cache_clear()
        monkeypatch.setattr(sys, "argv", ["facescan", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), " ".join((captured.err + captured.out).split())

    return ask


def test_heads_that_do_not_hold_the_labels_are_told_before_anything_is_written(
    tmp_path: Path, mine: Path, asked: Asked
) -> None:
    write_card(mine, train_tiny_resnet.heads() | {"race": ["Black", "White"]})
    code, said = asked()
    assert code == 2
    assert "protocol label-probabilities: the head of 'race' has no Latino_Hispanic, East" in said
    assert not (tmp_path / "run").exists()


def fewer_outputs(folder: Path) -> None:
    heads = train_tiny_resnet.heads()
    del heads["emotion"]
    write_card(folder, heads)


def half_the_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        # What else may be wrong is in tests/serving/test_classifier.py.
        (fewer_outputs, "26 outputs, and the card's `heads` have 18 labels"),
        (half_the_weights, "transformers cannot load it"),
    ],
)
def test_weights_that_do_not_fit_end_the_run_in_one_message(
    tmp_path: Path, mine: Path, asked: Asked, spoil: Callable[[Path], None], why: str
) -> None:
    spoil(mine)
    code, said = asked()
    assert code == 1
    assert said.count(why) == 1
    assert "Traceback" not in said
    assert not list((tmp_path / "run" / "replies").glob("*.parquet"))
