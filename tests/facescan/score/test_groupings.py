"""What --group-by asks for."""

import pytest

from facescan.errors import UsageError
from facescan.score.groupings import Grouping, groupings

LABELLED = ("image_id", "label_race", "label_gender", "label_age", "value_years")
PREDICTED = ("predicted_gender", "predicted_race")


def names(found: tuple[Grouping, ...]) -> list[str]:
    return ["+".join(each.by) for each in found]


def test_by_default_every_column_and_gender_and_race_together() -> None:
    assert names(groupings(None, LABELLED)) == ["age", "gender", "race", "gender+race"]
    assert names(groupings(None, ["group_light", "label_race"])) == ["light", "race"]
    assert groupings(None, ["image_id", "value_years"]) == ()


def test_groups_of_people_may_be_groups_or_labels_of_the_dataset() -> None:
    (*_, both) = groupings(None, ["group_gender", "label_race"])
    assert both == Grouping(("gender", "race"), ("group_gender", "label_race"))


def test_another_run_s_answers_come_first_and_are_marked() -> None:
    found = groupings(None, (*LABELLED, *PREDICTED), "predicted by seer in runs/a")
    assert names(found) == [
        "predicted_gender",
        "predicted_race",
        "predicted_gender+predicted_race",
    ]
    assert {each.source for each in found} == {"predicted by seer in runs/a"}
    mixed, plain = groupings(
        ["predicted_gender+race,race"], (*LABELLED, *PREDICTED), "predicted by seer in runs/a"
    )
    assert mixed.source == "predicted by seer in runs/a"
    assert plain.source == "labels"


def test_groupings_are_asked_for_by_name() -> None:
    found = groupings(["gender, race", "gender+age", "race"], LABELLED)
    assert names(found) == ["gender", "race", "gender+age"]
    assert found[2].columns == ("label_gender", "label_age")
    assert groupings(["label_race"], LABELLED)[0].by == ("race",)
    assert groupings(["none"], LABELLED) == ()


def test_a_name_that_two_columns_have_is_given_in_full() -> None:
    present = ["label_race", "group_race"]
    assert names(groupings(None, present)) == ["group_race", "label_race"]
    with pytest.raises(UsageError, match=r"no column 'race'.*group_race, label_race"):
        groupings(["race"], present)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("shoe", "no column 'shoe' to group by; there are: age, gender, race"),
        ("race+race", "'race\\+race' names a column twice"),
        ("race+label_race", "names a column twice"),
        ("", "no column ''"),
        ("none,race", "no column 'none'"),
    ],
)
def test_what_is_not_there_is_refused(asked: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        groupings([asked], LABELLED)


def test_a_dataset_without_columns_says_so() -> None:
    with pytest.raises(UsageError, match="the dataset has no labels and no groups"):
        groupings(["race"], ["image_id"])
