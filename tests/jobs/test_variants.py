"""Protocols derived from one: another mode or order has another name and another identity."""

from pathlib import Path

from facescan import models, prompt, protocols, registry
from facescan.models import ModelCard
from facescan.types import AnswerMode, Question
from jobs import variants
from jobs.variants import Variants

FAKE = models.load("fake")
ALL = tuple(AnswerMode)


def made(
    folder: Path,
    wordings: list[str],
    *,
    modes: tuple[AnswerMode, ...] = (),
    orders: int = 1,
    attributes: tuple[str, ...] = ("race", "gender"),
    card: ModelCard = FAKE,
) -> Variants:
    return variants.of(card, wordings, modes, orders, attributes, folder)


def asked(folder: Path, name: str, attribute: str) -> Question:
    with registry.including(folder):
        (question,) = prompt.questions(FAKE, protocols.load(name), [attribute], "none")
    return question


def names(found: Variants) -> list[tuple[str, str]]:
    return [(each.varies, each.protocol) for each in found.asked]


def test_every_wording_has_every_order_and_the_first_every_mode(tmp_path: Path) -> None:
    found = made(tmp_path, ["neutral", "neutral-which"], modes=ALL, orders=3)
    assert names(found) == [
        ("as it is", "neutral"),
        ("order", "neutral-order-reversed"),
        ("order", "neutral-order-2"),
        ("wording", "neutral-which"),
        ("order", "neutral-which-order-reversed"),
        ("order", "neutral-which-order-2"),
        ("mode", "neutral-choice"),
        ("mode", "neutral-score"),
    ]
    assert not found.left_out
    derived = {file.stem for file in (tmp_path / "protocols").iterdir()}
    assert derived == {name for varies, name in names(found) if varies == "order"}


def test_an_order_is_in_the_prompt_and_in_the_labels_and_changes_the_identity(
    tmp_path: Path,
) -> None:
    made(tmp_path, ["neutral"], orders=4)
    orders = ["neutral", "neutral-order-reversed", "neutral-order-2", "neutral-order-3"]
    races = [asked(tmp_path, name, "race") for name in orders]
    assert races[1].labels == races[0].labels[::-1]
    assert "Answer with one of: Middle Eastern, Indian, Southeast Asian" in races[1].prompt
    assert len({each.identity for each in races}) == len({each.labels for each in races}) == 4
    assert len({frozenset(each.offered[0]) for each in races}) == 1


def test_an_order_that_was_there_before_is_not_asked_twice(tmp_path: Path) -> None:
    found = made(tmp_path, ["neutral"], orders=6, attributes=("gender",))
    assert names(found) == [("as it is", "neutral"), ("order", "neutral-order-reversed")]
    assert found.left_out == tuple(
        f"neutral-order-{n}: it asks about none of the attributes" for n in range(2, 6)
    )


def test_a_wording_that_lists_no_options_has_no_order(tmp_path: Path) -> None:
    found = made(tmp_path, ["facescan-paligemma"], modes=ALL, orders=2)
    assert names(found) == [
        ("as it is", "facescan-paligemma"),
        ("mode", "facescan-paligemma-choice"),
        ("mode", "facescan-paligemma-score"),
    ]
    assert found.left_out == ("facescan-paligemma-order-reversed: the wording lists no options",)


def test_a_question_about_several_attributes_at_once_is_asked_in_other_orders_only(
    tmp_path: Path,
) -> None:
    found = made(tmp_path, ["paper-gpt"], modes=ALL, orders=2)
    assert names(found) == [("as it is", "paper-gpt"), ("order", "paper-gpt-order-reversed")]
    assert len(found.left_out) == 2
    with registry.including(tmp_path):
        protocol = protocols.load("paper-gpt-order-reversed")
        (question,) = prompt.questions(FAKE, protocol, ["race", "gender", "age"], "none")
    assert "Races: ['White', 'Middle Eastern', 'Latinx or Hispanic'" in question.prompt
    assert "Genders: ['Female', 'Male']" in question.prompt


def test_a_mode_that_does_not_ship_is_derived(tmp_path: Path) -> None:
    found = made(tmp_path, ["paper-llava"], modes=(AnswerMode.SCORE,))
    assert names(found)[1:] == [("mode", "paper-llava-score")]
    question = asked(tmp_path, "paper-llava-score", "race")
    assert question.answer_mode is AnswerMode.SCORE
    assert question.prompt == asked(tmp_path, "paper-llava", "race").prompt


def test_what_an_engine_cannot_ask_is_left_out_and_said(tmp_path: Path) -> None:
    card = models.load("clip-vit-large-patch14")
    found = made(tmp_path, ["clip-zero-shot"], modes=ALL, card=card)
    assert names(found) == [("as it is", "clip-zero-shot")]
    assert [text.partition(":")[0] for text in found.left_out] == [
        "clip-zero-shot-free",
        "clip-zero-shot-choice",
    ]
    assert not (tmp_path / "protocols").exists()


def test_a_derived_protocol_is_there_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    made(tmp_path, ["neutral"], orders=2)
    before = protocols.names()
    with registry.including(tmp_path):
        assert "neutral-order-reversed" in protocols.names()
    assert protocols.names() == before
