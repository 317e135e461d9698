"""Forecasts equal what providers and their users have published; a hosted card names its sources.

Each example says where it was published. Those of usage are what an API reported.
"""

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from facescan import models
from serving.tokens import (
    Detail,
    HostedOptions,
    ImageTokens,
    Price,
    cost_usd,
    image_tokens,
    text_tokens_about,
    text_tokens_at_most,
)

GUIDE = "developers.openai.com/api/docs/guides/images-vision"
OLD_GUIDE = "platform.openai.com/docs/guides/vision, as quoted on v2ex.com/amp/t/1044688"
USAGE = "usage less the tokens of its text, community.openai.com/t/1262691"
MEDIA = "ai.google.dev/gemini-api/docs/media-resolution, 2026-09-19"

GPT_4O = {"kind": "tiles", "base": 85, "tile": 170}
GPT_4O_MINI = {"kind": "tiles", "base": 2833, "tile": 5667}
O3 = {"kind": "tiles", "base": 75, "tile": 150}
GEMINI = {"kind": "gemini"}


def patches(budget: int, multiplier: float, side: int = 2048) -> dict[str, Any]:
    fit = {"side": side, "patches": budget}
    return {
        "kind": "patches",
        "multiplier": multiplier,
        "low": {"side": 512, "patches": 256},
        "high": fit,
        "auto": {"side": 65535, "patches": 30000},
    }


PUBLISHED = [
    (GPT_4O, (1024, 1024), "high", 765, OLD_GUIDE),
    (GPT_4O, (2048, 4096), "high", 1105, OLD_GUIDE),
    (GPT_4O, (4096, 8192), "low", 85, OLD_GUIDE),
    (GPT_4O_MINI, (1024, 1024), "high", 25501, "induwara.lk/tools/ai-vision-token-cost-calculator"),
    (GPT_4O, (910, 910), "high", 85 + 4 * 170, "4 tiles, community.openai.com/t/523568/13"),
    (GPT_4O, (1280, 720), "high", 85 + 6 * 170, "6 tiles, community.openai.com/t/523568/13"),
    (GPT_4O, (128, 64), "low", 97 - 12, USAGE),
    (GPT_4O, (128, 64), "high", 267 - 12, USAGE),
    (GPT_4O_MINI, (128, 64), "low", 2845 - 12, USAGE),
    (GPT_4O_MINI, (128, 64), "high", 8512 - 12, USAGE),
    (O3, (128, 64), "low", 86 - 11, USAGE),
    (O3, (128, 64), "high", 236 - 11, USAGE),
    (patches(1536, 1), (1024, 1024), "high", 1024, GUIDE),
    (patches(1536, 1), (1800, 2400), "high", 1452, GUIDE),
    (patches(1536, 1.62), (1024, 1024), "high", 1659, "github.com/xn1cklas/tokenlens/issues/7"),
    (patches(2500, 1), (1600, 1600), "high", 2500, "50 x 50, community.openai.com/t/1377015"),
    (GEMINI, (960, 540), None, 6 * 258, "ai.google.dev/gemini-api/docs/image-understanding"),
    (GEMINI, (384, 384), None, 258, "ai.google.dev/gemini-api/docs/image-understanding"),
    ({"kind": "fixed", "tokens": 1120}, (96, 96), None, 1120, f"Gemini 3, {MEDIA}"),
    ({"kind": "fixed", "tokens": 1120}, (4096, 4096), None, 1120, f"Gemini 3, {MEDIA}"),
]

FORMULA: TypeAdapter[ImageTokens] = TypeAdapter(ImageTokens)


@pytest.mark.parametrize(
    ("formula", "size", "detail", "tokens", "published"),
    PUBLISHED,
    ids=[f"{e[0]['kind']} {e[1][0]}x{e[1][1]} {e[2]}: {e[4]}" for e in PUBLISHED],
)
def test_a_picture_is_as_many_tokens_as_published(
    formula: dict[str, Any],
    size: tuple[int, int],
    detail: Detail | None,
    tokens: int,
    published: str,
) -> None:
    assert image_tokens(FORMULA.validate_python(formula), *size, detail) == tokens, published


def test_patches_are_rounded_up_once_for_the_picture() -> None:
    # 1,452 patches of GPT-4.1 mini; community.openai.com/t/1230130 reckons 2,352.24.
    formula = FORMULA.validate_python(patches(1536, 1.62))
    assert image_tokens(formula, 2400, 1800, "high") == 2353
    # In floating point 100 x 1.1 is more than 110.
    formula = FORMULA.validate_python(patches(1536, 1.1))
    assert image_tokens(formula, 10 * 32, 10 * 32, "high") == 110


def test_a_side_just_over_a_tile_begins_another() -> None:
    tiles = FORMULA.validate_python({"kind": "tiles", "base": 0, "tile": 1})
    assert image_tokens(tiles, 2048, 512, "high") == 4
    assert image_tokens(tiles, 2048, 520, "high") == 8
    assert image_tokens(tiles, 4096, 1024, "high") == 4
    gemini = FORMULA.validate_python({"kind": "gemini", "tile": 1})
    assert image_tokens(gemini, 1080, 540, None) == 6
    assert image_tokens(gemini, 1081, 540, None) == 8


def test_the_detail_chooses_what_a_picture_is_scaled_to() -> None:
    formula = FORMULA.validate_python(patches(2500, 1))
    assert image_tokens(formula, 2048, 2048, "low") == 16 * 16
    assert image_tokens(formula, 2048, 2048, "high") == 50 * 50
    assert image_tokens(formula, 2048, 2048, "auto") == 64 * 64
    assert image_tokens(formula, 2048, 2048, None) == 64 * 64
    tiles = FORMULA.validate_python(GPT_4O)
    assert image_tokens(tiles, 600, 600, None) == image_tokens(tiles, 600, 600, "high")


SIDES = st.integers(1, 20_000)


@given(SIDES, SIDES)
def test_no_picture_is_over_its_budget_or_under_one_patch(width: int, height: int) -> None:
    formula = FORMULA.validate_python(patches(1536, 1))
    assert 1 <= image_tokens(formula, width, height, "high") <= 1536
    assert 1 <= image_tokens(formula, width, height, "low") <= 256


@given(SIDES, SIDES)
def test_a_picture_has_1_to_8_tiles_whichever_way_it_lies(width: int, height: int) -> None:
    formula = FORMULA.validate_python({"kind": "tiles", "base": 0, "tile": 1})
    assert 1 <= image_tokens(formula, width, height, "high") <= 8
    assert image_tokens(formula, width, height, "high") == image_tokens(
        formula, height, width, "high"
    )


# Text


@pytest.mark.parametrize(
    "text", ["", "race", "¿Género?", "年龄段和表情", "👩🏽‍🦱" * 20, "{}[]\n\t" * 50]
)
def test_no_tokenizer_makes_more_of_a_text_than_its_bytes(text: str) -> None:
    assert text_tokens_at_most(text) >= len(text.encode())
    assert text_tokens_about(text) <= text_tokens_at_most(text)


def test_english_is_about_four_characters_to_a_token() -> None:
    # help.openai.com/en/articles/4936856: 1 token is about 4 characters of English.
    # ai.google.dev/gemini-api/docs/tokens: a token is equivalent to about 4 characters.
    assert text_tokens_about("x" * 400) == 100
    assert text_tokens_about("x" * 401) == 101


# Prices


def price(**changes: Any) -> Price:
    fields = {"input": 2.0, "output": 10.0, "as_of": "2026-10-01", "source": "somewhere"}
    return Price.model_validate(fields | changes)


ARGON = price()
TERRA = price(input=1.0, output=5.0, cached_input=0.05, batch=0.5)
TERRA_PRICES = "apidog.com/de/blog/gpt-6-1-terra-pricing"
MILLION = 1_000_000


@pytest.mark.parametrize(
    ("prices", "tokens", "usd", "digits", "published"),
    [
        # "53 input tokens, 6 answer tokens, and 832 thinking tokens ... about $0.0085"
        (ARGON, (53, 838), 0.0085, 4, "docs.laozhang.ai/en/announcements/gemini-4-argon-2026-10"),
        (TERRA, (MILLION, 0, False, 0), 1.0, 9, TERRA_PRICES),
        (TERRA, (MILLION, 0, False, MILLION), 0.05, 9, TERRA_PRICES),
        (TERRA, (0, MILLION, False, 0), 5.0, 9, TERRA_PRICES),
        (TERRA, (MILLION, 0, True, 0), 0.5, 9, TERRA_PRICES),
        (TERRA, (MILLION, 0, True, MILLION), 0.025, 9, TERRA_PRICES),
        (TERRA, (0, MILLION, True, 0), 2.5, 9, TERRA_PRICES),
    ],
)
def test_tokens_cost_what_was_published(
    prices: Price, tokens: tuple[Any, ...], usd: float, digits: int, published: str
) -> None:
    assert round(cost_usd(prices, *tokens), digits) == usd, published


def test_a_batch_without_a_price_is_refused() -> None:
    with pytest.raises(ValueError, match="no price of the Batch API is known"):
        cost_usd(price(), 1000, 100, batch=True)


def test_the_cached_part_of_a_prompt_costs_less_where_that_is_known() -> None:
    # GPT-6.1 Sol: $2 a million, $0.10 cached (developers.openai.com/api/docs/models/gpt-6.1-sol)
    assert cost_usd(price(cached_input=0.1), 100_000, 1000, cached_in=80_000) == pytest.approx(
        0.058
    )
    assert cost_usd(price(), 100_000, 1000, cached_in=80_000) == pytest.approx(0.21)


def test_a_price_that_ends_is_not_used_after_its_last_day() -> None:
    ends = price(until="2026-11-30")
    assert ends.on(date(2026, 11, 30)) == ends
    assert ends.on(date(2026, 12, 1)) is None
    announced = price(
        until="2026-11-30",
        then={"input": 4, "output": 20, "as_of": "2026-10-13", "source": "somewhere"},
    )
    after = announced.on(date(2026, 12, 1))
    assert after is not None
    assert after.input == 4
    with pytest.raises(ValidationError, match="until"):
        price(then={"input": 4, "output": 20, "as_of": "2026-10-13", "source": "somewhere"})


@pytest.mark.parametrize("left_out", ["as_of", "source"])
def test_a_price_says_where_and_when_it_was_found(left_out: str) -> None:
    fields = {"input": 1, "output": 1, "as_of": "2026-10-01", "source": "somewhere"}
    del fields[left_out]
    with pytest.raises(ValidationError, match=left_out):
        Price.model_validate(fields)


# Options

OPTIONS: dict[str, Any] = {
    "base_url": "https://api.example.com/v1",
    "api_key": "EXAMPLE_API_KEY",
    "account": "example",
    "image": {"max_side": 512},
}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"colour": "blue"}, "colour"),
        ({"api_key": "sk-proj-CANARY"}, "api_key"),
        ({"base_url": "api.example.com"}, "expected http"),
        ({"base_url": "https://me:CANARY@example.com/v1"}, "secret"),
        ({"base_url": "https://example.com/v1?key=CANARY"}, "secret"),
        ({"extra": {"model": "CANARY"}}, "model: set by"),
        ({"extra": {"max_tokens": 7}}, "max_tokens: set by"),
        ({"image_tokens": {"kind": "guess", "tokens": 3}}, "image_tokens"),
        ({"image": {"max_side": 512, "detail": "CANARY"}}, "detail"),
    ],
)
def test_wrong_options_say_what_is_wrong_and_repeat_no_secret(
    changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValidationError, match=why) as error:
        HostedOptions.model_validate(OPTIONS | changes)
    assert "CANARY" not in str(error.value)


def test_options_of_a_server_of_ones_own_need_no_price_and_no_formula() -> None:
    options = HostedOptions.model_validate(OPTIONS)
    assert options.price is None
    assert options.image_tokens is None
    assert options.retention is None


# Cards

HOSTED = [name for name in models.names() if models.load(name).engine == "hosted"]


@pytest.mark.parametrize("name", HOSTED)
def test_a_hosted_card_is_complete(name: str) -> None:
    card = models.load(name)
    options = HostedOptions.model_validate(card.engine_options)
    if options.base_url is None:
        return
    assert card.checkpoint is not None
    assert options.api_key is not None
    assert options.image_tokens is not None
    assert options.price is not None
    assert options.retention is not None
    assert "https://" in options.retention.source
    found: Price | None = options.price
    while found is not None:
        assert "https://" in found.source
        assert found.output >= found.input > (found.cached_input or 0)
        found = found.then


@pytest.mark.parametrize("name", HOSTED)
def test_a_model_that_thinks_has_room_for_it(name: str) -> None:
    options = HostedOptions.model_validate(models.load(name).engine_options)
    thinks = options.extra.get("reasoning_effort", "none") != "none"
    assert (options.thinking_tokens > 0) == thinks


@pytest.mark.parametrize("name", HOSTED)
def test_a_face_as_datasets_have_them_costs_less_than_a_cent(name: str) -> None:
    options = HostedOptions.model_validate(models.load(name).engine_options)
    if options.image_tokens is None or options.price is None:
        return
    tokens = image_tokens(options.image_tokens, 224, 224, options.image.detail)
    assert 0 < cost_usd(options.price, tokens, 0) < 0.01
