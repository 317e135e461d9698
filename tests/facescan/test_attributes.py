"""Every attribute file, found by name, is held to its own examples and to the contract."""

import pytest

from facescan import attributes
from facescan.attributes import Attribute, LabelSet
from facescan.errors import UnknownNameError, UsageError
from facescan.mentions import normal
from facescan.parse import read
from facescan.types import MODEL_OUTCOMES, Outcome

EACH = pytest.mark.parametrize("name", attributes.names())
EACH_EXAMPLE = pytest.mark.parametrize(
    ("name", "example"),
    [
        pytest.param(name, example, id=f"{name}-{number}")
        for name in attributes.names()
        for number, example in enumerate(attributes.load(name).examples)
    ],
)


def test_there_are_attributes() -> None:
    assert attributes.names()


@EACH
def test_is_named_like_its_file(name: str) -> None:
    assert attributes.load(name).name == name


@EACH
def test_synonyms_stand_for_labels_of_their_set(name: str) -> None:
    for label_set in attributes.load(name).label_sets:
        assert set(label_set.synonyms.values()) <= set(label_set.labels)


@EACH
def test_no_phrase_means_two_things(name: str) -> None:
    attribute = attributes.load(name)
    for label_set in attribute.label_sets:
        meant = {normal(label): label for label in label_set.labels}
        assert len(meant) == len(label_set.labels)
        for phrase, label in label_set.synonyms.items():
            assert phrase == normal(phrase), f"'{phrase}' is not in its normal form"
            assert meant.setdefault(phrase, label) == label
        others = {*attribute.asides, *attribute.abstentions}
        assert all(phrase == normal(phrase) for phrase in others | set(attribute.off_list))
        assert not others & (set(meant) | set(attribute.off_list))


@EACH
def test_what_is_off_the_list_is_on_no_list_or_not_on_all(name: str) -> None:
    attribute = attributes.load(name)
    for phrase in attribute.off_list:
        assert not all(
            phrase in {*label_set.synonyms, *map(normal, label_set.labels)}
            for label_set in attribute.label_sets
        )


@EACH
def test_bounds_cover_every_year_once(name: str) -> None:
    for label_set in attributes.load(name).label_sets:
        if label_set.bounds:
            assert set(label_set.bounds) == set(label_set.labels)
            found = [label_set.covering(year, year) for year in range(121)]
            assert list(dict.fromkeys(found)) == list(label_set.labels)


@EACH
def test_views_map_labels_to_labels(name: str) -> None:
    attribute = attributes.load(name)
    for view in attribute.views:
        source, target = attribute.label_set(view.source), attribute.label_set(view.target)
        assert set(view.merges) <= set(source.labels)
        assert set(view.merges.values()) <= set(target.labels)
        if source.bounds and target.bounds:
            for label, merged in view.merges.items():
                assert target.covering(*source.bounds[label]) == merged


@EACH
def test_label_sets_have_names_of_their_own(name: str) -> None:
    mine = [label_set.name for label_set in attributes.load(name).label_sets]
    others = [
        label_set.name
        for other in attributes.names()
        if other != name
        for label_set in attributes.load(other).label_sets
    ]
    assert len(set(mine)) == len(mine)
    assert not set(mine) & set(others)


@EACH
def test_brings_enough_examples(name: str) -> None:
    attribute = attributes.load(name)
    assert len(attribute.examples) >= 25
    readable = MODEL_OUTCOMES - {Outcome.BLOCKED, Outcome.MISSED, Outcome.SPURIOUS}
    assert {example.outcome for example in attribute.examples} == readable
    for label_set in attribute.label_sets:
        assert any(example.label_set == label_set.name for example in attribute.examples)


@EACH_EXAMPLE
def test_examples_are_read_as_stated(name: str, example: attributes.Example) -> None:
    reading = read(example.text, example.finish_reason, name, example.label_set)
    assert (reading.outcome, reading.label) == (example.outcome, example.label)


@EACH
def test_labels_and_synonyms_are_read_as_themselves(name: str) -> None:
    for label_set in attributes.load(name).label_sets:
        for phrase, label in (
            *((label, label) for label in label_set.labels),
            *label_set.synonyms.items(),
        ):
            for text in (phrase, f" {phrase.upper()}.\n", f"**{phrase}**"):
                reading = read(text, "stop", name, label_set.name)
                assert (reading.outcome, reading.label) == (Outcome.ANSWERED, label), text
            if len(phrase) > 1:
                sentence = f"The person in the image appears to be {phrase}."
                assert read(sentence, "stop", name, label_set.name).label == label, sentence


def test_the_papers_merges() -> None:
    race, age = attributes.load("race"), attributes.load("age")
    merged = race.view("race-7", "race-6")
    assert merged is not None
    assert {k: v for k, v in merged.merges.items() if k != v} == {
        "East Asian": "Asian",
        "Southeast Asian": "Asian",
    }
    grouped = age.view("age-9", "age-5")
    assert grouped is not None
    assert set(grouped.merges) == set(age.label_set("age-9").labels)
    assert race.view("race-6", "race-7") is None


def test_what_has_no_place_in_a_view_is_left_out_of_it() -> None:
    race, emotion = attributes.load("race"), attributes.load("emotion")
    for attribute, source, target, left_out in (
        (race, "race-7", "race-4", {"Latino_Hispanic", "Middle Eastern"}),
        (race, "race-6", "race-4", {"Latino_Hispanic", "Middle Eastern"}),
        (race, "race-utkface", "race-4", {"Others"}),
        (race, "race-7", "race-utkface", set()),
        (emotion, "emotion-8", "emotion-7", {"contempt"}),
    ):
        view = attribute.view(source, target)
        assert view is not None
        assert set(attribute.label_set(source).labels) - set(view.merges) == left_out
        assert set(view.merges.values()) == set(attribute.label_set(target).labels)


def test_utkfaces_others_are_those_of_no_other_category() -> None:
    race = attributes.load("race")
    seven, six = race.view("race-7", "race-utkface"), race.view("race-6", "race-utkface")
    assert seven is not None
    assert six is not None
    for view in (seven, six):
        assert {n for n, seen in view.merges.items() if seen == "Others"} == {
            "Latino_Hispanic",
            "Middle Eastern",
        }
    assert {seven.merges[n] for n in ("East Asian", "Southeast Asian")} == {"Asian"}


@pytest.mark.parametrize(
    ("years", "nine", "five"),
    [
        (0, "0-2", "0-9"),
        (2, "0-2", "0-9"),
        (3, "3-9", "0-9"),
        (9, "3-9", "0-9"),
        (10, "10-19", "10-19"),
        (39, "30-39", "20-39"),
        (59, "50-59", "40-59"),
        (60, "60-69", "More than 60"),
        (70, "more than 70", "More than 60"),
        (116, "more than 70", "More than 60"),
    ],
)
def test_years_fall_into_the_group_that_covers_them(years: int, nine: str, five: str) -> None:
    age = attributes.load("age")
    assert age.label_set("age-9").covering(years, years) == nine
    assert age.label_set("age-5").covering(years, years) == five


def test_a_set_seen_in_itself_is_the_identity() -> None:
    gender = attributes.load("gender")
    view = gender.view("gender-2", "gender-2")
    assert view is not None
    assert view.merges == {"Male": "Male", "Female": "Female"}


def test_unknown_names_say_what_is_known() -> None:
    with pytest.raises(UsageError, match="race-7, race-6"):
        attributes.load("race").label_set("race-77")
    with pytest.raises(UnknownNameError, match="Did you mean 'gender'"):
        attributes.load("gendre")


def test_a_bin_covers_whole_intervals_only() -> None:
    bins = LabelSet("b", ("low", "high"), {}, bounds={"low": (0, 9), "high": (10, 19)})
    assert bins.covering(0, 9) == "low"
    assert bins.covering(9, 10) is None
    assert bins.covering(20, 20) is None
    assert Attribute("a", "a", (bins,), (), ()).label_set("b") is bins
