"""Age, as perceived, in groups of years.

An answer in years, or a narrower group than those offered, is read as the offered group that
covers it: "34" and "30-39" both say "20-39" where that is on the list. One that no group covers
("30-45", "60+" among groups that go on to 69) is off the list.
"""

from math import inf

from facescan.attributes import Attribute, Example, LabelSet, View
from facescan.types import FinishReason, Outcome

_TEENS = {"teen": "10-19", "teens": "10-19", "teenager": "10-19", "teenage": "10-19"}

_AGE_9 = LabelSet(
    name="age-9",
    labels=(
        *("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69"),
        "more than 70",
    ),
    synonyms={
        **_TEENS,
        "newborn": "0-2",
        "infant": "0-2",
        "baby": "0-2",
        "70+": "more than 70",
        "over 70": "more than 70",
        "70 and over": "more than 70",
        "70 or older": "more than 70",
    },
    ordinal=True,
    source="FairFace, the nine groups of its label files",
    bounds={
        **{f"{low}-{low + 9}": (low, low + 9) for low in range(10, 70, 10)},
        "0-2": (0, 2),
        "3-9": (3, 9),
        "more than 70": (70, inf),
    },
)
_AGE_5 = LabelSet(
    name="age-5",
    labels=("0-9", "10-19", "20-39", "40-59", "More than 60"),
    synonyms={
        **_TEENS,
        "newborn": "0-9",
        "infant": "0-9",
        "baby": "0-9",
        "toddler": "0-9",
        "60+": "More than 60",
        "over 60": "More than 60",
        "60 and over": "More than 60",
        "60 or older": "More than 60",
    },
    ordinal=True,
    source="FairFace merged to five groups, as in arXiv 2410.24148",
    bounds={
        "0-9": (0, 9),
        "10-19": (10, 19),
        "20-39": (20, 39),
        "40-59": (40, 59),
        "More than 60": (60, inf),
    },
)

ATTRIBUTE = Attribute(
    name="age",
    noun="age group",
    also_called=("age", "age range"),
    label_sets=(_AGE_9, _AGE_5),
    views=(
        View(
            "age-9",
            "age-5",
            {
                "0-2": "0-9",
                "3-9": "0-9",
                "10-19": "10-19",
                "20-29": "20-39",
                "30-39": "20-39",
                "40-49": "40-59",
                "50-59": "40-59",
                "60-69": "More than 60",
                "more than 70": "More than 60",
            },
        ),
    ),
    off_list=(
        *("child", "kid", "toddler", "adolescent", "youth", "young", "young adult", "adult"),
        *("middle aged", "middle age", "senior", "elderly", "old", "older adult"),
    ),
    examples=(
        Example("20-39", "age-5", Outcome.ANSWERED, "20-39"),
        Example("from 20 to 39", "age-5", Outcome.ANSWERED, "20-39"),
        Example("More than 60", "age-5", Outcome.ANSWERED, "More than 60"),
        Example("60+", "age-5", Outcome.ANSWERED, "More than 60"),
        Example("Over 60.", "age-5", Outcome.ANSWERED, "More than 60"),
        Example("more than 70", "age-9", Outcome.ANSWERED, "more than 70"),
        Example("70+", "age-9", Outcome.ANSWERED, "more than 70"),
        Example("70 and above", "age-9", Outcome.ANSWERED, "more than 70"),
        Example("0-9 years old", "age-5", Outcome.ANSWERED, "0-9"),
        Example("The person is between 40 and 59.", "age-5", Outcome.ANSWERED, "40-59"),
        Example("20\u201339", "age-5", Outcome.ANSWERED, "20-39"),
        Example("Age group: 10 - 19", "age-5", Outcome.ANSWERED, "10-19"),
        Example('{"age-group": "40-59"}', "age-5", Outcome.ANSWERED, "40-59"),
        Example('{"age": 34, "ageGroup": "20-39"}', "age-5", Outcome.ANSWERED, "20-39"),
        Example("34", "age-5", Outcome.ANSWERED, "20-39"),
        Example("34", "age-9", Outcome.ANSWERED, "30-39"),
        Example("A 25-year-old woman", "age-9", Outcome.ANSWERED, "20-29"),
        Example("6 months old", "age-9", Outcome.ANSWERED, "0-2"),
        Example("in her mid-thirties", "age-9", Outcome.ANSWERED, "30-39"),
        Example("20s or 30s", "age-5", Outcome.ANSWERED, "20-39"),
        Example("25-34", "age-5", Outcome.ANSWERED, "20-39"),
        Example("Under 10", "age-5", Outcome.ANSWERED, "0-9"),
        Example("a teenager", "age-9", Outcome.ANSWERED, "10-19"),
        Example("Young adult, 20-29", "age-9", Outcome.ANSWERED, "20-29"),
        Example("not 20-39 but 40-59", "age-5", Outcome.ANSWERED, "40-59"),
        Example("30-45", "age-5", Outcome.OFF_LIST),
        Example("20-39", "age-9", Outcome.OFF_LIST),
        Example("60+", "age-9", Outcome.OFF_LIST),
        Example("adult", "age-5", Outcome.OFF_LIST),
        Example("20-39 or 40-59", "age-5", Outcome.AMBIGUOUS),
        Example("20s or 30s", "age-9", Outcome.AMBIGUOUS),
        Example("110-19", "age-5", Outcome.UNPARSED),
        Example("95% sure", "age-5", Outcome.UNPARSED),
        Example("Cannot determine the age", "age-5", Outcome.ABSTAINED),
        Example("unknown", "age-5", Outcome.ABSTAINED),
        Example("I'm sorry, I can't guess the age of real people.", "age-5", Outcome.REFUSED),
        Example("from 20 to", "age-5", Outcome.TRUNCATED, finish_reason=FinishReason.LENGTH),
        Example("2", "age-5", Outcome.TRUNCATED, finish_reason=FinishReason.LENGTH),
        Example("20-39\n20-", "age-5", Outcome.ANSWERED, "20-39", FinishReason.LENGTH),
    ),
)
