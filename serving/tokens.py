"""What a hosted card says: where its model is, how a picture is sent, and what a call costs.

    picture's size ──formula──> tokens ──price──> US dollars

The formulas are for forecasts and reservations. What a call has cost is told by the usage that the
provider reports; providers change how they count without notice.
"""

import math
from datetime import date
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

Detail = Literal["low", "high", "auto"]
"""How closely OpenAI's models look at a picture; `auto` leaves it to the provider."""

_MESSAGE_TOKENS = 32
"""Room for what a provider puts around a message: roles, separators, the start of the reply.
OpenAI's models take 7."""


class _Part(BaseModel):
    # A key that somebody has written in the place of its name must not appear in the error.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Price(_Part):
    """US dollars per million tokens, as published on a day."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(default=None, ge=0)
    """For the part of a prompt that the provider still had; None: nothing is known, `input`."""
    batch: float | None = Field(default=None, gt=0, le=1)
    """What the Batch API asks, as a share of all of these; None: there is none, or none known."""
    as_of: date
    """When `source` said so."""
    source: str = Field(min_length=1)
    until: date | None = None
    """The last day of this price, where the provider has announced one."""
    then: "Price | None" = None
    """The price after `until`, where it has been announced too."""

    @model_validator(mode="after")
    def _a_next_price_has_a_day(self) -> Self:
        if self.then is not None and self.until is None:
            raise ValueError("`then` needs `until`, the last day of the price before it")
        return self

    def on(self, day: date) -> "Price | None":
        """The price of that day; None: it has ended, and what came after it is not known here."""
        if self.until is None or day <= self.until:
            return self
        return self.then and self.then.on(day)


def cost_usd(
    price: Price, tokens_in: int, tokens_out: int, batch: bool = False, cached_in: int = 0
) -> float:
    """What so many tokens cost, in US dollars.

    Args:
        price: of the day, see `Price.on`.
        tokens_in: all of the prompt, its picture and its cached part included.
        tokens_out: all that was generated, thinking included.
        batch: asked through the Batch API.
        cached_in: how many of `tokens_in` the provider still had from an earlier call.

    Raises:
        ValueError: `price` says nothing of batches.
    """
    if batch and price.batch is None:
        raise ValueError(f"no price of the Batch API is known ({price.source})")
    share = price.batch if batch and price.batch is not None else 1.0
    cached = price.input if price.cached_input is None else price.cached_input
    usd = (tokens_in - cached_in) * price.input + cached_in * cached + tokens_out * price.output
    return share * usd / 1e6


class TileTokens(_Part):
    """OpenAI's GPT-4o and GPT-4.1: the picture is cut into tiles, and each costs the same.

    It is scaled down, never up, until it fits 2048 x 2048 and its shorter side is at most 768.
    """

    kind: Literal["tiles"]
    base: int = Field(ge=0)
    """What every picture costs, and all that one costs at the detail `low`."""
    tile: int = Field(ge=0)
    """What each begun tile of 512 x 512 pixels costs."""


class Fit(_Part):
    """What a picture is scaled down to before its patches are counted."""

    side: int = Field(ge=1)
    """Most pixels of its longer side."""
    patches: int = Field(ge=1)


class PatchTokens(_Part):
    """OpenAI's models from GPT-5.4 on, and the small ones before: squares of 32 x 32 pixels."""

    kind: Literal["patches"]
    multiplier: float = Field(gt=0)
    """Tokens of one patch; what a picture costs is rounded up."""
    low: Fit
    high: Fit
    auto: Fit


class GeminiTokens(_Part):
    """Gemini up to 2.5: one tile for a small picture, else as many as its shape asks for."""

    kind: Literal["gemini"]
    small_side: int = Field(default=384, ge=1)
    """Where neither side is longer, the picture is one tile."""
    tile: int = Field(default=258, ge=0)


class FixedTokens(_Part):
    """Gemini from 3 on, and others that count every picture the same."""

    kind: Literal["fixed"]
    tokens: int = Field(ge=0)


ImageTokens = Annotated[
    TileTokens | PatchTokens | GeminiTokens | FixedTokens, Field(discriminator="kind")
]


def image_tokens(formula: ImageTokens, width: int, height: int, detail: Detail | None) -> int:
    """How many tokens a picture of so many pixels is, as the provider's documentation has it.

    `detail` None is what a provider takes where nothing is said: `auto`. Where it is not documented
    what that comes to, it is counted as `high`.
    """
    match formula:
        case TileTokens():
            return formula.base + (0 if detail == "low" else _tiles(width, height) * formula.tile)
        case PatchTokens():
            fits = {"low": formula.low, "high": formula.high, "auto": formula.auto}
            patches = _patches(width, height, fits[detail or "auto"])
            return math.ceil(patches * Fraction(str(formula.multiplier)))
        case GeminiTokens():
            return _gemini_tiles(width, height, formula.small_side) * formula.tile
        case FixedTokens():
            return formula.tokens


def _tiles(width: int, height: int) -> int:
    # Fractions: 2048 pixels that come out as 2048.0000000000002 would be one tile more.
    scale = min(Fraction(1), Fraction(2048, max(width, height)), Fraction(768, min(width, height)))
    across, down = (max(1, math.floor(side * scale)) for side in (width, height))
    return math.ceil(across / 512) * math.ceil(down / 512)


def _patches(width: int, height: int, fit: Fit) -> int:
    def covering(width: float, height: float) -> int:
        return math.ceil(width / 32) * math.ceil(height / 32)

    scale = min(Fraction(1), Fraction(fit.side, max(width, height)))
    width, height = (max(1, round(side * scale)) for side in (width, height))
    if covering(width, height) <= fit.patches:
        return covering(width, height)
    shrink = math.sqrt(32**2 * fit.patches / (width * height))
    across, down = width * shrink / 32, height * shrink / 32
    # One side becomes a whole number of patches, so that rounding up stays within the budget.
    shrink *= min(math.floor(across) / across, math.floor(down) / down)
    width, height = (max(1, math.floor(side * shrink)) for side in (width, height))
    return min(covering(width, height), fit.patches)


def _gemini_tiles(width: int, height: int, small_side: int) -> int:
    if max(width, height) <= small_side:
        return 1
    unit = max(1, math.floor(min(width, height) / 1.5))
    return math.ceil(width / unit) * math.ceil(height / unit)


def text_tokens_at_most(text: str) -> int:
    """At least as many tokens as any of these models makes of the text of one message.

    Their tokenizers start from the bytes of UTF-8 and join some of them, so that no text has more
    tokens than bytes. English has about a quarter as many: see `text_tokens_about`.
    """
    return len(text.encode()) + _MESSAGE_TOKENS


def text_tokens_about(text: str) -> int:
    """About how many tokens English text has: OpenAI and Google both say 4 characters to one."""
    return math.ceil(len(text) / 4)


class ImageSettings(_Part):
    """How a picture is sent; all of it is part of a request's identity."""

    detail: Detail | None = None
    """None: the request says nothing of it, for providers that do not know it."""
    max_side: int = Field(ge=1)
    """Longer pictures are scaled down to so many pixels; shorter ones are sent as they are."""
    format: Literal["jpeg", "png"] = "jpeg"
    quality: int = Field(default=95, ge=1, le=100)
    """Of JPEG."""


class AccountLimits(_Part):
    """What the account allows; None: not known, it is learnt from the provider's answers."""

    rpm: float | None = Field(default=None, gt=0)
    """Requests per minute."""
    tpm: float | None = Field(default=None, gt=0)
    """Tokens per minute."""
    rpd: int | None = Field(default=None, ge=1)
    """Requests per day."""
    connections: int = Field(default=64, ge=1)
    """Most calls at a time."""


class Retention(_Part):
    """What the provider says it does with what is sent to it."""

    terms: str = Field(min_length=1)
    """One sentence."""
    source: str = Field(min_length=1)
    as_of: date
    """When `source` was read."""

    def __str__(self) -> str:
        return f"{self.terms} ({self.source}, read {self.as_of})"


_OURS = frozenset({"model", "messages", "max_tokens", "max_completion_tokens", "n", "stream"})


class HostedOptions(_Part):
    """The `engine_options` of a card whose engine is `hosted`.

    What the API calls the model is the card's `checkpoint`, with its date where there are dated
    snapshots.
    """

    base_url: str | None = None
    """Of an API that speaks OpenAI's protocol, such as `https://api.openai.com/v1`; None: whoever
    runs the card names it."""
    api_key: str | None = Field(default=None, pattern=r"^[A-Z][A-Z0-9_]*$")
    """Name of the environment variable that holds the key, or with `_FILE` added of the one that
    names a file with it; None: the server asks for no key."""
    account: str = Field(min_length=1)
    """Cards that name the same account share its limits."""
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    thinking_tokens: int = Field(default=0, ge=0)
    """Added to the protocol's `max_tokens`: models that think count that in the same limit, and an
    answer may be cut off before it begins."""
    temperature: bool = True
    """Whether the model takes one. Where not, the protocol's is not sent, and answers vary."""
    structured: bool = True
    """Whether the API enforces a JSON schema (`response_format`)."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of the request, such as `reasoning_effort`; they can change answers."""
    image: ImageSettings
    image_tokens: ImageTokens | None = None
    """None: not known; only usage tells."""
    price: Price | None = None
    limits: AccountLimits = AccountLimits()
    retention: Retention | None = None
    """None: not known, it is for whoever runs the server to say."""
    timeout_s: float = Field(default=120, gt=0)
    """Of one attempt."""
    shutdown: date | None = None
    """From when on the provider no longer serves the model, where it has said so."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address_without_secrets(cls, url: str | None) -> str | None:
        if url is None:
            return None
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in ("http", "https") or not rest:
            raise ValueError("expected http://HOST... or https://HOST...")
        if "@" in rest or "?" in rest or "#" in rest:
            raise ValueError("an address with a user, a query or a fragment may hold a secret")
        return url

    @field_validator("extra")
    @classmethod
    def _leaves_what_is_ours(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = sorted(_OURS & extra.keys())
        if taken:
            raise ValueError(
                f"{', '.join(taken)}: set by the card and the protocol, not by `extra`"
            )
        return extra
