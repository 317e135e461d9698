"""Which labels a text names: words and phrases, years, and what is ruled out.

The words of an attribute file become one pattern that finds whole words only, the longest phrase
first: "female" is not "male", "Southeast Asian" is not "East Asian". A text is taken apart into
clauses; one that refuses or withholds an answer names nothing, whatever words it holds.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from facescan import attributes as attribute_files
from facescan import years
from facescan.attributes import Attribute, LabelSet

_TRANSLATION = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u02bc\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u301c", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
        "_": " ",
    }
)
_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d])[-.](?=[^\W\d])")
_BLANKS = re.compile(r"[^\S\n]+")
_AROUND = " \n\"'*.,;:!?()[]{}#-"

_NOT = r"can(?:not| not|'?t)|could(?: not|n't)|unable to|(?:not|isn't|aren't) able to"
_CLAUSE_END = re.compile(
    r"[.!?;](?=\s|$)|\n|\b(?:but|however|although|though|yet|instead(?! of)|rather(?! than))\b"
)
_CONCESSION_END = re.compile(r"\b(?:although|though|while|whilst|despite)\b[^,.!?;\n]{0,200}(,)")
_REFUSAL = re.compile(
    rf"\b(?:{_NOT}|won't|will not|not going to|decline to|refuse to|do not"
    r"|don't)"
    r" (?:\w+ ){0,2}?(?:help|assist|comply|answer|provide|identify|classify|categori[sz]e|label"
    r"|assign|guess|speculate|infer|assume|estimate|describe|engage|do (?:that|this)|fulfill?"
    r"|process|discuss|comment|analy[sz]e|respond|feel comfortable|make (?:\w+ ){0,3}"
    r"(?:assumptions?|inferences?|judge?ments?|generali[sz]ations?|classifications?))\b"
    r"|\bas an ai\b"
    r"|\b(?:against|violates?) (?:\w+ ){0,3}(?:policy|policies|guidelines|principles|rules)\b"
    r"|\b(?:not|isn't) appropriate\b|\binappropriate\b|\bnot comfortable\b"
    r"|\bmust (?:\w+ )?decline\b|\b(?:rather|prefer) not\b"
    r"|\b(?:programmed|designed|instructed|required) (?:not to|to (?:avoid|refrain|decline))\b"
    r"|\bnot (?:permitted|allowed|supposed) to\b"
    r"|\b(?:not|isn't) something (?:that )?i\b|\b(?:that|this) (?:isn't|is not) possible\b"
)
_ABSTENTION = re.compile(
    rf"\b(?:{_NOT}|impossible to|not possible to|hard to|difficult to|do not|don't)"
    r" (?:\w+ ){0,2}?(?:determine|tell|see|read|discern|say|know|distinguish|ascertain|recogni[sz]e"
    r"|make out|judge|assess|determined|seen|told|known|discerned|identified|inferred"
    r"|be (?:sure|certain))\b"
    r"|\b(?:hard|difficult) to (?:identify|guess|infer|classify)\b"
    r"|\b(?:unsure|uncertain|not sure|not certain|unclear|not (?:\w+ )?clear|no idea)\b"
)
_NOTHING_NAMED = re.compile(
    r"\b(?:unknown|undetermined|indeterminate|unspecified|unanswerable|none|null"
    r"|no (?:person|people|one|human|face)"
    r"|not (?:specified|visible|clear|applicable|available|discernible|determinable)"
    r"|(?:not|n't)(?: \w+)? enough (?:information|context|detail)"
    r"|insufficient (?:information|context|detail)|ambiguous|could be either"
    r"|hidden|obscured|blurry|blurred)\b"
    r"|(?<!\w)n/a(?!\w)"
)
_APOLOGY = re.compile(r"\b(?:sorry|apologi[sz]e|i'm afraid|i am afraid)\b")
_NEGATED = re.compile(
    r"\b(?:not(?! (?:only|just|merely)\b)|no(?! doubt\b)|non|never|neither|nor|none of|without"
    r"|cannot|\w+n't|rather than|instead of|other than|unlike|lacks?)\b(?:\W+\w+){0,4}\W*$"
)
_BREAK = re.compile(r"[,:()]|\band\b")
_OR = re.compile(r",? ?(?:/|\bor\b|\bnor\b) ?(?:(?:an?|the) )?")
_COMMA = re.compile(r", ?(?:(?:an?|the) )?")
_LOOK_BACK = 80
_GAP = (
    r"(?: (?!(?:in|with|wearing|wears|who|is|has|or|of|on|at|by|from|an?|the|his|her|their"
    r"|(?:wo)?m[ae]n|(?:fe)?male|persons?|people|individual|boy|girl|lady|guy)\b)\w+){0,3} "
)
"""What ` ... ` in an aside stands for: words that can describe a thing."""


def normal(text: str) -> str:
    """The text in the one form that is compared: case, accents, dashes, quotes, blanks."""
    text = unicodedata.normalize("NFKD", text.translate(_TRANSLATION)).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c)).translate(_TRANSLATION)
    return _BLANKS.sub(" ", _BETWEEN_LETTERS.sub(" ", text))


def bare(text: str) -> str:
    """A normal text without the punctuation around it."""
    return text.strip(_AROUND)


def clauses(text: str) -> Iterator[str]:
    """A normal text cut at sentence ends and at words such as "but"."""
    start = 0
    ends = [end.span() for end in _CLAUSE_END.finditer(text)]
    # "While I cannot be sure, it looks like a man": the doubt ends with the comma.
    ends += [end.span(1) for end in _CONCESSION_END.finditer(text)]
    for clause_end, next_start in sorted(ends):
        yield text[start:clause_end]
        start = next_start
    yield text[start:]


def refuses(clause: str) -> bool:
    """Whether a clause declines to answer."""
    return _REFUSAL.search(clause) is not None


def withholds(clause: str) -> bool:
    """Whether a clause says that the answer cannot be told."""
    return _ABSTENTION.search(clause) is not None


def apologises(text: str) -> bool:
    """Whether a text says sorry, which in an answer that names nothing is a refusal."""
    return _APOLOGY.search(text) is not None


def _negated(before: str) -> bool:
    """Whether what stands before a mention in its clause rules the mention out."""
    *_, start = 0, *(end.end() for end in _BREAK.finditer(before))
    return _NEGATED.search(before, start) is not None


def _goes_on(clause: str, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether what rules out the first mention rules out the second as well.

    "Not happy or sad" rules out both, and "not happy, sad, or angry" all three, however far they
    stand from the "not"; "not happy, sad" says sad.
    """
    for (_, end), (start, _) in pairwise(spans):
        if _OR.fullmatch(clause, end, start):
            return True
        if not _COMMA.fullmatch(clause, end, start):
            return False
    return False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words by which one attribute is answered where one label set is asked.

    Attributes:
        texts: each offered text -> its label.
        offered: the same with the texts bare and normal.
        phrases: phrase -> the asked labels it can stand for: one for a label or synonym, several
            for a coarser word ("Asian" among East and Southeast Asian), none for a value outside
            every set; None for a phrase that names no value at all.
    """

    label_set: LabelSet
    texts: Mapping[str, str]
    offered: Mapping[str, str]
    phrases: Mapping[str, frozenset[str] | None]
    pattern: re.Pattern[str]
    abstention: re.Pattern[str]

    def whole(self, text: str) -> frozenset[str] | None:
        """What a bare text stands for where it is nothing but one phrase or one number."""
        if text in self.phrases:
            return self.phrases[text]
        if self.label_set.bounds and text.isascii() and text.isdigit() and len(text) <= 3:
            number = int(text)
            return self._covered(number, number) if number <= years.OLDEST else None
        return None

    def named(self, clause: str) -> list[frozenset[str]]:
        """What a clause names and does not rule out, each as the labels it can stand for."""
        if self.label_set.bounds:
            clause = years.in_digits(clause)
        # A match that is no phrase is an aside with words in its gap.
        found = [(m.span(), self.phrases.get(m[0])) for m in self.pattern.finditer(clause)]
        if self.label_set.bounds:
            found += [(span, self._covered(*said)) for span, said in years.intervals(clause)]
        found.sort(key=lambda mention: mention[0])
        kept = []
        before_is_out = False
        for number, ((start, _), labels) in enumerate(found):
            before_is_out = _negated(clause[max(0, start - _LOOK_BACK) : start]) or (
                before_is_out and _goes_on(clause, [span for span, _ in found[number - 1 :]])
            )
            if labels is not None and not before_is_out:
                kept.append(labels)
        return kept

    def says_nothing(self, text: str) -> bool:
        """Whether a text in which nothing is named says that there is nothing to name."""
        return bool(_NOTHING_NAMED.search(text) or self.abstention.search(text))

    def _covered(self, low: float, high: float) -> frozenset[str]:
        label = self.label_set.covering(low, high)
        if label is not None:
            return frozenset({label})
        return frozenset(
            name
            for name, (first, last) in self.label_set.bounds.items()
            if first <= high and low <= last
        )


def _coarser(attribute: Attribute, asked: LabelSet) -> dict[str, frozenset[str]]:
    """Words of the attribute's other sets -> the asked labels that are seen as them."""
    found: dict[str, frozenset[str]] = {}
    for other in attribute.label_sets:
        view = attribute.view(asked.name, other.name)
        merges = view.merges if view is not None else {}
        for phrase, label in {**other.synonyms, **{name: name for name in other.labels}}.items():
            covered = frozenset(n for n in asked.labels if merges.get(n) == label)
            found[normal(phrase)] = found.get(normal(phrase), frozenset()) | covered
    return found


def _words_of(phrase: str) -> str:
    return _GAP.join(map(re.escape, phrase.split(" ... ")))


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    """Matches whole words only, the longest phrase first; with no phrases, nothing."""
    longest_first = sorted(phrases, key=len, reverse=True)
    words = "|".join(map(_words_of, longest_first)) or "(?!)"
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)")


@lru_cache(maxsize=1024)
def vocabulary(
    attribute: str, label_set: str, offered: tuple[tuple[str, str], ...] = ()
) -> Vocabulary:
    """The vocabulary of an attribute asked in a label set under these (text, label) pairs.

    Raises:
        UnknownNameError: no such attribute.
        UsageError: the attribute has no such label set.
    """
    known = attribute_files.load(attribute)
    asked = known.label_set(label_set)
    texts = dict(offered or zip(asked.labels, asked.labels, strict=True))
    phrases: dict[str, frozenset[str] | None] = dict.fromkeys(map(normal, known.asides))
    phrases |= {normal(phrase): frozenset() for phrase in known.off_list}
    # Numbers need no words of other sets: they are read against the asked set's bounds.
    phrases |= {} if asked.bounds else _coarser(known, asked)
    for own in (asked.synonyms, {label: label for label in asked.labels}, texts):
        phrases |= {normal(phrase): frozenset({label}) for phrase, label in own.items()}
    return Vocabulary(
        label_set=asked,
        texts=texts,
        offered={bare(normal(text)): label for text, label in texts.items()},
        phrases=phrases,
        pattern=_any_of(phrase for phrase in phrases if len(phrase) > 1),
        abstention=_any_of(map(normal, known.abstentions)),
    )
