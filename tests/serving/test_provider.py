"""What a provider's response means: recorded cases, and the values read out of them.

`provider_cases.jsonl`: bodies as their sources published them (`origin` published; ids of accounts
and requests replaced, those shown as Python objects written as JSON) and bodies that we wrote after
documentation (`origin` written).
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facescan.types import FinishReason
from serving.limiter import Told
from serving.provider import REASON_LENGTH, Reading, Verdict, of_failure, of_response

Case = dict[str, Any]
CASES: list[Case] = [
    json.loads(line)
    for line in Path(__file__).with_name("provider_cases.jsonl").read_text("utf-8").splitlines()
]


def failure(raised: str, cause: str | None, message: str) -> Exception:
    """An exception as the SDK makes it: its own around that of its transport."""
    import httpx2
    import openai

    request = httpx2.Request("POST", "http://localhost/v1/chat/completions")
    error: Exception
    if raised == "APITimeoutError":
        error = openai.APITimeoutError(request)
    elif raised == "APIConnectionError":
        error = openai.APIConnectionError(request=request)
    else:
        error = TimeoutError(message)
    error.__cause__ = getattr(httpx2, cause)(message) if cause else None
    return error


def read(case: Case) -> Reading:
    if "exception" in case:
        return of_failure(failure(**case["exception"]))
    return of_response(case["status"], case["headers"], case["body"].encode())


def error_body(message: str, **more: object) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_recorded_case_is_decided_as_recorded(case: Case) -> None:
    reading = read(case)

    found = {
        "verdict": reading.verdict.value,
        "retry_after": reading.retry_after,
        "billed": reading.billed,
        "finish_reason": reading.finish_reason.value if reading.finish_reason else None,
        "text": reading.text,
        "tokens_in": reading.tokens_in,
        "tokens_out": reading.tokens_out,
    }
    expected = {name: case[name] for name in found}
    assert found | {"retry_after": None} == expected | {"retry_after": None}, reading.reason
    assert found["retry_after"] == (pytest.approx(w) if (w := case["retry_after"]) else None)
    assert bool(reading.reason) == (reading.verdict is not Verdict.ANSWER)
    assert len(reading.reason) <= REASON_LENGTH


def test_the_cases_cover_every_verdict_and_name_their_sources() -> None:
    assert {case["verdict"] for case in CASES} == {verdict.value for verdict in Verdict}
    assert all(case["source"] for case in CASES)
    origins = Counter(case["origin"] for case in CASES)
    assert origins.keys() == {"published", "written"}
    assert origins["published"] >= 45
    published = [case["source"] for case in CASES if case["origin"] == "published"]
    assert all(source.startswith("https://") for source in published)


@pytest.mark.parametrize(
    ("finish", "verdict"),
    [
        ("SAFETY", Verdict.BLOCKED),
        ("RECITATION", Verdict.BLOCKED),
        ("BLOCKLIST", Verdict.BLOCKED),
        ("PROHIBITED_CONTENT", Verdict.BLOCKED),
        ("SPII", Verdict.BLOCKED),
        ("IMAGE_SAFETY", Verdict.BLOCKED),
        ("IMAGE_RECITATION", Verdict.BLOCKED),
        ("IMAGE_PROHIBITED_CONTENT", Verdict.BLOCKED),
        ("guardrail_intervened", Verdict.BLOCKED),
        ("sensitive", Verdict.BLOCKED),
        ("content_filter", Verdict.BLOCKED),
        ("content_filter: PROHIBITED_CONTENT", Verdict.BLOCKED),
        ("abort", Verdict.MALFORMED),
        ("error", Verdict.MALFORMED),
        ("insufficient_system_resource", Verdict.MALFORMED),
        ("network_error", Verdict.MALFORMED),
        ("MALFORMED_FUNCTION_CALL", Verdict.MALFORMED),
        ("MALFORMED_RESPONSE", Verdict.MALFORMED),
        ("UNEXPECTED_TOOL_CALL", Verdict.MALFORMED),
        ("MAX_TOKENS", Verdict.ANSWER),
        ("eos_token", Verdict.ANSWER),
        ("stop_sequence", Verdict.ANSWER),
        ("something_new", Verdict.ANSWER),
    ],
)
def test_a_text_is_no_answer_where_it_was_withheld_or_interrupted(
    finish: str, verdict: Verdict
) -> None:
    body = {"choices": [{"message": {"content": "fem"}, "finish_reason": finish}]}
    reading = of_response(200, {}, json.dumps(body).encode())
    assert reading.verdict is verdict
    reasons = {
        "MAX_TOKENS": FinishReason.LENGTH,
        "eos_token": FinishReason.STOP,
        "stop_sequence": FinishReason.STOP,
    }
    blocked = FinishReason.BLOCKED if verdict is Verdict.BLOCKED else None
    assert reading.finish_reason is reasons.get(finish, blocked)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("content_policy_violation", Verdict.BLOCKED),
        ("moderation_blocked", Verdict.BLOCKED),
        ("ResponsibleAIPolicyViolation", Verdict.BLOCKED),
        ("insufficient_quota", Verdict.QUOTA),
        ("billing_not_active", Verdict.QUOTA),
        ("BILLING_DISABLED", Verdict.QUOTA),
        ("account_deactivated", Verdict.AUTHENTICATION),
        ("invalid_api_key", Verdict.AUTHENTICATION),
        ("model_not_found", Verdict.AUTHENTICATION),
        ("PERMISSION_DENIED", Verdict.AUTHENTICATION),
        ("UNAUTHENTICATED", Verdict.AUTHENTICATION),
        ("unsupported_country_region_territory", Verdict.AUTHENTICATION),
        ("RESOURCE_EXHAUSTED", Verdict.RATE),
        ("something_new", Verdict.BAD_REQUEST),
    ],
)
def test_a_code_decides_wherever_it_stands(code: str, verdict: Verdict) -> None:
    """Under a status that says nothing: 400, or 200 with an error of that number in it."""
    for error in (
        {"code": code},
        {"type": code},
        {"status": code, "code": 400},
        {"details": [{"reason": code}], "code": 400},
        {"innererror": {"code": code}, "code": 400},
    ):
        assert of_response(400, {}, error_body("", **error)).verdict is verdict
    error = {"innererror": {"code": code}, "code": 400}
    assert of_response(200, {}, error_body("", **error)).verdict is verdict


class TestLimits:
    def told(self, **headers: str) -> Told:
        fields = {f"X-RateLimit-{name.replace('_', '-')}": value for name, value in headers.items()}
        return of_response(429, fields, b"").told

    def test_headers_of_openai(self) -> None:
        told = self.told(
            limit_requests="500",
            limit_tokens="30000",
            remaining_requests="499",
            remaining_tokens="29996",
            reset_requests="120ms",
            reset_tokens="6m0s",
        )
        assert told == Told(500, 30000, 499, 29996, 0.12, 360)

    def test_a_completion_tells_them_too(self) -> None:
        headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"}
        assert of_response(200, headers, b"{}").told == Told(60, None, 59)

    @pytest.mark.parametrize(
        ("limit", "left", "reset", "daily"),
        [
            ("10000", "9999", "8.64s", True),
            ("10000", "9998", "8.64s", True),
            ("10000", "4167", "13h59m57s", True),
            ("14400", "14370", "2m59.56s", True),  # the example of Groq's documentation
            ("10000", "9999", "6ms", False),
            ("500", "499", "120ms", False),
            ("60", "59", "1s", False),
            ("60", "59", "60s", False),  # a window of a minute, whole again at its end
            ("60", "0", "60s", False),
            ("3500", "3499", "17ms", False),
        ],
    )
    def test_a_limit_of_the_day_is_not_told_as_one_of_the_minute(
        self, limit: str, left: str, reset: str, daily: bool
    ) -> None:
        told = self.told(limit_requests=limit, remaining_requests=left, reset_requests=reset)
        assert told.limit_requests == (None if daily else int(limit))
        assert (told.remaining_requests is None) == (told.reset_requests is None) == daily

    def test_what_azure_sends_for_unknown_is_nothing(self) -> None:
        unknown = self.told(limit_tokens="-1", remaining_tokens="-1", reset_tokens="0")
        assert unknown == Told()
        assert self.told(limit_tokens="0", remaining_tokens="0") == Told()

    @pytest.mark.parametrize("nonsense", ["", "soon", "inf", "nan", "-3", "5 apples", "1e999"])
    def test_nonsense_is_nothing(self, nonsense: str) -> None:
        assert self.told(limit_requests=nonsense, reset_requests=nonsense) == Told()
        assert of_response(429, {"retry-after": nonsense}, b"").retry_after is None

    def test_googles_quota_of_the_minute_is_told(self) -> None:
        violations = [
            {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel", "quotaValue": "10"},
            {"quotaId": "GenerateContentInputTokensPerModelPerMinute", "quotaValue": "250000"},
        ]
        details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure"}]
        body = error_body("", details=[details[0] | {"violations": violations}])
        assert of_response(429, {}, body).told == Told(10, 250_000)

    def test_googles_quota_of_the_day_is_not(self) -> None:
        violations = [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel", "quotaValue": "20"}]
        reading = of_response(429, {}, error_body("", details=[{"violations": violations}]))
        assert (reading.verdict, reading.told) == (Verdict.DAILY, Told())

    def test_the_words_of_google_decide_nothing(self) -> None:
        """The same quotas, with the sentence of the other one."""
        message = "You exceeded your current quota, please check your plan and billing details."
        for quota, verdict in (("PerMinute", Verdict.RATE), ("PerDay", Verdict.DAILY)):
            violations = [{"quotaId": f"GenerateRequests{quota}PerProject", "quotaValue": "20"}]
            body = error_body(message, details=[{"violations": violations}])
            assert of_response(429, {}, body).verdict is verdict


class TestWaiting:
    @pytest.mark.parametrize(
        ("words", "seconds"),
        [
            ("Please try again in 20s. Visit", 20),
            ("Please try again in 7m12s. Visit", 432),
            ("Please try again in 1h2m3.5s.", 3723.5),
            ("Please try again in 6ms. Contact us", 0.006),
            ("Please retry after 9 seconds. Please go here", 9),
            ("Please retry after 1 minute.", 60),
            ("Please retry in 36.429760048s.", 36.429760048),
            ("Please retry shortly", None),
            ("Please retry in a while", None),
        ],
    )
    def test_a_time_in_words(self, words: str, seconds: float | None) -> None:
        found = of_response(429, {}, error_body(words)).retry_after
        assert found == (None if seconds is None else pytest.approx(seconds))

    def test_a_date_without_the_servers_clock_is_nothing(self) -> None:
        headers = {"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}
        assert of_response(503, headers, b"").retry_after is None

    def test_a_date_gone_by_is_now(self) -> None:
        headers = {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}
        headers["date"] = "Wed, 21 Oct 2026 07:29:00 GMT"
        assert of_response(503, headers, b"").retry_after == 0

    def test_who_must_stop_is_not_told_to_wait(self) -> None:
        body = error_body("", code="insufficient_quota")
        assert of_response(429, {"retry-after": "3"}, body).retry_after is None


class TestSecrets:
    """Keys and images stand in nobody's log, whoever repeats them."""

    def reason(self, message: str, *secrets: str) -> str:
        return of_response(401, {}, error_body(message), secrets=secrets).reason

    @pytest.mark.parametrize(
        "message",
        [
            "Incorrect API key provided: sk-pr************CANARY. You can find your API key at",
            "Incorrect API key provided: You are ************ CANARY.. You can find your API key",
            "Incorrect API key provided: CANARY",
            "Incorrect API key provided: CANARY-with-a.dot.in-it, try another",
            "invalid header Authorization: CANARY",
            "Bearer CANARY is not valid",
            "unknown token=CANARY",
            "sk-proj-CANARY0123 is revoked",
            "received AIzaSyCANARY0123456789",
            "Received API Key = sk-...CANARY, Key Hash (Token) =CANARY0123456789",
            "key ************************CANARY",
            "your key 0123456789abcdefCANARY0123456789abcdef",
        ],
    )
    def test_no_key_is_repeated(self, message: str) -> None:
        assert "CANARY" not in self.reason(message)

    def test_a_key_of_any_form_is_known_by_its_caller(self) -> None:
        assert self.reason("who is hunter2 ?", "hunter2") == "HTTP 401: who is [key] ?"

    def test_an_image_is_not_repeated(self) -> None:
        data = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB/CANARY+" * 20
        echo = {"detail": [{"input": {"url": f"data:image/png;base64,{data}"}, "raw": data}]}
        reading = of_response(422, {}, json.dumps(echo).encode())
        assert "CANARY" not in reading.reason
        assert "iVBOR" not in reading.reason

    def test_a_shortened_image_is_not_repeated(self) -> None:
        reason = self.reason("input_value='data:image/png;base64,iVBORw0KG...CANARY', input_type")
        assert reason == "HTTP 401: input_value='[image]', input_type"

    def test_what_the_transport_says_of_a_header_is_not_repeated(self) -> None:
        error = failure("APIConnectionError", "LocalProtocolError", "Illegal header b'CANARY\\n'")
        assert "CANARY" not in of_failure(error).reason

    def test_a_key_that_is_not_ascii_is_not_repeated(self) -> None:
        with pytest.raises(UnicodeEncodeError) as raised:
            "Bearer “CANARY”".encode("ascii")
        reading = of_failure(raised.value)
        assert reading.verdict is Verdict.AUTHENTICATION
        assert "CANARY" not in reading.reason

    def test_what_people_need_is_left(self) -> None:
        message = "Quota exceeded for metric: x/generate_content_free_tier_requests, limit: 20"
        quota = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
        url = "https://ai.google.dev/gemini-api/docs/rate-limits exceeded token rate limit"
        words = f"{message} {quota} {url}"
        assert self.reason(words) == f"HTTP 401: {words}"


class TestReasons:
    def test_codes_and_words_stand_in_it(self) -> None:
        assert of_response(400, {}, error_body("No.", code="odd")).reason == "HTTP 400: odd: No."
        assert of_response(429, {}, error_body("No.", code="429")).reason == "HTTP 429: No."

    def test_an_exception_without_words_is_its_name(self) -> None:
        assert of_failure(failure("APITimeoutError", "ReadTimeout", "")).reason == "ReadTimeout"

    def test_a_code_is_no_key(self) -> None:
        [case] = [case for case in CASES if case["name"] == "openai: wrong key"]
        assert read(case).reason.startswith(
            "HTTP 401: invalid_api_key: Incorrect API key provided: [key]. You can find"
        )

    def test_the_words_of_who_stands_behind_a_router(self) -> None:
        body = error_body("Provider returned error", code=502, metadata={"raw": "boom"})
        assert of_response(502, {}, body).reason == "HTTP 502: Provider returned error: boom"

    def test_a_page_without_its_markup(self) -> None:
        page = b"<html><style>p {}</style><body><h1>502</h1>\n<p>Bad gateway</p></body></html>"
        assert of_response(502, {}, page).reason == "HTTP 502: 502 Bad gateway"

    def test_long_words_are_cut(self) -> None:
        reason = of_response(400, {}, error_body("no " * 1000)).reason
        assert len(reason) == REASON_LENGTH
        assert reason.endswith("…")

    def test_the_filter_that_struck_is_named(self) -> None:
        named = {case["name"]: read(case).reason for case in CASES}
        assert named["azure: prompt filtered"].endswith(": violence medium")
        assert named["google: prompt blocked, no candidates"] == "blockReason PROHIBITED_CONTENT"
        safety = named["google: candidate stopped for safety"]
        assert safety == "finish_reason safety: HARM_CATEGORY_SEXUALLY_EXPLICIT"


class TestRequestsAndModels:
    def test_names_are_those_returned(self) -> None:
        [case] = [case for case in CASES if case["name"] == "openai: an answer"]
        reading = read(case)
        assert (reading.model, reading.request_id) == ("gpt-4-0613", "req_x")

    def test_google_calls_it_a_version(self) -> None:
        [case] = [case for case in CASES if case["name"] == "google: nothing, and STOP"]
        assert read(case).model == "gemini-2.5-flash-lite"

    def test_azure_numbers_its_requests_elsewhere(self) -> None:
        assert of_response(500, {"apim-request-id": "a"}, b"").request_id == "a"

    def test_a_status_error_of_the_sdk_is_its_response(self) -> None:
        import httpx2
        import openai

        response = httpx2.Response(
            429,
            headers={"Retry-After": "3"},
            content=b'[{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}]',
            request=httpx2.Request("POST", "http://localhost/"),
        )
        reading = of_failure(openai.RateLimitError("", response=response, body=None))
        assert (reading.verdict, reading.retry_after) == (Verdict.RATE, 3)

    def test_a_bug_stays_a_bug(self) -> None:
        with pytest.raises(ZeroDivisionError):
            of_failure(ZeroDivisionError())


def test_a_success_is_any_status_of_success() -> None:
    [case] = [case for case in CASES if case["name"] == "openai: an answer"]
    assert of_response(201, {}, case["body"].encode()).verdict is Verdict.ANSWER


def test_an_error_of_vllm_is_one_under_any_status() -> None:
    body = b'{"object": "error", "message": "No.", "type": "BadRequestError", "code": 400}'
    assert of_response(200, {}, body).verdict is Verdict.BAD_REQUEST
    assert of_response(400, {}, body).verdict is Verdict.BAD_REQUEST


def test_an_empty_answer_to_a_prompt_that_was_not_read_is_none() -> None:
    choice = {"message": {"content": None}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    body = json.dumps({"choices": [choice], "usage": usage}).encode()
    assert of_response(200, {}, body).verdict is Verdict.MALFORMED


SHAPES: list[object] = [None, True, 3, "text", [], ["x"], {}, {"x": 1}, [[]], [None], [{}]]
PLACES: list[Callable[[object], object]] = [
    lambda x: x,
    lambda x: {"error": x},
    lambda x: {"error": {"message": x, "code": x, "details": x, "metadata": x, "innererror": x}},
    lambda x: {"error": {"details": [{"violations": x, "metadata": x, "retryDelay": x}]}},
    lambda x: {"error": {"details": [{"violations": [{"quotaId": x, "quotaValue": x}]}]}},
    lambda x: {"choices": x, "usage": x, "promptFeedback": x, "model": x},
    lambda x: {"choices": [{"message": x, "finish_reason": x, "content_filter_results": x}]},
    lambda x: {"choices": [{"message": {"content": x, "refusal": x}}]},
    lambda x: {"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": x}},
    lambda x: {"candidates": x, "usageMetadata": x},
    lambda x: {"candidates": [{"content": x, "safetyRatings": x, "finishMessage": x}]},
    lambda x: {"candidates": [{"content": {"parts": x}, "finishReason": x}]},
]  # fmt: skip


@pytest.mark.parametrize("status", [200, 400, 429, 500])
def test_no_shape_of_a_body_is_an_error_of_ours(status: int) -> None:
    for place in PLACES:
        for shape in SHAPES:
            reading = of_response(status, {}, json.dumps(place(shape)).encode())
            if reading.verdict is Verdict.ANSWER:
                assert reading.text is not None
                assert status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        b"NaN",
        b"api key: " * 10_000,
        b"*" * 100_000,
    ],
    ids=["no text", "depth", "mark", "number", "keys", "stars"],
)
def test_no_bytes_are_an_error_of_ours(body: bytes) -> None:
    assert of_response(200, {}, body).verdict is Verdict.MALFORMED
    assert of_response(500, {}, body).verdict is Verdict.TRANSIENT


def test_a_completion_cut_anywhere_is_malformed() -> None:
    [case] = [case for case in CASES if case["name"] == "openai: an answer"]
    body = case["body"].encode()
    for end in range(len(body)):
        assert of_response(200, {}, body[:end]).verdict is Verdict.MALFORMED
    assert of_response(200, {}, body).finish_reason is FinishReason.STOP
