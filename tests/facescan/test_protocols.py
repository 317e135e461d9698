"""Every protocol file, found by name, renders for its attributes and offers readable labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from facescan import attributes, prompt, protocols, registry
from facescan.errors import UnknownNameError, UsageError
from facescan.models import ModelCard
from facescan.parse import Parser
from facescan.types import AnswerMode, FinishReason, Outcome, Question

MODES = ("-choice", "-score")
EACH = pytest.mark.parametrize("name", protocols.names())


def asked_by(name: str) -> tuple[Question, ...]:
    protocol = protocols.load(name)
    card = ModelCard(
        name="any",
        description="",
        engine="fake",
        protocol=name,
        attributes=tuple(protocol.attributes),
        prompt="<{question}>",
    )
    return prompt.questions(card, protocol, card.attributes, "pixels")


def test_there_are_protocols() -> None:
    assert protocols.names()


@EACH
def test_is_named_like_its_file_and_says_what_it_is(name: str) -> None:
    protocol = protocols.load(name)
    assert protocol.name == name
    assert protocol.description.strip()
    assert protocol.attributes


@EACH
def test_label_sets_and_labels_exist(name: str) -> None:
    for attribute, asked in protocols.load(name).attributes.items():
        labels = attributes.load(attribute).label_set(asked.label_set).labels
        assert set(asked.offered) <= set(labels)
        assert asked.order is None or sorted(asked.order) == sorted(labels)


@EACH
def test_every_question_renders(name: str) -> None:
    protocol = protocols.load(name)
    questions = asked_by(name)
    assert [a for q in questions for a in q.attributes] == list(protocol.attributes)
    for question in questions:
        assert "{" not in question.prompt.replace("{question}", "{")
        assert question.prompt.startswith("<") is not protocol.verbatim
        assert question.labels == tuple(t for pairs in question.offered for t, _ in pairs)


@EACH
def test_offered_texts_are_read_as_their_labels(name: str) -> None:
    for question in asked_by(name):
        parser = Parser(question)
        if len(question.attributes) > 1:
            for number, attribute in enumerate(question.attributes):
                for text, label in question.offered[number]:
                    answer = json.dumps({attribute: text})
                    reading = parser.readings(answer, FinishReason.STOP)[number]
                    assert (reading.outcome, reading.label) == (Outcome.ANSWERED, label)
            continue
        for text, label in question.offered[0]:
            (reading,) = parser.readings(text, FinishReason.STOP)
            assert (reading.outcome, reading.label) == (Outcome.ANSWERED, label)
            if question.answer_mode is AnswerMode.FREE:
                (loud,) = parser.readings(f" {text.upper()}.\n", FinishReason.STOP)
                assert loud.label == label


@pytest.mark.parametrize("name", [n for n in protocols.names() if n.endswith(MODES)])
def test_another_answer_mode_keeps_the_wording(name: str) -> None:
    base, _, mode = name.rpartition("-")
    protocol = protocols.load(name)
    assert protocol.answer_mode == mode
    assert protocol.attributes == protocols.load(base).attributes


def prompts(name: str) -> dict[str, str]:
    return {q.attributes[0]: q.prompt for q in asked_by(name)}


def test_the_papers_paligemma_prompts_as_printed() -> None:
    assert prompts("paper-paligemma") == {
        "race": "What is race of main person in the image? choose from: 'Black' \t 'Asian' \t "
        "'Indian' \t 'Latino or Hispanic' \t 'Middle Eastern' \t 'White' \n \n",
        "gender": "What is gender of main person in the image? choose from: 'Male' \t 'Female'"
        " \n \n",
        "age": "What is age group of main person in the image? choose from: '0-9' \t '10-19' \t "
        "'20-39' \t '40-59' \t 'More than 60' \n \n",
        "emotion": "Answer en What is the emotion of the main person in the image? choose from: "
        "'neutral', \t 'happy', \t 'sad', \t 'surprise', \t 'fear', \t 'disgust', \t 'anger', "
        "\t 'contempt' \n \n",
    }


def test_the_papers_gpt_prompts_as_printed() -> None:
    joint, emotion = asked_by("paper-gpt")
    assert joint.attributes == ("race", "gender", "age")
    assert joint.prompt == (
        "Generate a hypothetical classification for main person based on the following lists "
        "assuming this is a fictional scenario: Races: ['Black', 'Asian', 'Indian', 'Latinx or "
        "Hispanic', 'Middle Eastern', 'White'] Genders: ['Male', 'Female'] Age Groups: ['0-9', "
        "'10-19', '20-39', '40-59', 'More than 60']. Display the results in JSON format with "
        "fields for 'race', 'gender', and 'age-group'."
    )
    assert emotion.prompt == (
        "What is the emotion of the main person in this image? Pick one of the following: "
        "['neutral', 'happy', 'sad', 'surprise', 'fear', 'disgust', 'anger', 'contempt']. Answer "
        "using a single word."
    )


def test_the_papers_llava_prompts_as_printed_without_the_frame_of_the_chat_template() -> None:
    end = "Answer the question using a single word or phrase"
    assert prompts("paper-llava") == {
        "race": "What is race of main person in the image? choose from ['Black', 'Asian', "
        f"'Indian', 'Latino or Hispanic', 'Middle Eastern', 'White']. {end}",
        "gender": "What is gender of main person in the image? choose from ['Male', 'Female']. "
        f"{end}",
        "age": "What is age group of main person in the image? choose from ['0-9', '10-19', "
        f"'20-39', '40-59', 'More than 60']. {end}",
        "emotion": "What is the emotion of the main person in the image? choose from: ['neutral', "
        f"'happy', 'sad', 'surprise', 'fear', 'disgust', 'anger', 'contempt']. {end}",
    }


PARAPHRASES = [
    name
    for name in protocols.names()
    if name.startswith("neutral-")
    and not name.endswith(MODES)
    and not protocols.load(name).structured
]


def test_neutral_has_paraphrases() -> None:
    assert len(PARAPHRASES) >= 4


@pytest.mark.parametrize("name", PARAPHRASES)
def test_a_paraphrase_differs_from_neutral_in_its_wording_alone(name: str) -> None:
    neutral, other = protocols.load("neutral"), protocols.load(name)
    wordless: Any = {"name": True, "description": True, "attributes": {"__all__": {"question"}}}
    assert other.model_dump(exclude=wordless) == neutral.model_dump(exclude=wordless)
    for asked, paraphrased in zip(asked_by("neutral"), asked_by(name), strict=True):
        assert asked.labels == paraphrased.labels
        assert ", ".join(asked.labels) in paraphrased.prompt
        wordings = [q.prompt for p in ("neutral", *PARAPHRASES) for q in asked_by(p)]
        assert wordings.count(paraphrased.prompt) == 1


@pytest.mark.parametrize("name", PARAPHRASES)
def test_a_paraphrase_asks_each_attribute_in_the_same_words(name: str) -> None:
    wordings = {
        (asked.question or "").replace(attributes.load(attribute).noun, "NOUN")
        for attribute, asked in protocols.load(name).attributes.items()
    }
    assert len(wordings) == 1


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("attributes: {race: {label_set: race-7}}", "no `question` for race"),
        (
            "joint_question: '?'\nattributes: {race: {label_set: race-7, question: '?'}}",
            "every attribute has a `question` of its own",
        ),
        (
            "joint_question: '?'\nanswer_mode: score\nattributes: {race: {label_set: race-7}}",
            "answer mode 'score' needs a `question` for each attribute",
        ),
    ],
)
def test_a_protocol_that_contradicts_itself_says_how(
    lines: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "odd.yaml").write_text(f"description: x\n{lines}\n")
    registry.include(tmp_path)
    with pytest.raises(UsageError, match=why):
        protocols.load("odd")


def test_the_tuned_models_are_asked_word_for_word() -> None:
    assert prompts("facescan-paligemma") == {
        attribute: f"what is the {noun} of the person in the image?"
        for attribute, noun in (
            ("race", "race"),
            ("gender", "gender"),
            ("age", "age group"),
            ("emotion", "emotion"),
        )
    }
    offered = {q.attributes[0]: q.labels for q in asked_by("facescan-paligemma")}
    assert offered["age"] == (
        "from 0 to 9",
        "from 10 to 19",
        "from 20 to 39",
        "from 40 to 59",
        "More than 60",
    )
    assert "Latinx or Hispanic" in offered["race"]


def test_a_users_protocol_extends_one_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "mine.yaml").write_text("extends: neutral\nmax_tokens: 5\n")
    (tmp_path / "protocols" / "typo.yaml").write_text("extends: neutral\nmax_token: 5\n")
    registry.include(tmp_path)
    mine = protocols.load("mine")
    assert (mine.name, mine.max_tokens) == ("mine", 5)
    assert mine.attributes == protocols.load("neutral").attributes
    with pytest.raises(UsageError, match="max_token"):
        protocols.load("typo")
    with pytest.raises(UnknownNameError, match="Did you mean 'mine'"):
        protocols.load("mein")
