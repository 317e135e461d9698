"""Reply -> what it says of each attribute; the only place that reads an answer.

A reply is read in this order:

1. A failed request keeps its run outcome; a provider's refusal or block is that.
2. In the modes `choice` and `score` the reply is one of the offered texts, exactly.
3. A free reply that is, case and punctuation aside, an offered text or a synonym is that label.
4. JSON (in a code fence or not) and lines of `key: value` are read value by value.
5. Prose is read by `facescan.mentions`: the labels it names, less those it rules out. One label
   is `answered`, several are `ambiguous`. With none named: a value that the asked set does not
   hold is `off_list`, then come refusals, abstentions, and at last `unparsed`.

A reply cut off by the token limit counts as answered only where its label cannot become another
one: the reply is an offered text, or the label's JSON value, line or sentence is complete. A
refusal that was cut off is still a refusal; everything else cut off is `truncated`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import exp, fsum, inf

from facescan import attributes as attribute_files
from facescan.mentions import (
    Vocabulary,
    apologises,
    bare,
    clauses,
    normal,
    refuses,
    vocabulary,
    withholds,
)
from facescan.types import AnswerMode, FinishReason, Outcome, Question

PARSER_VERSION = "5"
"""Raised with every change here, in `facescan.mentions` or in an attribute's phrases that can
change a reading; stands in every prediction."""

_DISTINCT = 1 << 16
"""Readings kept per question and process: replies are labels, mostly, so few are distinct."""

_JSON = json.JSONDecoder()
_SENTENCE_END = re.compile(r"""[.!?](?=\s|$|["'*)])|\n""")
_PAIR = re.compile(
    r'"(?P<key>[^"\\\n]{1,60})"\s*:\s*(?:"(?P<text>[^"\\\n]{0,200})"|(?P<number>[\d.]+)(?=[,}\s]))'
)
_KEY = r"""[^\w\n]*{}\w[\w /()'*-]{{0,40}}?{}[ *"']*[:=]"""
_LINE = re.compile(
    rf"(?:^|[,;|]){_KEY.format('(?P<key>', ')')}(?P<value>[^\n]+?)"
    rf"(?=(?P<end>\n|[,;|]{_KEY.format('', '')})|\Z)",
    re.MULTILINE,
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W_]+")
_ANSWER_KEYS = frozenset({"answer", "label", "prediction", "classification", "result", "category"})
_BESIDE = frozenset(
    {
        *("confidence", "score", "probability", "certainty", "explanation", "reason", "reasoning"),
        *("rationale", "justification", "note", "disclaimer"),
    }
)
"""Words of keys whose values are about the answer."""
_REMARKS = re.compile(rf"^[^\w\n]*(?:{'|'.join(sorted(_BESIDE))})s?\b[^\w\n:]*:", re.M | re.I)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says of one attribute; `label` is set exactly when `outcome` is answered."""

    outcome: Outcome
    label: str | None = None


@dataclass(frozen=True, slots=True)
class _Field:
    """One `key: value` of a reply; `value` is None for JSON's null."""

    words: frozenset[str]
    value: str | None
    complete: bool = True


_Asked = tuple[str, str, tuple[tuple[str, str], ...]]
"""Attribute, label set, and the pairs (offered text, label)."""


class Parser:
    """Reads the replies to one question; equal replies are read once."""

    def __init__(self, question: Question) -> None:
        """Raises UsageError where the question names an attribute or label set not known here."""
        asked = tuple(zip(question.attributes, question.label_sets, question.offered, strict=True))
        for each in asked:
            vocabulary(*each)
        self._attributes = len(asked)
        self._answers = lru_cache(maxsize=_DISTINCT)(partial(_read, asked, question.answer_mode))

    def readings(
        self, raw_response: str | None, finish_reason: str | None, error_kind: str | None = None
    ) -> tuple[Reading, ...]:
        """One reading for each of the question's attributes, in their order.

        The arguments are the reply's columns of these names; all three None, as of a request
        without a reply, is `pending`.
        """
        if error_kind is not None:
            return (Reading(Outcome(error_kind)),) * self._attributes
        if (outcome := _unread(raw_response, finish_reason)) is not None:
            return (Reading(outcome),) * self._attributes
        return self._answers(raw_response or "", finish_reason == FinishReason.LENGTH)


def read(
    text: str | None,
    finish_reason: str | None,
    attribute: str,
    label_set: str,
    answer_mode: AnswerMode = AnswerMode.FREE,
    offered: tuple[tuple[str, str], ...] = (),
) -> Reading:
    """What one reply about one attribute says.

    Args:
        text: the reply.
        finish_reason: why the model stopped.
        attribute: what was asked.
        label_set: the set it was asked in.
        answer_mode: how the answer was had.
        offered: pairs (offered text, label); by default the labels themselves.

    Raises:
        UsageError: no such attribute or label set.
    """
    if (outcome := _unread(text, finish_reason)) is not None:
        return Reading(outcome)
    cut = finish_reason == FinishReason.LENGTH
    return _read(((attribute, label_set, offered),), answer_mode, text or "", cut)[0]


def probabilities(
    offered: Sequence[tuple[str, str]], logprobs: Mapping[str, float]
) -> dict[str, float]:
    """The share of each label in the probability of all that was offered; none where it has none.

    Args:
        offered: pairs (offered text, label).
        logprobs: natural, of each offered text, to any common constant.
    """
    highest = max(logprobs.values(), default=-inf)
    if highest == -inf:
        return {}
    # Differences, as the probabilities themselves may be too small for a float.
    total = fsum(exp(logprob - highest) for logprob in logprobs.values())
    return {label: exp(logprobs.get(text, -inf) - highest) / total for text, label in offered}


def _unread(text: str | None, finish_reason: str | None) -> Outcome | None:
    """The outcome of a reply that needs no reading."""
    if finish_reason == FinishReason.BLOCKED:
        return Outcome.BLOCKED
    if finish_reason == FinishReason.REFUSAL:
        return Outcome.REFUSED
    if text is None:
        return Outcome.PENDING if finish_reason is None else Outcome.UNPARSED
    return None


def _read(
    asked: tuple[_Asked, ...], answer_mode: AnswerMode, text: str, cut: bool
) -> tuple[Reading, ...]:
    words = [vocabulary(*each) for each in asked]
    if answer_mode is not AnswerMode.FREE:
        return tuple(_chosen(text, each) for each in words)
    if len(asked) == 1 and (at_once := _whole(bare(normal(text)), cut, words[0])) is not None:
        return (at_once,)
    fields = _json_fields(text) or _line_fields(text)
    matched = [_about(attribute, fields) for attribute, _, _ in asked]
    if len(asked) == 1 and not matched[0]:
        matched = [[field for field in fields if field.words & _ANSWER_KEYS]]
    if not any(matched):
        return tuple(_without_remarks(text, cut, each) for each in words)
    left_out = Reading(Outcome.TRUNCATED if cut else Outcome.UNPARSED)
    return tuple(
        _agreed([_value(field, cut, each) for field in found]) if found else left_out
        for found, each in zip(matched, words, strict=True)
    )


def _chosen(text: str, words: Vocabulary) -> Reading:
    """`choice` and `score`: the reply is an offered text, exactly."""
    label = words.texts.get(text)
    return Reading(Outcome.UNPARSED) if label is None else Reading(Outcome.ANSWERED, label)


def _whole(text: str, cut: bool, words: Vocabulary) -> Reading | None:
    """A bare text that is nothing but an answer; None where it is more, or less.

    Of a cut-off text only an offered one counts, and only if no other offered text goes on from it.
    """
    if cut:
        if text not in words.offered or sum(o.startswith(text) for o in words.offered) > 1:
            return None
        return Reading(Outcome.ANSWERED, words.offered[text])
    labels = words.whole(text)
    if labels is None:
        return None
    return Reading(Outcome.ANSWERED, *labels) if len(labels) == 1 else Reading(Outcome.OFF_LIST)


def _settled(named: list[frozenset[str]]) -> Reading | None:
    """What several mentions come to; None where there are none.

    A coarser word beside a label that it covers ("Asian, East Asian") changes nothing.
    """
    sure = frozenset[str]().union(*(labels for labels in named if len(labels) == 1))
    if not sure:
        return Reading(Outcome.OFF_LIST) if named else None
    if len(sure) == 1 and all(not labels or sure <= labels for labels in named):
        return Reading(Outcome.ANSWERED, *sure)
    return Reading(Outcome.AMBIGUOUS)


def _prose(text: str, cut: bool, words: Vocabulary) -> Reading:
    """See the module's docstring, point 5 and the last paragraph."""
    text = normal(text)
    if cut:
        ends = [end.end() for end in _SENTENCE_END.finditer(text)]
        whole_sentences = _prose(text[: ends[-1]], False, words) if ends else None
        if whole_sentences is not None and whole_sentences.outcome is Outcome.ANSWERED:
            return whole_sentences
        refused = any(map(refuses, clauses(text)))
        return Reading(Outcome.REFUSED if refused else Outcome.TRUNCATED)
    named: list[frozenset[str]] = []
    refused = withheld = False
    for clause in clauses(text):
        if refuses(clause):
            refused = True
        elif withholds(clause):
            withheld = True
        else:
            named += words.named(clause)
    if (settled := _settled(named)) is not None:
        return settled
    if refused:
        return Reading(Outcome.REFUSED)
    if withheld or words.says_nothing(text):
        return Reading(Outcome.ABSTAINED)
    return Reading(Outcome.REFUSED if apologises(text) else Outcome.UNPARSED)


def _without_remarks(text: str, cut: bool, words: Vocabulary) -> Reading:
    """Prose without the lines from "Explanation:" on, where an answer stands before them."""
    if (remarks := _REMARKS.search(text)) is not None:
        before = _prose(text[: remarks.start()], False, words)
        if before.outcome is Outcome.ANSWERED:
            return before
    return _prose(text, cut, words)


def _value(field: _Field, cut: bool, words: Vocabulary) -> Reading:
    if field.value is None:
        return Reading(Outcome.ABSTAINED)
    cut = cut and not field.complete
    at_once = _whole(bare(normal(field.value)), cut, words)
    return at_once if at_once is not None else _prose(field.value, cut, words)


def _agreed(readings: list[Reading]) -> Reading:
    """One reading of several values for one attribute."""
    answered = {reading for reading in readings if reading.outcome is Outcome.ANSWERED}
    if len(answered) > 1:
        return Reading(Outcome.AMBIGUOUS)
    return answered.pop() if answered else readings[0]


def _key_words(key: str) -> frozenset[str]:
    words = _WORD.findall(normal(_CAMEL.sub(" ", key)))
    return frozenset(word if word.endswith("ss") else word.removesuffix("s") for word in words)


def _about(attribute: str, fields: list[_Field]) -> list[_Field]:
    """The fields whose key names the attribute."""
    known = attribute_files.load(attribute)
    aliases = [_key_words(alias) for alias in (known.name, known.noun, *known.also_called)]
    return [
        field
        for field in fields
        if any(alias <= field.words for alias in aliases) and not field.words & _BESIDE
    ]


def _leaves(key: str, value: object) -> Iterator[_Field]:
    """The single values of a JSON value, each under the words of all keys above it."""
    waiting = [(_key_words(key), value)]
    while waiting:
        words, found = waiting.pop()
        if isinstance(found, dict):
            waiting += [(words | _key_words(inner), each) for inner, each in found.items()]
        elif isinstance(found, list):
            waiting += [(words, each) for each in found]
        elif found is None or isinstance(found, str):
            yield _Field(words, found)
        else:
            yield _Field(words, str(found))


def _json_fields(text: str) -> list[_Field]:
    """The values of all JSON objects in a text; of broken ones, the pairs that are complete."""
    fields: list[_Field] = []
    start = text.find("{")
    while start >= 0:
        try:
            value, end = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            fields += [
                _Field(_key_words(pair["key"]), pair["text"] or pair["number"] or "")
                for pair in _PAIR.finditer(text, start)
            ]
            break
        fields += _leaves("", value)
        start = text.find("{", end)
    return fields


def _line_fields(text: str) -> list[_Field]:
    """The pairs `key: value`, one a line or several with commas between them."""
    return [
        _Field(_key_words(line["key"]), line["value"], complete=line["end"] is not None)
        for line in _LINE.finditer(text)
    ]
