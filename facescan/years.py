"""Which years of a life a text says: "34", "20-39", "in her thirties", "under the age of ten"."""

import re
from collections.abc import Iterator
from math import inf

OLDEST = 120
"""Numbers above are not years of a life."""

_UP_TO_19 = {
    word: number
    for number, word in enumerate(
        (
            *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
            *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
            *("eighteen", "nineteen"),
        ),
        1,
    )
}
_ONES = {word: number for word, number in _UP_TO_19.items() if number < 10}
_TENS = {
    word: 10 * number
    for number, word in enumerate(
        ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"), 2
    )
}
_DECADES = {word.removesuffix("y") + "ies": number for word, number in _TENS.items()}
_WORDS = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?: (?P<ones>{'|'.join(_ONES)}))?"
    # "One" is a number only where it counts: "it is one of the groups".
    rf"|one(?= (?:year|month|week|day))|(?!one\b)(?:{'|'.join(_UP_TO_19)}))\b"
)
_N = "[0-9]{1,3}"
_NUMBER = rf"{_N}(?:\.[0-9])?"
_OF = "(?:(?:the )?ages? of |ages )?"
# The card of FaceScanPaliGemma_Age prints "ro" for "to".
_TO = " ?(?:-|~|to|ro|through|until) ?"
_PLUS = r"[ -]?(?:years? (?:old |of age )?)?(?:\+|plus\b|(?:and|or) (?:over|above|older|more|up)\b)"
_SHORT = r"[ -]*(?:days?|weeks?|months?)\b"
# "25 y.o." is "25 y o." in its normal form.
_UNIT = r"[ -]*(?:(?P<unit>day|week|month)s?|years?|yrs?|y(?: ?o|/o)?|ish)\b"
_PER_YEAR = {"day": 365, "week": 52, "month": 12}
_SAID = re.compile(
    r"(?<![\w.])(?:"
    rf"between {_OF}(?P<from>{_N}) and (?P<to>{_N})"
    rf"|(?P<low>{_N}){_TO}(?P<high>{_N})"
    rf"|(?:(?:more|older|greater) than|over|above|>(?!=)) ?{_OF}(?P<above>{_N})"
    rf"|(?:at least|>=|\u2265) ?{_OF}(?P<least>{_N})"
    rf"|(?P<plus>{_N}){_PLUS}"
    rf"|(?:(?:less|younger) than|under|below|<(?!=)) ?{_OF}(?P<below>{_N})"
    rf"|(?:up to|at most|(?:not|no) (?:more|older) than|<=|\u2264) ?{_OF}(?P<most>{_N})"
    r"|(?P<decade>[1-9])0'?s"
    rf"|(?P<word>{'|'.join(_DECADES)})"
    # What months are less or more than is not asked: a few of them are no year.
    r"|(?:(?:(?:less|younger|more|older) than|under|over) )?"
    rf"(?:between {_OF}(?P<first>{_NUMBER}) and |(?P<start>{_NUMBER}){_TO})?"
    rf"(?P<last>{_NUMBER}){_UNIT}"
    r"|(?:aged?|age (?:of|at)|about|around|approximately|approx\.?|roughly|~|probably|likely|maybe"
    r"|perhaps|possibly|estimate|guess|is|be|say|looks?|looks? like|seems?|appears?)"
    rf" ?:? ?(?P<about>{_N})"
    # "About 6" is not what "about 6 months", "about 6-10" or "about 6 people" say.
    rf"(?!\.\d| ?%|{_TO}\d|{_PLUS}|{_UNIT.replace('?P<unit>', '?:')}"
    r"| (?:of|people|persons?|faces?|individuals?|men|man|women|woman|child|children|kids?|boys?"
    r"|girls?|images?|photos?|pictures?)\b)"
    rf")(?![\w%]|{_SHORT})"
)
# Each of the two is an answer, as in "White or Asian".
_EITHER = re.compile(
    rf"(?<![\w.])(?P<one>{_NUMBER}) or (?P<other>{_NUMBER})"
    rf"(?:{_UNIT}|(?= ?(?:[.,;:!?)\"'*]+(?!\w)|$)))(?!\w)"
)


def in_digits(text: str) -> str:
    """A normal text with its number words written as digits."""
    return _WORDS.sub(_digits, text)


def intervals(text: str) -> Iterator[tuple[tuple[int, int], tuple[float, float]]]:
    """Where a normal text says years, and the first and last whole year that it says there."""
    for either in _EITHER.finditer(text):
        for name in ("one", "other"):
            year = _in_years(either[name], either["unit"])
            if year <= OLDEST:
                yield either.span(name), (year, year)
    for found in _SAID.finditer(text):
        low, high = _interval(found)
        if low <= high and (high <= OLDEST or high == inf):
            yield found.span(), (low, high)


def _digits(word: re.Match[str]) -> str:
    if word["tens"] is not None:
        return str(_TENS[word["tens"]] + _ONES.get(word["ones"], 0))
    return str(_UP_TO_19[word[0]])


def _interval(found: re.Match[str]) -> tuple[float, float]:
    said = {name: value for name, value in found.groupdict().items() if value is not None}
    if "word" in said:
        decade = _DECADES[said["word"]]
        return decade, decade + 9
    if "last" in said:
        first, last = said.get("first", said.get("start", said["last"])), said["last"]
        return _in_years(first, said.get("unit")), _in_years(last, said.get("unit"))
    year, *later = (int(value) for value in said.values())
    if later:
        return year, later[0]
    bounds: dict[str, tuple[float, float]] = {
        "above": (year + 1, inf),
        "least": (year, inf),
        "plus": (year, inf),
        "below": (0, year - 1),
        "most": (0, year),
        "decade": (10 * year, 10 * year + 9),
    }
    return bounds.get(next(iter(said)), (year, year))


def _in_years(number: str, unit: str | None) -> int:
    """The whole years in a number of days, weeks, months or, with no unit, years."""
    return int(float(number) / _PER_YEAR.get(unit or "", 1))
