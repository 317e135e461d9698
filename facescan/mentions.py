"""Which labels a text names: words and phrases, years, and what is ruled out.

The words of an attribute file become one pattern that finds whole words only, the longest phrase
first: "female" is not "male", "Southeast Asian" is not "East Asian". A text is taken apart into
clauses; one that refuses or withholds an answer names nothing, whatever words it holds.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

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
    r"[.!?;](?=\s|$)|\n"
    r"|\b(?:(?<!anything )but|however|although|though|yet|instead(?! of)|rather(?! than))\b"
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
_SAY_OR_SEEM = (
    r"(?:think|believ|say|call|describ|look|appear|seem|sound|feel|show|display|express|convey"
    r"|exhibit|indicat|suggest|reflect|reveal|hav|giv)(?:e|s|es|ed|ing)?\b"
    r"(?! (?:at|into|away|towards?|directly|straight)\b)"
)
_SIGN = r"(?:signs?|indications?|evidence|hints?|traces?|reasons?|suggestions?|impression)\b"
_NOT_SAID = r"(?: (?:\w+ly|quite|even|to|be|been|at|all))*"
_NEGATION = re.compile(
    r"\b(?:"
    # "I don't think that the person in the picture is happy": all that follows.
    rf"(?P<all>(?:not(?! (?:only|just|merely)\b)|cannot|never|\w+n't)(?={_NOT_SAID} {_SAY_OR_SEEM})"
    rf"|(?:not|no|never|\w+n't|without|lacks?)(?=(?: \w+){{0,3}}? {_SIGN})"
    r"|nothing|(?<!no )(?<!a )(?<!any )(?<!little )(?<!out )(?<!beyond )doubt(?:s|ful)?"
    r"(?= (?:if|it|that|whether|he|she|they|the|this)\b))"
    r"|(?P<next>less than(?: \w+ly)?)"
    r"|not(?! (?:only|just|merely)\b)|no(?! doubt\b)|non|never|neither|nor|none of"
    r"|without(?! (?:an?y? )?doubt\b)|cannot|\w+n't|rather than|instead of|other than|unlike|lacks?"
    r"|far from|anything but|hardly)\b"
)
_BREAK = re.compile(
    r"[:()]|\b(?:and|because|since|while|whereas|therefore|thus|hence|just|simply"
    r"|(?:as|so)(?= (?:i|he|she|it|they|there|we|the|his|her|their|this|that)\b))\b"
)
_SEPARATOR = re.compile(r"(?P<or>,? ?(?:/|\b(?:or|nor)\b))|,")
_TURNS = re.compile(
    r"\b(?:perhaps|maybe|possibly|probably|likely|rather|instead|could|might|may)\b"
)
"""What, after "or", is said to be so: "not happy, or maybe sad"."""
_NO_ITEM = re.compile(
    rf"{_TURNS.pattern}|\b(?:i|he|she|it|they|there|we|that|which|who|is|are|was|were|looks?|seems?"
    r"|appears?|so|with|more|making|meaning|suggesting|indicating)\b"
)
"""What a comma before it shows to be no further item of a list."""
_WORD = re.compile(r"\w+")
_REACH = 300
_NO_AT_ALL = re.compile(
    r"\b(?:not|never|\w+n't|without|lacks?)(?: (?:\w+ly|to|(?:show|display|express|convey|exhibit"
    r"|reveal|hav)(?:e|s|ing)?))* any\b"
)
"""Other words for "no": "not showing any emotion" is no emotion."""
_SHARING = re.compile(
    r"(?P<two>\b\w+ )?\b(?P<one>\w+)-?(?:,? ?(?:/|&|\bor\b|\band\b) ?|, )(?:(?:an?|the) )?$"
)
_ITEM = re.compile(r"[^,/|()]+")
_GAP = (
    r"(?: (?!(?:in|with|wearing|wears|who|is|has|or|of|on|at|by|from|an?|the|his|her"
    r"|their|(?:wo)?m[ae]n|(?:fe)?males?|persons?|people|individuals?|boys?|girls?|lady|guys?)\b)"
    r"\w+){0,3} "
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


def _ruled_out(clause: str) -> bytearray:
    """For each place in a clause whether a mention that begins there is ruled out.

    In `clause` each mention is one word. A "not" reaches over four words, or over all where it is
    about saying or seeming, and then along a list as far as its "or": "not happy or sad" rules out
    both, "not happy, sad, or angry" all three, and "not happy, sad" says sad.
    """
    out = bytearray(len(clause) + 1)
    for negation in _NEGATION.finditer(clause):
        start = negation.end()
        end = min(len(clause), start + _REACH)
        if (stop := _BREAK.search(clause, start, end)) is not None:
            end = stop.start()
        separator = _SEPARATOR.search(clause, start, end)
        reached = first_end = separator.start() if separator is not None else end
        if negation["all"] is None:
            words = 1 if negation["next"] is not None else 5
            begins = [word.start() for word in _WORD.finditer(clause, start, first_end)]
            reached = begins[words - 1] if len(begins) >= words else first_end
            if len(begins) > words:
                separator = None
        while separator is not None:
            item, following = separator.end(), _SEPARATOR.search(clause, separator.end(), end)
            item_end = following.start() if following is not None else end
            turn = (_TURNS if separator["or"] else _NO_ITEM).search(clause, item, item_end)
            if separator["or"]:
                reached = turn.start() - 1 if turn is not None else item_end
            if turn is not None or clause[item:item_end].isspace():
                break
            separator = following
        out[start : reached + 1] = b"\1" * (reached + 1 - start)
    return out


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words by which one attribute is answered where one label set is asked.

    Attributes:
        texts: each offered text -> its label.
        offered: the same with the texts bare and normal.
        phrases: phrase -> the asked labels it can stand for: one for a label or synonym, several
            for a coarser word ("Asian" among East and Southeast Asian), none for a value outside
            every set.
        pattern: finds the phrases and their plurals, and in the group `aside` what names no value.
    """

    label_set: LabelSet
    texts: Mapping[str, str]
    offered: Mapping[str, str]
    phrases: Mapping[str, frozenset[str]]
    pattern: re.Pattern[str]
    abstention: re.Pattern[str]

    def whole(self, text: str) -> frozenset[str] | None:
        """What a bare text stands for where it is nothing but one phrase or one number."""
        if (phrase := self._phrase(text)) is not None:
            return self.phrases[phrase]
        number = years.in_digits(text) if self.label_set.bounds else ""
        if number.isascii() and number.isdigit() and len(number) <= 3:
            year = int(number)
            return self._covered(year, year) if year <= years.OLDEST else None
        return None

    def named(self, clause: str) -> list[frozenset[str]]:
        """What a clause names and does not rule out, each as the labels it can stand for."""
        clause = _NO_AT_ALL.sub("no", clause)
        if self.label_set.bounds:
            clause = years.in_digits(clause)
        found = [*self._in_list(clause)]
        asides = []
        last_end = 0
        for mention in self.pattern.finditer(clause):
            phrase = None if mention["aside"] is not None else self._phrase(mention[0])
            if phrase is None:
                asides.append(mention.span())
            else:
                found.append((mention.span(), self.phrases[phrase]))
                found += self._sharing_its_noun(clause, last_end, mention.start(), phrase)
            last_end = mention.end()
        if self.label_set.bounds:
            found += [(span, self._covered(*said)) for span, said in years.intervals(clause)]
        if not found:
            return []
        in_words = list(clause)
        for start, end in (*asides, *(span for span, _ in found)):
            in_words[start:end] = "x" * (end - start)
        out = _ruled_out("".join(in_words))
        return [labels for (start, _), labels in found if not out[start]]

    def _phrase(self, text: str) -> str | None:
        """The phrase that a text is, or is the plural of."""
        if text in self.phrases:
            return text
        singular = text.removesuffix("s")
        return singular if len(singular) > 1 and singular in self.phrases else None

    def _in_list(self, clause: str) -> Iterator[tuple[tuple[int, int], frozenset[str]]]:
        """The letters and the one bare number in a clause that is but a list: "F, 25"."""
        items = [(item.start(), item[0]) for item in _ITEM.finditer(clause)]
        if len(items) == 1 or any(len(item.split()) > 3 for _, item in items):
            return
        bare_items = [(start + item.find(bare(item)), bare(item)) for start, item in items]
        numbers = sum(item.isdigit() for _, item in bare_items)
        for start, item in bare_items:
            labels = self.whole(item) if len(item) == 1 or item.isdigit() else None
            if labels is not None and (numbers == 1 < len(items) or not item.isdigit()):
                yield (start, start + len(item)), labels

    def _sharing_its_noun(
        self, clause: str, after: int, start: int, phrase: str
    ) -> Iterator[tuple[tuple[int, int], frozenset[str]]]:
        """What shares the last word of the phrase at `start`: "East or Southeast Asian" is two."""
        _, blank, noun = phrase.rpartition(" ")
        while blank and (before := _SHARING.search(clause, max(after, start - 40), start)):
            for first, words in (
                ("two", f"{before['two']}{before['one']}"),
                ("one", before["one"]),
            ):
                if before[first] is not None and (found := f"{words} {noun}") in self.phrases:
                    start = before.start(first)
                    yield (start, before.end("one")), self.phrases[found]
                    break
            else:
                return

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


def _any_of(patterns: Iterable[str]) -> str:
    """Matches the first of these that it can; with none, nothing."""
    return f"(?:{'|'.join(patterns) or '(?!)'})"


def _pattern(phrases: Iterable[str], asides: Iterable[str]) -> re.Pattern[str]:
    """Finds whole words only: the asides, then the longest phrase."""
    aside = _any_of(aside.replace(" ... ", _GAP) for aside in asides)
    phrase = _any_of(map(re.escape, sorted(phrases, key=len, reverse=True)))
    return re.compile(rf"(?<!\w)(?:(?P<aside>{aside})|{phrase}s?)(?!\w)")


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
    phrases = {normal(phrase): frozenset[str]() for phrase in known.off_list}
    # Numbers need no words of other sets: they are read against the asked set's bounds.
    phrases |= {} if asked.bounds else _coarser(known, asked)
    for own in (asked.synonyms, {label: label for label in asked.labels}, texts):
        phrases |= {normal(phrase): frozenset({label}) for phrase, label in own.items()}
    phrases = {phrase.replace(" ", ""): labels for phrase, labels in phrases.items()} | phrases
    return Vocabulary(
        label_set=asked,
        texts=texts,
        offered={bare(normal(text)): label for text, label in texts.items()},
        phrases=phrases,
        pattern=_pattern((phrase for phrase in phrases if len(phrase) > 1), known.asides),
        abstention=re.compile(rf"(?<!\w){_any_of(map(re.escape, known.abstentions))}(?!\w)"),
    )
