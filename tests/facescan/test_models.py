"""Every model card, found by name, can be asked what it says it answers."""

from pathlib import Path

import pytest

from facescan import attributes, models, prompt, protocols
from facescan.errors import UnknownNameError, UsageError
from facescan.models import Checkpoint
from serving import engine

EACH = pytest.mark.parametrize("name", models.names())

CARD = """\
description: mine
engine: vllm
protocol: neutral
attributes: [race, gender]
"""


def test_there_are_cards() -> None:
    assert models.names()


@EACH
def test_says_what_it_is_and_under_which_terms(name: str) -> None:
    card = models.load(name)
    assert card.name == name
    assert card.description.strip()
    assert card.licence.strip()
    assert card.source.strip()


@EACH
def test_its_engine_is_a_file(name: str) -> None:
    assert models.load(name).engine in engine.names()


@EACH
def test_its_default_protocol_asks_all_it_answers(name: str) -> None:
    card = models.load(name)
    assert set(card.attributes) <= set(attributes.names())
    questions = prompt.questions(card, protocols.load(card.protocol), card.attributes, "pixels")
    assert {a for q in questions for a in q.attributes} == set(card.attributes)
    assert card.prompt.count("{question}") == 1


@EACH
def test_its_checkpoint_is_a_repository_or_a_folder_that_is_there(name: str) -> None:
    card = models.load(name)
    if card.engine == "hosted":
        return  # what its API calls it
    for attribute in card.attributes:
        checkpoint = card.checkpoint_for(attribute)
        if checkpoint is not None:
            for path in filter(None, (checkpoint.path, checkpoint.processor)):
                assert path.count("/") == 1 or Path(path).is_dir(), path


def test_the_four_tuned_models_are_one_card() -> None:
    card = models.load("facescan-paligemma")
    assert {a: c.path for a, c in card.checkpoints.items()} == {
        a: f"NYUAD-ComNets/FaceScanPaliGemma_{a.capitalize()}"
        for a in ("race", "gender", "age", "emotion")
    }
    assert {c.processor for c in card.checkpoints.values()} == {"google/paligemma-3b-pt-224"}


def folder(tmp_path: Path, more: str = "") -> Path:
    (tmp_path / models.FOLDER_CARD).write_text(CARD + more)
    return tmp_path


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    card = models.load(str(folder(tmp_path, "checkpoint: {path: ./weights}\n")))
    assert card.name == tmp_path.name
    assert card.checkpoint is not None
    assert card.checkpoint.path == str(tmp_path / "weights")


def test_checkpoints_by_attribute_are_found(tmp_path: Path) -> None:
    more = "checkpoints: {race: {path: ./race}, gender: {path: org/gender, revision: abc}}\n"
    card = models.load(str(folder(tmp_path, more)))
    race, gender = card.checkpoint_for("race"), card.checkpoint_for("gender")
    assert race is not None
    assert gender is not None
    assert race.path == str(tmp_path / "race")
    assert (gender.path, gender.revision) == ("org/gender", "abc")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("checkpoints: {race: {path: a/b}}\n", "exactly the card's attributes"),
        ("checkpoint: {path: a/b}\ncheckpoints: {race: {path: a/b}}\n", "either"),
        ("dtype: int3\n", "dtype"),
        ("colour: blue\n", "colour"),
    ],
)
def test_a_wrong_card_says_what_is_wrong(tmp_path: Path, more: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        models.load(str(folder(tmp_path, more)))


def test_an_unknown_model_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'facescan-paligemma'"):
        models.load("facescan-paligema")
    with pytest.raises(UsageError, match="no model card"):
        models.load(str(tmp_path))


def test_a_model_without_a_card_is_named_by_engine_and_checkpoint(tmp_path: Path) -> None:
    card = models.load("vllm:llava-hf/llava-1.5-7b-hf@v1")
    assert (card.name, card.engine, card.protocol) == ("llava-1.5-7b-hf", "vllm", "neutral")
    assert card.checkpoint == Checkpoint(path="llava-hf/llava-1.5-7b-hf", revision="v1")
    assert set(card.attributes) == {"race", "gender", "age", "emotion"}
    folder = tmp_path / "odd@name"
    folder.mkdir()
    assert models.load(f"vllm:{folder}").checkpoint == Checkpoint(path=str(folder))


@pytest.mark.parametrize("name", ["vllm:", ":owner/name"])
def test_half_a_name_of_a_checkpoint_says_what_is_expected(name: str) -> None:
    with pytest.raises(UsageError, match=r"OWNER/NAME\[@REVISION\]"):
        models.load(name)
