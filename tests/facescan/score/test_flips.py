"""Two askings of the same rows: which of them are read otherwise."""

from facescan import attributes
from facescan.attributes import Attribute, LabelSet
from facescan.score.flips import Flips, flips
from facescan.score.paired import Answer, Meeting, Side

RACE = attributes.load("race")


def meeting(
    pairs: list[tuple[str, str, int]], asked: tuple[str, str] = ("race-7", "race-7")
) -> Meeting:
    """Labels, or outcomes after a `!`."""

    def answer(text: str) -> Answer:
        outcome, label = (text[1:], None) if text.startswith("!") else ("answered", text)
        return Answer(outcome, label, None, None)

    one, other = (Side("0", "m", f"p{n}", "free", name) for n, name in enumerate(asked))
    met = tuple((answer(a), answer(b), n) for a, b, n in pairs)
    return Meeting(one, other, "race", "d", "s", met, 0, 0)


def test_another_label_or_another_outcome_is_a_flip_and_a_failure_of_the_run_is_none() -> None:
    found = flips(
        meeting(
            [
                ("White", "White", 10),
                ("White", "Black", 3),
                ("White", "!refused", 2),
                ("!refused", "!refused", 4),
                ("!refused", "!unparsed", 1),
                ("!bad_image", "White", 7),
                ("White", "!engine_error", 5),
            ]
        ),
        RACE,
    )
    assert found == Flips(rows=20, flipped=6, failed=12)
    assert found.rate.value == 0.3


def test_askings_in_two_label_sets_are_compared_in_the_finest_that_both_lead_into() -> None:
    pairs = [("East Asian", "Asian", 5), ("Southeast Asian", "Asian", 4), ("White", "Asian", 1)]
    assert flips(meeting(pairs, ("race-7", "race-6")), RACE) == Flips(10, 1, 0)
    same = [("East Asian", "Southeast Asian", 2)]
    assert flips(meeting(same), RACE) == Flips(2, 2, 0), "not where both were asked in seven"


def test_label_sets_without_a_view_in_common_are_not_compared() -> None:
    sets = (LabelSet("a", ("1",), {}), LabelSet("b", ("2",), {}))
    apart = Attribute("x", "x", sets, (), ())
    assert flips(meeting([("1", "2", 3)], ("a", "b")), apart) is None


def test_an_answer_outside_the_common_view_is_no_label_of_it() -> None:
    pairs = [("Middle Eastern", "White", 3), ("East Asian", "Asian", 2)]
    assert flips(meeting(pairs, ("race-7", "race-4")), RACE) == Flips(5, 3, 0)
    pairs = [("Middle Eastern", "Latino_Hispanic", 3)]
    assert flips(meeting(pairs, ("race-7", "race-6")), RACE) == Flips(3, 3, 0)
