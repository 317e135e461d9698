import asyncio
import base64
import hashlib
import io
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import pytest
from PIL import Image

from tests.conftest import jpeg
from tests.provider.running import (
    LINE,
    ROOT,
    Batches,
    Config,
    ErrorName,
    Fault,
    Limits,
    Model,
    Provider,
    Scripted,
    ShapeName,
    provider_server,
)
from tests.provider.server import ERRORS, SHAPES, Quota, Refused, duration, understand
from tests.provider.windows import SlidingWindow

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

# Windows


def test_no_window_ever_holds_more_than_the_limit() -> None:
    rng = random.Random(1)
    window = SlidingWindow(10, 5.0)
    now, taken = 1000.0, []
    for _ in range(5000):
        now += rng.expovariate(4)
        amount = rng.randint(1, 4)
        if window.take(amount, now):
            taken.append((now, amount))
    assert len(taken) > 1000
    for start, _ in taken:
        assert sum(amount for time, amount in taken if start <= time < start + 5.0) <= 10


@pytest.mark.parametrize("start", [0.0, 0.1, 1e6 / 3, 1.7e9 + 0.3])
def test_what_was_said_to_fit_later_fits_then_and_not_before(start: float) -> None:
    window = SlidingWindow(3, 60.0)
    for step in range(3):
        assert window.take(1, start + step * 0.7)
    now = start + 2.1
    wait = window.seconds_until(2, now)
    assert wait == pytest.approx(60 + 0.7 - 2.1, abs=1e-5)
    assert not window.take(2, now + wait - 1e-3)
    assert window.take(2, now + wait)


def test_a_wait_is_never_rounded_to_just_before_its_end() -> None:
    rng = random.Random(2)
    for _ in range(2000):
        start = rng.random()
        window = SlidingWindow(1, 60.0)
        assert window.take(1, start)
        now = start + rng.uniform(0, 20)
        assert window.take(1, now + window.seconds_until(1, now))


def test_what_fits_now_needs_no_wait_and_what_never_fits_waits_for_ever() -> None:
    window = SlidingWindow(3, 60.0)
    assert window.seconds_until(3, 0.0) == 0
    assert window.seconds_until(4, 0.0) == math.inf


def test_a_refused_amount_takes_nothing() -> None:
    window = SlidingWindow(3, 60.0)
    assert window.take(2, 0.0)
    assert not window.take(2, 1.0)
    assert window.used(1.0) == 2


def test_a_limit_can_be_lowered_below_what_is_taken() -> None:
    window = SlidingWindow(4, 60.0)
    for second in range(4):
        assert window.take(1, float(second))
    window.limit = 2
    assert window.seconds_until(1, 4.0) == pytest.approx(62.0 - 4.0)
    assert not window.take(1, 61.5)
    assert window.take(1, 62.0)


def test_what_is_counted_without_fitting_holds_back_what_comes_later() -> None:
    window = SlidingWindow(1, 60.0)
    window.count(1, 0.0)
    window.count(1, 30.0)
    assert not window.take(1, 60.0)
    assert window.take(1, 90.0)


# What is asked


def uri(data: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def schema(**properties: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


RACE = schema(race={"type": "string", "enum": ["White", "Black", "cannot_determine"]})


def structured(of: object, name: str = "answer") -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": of}}


def body(picture: str | int = 0, prompt: str = "What do you see?", **more: object) -> Any:
    image = uri(jpeg(picture)) if isinstance(picture, int) else picture
    parts = [
        {"type": "text", "text": prompt},
        {"type": "image_url", "image_url": {"url": image, "detail": "low"}},
    ]
    asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": parts}]}
    return {**asked, "max_completion_tokens": 20, **more}


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        ({"max_token": 5}, 400, "unknown_parameter"),
        ({"messages": []}, 400, "invalid_value"),
        ({"model": "gpt-9"}, 404, "model_not_found"),
        ({"model": None}, 400, "invalid_value"),
        ({"n": 2}, 400, "invalid_value"),
        ({"stream": True}, 400, "invalid_value"),
        ({"temperature": 3}, 400, "invalid_value"),
        ({"max_completion_tokens": "20"}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "text": "Who?"}]}, 400, None),
        ({"picture": "https://example.org/face.jpg"}, 400, "invalid_image_url"),
        ({"picture": uri(b"<html>")}, 400, "invalid_image_format"),
        ({"picture": "data:image/jpeg;base64,????"}, 400, "invalid_image_format"),
        ({"picture": uri(jpeg(1)[:-200])}, 400, "invalid_image_format"),
        ({"picture": uri(jpeg(1), "png")}, 400, "invalid_image_format"),
        ({"response_format": {"type": "json_schema"}}, 400, "missing_required_parameter"),
        ({"response_format": structured(RACE, "an answer")}, 400, "invalid_value"),
        ({"response_format": structured({"type": "array", "items": {"enum": [1]}})}, 400, None),
        ({"response_format": structured({**RACE, "additionalProperties": True})}, 400, None),
        ({"response_format": structured({**RACE, "required": []})}, 400, None),
        ({"response_format": structured({**RACE, "default": {}})}, 400, None),
        ({"response_format": structured(schema(a={"type": "object"}))}, 400, None),
        ({"response_format": structured(schema(a={"description": "x"}))}, 400, None),
    ],
)
def test_a_wrong_request_is_refused_as_the_api_does(
    wrong: dict[str, Any], status: int, code: str | None
) -> None:
    understand(body(response_format=structured(RACE)), Config())
    with pytest.raises(Refused) as refused:
        understand(body(**wrong), Config())
    assert refused.value.status == status
    if code is not None:
        assert refused.value.error["code"] == code


def test_a_field_is_taken_once_it_is_configured() -> None:
    understand(body(extra_body={}), Config(fields=["extra_body"]))


def test_a_reasoning_model_takes_neither_the_old_limit_nor_a_temperature() -> None:
    thinking = Model(
        max_tokens_field="max_completion_tokens", fixed_temperature=True, reasoning_tokens=64
    )
    config = Config(models={"gpt-4o": thinking})
    wrongs: list[dict[str, Any]] = [{"max_tokens": 20}, {"temperature": 0}]
    for wrong in wrongs:
        with pytest.raises(Refused, match=r"[Uu]nsupported"):
            understand(body(**wrong), config)
    cut = understand(body(), config)
    assert (cut.text, cut.finish_reason, cut.tokens_out) == ("", "length", 64)


def test_an_answer_depends_on_picture_and_prompt_alone() -> None:
    config = Config()

    def text(picture: int, prompt: str = "Which?", **more: object) -> str:
        return understand(
            body(picture, prompt, response_format=structured(RACE), **more), config
        ).text

    answers = [text(picture) for picture in range(30)]
    assert {json.loads(answer)["race"] for answer in answers} == {
        *("White", "Black", "cannot_determine")
    }
    assert [text(picture, prompt="And now?") for picture in range(30)] != answers
    assert [
        text(picture, model="gpt-4o-mini-2024-07-18", seed=3) for picture in range(30)
    ] == answers


def test_a_value_fits_all_words_of_a_schema() -> None:
    inner = schema(
        age={"type": "integer", "minimum": 18, "maximum": 20},
        sure={"type": "boolean"},
        faces={"type": "array", "items": {"$ref": "#/$defs/face"}, "minItems": 2},
        note={"anyOf": [{"type": "null"}, {"type": "string"}]},
        version={"const": 3},
    )
    whole = {**inner, "$defs": {"face": schema(x={"type": "number"})}}
    for picture in range(10):
        asked = understand(
            body(picture, response_format=structured(whole), max_completion_tokens=200), Config()
        )
        answer = json.loads(asked.text)
        assert answer["age"] in (18, 19, 20)
        assert isinstance(answer["sure"], bool)
        assert [set(face) for face in answer["faces"]] == [{"x"}, {"x"}]
        assert answer["note"] in (None, "text")
        assert answer["version"] == 3


def test_metadata_in_a_picture_is_seen() -> None:
    exif = Image.Exif()
    exif[0x010E] = "somebody"
    with_exif = io.BytesIO()
    Image.new("RGB", (32, 32)).save(with_exif, "JPEG", exif=exif)
    assert understand(body(uri(with_exif.getvalue())), Config()).pictures[0].metadata
    assert not understand(body(1), Config()).pictures[0].metadata


# Limits


QUESTION = understand(body(max_completion_tokens=100), Config())


def test_requests_beyond_the_limit_are_refused_and_count() -> None:
    quota = Quota(Limits(rpm=2))
    quota.admit(QUESTION, "account", 0.0)
    quota.admit(QUESTION, "account", 10.0)
    with pytest.raises(Refused) as refused:
        quota.admit(QUESTION, "account", 20.0)
    assert refused.value.headers["retry-after-ms"] == "50000"  # the refused one counts
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(Refused):
        quota.admit(QUESTION, "account", 69.9)
    assert quota.admitted_requests == 2


def test_refused_requests_do_not_count_if_told_so() -> None:
    quota = Quota(Limits(rpm=1, refused_count=False))
    quota.admit(QUESTION, "account", 0.0)
    for second in range(1, 60):
        with pytest.raises(Refused):
            quota.admit(QUESTION, "account", float(second))
    quota.admit(QUESTION, "account", 60.0)


@pytest.mark.parametrize(("max_tokens_count", "tokens"), [(True, 89 + 100), (False, 89 + 8)])
def test_tokens_count_as_asked_for_or_as_billed(max_tokens_count: bool, tokens: int) -> None:
    quota = Quota(Limits(tpm=2 * tokens, max_tokens_count=max_tokens_count))
    quota.admit(QUESTION, "account", 0.0)
    quota.admit(QUESTION, "account", 0.0)
    assert quota.headers(0.0)["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(Refused, match=rf"\(TPM\).* Requested {tokens}\. .* in 1m0s"):
        quota.admit(QUESTION, "account", 0.0)


def test_more_tokens_than_the_limit_are_too_large_for_ever() -> None:
    with pytest.raises(Refused, match="Request too large") as refused:
        Quota(Limits(tpm=100)).admit(QUESTION, "account", 0.0)
    assert "retry-after" not in refused.value.headers


def test_requests_are_spread_over_the_minute_if_told_so() -> None:
    quota = Quota(Limits(rpm=60, quantum_s=1.0, refused_count=False))
    quota.admit(QUESTION, "account", 0.0)
    with pytest.raises(Refused):
        quota.admit(QUESTION, "account", 0.5)
    quota.admit(QUESTION, "account", 1.0)


def test_a_day_holds_its_requests() -> None:
    quota = Quota(Limits(rpd=1, day_s=100.0))
    quota.admit(QUESTION, "account", 0.0)
    with pytest.raises(Refused, match=r"\(RPD\)") as refused:
        quota.admit(QUESTION, "account", 99.0)
    assert "PerDay" in json.dumps(refused.value.details)


def test_a_limit_lowered_counts_what_was_taken_before() -> None:
    quota = Quota(Limits(rpm=4))
    for second in range(4):
        quota.admit(QUESTION, "account", float(second))
    quota.set(Limits(rpm=2, refused_count=False))
    with pytest.raises(Refused, match="Limit 2, Used 3"):
        quota.admit(QUESTION, "account", 60.0)
    quota.admit(QUESTION, "account", 62.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.0063, "7ms"), (1.5, "1.5s"), (360.0, "6m0s"), (3723.25, "1h2m3.25s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# The server


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    client.cache_clear()  # another server may be given the port


@cache
def client(provider: Provider, key: str | None = None, timeout: float = 20) -> "openai.OpenAI":
    """Making one takes longer than asking."""
    import openai

    return openai.OpenAI(
        base_url=provider.base_url, api_key=key or provider.key, max_retries=0, timeout=timeout
    )


def outcome(provider: Provider, **asked: Any) -> str:
    """The text of an answer, or the name of the exception and its status."""
    import openai

    try:
        answer = client(provider).chat.completions.create(**body(**asked))
    except openai.APIStatusError as e:
        return f"{type(e).__name__} {e.status_code}"
    except (openai.APIError, ValueError) as e:
        return type(e).__name__
    return answer.choices[0].message.content or ""


def test_the_sdk_is_answered_and_billed() -> None:
    with provider_server(Config(limits=Limits(rpm=100, tpm=10_000))) as provider:
        raw = client(provider).chat.completions.with_raw_response.create(
            **body(response_format=structured(RACE))
        )
        answer = raw.parse()
        assert (
            json.loads(answer.choices[0].message.content or "")["race"]
            in RACE["properties"]["race"]["enum"]
        )
        assert answer.model == "gpt-4o-2024-08-06"
        assert raw.headers["x-ratelimit-remaining-requests"] == "99"
        assert raw.headers["x-request-id"]
        usage = answer.usage
        assert usage is not None
        bill = provider.bill()
        assert bill["usd"] == pytest.approx(
            (usage.prompt_tokens * 2.5 + usage.completion_tokens * 10) / 1e6
        )
        assert bill["calls"] == 1
        stats = provider.stats()
        assert (stats["calls"], stats["processed"], stats["sdk_retries"]) == (1, 1, 0)
        assert stats["pictures"][0]["sha256"] == hashlib.sha256(jpeg(0)).hexdigest()
        assert [model.id for model in client(provider).models.list()] == list(Config().models)


def test_a_wrong_key_is_refused_and_not_repeated() -> None:
    import openai

    with provider_server() as provider:
        with pytest.raises(openai.AuthenticationError) as refused:
            client(provider, "sk-canary-0123456789").chat.completions.create(**body())
        assert "sk-canary-0123456789" not in str(refused.value)
        assert provider.stats()["processed"] == 0


def test_a_wrong_request_counts_as_one_and_costs_nothing() -> None:
    with provider_server(Config(limits=Limits(rpm=2))) as provider:
        assert outcome(provider, n=2) == "BadRequestError 400"
        assert outcome(provider, picture="face.jpg") == "BadRequestError 400"
        assert outcome(provider) == "RateLimitError 429"
        assert provider.bill()["usd"] == 0


def test_limits_hold_by_account_and_change_while_running() -> None:
    keys = {"key-a": "one", "key-b": "one", "key-c": "two"}
    with provider_server(Config(keys=keys, limits=Limits(rpm=2))) as provider:
        for key, status in (("key-a", 200), ("key-b", 200), ("key-b", 429), ("key-c", 200)):
            assert status_of(provider, key) == status
        provider.configure(limits={"rpm": 10})
        assert status_of(provider, "key-a") == 200
        assert provider.stats()["admitted"] == {
            f"{account} gpt-4o-2024-08-06": {"requests": count, "tokens": count * 109}
            for account, count in (("one", 3), ("two", 1))
        }


def status_of(provider: Provider, key: str) -> int:
    import openai

    try:
        client(provider, key).chat.completions.create(**body())
    except openai.APIStatusError as e:
        return e.status_code
    return 200


def test_gemini_speaks_in_arrays_and_without_headers() -> None:
    import openai

    config = Config(dialect="gemini", limits=Limits(rpm=1))
    with provider_server(config) as provider:
        asked = body(model="gemini-2.5-flash")
        raw = client(provider).chat.completions.with_raw_response.create(**asked)
        assert not [name for name in raw.headers if name.startswith("x-")]
        with pytest.raises(openai.RateLimitError) as refused:
            client(provider).chat.completions.create(**asked)
        error = refused.value.response.json()[0]["error"]
        assert error["status"] == "RESOURCE_EXHAUSTED"
        assert "PerMinute" in error["details"][0]["violations"][0]["quotaId"]
        assert error["details"][1]["retryDelay"].endswith("s")
        with pytest.raises(openai.BadRequestError) as refused_key:
            client(provider, "wrong").chat.completions.create(**asked)
        assert "API_KEY_INVALID" in refused_key.value.response.text


def test_accidents_happen_before_or_after_the_request_is_billed() -> None:
    with provider_server() as provider:
        whole = outcome(provider)
        each = provider.bill()["usd"]
        lost = 0
        for fault, expected, billed in (
            (Fault(kind="error"), "InternalServerError 500", 0),
            (Fault(kind="error", error="502"), "InternalServerError 502", 0),
            (Fault(kind="error", error="insufficient_quota"), "RateLimitError 429", 0),
            (Fault(kind="error", error="503", processed=True), "InternalServerError 503", 1),
            (Fault(kind="reset"), "APIConnectionError", 0),
            (Fault(kind="reset", processed=True), "APIConnectionError", 1),
            (Fault(kind="silence", delay_s=(0.01, 0.02)), "APIConnectionError", 0),
            (Fault(kind="truncated"), "APIConnectionError", 1),
            (Fault(kind="malformed"), "JSONDecodeError", 1),
            (Fault(kind="delay", delay_s=(0.01, 0.02)), whole, 1),
        ):
            before = provider.bill()
            provider.configure(faults=[fault])
            assert outcome(provider) == expected, fault
            after = provider.bill()
            assert after["usd"] - before["usd"] == pytest.approx(billed * each), fault
            lost += billed and expected != whole
            assert after["lost_usd"] == pytest.approx(lost * each), fault
            assert provider.stats()["faults"] == [1]
        provider.configure(faults=[])
        assert outcome(provider) == whole


@pytest.mark.parametrize("shape", get_args(ShapeName))
def test_shapes_stand_in_for_the_answer(shape: ShapeName) -> None:
    asked = understand(body(), Config())
    made = json.dumps(asked.completion(SHAPES[shape]))
    assert asked.text not in made
    assert asked.text in json.dumps(asked.completion({}))


def test_a_shape_is_the_same_however_often_it_is_asked_for() -> None:
    fault = Fault(kind="answer", shape="plain_refusal", probability=0.5)
    with provider_server(Config(faults=[fault])) as provider:
        texts = [[outcome(provider, picture=n) for n in range(12)] for _ in range(2)]
        assert texts[0] == texts[1]
        assert len(set(texts[0])) == 2
        assert provider.bill()["calls"] == 24


def test_every_error_and_shape_has_its_name() -> None:
    assert set(ERRORS) == set(get_args(ErrorName))
    assert set(SHAPES) == set(get_args(ShapeName))


def test_accidents_do_not_depend_on_the_order_of_requests() -> None:
    storm = [
        Fault(kind="error", probability=0.3),
        Fault(kind="reset", processed=True, probability=0.3),
    ]
    struck = []
    for order in (range(12), reversed(range(12))):
        with provider_server(Config(seed=7, faults=storm)) as provider:
            for picture in order:
                outcome(provider, picture=picture)
                outcome(provider, picture=picture)
            struck.append({(c["identity"], c["number"]): c["outcome"] for c in provider.calls()})
    assert struck[0] == struck[1]
    assert len(struck[0]) == 24
    assert set(struck[0].values()) == {"200", "500", "reset"}


def test_a_fault_can_be_told_which_calls_and_how_often() -> None:
    faults = [Fault(kind="error", calls=[1, 3]), Fault(kind="error", error="503", times=1)]
    with provider_server(Config(faults=faults)) as provider:
        for _ in range(5):
            outcome(provider)
        assert [call["outcome"] for call in provider.calls()] == ["503", "500", "200", "500", "200"]


def test_a_script_is_played_before_all_else() -> None:
    script = [
        Scripted(status=429, headers={"retry-after": "7", "x-should-retry": "false"}, body="{}"),
        Scripted(body='{"candidates": []}'),
    ]
    with provider_server(Config(script=script)) as provider:
        import openai

        with pytest.raises(openai.RateLimitError) as refused:
            client(provider, "a wrong key").chat.completions.create(**body())
        assert refused.value.response.headers["retry-after"] == "7"
        raw = client(provider).chat.completions.with_raw_response.create(**body())
        assert raw.text == '{"candidates": []}'
        assert provider.bill()["calls"] == 0
        assert outcome(provider) == Config().texts[0]


def test_an_answer_nobody_waits_for_is_billed_and_lost() -> None:
    silence = Fault(kind="silence", processed=True)
    with provider_server(Config(faults=[silence])) as provider:
        import openai

        with pytest.raises(openai.APITimeoutError):
            client(provider, timeout=0.2).chat.completions.create(**body())
        deadline = time.monotonic() + 10
        while (bill := provider.bill())["lost_usd"] == 0:
            assert time.monotonic() < deadline
        assert bill["lost_usd"] == bill["usd"]
        assert [call["outcome"] for call in provider.calls()] == ["gone"]


def test_calls_at_the_same_time_are_seen() -> None:
    async def five(provider: Provider) -> None:
        import openai

        async with openai.AsyncOpenAI(
            base_url=provider.base_url, api_key=provider.key, max_retries=0
        ) as caller:
            await asyncio.gather(*(caller.chat.completions.create(**body(n)) for n in range(5)))

    with provider_server(Config(latency_s=(3, 3))) as provider:
        asyncio.run(five(provider))
        assert provider.stats()["most_at_once"] == 5
        assert len({call["arrived"] for call in provider.calls()}) == 5


def test_a_setting_that_does_not_exist_is_an_error() -> None:
    with provider_server() as provider, pytest.raises(ValueError, match="rate_limit"):
        provider.configure(rate_limit=3)


def test_the_server_ends_with_who_started_it() -> None:
    command = [sys.executable, "-m", "tests.provider.server", "--until-stdin-ends"]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, cwd=ROOT, check=True
    )
    assert json.loads(ended.stdout)["port"] > 0


# Batches


def submit(provider: Provider, lines: list[dict[str, object]], key: str | None = None) -> "Batch":
    caller = client(provider, key)
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    file = caller.files.create(file=("batch.jsonl", data), purpose="batch")
    return caller.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


def line(name: int, **more: object) -> dict[str, object]:
    asked = body(name)
    return {
        "custom_id": f"row-{name}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": asked,
        **more,
    }


def rows(provider: Provider, file: str | None) -> list[dict[str, Any]]:
    if file is None:
        return []
    text = client(provider).files.content(file).text
    return [json.loads(row) for row in text.splitlines()]


def poll(provider: Provider, batch: "Batch", times: int = 3) -> "Batch":
    for _ in range(times):
        batch = client(provider).batches.retrieve(batch.id)
    return batch


def test_a_batch_goes_by_polls_and_answers_as_calls_do_at_half_the_price() -> None:
    with provider_server(Config(batches=Batches(polls=(1, 2, 1)))) as provider:
        online = {f"row-{n}": outcome(provider, picture=n) for n in range(12)}
        price = provider.bill()["usd"]
        batch = submit(provider, [line(n) for n in range(12)])
        states = [batch.status, *(poll(provider, batch, 1).status for _ in range(5))]
        assert states == [
            *("validating", "validating", "in_progress", "in_progress", "finalizing", "completed")
        ]
        batch = poll(provider, batch, 1)
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.total) == (12, 12)
        assert batch.error_file_id is None
        found = rows(provider, batch.output_file_id)
        assert [row["custom_id"] for row in found] != list(online)
        assert {
            row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
            for row in found
        } == online
        bill = provider.bill()
        assert bill["batch_usd"] == pytest.approx(price / 2)
        assert (bill["calls"], bill["lines"]) == (12, 12)


def test_lines_that_expired_or_failed_stand_in_the_error_file() -> None:
    wrong = Fault(kind="error", at=LINE, calls=[0])
    config = Config(batches=Batches(ends="expired", polls=(0, 0, 0)), faults=[wrong])
    with provider_server(config) as provider:
        batch = poll(provider, submit(provider, [line(n) for n in range(12)]), 1)
        assert batch.status == "expired"
        good, bad = rows(provider, batch.output_file_id), rows(provider, batch.error_file_id)
        assert {row["custom_id"] for row in good + bad} == {f"row-{n}" for n in range(12)}
        assert all(row["response"]["status_code"] == 200 for row in good)
        failed = [row for row in bad if row["response"] is not None]
        assert [row["response"]["status_code"] for row in failed] == [500]
        expired = [row for row in bad if row["response"] is None]
        assert {row["error"]["code"] for row in expired} == {"batch_expired"}
        assert provider.bill()["lines"] == len(good)


def test_a_cancelled_batch_has_some_answers() -> None:
    with provider_server() as provider:
        batch = submit(provider, [line(n) for n in range(10)])
        assert client(provider).batches.cancel(batch.id).status == "cancelling"
        batch = poll(provider, batch, 1)
        assert batch.status == "cancelled"
        assert len(rows(provider, batch.output_file_id)) == provider.bill()["lines"] == 5


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ([], ["empty_file"]),
        ([line(1), line(1)], ["duplicate_custom_id"]),
        ([line(1), line(2, url="/v1/embeddings")], ["url_mismatch"]),
        ([{"custom_id": "row-1"}, line(2)], ["invalid_json_line"]),
        ([line(1), line(2, body={"model": "gpt-4o-mini-2024-07-18"})], ["model_mismatch"]),
        ([line(n) for n in range(4)], ["too_many_tasks"]),
    ],
)
def test_a_wrong_input_file_fails_its_batch(
    lines: list[dict[str, object]], codes: list[str]
) -> None:
    with provider_server(Config(batches=Batches(max_requests=3))) as provider:
        batch = poll(provider, submit(provider, lines))
        assert batch.status == "failed"
        assert batch.errors is not None
        assert [error.code for error in batch.errors.data or ()] == codes
        assert provider.bill()["lines"] == 0


def test_a_batch_is_made_even_where_its_answer_is_lost() -> None:
    import openai

    lost = Fault(kind="reset", processed=True, at="POST /batches", times=1)
    with provider_server(Config(faults=[lost])) as provider:
        with pytest.raises(openai.APIConnectionError):
            submit(provider, [line(1)])
        assert len(provider.stats()["batches"]) == 1
        assert [batch.id for batch in client(provider).batches.list()] == ["batch_000001"]
        submit(provider, [line(1)])
        assert len(provider.stats()["batches"]) == 2


def test_files_are_listed_by_account_until_they_are_deleted() -> None:
    import openai

    with provider_server(Config(keys={"key-a": "one", "key-b": "two"})) as provider:
        mine, other = client(provider), client(provider, "key-b")
        names = [
            mine.files.create(file=("lines.jsonl", b"{}\n"), purpose="batch").id for _ in range(3)
        ]
        assert [file.id for file in mine.files.list(limit=2)] == names[::-1]
        assert not list(other.files.list())
        with pytest.raises(openai.NotFoundError):
            other.files.delete(names[0])
        assert mine.files.delete(names[0]).deleted
        with pytest.raises(openai.NotFoundError):
            mine.files.content(names[0])
        assert [name for name, f in provider.stats()["files"].items() if f["deleted"]] == names[:1]
