"""What is asked, and which key it is asked under."""

from pathlib import Path
from typing import Any

import pytest

from facescan import attributes, models, protocols, registry
from facescan.errors import UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.prompt import questions
from facescan.protocols import Asked, Protocol
from facescan.types import AnswerMode

RACE = Asked(label_set="race-6", question="Race? {labels}", offered={"Latino_Hispanic": "Latino"})
EMOTION = Asked(label_set="emotion-7", question="Emotion? {labels}", separator="|")
GENDER = Asked(label_set="gender-2", question="Gender? {labels}", quote='"', separator="|")


def card(**changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "name": "m",
        "description": "",
        "engine": "fake",
        "protocol": "p",
        "attributes": ("race", "gender", "age"),
        "checkpoint": Checkpoint(path="org/m", revision="abc"),
        "prompt": "answer en {question}",
    }
    return ModelCard(**fields | changes)


def protocol(**changes: Any) -> Protocol:
    fields: dict[str, Any] = {
        "name": "p",
        "description": "",
        "attributes": {"race": RACE, "gender": GENDER},
    }
    return Protocol(**fields | changes)


def joint(**changes: Asked) -> Protocol:
    wording = 'Races: {race_labels} Genders: {gender_labels}. Say {"race": "...", "gender": "..."}'
    asked = {
        n: a.model_copy(update={"question": None}) for n, a in (("race", RACE), ("gender", GENDER))
    }
    return protocol(joint_question=wording, attributes=asked | changes)


def test_one_question_per_attribute_in_the_models_form() -> None:
    race, gender = questions(card(), protocol(), ["race", "gender"], "px")
    assert race.prompt == ("answer en Race? White, Black, Latino, Asian, Indian, Middle Eastern")
    assert gender.prompt == 'answer en Gender? "Male"|"Female"'
    assert (race.attributes, gender.attributes) == (("race",), ("gender",))
    assert race.labels == ("White", "Black", "Latino", "Asian", "Indian", "Middle Eastern")
    assert race.offered[0][2] == ("Latino", "Latino_Hispanic")
    assert (race.label_sets, gender.label_sets) == (("race-6",), ("gender-2",))


def test_verbatim_leaves_the_models_form_out() -> None:
    (gender,) = questions(card(), protocol(verbatim=True), ["gender"], "px")
    assert gender.prompt == 'Gender? "Male"|"Female"'


def test_labels_are_offered_in_the_order_asked_for() -> None:
    turned = protocol(
        attributes={"gender": GENDER.model_copy(update={"order": ["Female", "Male"]})}
    )
    (gender,) = questions(card(), turned, ["gender"], "px")
    assert gender.labels == ("Female", "Male")
    assert gender.prompt == 'answer en Gender? "Female"|"Male"'


def test_a_joint_protocol_asks_once_with_its_whole_wording() -> None:
    (both,) = questions(card(), joint(), ["race", "gender"], "px")
    assert both.attributes == ("race", "gender")
    assert both.label_sets == ("race-6", "gender-2")
    assert both.prompt == (
        "answer en Races: White, Black, Latino, Asian, Indian, Middle Eastern "
        'Genders: "Male"|"Female". Say {"race": "...", "gender": "..."}'
    )
    assert both.labels[-2:] == ("Male", "Female")


def test_a_joint_question_about_fewer_attributes_shares_its_replies() -> None:
    (both,) = questions(card(), joint(), ["race", "gender"], "px")
    (one,) = questions(card(), joint(), ["gender"], "px")
    assert one.attributes == ("gender",)
    assert one.offered == both.offered[1:]
    assert one.identity == both.identity


def test_a_joint_protocol_asks_what_has_a_question_of_its_own_apart() -> None:
    wide = card(attributes=("race", "gender", "emotion"))
    both, emotion = questions(wide, joint(emotion=EMOTION), ["emotion", "gender", "race"], "px")
    assert both.attributes == ("gender", "race")
    assert both.identity == questions(card(), joint(), ["race"], "px")[0].identity
    assert emotion.attributes == ("emotion",)
    assert emotion.prompt == "answer en Emotion? neutral|happy|sad|surprise|fear|disgust|anger"
    (alone,) = questions(wide, joint(emotion=EMOTION), ["emotion"], "px")
    assert alone.identity == emotion.identity


def test_an_attribute_named_twice_is_asked_once() -> None:
    assert len(questions(card(), protocol(), ["race", "race"], "px")) == 1


@pytest.mark.parametrize(
    ("asked", "of_protocol", "of_card", "why"),
    [
        (
            ["emotion"],
            {},
            {},
            "model 'm' does not ask about 'emotion'; possible: race, gender, age",
        ),
        (["age"], {}, {}, "protocol 'p' does not ask about 'age'; possible: race, gender"),
        ([], {}, {}, "no attributes"),
        (
            ["gender"],
            {"attributes": {"gender": GENDER.model_copy(update={"order": ["Male"]})}},
            {},
            "each label of gender-2 once",
        ),
        (
            ["gender"],
            {"attributes": {"gender": GENDER.model_copy(update={"offered": {"male": "Man"}})}},
            {},
            "names no label of gender-2",
        ),
        (
            ["gender"],
            {"attributes": {"gender": GENDER.model_copy(update={"offered": {"Male": "Female"}})}},
            {},
            "offered for two labels",
        ),
        (
            ["gender"],
            {"attributes": {"gender": GENDER.model_copy(update={"label_set": "gender-3"})}},
            {},
            "known: gender-2",
        ),
        (
            ["race"],
            {"attributes": {"race": Asked(label_set="race-6")}, "joint_question": "?"},
            {
                "attributes": ("race",),
                "checkpoint": None,
                "checkpoints": {"race": Checkpoint(path="org/race")},
            },
            "a checkpoint per attribute",
        ),
    ],
)
def test_what_cannot_be_asked_says_why(
    asked: list[str], of_protocol: dict[str, Any], of_card: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        questions(card(**of_card), protocol(**of_protocol), asked, "px")


def identity(of_card: ModelCard, of_protocol: Protocol, preprocessing: str = "px") -> str:
    return questions(of_card, of_protocol, ["gender"], preprocessing)[0].identity


@pytest.mark.parametrize(
    "other",
    [
        identity(card(name="n"), protocol()),
        identity(card(checkpoint=None), protocol()),
        identity(card(checkpoint=Checkpoint(path="org/n", revision="abc")), protocol()),
        identity(card(checkpoint=Checkpoint(path="org/m", revision="abd")), protocol()),
        identity(
            card(checkpoint=Checkpoint(path="org/m", revision="abc", processor="org/p")),
            protocol(),
        ),
        identity(card(prompt="{question}"), protocol()),
        identity(card(), protocol(answer_mode=AnswerMode.SCORE)),
        identity(card(), protocol(max_tokens=17)),
        identity(card(), protocol(temperature=0.5)),
        identity(card(), protocol(), "other pixels"),
    ],
)
def test_whatever_can_change_an_answer_changes_the_key(other: str) -> None:
    assert other != identity(card(), protocol())


def test_offered_texts_that_the_wording_does_not_list_change_the_key() -> None:
    bare = GENDER.model_copy(update={"question": "Gender?"})
    other = bare.model_copy(update={"offered": {"Male": "Man"}})
    one = protocol(attributes={"gender": bare})
    assert identity(card(), one) != identity(card(), protocol(attributes={"gender": other}))


def test_two_attributes_of_the_same_words_have_keys_of_their_own(tmp_path: Path) -> None:
    """A classifier is asked for nothing but its labels, and answers by the attribute."""
    (tmp_path / "attributes").mkdir()
    names = ("glasses", "mask")
    for name in names:
        (tmp_path / "attributes" / f"{name}.py").write_text(
            "from facescan.attributes import Attribute, LabelSet\n"
            "_SET = LabelSet(name='yes-no', labels=('yes', 'no'), synonyms={}, source='')\n"
            f"ATTRIBUTE = Attribute(name={name!r}, noun={name!r}, also_called=(), views=(), "
            "label_sets=(_SET,), off_list=(), examples=())\n"
        )
    bare = Asked(label_set="yes-no", question="{labels}")
    asked = protocol(attributes=dict.fromkeys(names, bare))
    with registry.including(tmp_path):
        one, other = questions(card(attributes=names), asked, names, "px")
    assert one.prompt == other.prompt
    assert one.identity != other.identity


def test_what_cannot_change_an_answer_keeps_the_key() -> None:
    same = card(description="reworded", licence="known now", attributes=("gender",))
    assert identity(same, protocol(name="q", description="reworded")) == identity(
        card(), protocol()
    )


def test_each_attribute_is_asked_of_its_own_checkpoint() -> None:
    family = models.load("facescan-paligemma")
    asked = questions(family, protocols.load(family.protocol), family.attributes, "px")
    assert len(asked) == len({question.identity for question in asked}) == len(attributes.names())
