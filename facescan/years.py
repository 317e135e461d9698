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
_OF = "(?:(?:the )?ages? of |ages )?"
# The card of FaceScanPaliGemma_Age prints "ro" for "to".
_TO = " ?(?:-|~|to|ro|through|until) ?"
_PLUS = r"[ -]?(?:years? (?:old |of age )?)?(?:\+|plus\b|(?:and|or) (?:over|above|older|more|up)\b)"
_UNIT = r"[ -]*(?:days?|weeks?|months?|years?|yrs?|yo|y/o|ish)\b"
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
    rf"|(?P<days>{_N})[ -]*days?|(?P<weeks>{_N})[ -]*weeks?|(?P<months>{_N})[ -]*months?"
    rf"|(?P<years>{_N}){_UNIT}"
    r"|(?:aged?|age (?:of|at)|about|around|approximately|roughly|probably|likely|maybe|perhaps"
    rf"|possibly|estimate|guess|is|be|say) ?:? ?(?P<about>{_N})"
    # "About 6" is not what "about 6 months", "about 6-10" or "about 6 people" say.
    rf"(?!\.\d| ?%|{_TO}\d|{_PLUS}|{_UNIT}"
    r"| (?:of|people|persons?|faces?|individuals?|men|man|women|woman|child)\b)"
    r")(?![\w%])"
)


def in_digits(text: str) -> str:
    """A normal text with its number words written as digits."""
    return _WORDS.sub(_digits, text)


def intervals(text: str) -> Iterator[tuple[tuple[int, int], tuple[float, float]]]:
    """Where a normal text says years, and the first and last whole year that it says there."""
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
    first, *second = (int(value) for value in said.values())
    if second:
        return first, second[0]
    bounds: dict[str, tuple[float, float]] = {
        "above": (first + 1, inf),
        "least": (first, inf),
        "plus": (first, inf),
        "below": (0, first - 1),
        "most": (0, first),
        "decade": (10 * first, 10 * first + 9),
        "days": (first // 365, first // 365),
        "weeks": (first // 52, first // 52),
        "months": (first // 12, first // 12),
    }
    return bounds.get(next(iter(said)), (first, first))
