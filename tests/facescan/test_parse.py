"""Reading replies; the attributes' own examples are in test_attributes.py.

`replies.jsonl` holds whole replies, collected or written in the manner of a model family, each with
what a person takes it to say. `asked` is the protocol, or the label set where the labels themselves
were offered; `read` has for each attribute asked the outcome and, where there is one, the label;
`finish_reason` is `stop` where it is not given.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facescan import attributes, prompt, protocols
from facescan.models import ModelCard
from facescan.parse import Parser, Reading, read
from facescan.types import (
    MODEL_OUTCOMES,
    RUN_OUTCOMES,
    AnswerMode,
    Decoding,
    FinishReason,
    Outcome,
    Question,
)

LABEL_SETS = [
    (name, label_set.name)
    for name in attributes.names()
    for label_set in attributes.load(name).label_sets
]


def question(mode: AnswerMode, *label_sets: tuple[str, str]) -> Question:
    offered = tuple(
        tuple((label, label) for label in attributes.load(name).label_set(label_set).labels)
        for name, label_set in label_sets
    )
    return Question(
        model="m",
        protocol="p",
        attributes=tuple(name for name, _ in label_sets),
        prompt="?",
        labels=tuple(text for pairs in offered for text, _ in pairs),
        answer_mode=mode,
        decoding=Decoding(),
        identity="0",
        label_sets=tuple(label_set for _, label_set in label_sets),
        offered=offered,
    )


JOINT = Parser(
    question(AnswerMode.FREE, ("race", "race-6"), ("gender", "gender-2"), ("age", "age-5"))
)
UNPARSED = Reading(Outcome.UNPARSED)


def answered(*labels: str) -> tuple[Reading, ...]:
    return tuple(Reading(Outcome.ANSWERED, label) for label in labels)


@pytest.mark.parametrize("kind", sorted(RUN_OUTCOMES))
def test_a_failed_request_is_read_for_every_attribute_asked(kind: Outcome) -> None:
    assert JOINT.readings(None, None, kind) == (Reading(kind),) * 3
    assert JOINT.readings(None, None, str(kind)) == (Reading(kind),) * 3


def test_no_reply_is_pending_and_an_empty_one_is_not() -> None:
    assert JOINT.readings(None, None) == (Reading(Outcome.PENDING),) * 3
    assert JOINT.readings(None, FinishReason.STOP) == (UNPARSED,) * 3
    assert JOINT.readings("", FinishReason.STOP) == (UNPARSED,) * 3


@pytest.mark.parametrize(
    ("finish_reason", "outcome"),
    [(FinishReason.REFUSAL, Outcome.REFUSED), (FinishReason.BLOCKED, Outcome.BLOCKED)],
)
@pytest.mark.parametrize("text", [None, "", "White male, 20-39"])
def test_the_providers_word_stands(
    text: str | None, finish_reason: FinishReason, outcome: Outcome
) -> None:
    assert JOINT.readings(text, finish_reason) == (Reading(outcome),) * 3
    assert read(text, finish_reason, "race", "race-6") == Reading(outcome)


@pytest.mark.parametrize("mode", [AnswerMode.CHOICE, AnswerMode.SCORE])
def test_a_chosen_text_is_its_label_and_nothing_else_is(mode: AnswerMode) -> None:
    pairs = (("a man", "Male"), ("a woman", "Female"))
    for text, label in pairs:
        assert read(text, "stop", "gender", "gender-2", mode, pairs) == Reading(
            Outcome.ANSWERED, label
        )
    for text in ("A man", "Male", "a man ", ""):
        assert read(text, "stop", "gender", "gender-2", mode, pairs) == UNPARSED


def test_an_offered_text_is_read_whatever_its_words_mean() -> None:
    pairs = (("none", "Male"), ("not sure", "Female"))
    assert read("None.", "stop", "gender", "gender-2", offered=pairs).label == "Male"
    assert read("Not sure", "length", "gender", "gender-2", offered=pairs).label == "Female"


@pytest.mark.parametrize(
    "text",
    [
        '{"race": "White", "gender": "Male", "age-group": "20-39"}',
        '```json\n{"Race": "white", "Gender": "M", "Age Group": "from 20 to 39"}\n```',
        'Here you go: {"person": {"race": "White", "gender": "man", "ageGroup": 25}} Enjoy!',
        '[{"race": ["White"], "sex": "male", "age": "30s"}]',
        '{"race": "White", "race_confidence": 0.9, "gender": "Male", "age": 25, "age_score": 80}',
        "Race: White\nGender: Male\nAge group: 20-39",
        "Race: White, Gender: Male, Age: 20-39",
        "- **Race**: White\n- **Gender**: Male\n- **Age**: 25 years",
        "The person is a White male between 20 and 39 years old.",
        "{'race': 'White', 'gender': 'Male', 'age-group': '20-39'}",
    ],
)
def test_one_reply_about_several_attributes(text: str) -> None:
    assert JOINT.readings(text, FinishReason.STOP) == answered("White", "Male", "20-39")


def test_json_speaks_for_each_attribute_apart() -> None:
    text = '{"race": "unknown", "gender": "Male/Female", "age_group": "30-45"}'
    assert [r.outcome for r in JOINT.readings(text, FinishReason.STOP)] == [
        Outcome.ABSTAINED,
        Outcome.AMBIGUOUS,
        Outcome.OFF_LIST,
    ]
    text = '{"race": null, "gender": "Male"}'
    assert JOINT.readings(text, FinishReason.STOP) == (
        Reading(Outcome.ABSTAINED),
        *answered("Male"),
        UNPARSED,
    )


def test_persons_that_differ_are_ambiguous_and_persons_that_agree_are_not() -> None:
    text = '[{"race": "White", "gender": "Male"}, {"race": "Black", "gender": "Male"}]'
    assert JOINT.readings(text, FinishReason.STOP)[:2] == (
        Reading(Outcome.AMBIGUOUS),
        *answered("Male"),
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"race": "White", "gender": "Male", "age": 2',
        '{"race": "White", "gender": "Male", "age-group": "20-3',
        "Race: White\nGender: Male\nAge: 20-3",
        "Race: White; Gender: Male; Age: 20-3",
        '{"race": "White", "gender": "Male", "ag',
    ],
)
def test_a_cut_off_reply_keeps_its_complete_values(text: str) -> None:
    assert JOINT.readings(text, FinishReason.LENGTH) == (
        *answered("White", "Male"),
        Reading(Outcome.TRUNCATED),
    )


def test_a_cut_off_text_that_another_offered_text_goes_on_from_is_truncated() -> None:
    pairs = (("Asian", "Asian"), ("Asian Indian", "Indian"))
    assert read("Asian", "length", "race", "race-6", offered=pairs).outcome is Outcome.TRUNCATED
    assert read("Asian Indian", "length", "race", "race-6", offered=pairs).label == "Indian"
    assert read("Asian", "stop", "race", "race-6", offered=pairs).label == "Asian"


def test_a_refusal_of_a_joint_question_is_one_for_each() -> None:
    text = "I'm sorry, but I can't help with identifying people."
    assert JOINT.readings(text, FinishReason.STOP) == (Reading(Outcome.REFUSED),) * 3


def test_no_word_is_found_inside_another() -> None:
    for text in ("malefic", "womanly", "northindian", "whitewashed", "blackboard"):
        assert read(text, "stop", "gender", "gender-2") == UNPARSED
        assert read(text, "stop", "race", "race-7") == UNPARSED


REPLIES = [
    json.loads(line)
    for line in (Path(__file__).parent / "replies.jsonl").read_text(encoding="utf-8").splitlines()
]
SET_NAMES = {label_set: name for name, label_set in LABEL_SETS}


def asked_for(reply: dict[str, Any]) -> Question:
    """The one question that a line of `replies.jsonl` answers."""
    asked, about = reply["asked"], tuple(reply["read"])
    if asked in SET_NAMES:
        return question(AnswerMode.FREE, (SET_NAMES[asked], asked))
    card = ModelCard(name="m", description="", engine="fake", protocol=asked, attributes=about)
    (found,) = prompt.questions(card, protocols.load(asked), about, "pixels")
    return found


@pytest.mark.parametrize(
    "reply", [pytest.param(reply, id=f"line-{n}") for n, reply in enumerate(REPLIES, 1)]
)
def test_replies_are_read_as_a_person_reads_them(reply: dict[str, Any]) -> None:
    asked = asked_for(reply)
    readings = Parser(asked).readings(reply["text"], reply.get("finish_reason", FinishReason.STOP))
    assert {
        attribute: " ".join(filter(None, (reading.outcome, reading.label)))
        for attribute, reading in zip(asked.attributes, readings, strict=True)
    } == reply["read"]


def test_there_are_enough_replies_of_every_kind() -> None:
    assert len(REPLIES) >= 200
    assert all(reply["source"] for reply in REPLIES)
    readings = Counter(
        (attribute, read.partition(" ")[0])
        for reply in REPLIES
        for attribute, read in reply["read"].items()
    )
    readable = MODEL_OUTCOMES - {Outcome.BLOCKED, Outcome.MISSED, Outcome.SPURIOUS}
    for name in attributes.names():
        assert all(readings[name, outcome] for outcome in readable), name
        assert sum(n for (about, _), n in readings.items() if about == name) >= 50


@pytest.mark.parametrize(
    ("label_set", "text", "label", "where"),
    [
        ("race-6", "Latinx or Hispanic", "Latino_Hispanic", "3.1, prompt of GPT-4o and Gemini"),
        ("race-6", "Latino or Hispanic", "Latino_Hispanic", "3.2 and 3.3, PaliGemma and LLaVA"),
        ("race-6", "Asian", "Asian", "3.1 to 3.3"),
        ("race-6", "Middle Eastern", "Middle Eastern", "3.1 to 3.3"),
        ("race-6", "M.Eastern", "Middle Eastern", "Table 22"),
        ("race-6", "Latinx", "Latino_Hispanic", "Table 22"),
        ("race-7", "Latinx_Hispanic", "Latino_Hispanic", "section on FairFace"),
        ("race-7", "Latinx or Hispanic", "Latino_Hispanic", "Table 16"),
        ("race-7", "East Asian", "East Asian", "Table 16"),
        ("race-7", "Southeast Asian", "Southeast Asian", "Table 16"),
        ("race-utkface", "Latinx or Hispanic or Middle Eastern", "Others", "section on UTKFace"),
        ("race-utkface", "Latinx-Hispanic-Middle Eastern", "Others", "Table 19"),
        ("race-utkface", "Others", "Others", "UTKFace"),
        ("gender-2", "M", "Male", "Table 22"),
        ("gender-2", "F", "Female", "Table 22"),
        ("gender-2", "Male", "Male", "gender card, Table 17"),
        ("gender-2", "Female", "Female", "gender card, Table 17"),
        ("age-5", "from 0 to 9", "0-9", "age card"),
        ("age-5", "from 10 to 19", "10-19", "age card"),
        ("age-5", "from 20 to 39", "20-39", "age card"),
        ("age-5", "from 40 to 59", "40-59", "age card"),
        ("age-5", "from 40 ro 59", "40-59", "age card, as misprinted"),
        ("age-5", "More than 60", "More than 60", "age card, Table 18"),
        ("age-5", "60+", "More than 60", "Table 22, section on FairFace"),
        ("age-5", ">60", "More than 60", "Table 21"),
        ("age-9", "more than 70", "more than 70", "FairFace's label files"),
        ("age-9", "70+", "more than 70", "section on FairFace"),
        *(
            ("emotion-8", emotion, emotion, "emotion card, Table 15")
            for emotion in attributes.load("emotion").label_set("emotion-8").labels
        ),
    ],
)
def test_the_papers_own_answers_are_read(label_set: str, text: str, label: str, where: str) -> None:
    asked = question(AnswerMode.FREE, (SET_NAMES[label_set], label_set))
    assert Parser(asked).readings(text, FinishReason.STOP) == answered(label), where


text_of_words = st.lists(
    st.sampled_from(
        (
            *("male", "female", "not", "White", "or", "20-39", "34", "years", "more than", "60"),
            *("I'm sorry,", "I can't", "tell", "identify", "but", ".", "\n", ":", "race", "{"),
            *('"race"', "}", ",", "[", "]", "null", "```json", '"', "happy", "none", "un", "-"),
        )
    )
).map(" ".join)


@settings(max_examples=150)
@given(
    text=st.one_of(st.text(), text_of_words),
    finish_reason=st.sampled_from([None, *FinishReason]),
    asked=st.sampled_from(LABEL_SETS),
    mode=st.sampled_from(AnswerMode),
)
def test_any_text_is_read_as_something(
    text: str, finish_reason: FinishReason | None, asked: tuple[str, str], mode: AnswerMode
) -> None:
    parser = Parser(question(mode, asked))
    (reading,) = parser.readings(text, finish_reason)
    assert reading.outcome in MODEL_OUTCOMES
    assert (reading.label is not None) == (reading.outcome is Outcome.ANSWERED)
    labels = attributes.load(asked[0]).label_set(asked[1]).labels
    assert reading.label is None or reading.label in labels
    assert (reading,) == Parser(question(mode, asked)).readings(text, finish_reason)
    if finish_reason == FinishReason.LENGTH and reading.outcome is Outcome.ANSWERED:
        assert parser.readings(text, FinishReason.STOP)[0].outcome is not Outcome.UNPARSED


@settings(max_examples=100)
@given(st.one_of(st.text(), text_of_words))
def test_any_text_is_read_for_every_attribute_asked(text: str) -> None:
    assert len(JOINT.readings(text, FinishReason.LENGTH)) == 3


@pytest.mark.parametrize(
    "text",
    [
        "while " * 20_000,
        "black " * 20_000,
        "[" * 100_000,
        '{"a":' * 50_000,
        "not " * 20_000 + "male",
        "1" * 100_000,
        "\n" * 50_000,
    ],
)
def test_absurd_replies_are_read(text: str) -> None:
    for name, label_set in LABEL_SETS:
        assert read(text, FinishReason.STOP, name, label_set).outcome in MODEL_OUTCOMES
