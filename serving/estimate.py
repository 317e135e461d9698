"""The most that a call can take and cost, before it is made."""

from dataclasses import dataclass
from datetime import UTC, date, datetime

from facescan.types import Question
from serving import tokens
from serving.tokens import HostedOptions, Price

_UNKNOWN_PICTURE = 2_000
"""Tokens of a picture where the card has no formula: above what any documented model counts for one
of the size that cards send, GPT-4o mini's of 1,105 at high detail excepted."""


@dataclass(frozen=True, slots=True)
class Most:
    """Bounds of one call; `usd` is 0 where no price is known."""

    tokens_in: int
    tokens_out: int
    usd: float


def price(options: HostedOptions, day: date | None = None) -> Price | None:
    """The price of a day, today's unless another is given; None where it is not known."""
    return options.price and options.price.on(day or datetime.now(UTC).date())


def tokens_out_at_most(options: HostedOptions, question: Question) -> int:
    """What the request allows to be generated, thinking included."""
    return question.decoding.max_tokens + options.thinking_tokens


def picture_tokens(options: HostedOptions, size: tuple[int, int]) -> int:
    """Of a picture of (width, height) as it is sent."""
    if options.image_tokens is None:
        return _UNKNOWN_PICTURE
    return tokens.image_tokens(options.image_tokens, *size, options.image.detail)


def at_most(options: HostedOptions, question: Question, size: tuple[int, int]) -> Most:
    """Of one question about a picture of (width, height) as it is sent.

    Batches are cheaper; what they are billed is not more than this.
    """
    tokens_in = tokens.text_tokens_at_most(question.prompt + question.answer_schema)
    tokens_in += picture_tokens(options, size)
    tokens_out = tokens_out_at_most(options, question)
    known = price(options)
    usd = 0.0 if known is None else tokens.cost_usd(known, tokens_in, tokens_out)
    return Most(tokens_in, tokens_out, usd)
