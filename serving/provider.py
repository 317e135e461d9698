"""What a hosted provider's response means: an answer, a refusal, "slow down", "stop".

Plain logic: a status, headers and a body (or what the SDK raised) go in, a Reading comes out. The
shapes are those of OpenAI, Azure, Google (its OpenAI-compatible endpoint and its own), OpenRouter
and vLLM. Codes decide, not wording; the only sentences read are those that say how long to wait
and how large a request was, because nothing else says it.

Refusals in the text of an answer are no business of this module: `facescan.parse` reads them.
"""

import email.utils
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from facescan.types import FinishReason
from serving.limiter import Told

REASON_LENGTH = 500
"""Characters of a provider's own words that are kept."""


class Verdict(StrEnum):
    """What to do with a call; a closed set."""

    ANSWER = "answer"
    """The model's text; cut off where `finish_reason` is LENGTH, possibly empty then."""
    REFUSED = "refused"
    """The provider marked the answer as a refusal: a result, never asked again."""
    BLOCKED = "blocked"
    """A filter withheld prompt or answer: a result, never asked again."""
    RATE = "rate"
    """Too fast: all callers of the account wait for `retry_after`, then this one asks again."""
    TRANSIENT = "transient"
    """The provider or the network failed: ask again; the limit was not to blame."""
    QUOTA = "quota"
    """No money, or no quota for this model at all: stop; the run can be resumed later."""
    DAILY = "daily"
    """Google's quota of the day is used up: stop this model until midnight Pacific time."""
    AUTHENTICATION = "authentication"
    """Key, permission, model name or address are wrong: every other call will fail too."""
    BAD_REQUEST = "bad_request"
    """This request is not accepted and never will be."""
    MALFORMED = "malformed"
    """Success, they say, but no completion in it: ask again, as if TRANSIENT."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A response, understood.

    Attributes:
        text: the model's words: an answer, a refusal, or what a filter let through; None where
            there are none.
        finish_reason: None where nothing was answered, or where the provider's word for it is
            unknown.
        reason: for people: why there is no answer, at most REASON_LENGTH characters, without keys
            or image data; empty for an answer.
        retry_after: seconds the provider asks to wait; only where asking again makes sense.
        tokens_in: prompt tokens as reported, image included.
        tokens_out: generated tokens as billed, hidden thinking included.
        model: the model's name as the provider returned it.
        billed: None where nobody can say: the call may have been processed, its answer was lost.
        told: what the headers (Google: the quotas in the error) said of the account's limits.
    """

    verdict: Verdict
    text: str | None
    finish_reason: FinishReason | None
    reason: str
    retry_after: float | None
    tokens_in: int | None
    tokens_out: int | None
    model: str | None
    request_id: str | None
    billed: bool | None
    told: Told


_FINISHED = {
    "stop": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
}
# Google passes its own names through its OpenAI-compatible endpoint.
_WITHHELD = frozenset(
    {
        "content_filter",
        "safety",
        "recitation",
        "blocklist",
        "prohibited_content",
        "spii",
        "image_safety",
        "image_recitation",
        "image_prohibited_content",
        "guardrail_intervened",  # Bedrock
        "sensitive",  # Z.AI
    }
)
# The server gave up in the middle (vLLM, OpenRouter, DeepSeek, Z.AI), or the model broke Google's
# form of an answer: what text there is, is not the answer.
_INTERRUPTED = frozenset(
    {
        "abort",
        "error",
        "insufficient_system_resource",
        "network_error",
        "malformed_function_call",
        "malformed_response",
        "unexpected_tool_call",
    }
)

_POLICY = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "invalid_prompt",
        "moderation_blocked",
        "responsibleaipolicyviolation",
    }
)
_UNPAID = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_disabled"}
)
_LOCKED_OUT = frozenset(
    {
        "account_deactivated",
        "api_key_invalid",
        "failed_precondition",  # Google: not from this country, or not without billing
        "invalid_api_key",
        "model_not_found",
        "permission_denied",
        "unauthenticated",
        "unsupported_country_region_territory",
    }
)
_RETRIED = frozenset({Verdict.RATE, Verdict.TRANSIENT, Verdict.MALFORMED})


def of_response(
    status: int, headers: Mapping[str, str], body: bytes, *, secrets: Collection[str] = ()
) -> Reading:
    """Read a response, whatever its status.

    Args:
        status: the HTTP status.
        headers: in any case of letters.
        body: as it came, decompressed.
        secrets: what must not stand in `reason` even if the server repeats it, such as the key.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    document = _document(body)
    if 200 <= status < 300:
        if document is None:
            cause = f"HTTP {status} with a body that is not JSON: {_words(body)}"
            return _failed(Verdict.MALFORMED, cause, fields, {}, None, secrets)
        complaint = _complaint(document)
        if not complaint:
            return _of_completion(document, fields, secrets)
        # OpenRouter answers 200 first and puts what went wrong later into the body.
        code = str(complaint.get("code"))
        meant = int(code) if re.fullmatch(r"[45]\d\d", code) else 500
    else:
        complaint = _complaint(document or {}) or document or {"message": _words(body)}
        meant = status
    verdict = _verdict(meant, fields, complaint)
    cause = f"HTTP {status}: {_said(complaint)}"
    return _failed(verdict, cause, fields, complaint, _billed(verdict, status), secrets)


def of_failure(error: Exception, *, secrets: Collection[str] = ()) -> Reading:
    """Read what the openai SDK raised instead of returning a response.

    Args:
        error: an exception of the SDK, of its transport, or a TimeoutError around the call.
        secrets: as for `of_response`.

    Raises:
        Exception: `error` itself, where it is not about the call, such as a bug.
    """
    import httpx2
    import openai

    if isinstance(error, openai.APIStatusError):
        response = error.response
        return of_response(
            response.status_code, response.headers, response.content, secrets=secrets
        )
    # A key with a curly quote in it is a UnicodeEncodeError, outside of the SDK's own errors.
    unsendable = (
        httpx2.LocalProtocolError,
        httpx2.UnsupportedProtocol,
        httpx2.TooManyRedirects,
        httpx2.InvalidURL,
        UnicodeEncodeError,
    )
    cause: BaseException = error
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
    elif not isinstance(error, (httpx2.RequestError, TimeoutError, *unsendable)):
        raise error
    if isinstance(cause, unsendable):
        # Its text is left out: that of a bad header is the header, which holds the key.
        reason = f"{type(cause).__name__}: check the address (base_url) and the key's characters"
        return _failed(Verdict.AUTHENTICATION, reason, {}, {}, False, secrets)
    unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
    billed = False if isinstance(cause, unsent) else None
    reason = f"{type(cause).__name__}: {cause}".removesuffix(": ")
    return _failed(Verdict.TRANSIENT, reason, {}, {}, billed, secrets)


def _failed(
    verdict: Verdict,
    cause: str,
    headers: Mapping[str, str],
    complaint: Mapping[str, Any],
    billed: bool | None,
    secrets: Collection[str],
) -> Reading:
    return Reading(
        verdict=verdict,
        text=None,
        finish_reason=FinishReason.BLOCKED if verdict is Verdict.BLOCKED else None,
        reason=redacted(cause, secrets),
        retry_after=_retry_after(headers, complaint) if verdict in _RETRIED else None,
        tokens_in=None,
        tokens_out=None,
        model=None,
        request_id=_request_id(headers),
        billed=billed,
        told=_told(headers, complaint),
    )


def _billed(verdict: Verdict, status: int) -> bool | None:
    """Whether an error is charged: a rejection is not, a failure on the way may be."""
    # A policy's 400 can come after the model has worked on the prompt for seconds.
    processed = status in {200, 408, 409} or (status >= 500 and verdict is not Verdict.RATE)
    return None if processed or verdict is Verdict.BLOCKED else False


# Completions


@dataclass(frozen=True, slots=True)
class _Usage:
    prompt: int | None
    visible: int | None
    """Generated tokens of the answer; Google leaves thinking out, OpenAI counts it here."""
    total: int | None

    @property
    def generated(self) -> int | None:
        """As billed: where the total says more than the parts, the rest is thinking."""
        if self.visible is None and self.total is None:
            return None
        hidden = (self.total or 0) - (self.prompt or 0) if self.prompt is not None else 0
        return max(self.visible or 0, hidden)


@dataclass(frozen=True, slots=True)
class _Choice:
    text: str | None
    refusal: str
    finish: str
    notes: str


def _of_completion(
    document: dict[str, Any], headers: Mapping[str, str], secrets: Collection[str]
) -> Reading:
    usage = _usage(document)
    choice = _choice(document)
    verdict, finish, reason = _outcome(document, choice, usage)
    text = (choice.text if choice else None) or None
    if verdict is Verdict.ANSWER:
        text = text or ""
    elif verdict is Verdict.REFUSED and choice:
        text = choice.refusal
    elif verdict is Verdict.MALFORMED:
        text = None
    billed: bool | None = True
    if verdict is Verdict.MALFORMED or (verdict is Verdict.BLOCKED and not usage.prompt):
        billed = None
    model = document.get("model") or document.get("modelVersion")
    return Reading(
        verdict=verdict,
        text=text,
        finish_reason=finish,
        reason=redacted(reason, secrets),
        retry_after=None,
        tokens_in=usage.prompt,
        tokens_out=usage.generated,
        model=model if isinstance(model, str) else None,
        request_id=_request_id(headers),
        billed=billed,
        told=_told(headers, {}),
    )


def _outcome(
    document: dict[str, Any], choice: _Choice | None, usage: _Usage
) -> tuple[Verdict, FinishReason | None, str]:
    if choice is not None and choice.refusal:
        return Verdict.REFUSED, FinishReason.REFUSAL, "the provider marked the answer as a refusal"
    raw = choice.finish if choice else ""
    finish = _FINISHED.get(raw)
    # Google: "content_filter: PROHIBITED_CONTENT", in a choice without a message.
    if choice is not None and raw.partition(":")[0] in _WITHHELD:
        return Verdict.BLOCKED, FinishReason.BLOCKED, f"finish_reason {raw}{choice.notes}"
    if raw in _INTERRUPTED:
        return Verdict.MALFORMED, None, f"the server interrupted its answer: finish_reason {raw}"
    if choice is not None and (choice.text or finish is FinishReason.LENGTH):
        return Verdict.ANSWER, finish, ""
    return _nothing_said(document, choice, usage)


def _nothing_said(
    document: dict[str, Any], choice: _Choice | None, usage: _Usage
) -> tuple[Verdict, FinishReason | None, str]:
    """A completion without text: a block that says so, one that does not, or no completion."""
    feedback = document.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        words = [feedback["blockReason"], feedback.get("blockReasonMessage")]
        reason = ": ".join(str(word) for word in words if word)
        return Verdict.BLOCKED, FinishReason.BLOCKED, f"blockReason {reason}"
    finish = choice.finish if choice else ""
    # Google's filters also leave this behind, without a word. A model that ends at once, as one
    # of vLLM may, has generated at least its end token.
    if usage.prompt and not usage.visible:
        reason = f"the prompt was read and nothing was generated; finish_reason {finish or 'none'}"
        return Verdict.BLOCKED, FinishReason.BLOCKED, reason
    if _FINISHED.get(finish) is FinishReason.STOP and usage.prompt != 0:
        return Verdict.ANSWER, FinishReason.STOP, ""
    missing = "text in its choice" if choice else "choices"
    return Verdict.MALFORMED, None, f"a completion without {missing}: {json.dumps(document)}"


def _usage(document: dict[str, Any]) -> _Usage:
    said = document.get("usage")
    if isinstance(said, dict):
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
    else:
        said = document.get("usageMetadata")
        names = ("promptTokenCount", "candidatesTokenCount", "totalTokenCount")
    if not isinstance(said, dict):
        return _Usage(None, None, None)
    return _Usage(*(_count(said.get(name)) for name in names))


def _choice(document: dict[str, Any]) -> _Choice | None:
    for name in ("choices", "candidates"):
        offered = document.get(name)
        if isinstance(offered, list) and offered and isinstance(offered[0], dict):
            return _chosen(offered[0]) if name == "choices" else _candidate(offered[0])
    return None


def _chosen(choice: dict[str, Any]) -> _Choice:
    """A choice of OpenAI's protocol."""
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        refusal = refusal or "".join(_string(part.get("refusal")) for part in parts)
        content = "".join(_string(part.get("text")) for part in parts)
    return _Choice(
        text=content if isinstance(content, str) else None,
        refusal=_string(refusal),
        finish=_string(choice.get("finish_reason")).lower(),
        notes=_filters(choice.get("content_filter_results")),
    )


def _candidate(candidate: dict[str, Any]) -> _Choice:
    """A candidate of Google's own protocol."""
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    texts = [
        _string(part.get("text"))
        for part in (parts if isinstance(parts, list) else [])
        if isinstance(part, dict) and not part.get("thought")
    ]
    said = _string(candidate.get("finishMessage"))
    ratings = candidate.get("safetyRatings")
    blamed = [
        _string(rating.get("category"))
        for rating in (ratings if isinstance(ratings, list) else [])
        if isinstance(rating, dict) and rating.get("blocked")
    ]
    notes = [note for note in (said, ", ".join(blamed)) if note]
    return _Choice(
        text="".join(texts) if texts else None,
        refusal="",
        finish=_string(candidate.get("finishReason")).lower(),
        notes="".join(f": {note}" for note in notes),
    )


def _filters(results: object) -> str:
    """Azure's categories that struck, such as `: violence medium`."""
    if not isinstance(results, dict):
        return ""
    struck = [
        f"{name} {_string(found.get('severity'))}".strip()
        for name, found in results.items()
        if isinstance(found, dict) and found.get("filtered")
    ]
    return f": {', '.join(struck)}" if struck else ""


# Errors


def _document(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body; Google wraps its errors into an array of one."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, dict) else None


def _complaint(document: dict[str, Any]) -> dict[str, Any]:
    """The error in a document, or an empty one."""
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if error:
        return document | {"message": str(error)}
    return document if document.get("object") == "error" else {}


def _verdict(status: int, headers: Mapping[str, str], complaint: dict[str, Any]) -> Verdict:
    codes = _codes(complaint)
    if codes & _POLICY or _moderated(complaint):
        return Verdict.BLOCKED
    if codes & _UNPAID or status == 402:
        return Verdict.QUOTA
    if codes & _LOCKED_OUT or status in {401, 403, 404, 405, 407} or 300 <= status < 400:
        return Verdict.AUTHENTICATION
    if status == 429 or "resource_exhausted" in codes:
        return _limited(complaint)
    # The provider's own word on asking again comes before what the status would suggest.
    asked = headers.get("x-should-retry", "").lower()
    again = asked == "true" or (asked != "false" and (status in {408, 409, 425} or status >= 500))
    return Verdict.TRANSIENT if again else Verdict.BAD_REQUEST


def _limited(complaint: dict[str, Any]) -> Verdict:
    quotas = list(_quotas(complaint))
    if any(value == 0 for _, value in quotas):
        return Verdict.QUOTA  # a quota of nothing is not given back at midnight
    if any("perday" in quota for quota, _ in quotas):
        return Verdict.DAILY
    size = re.search(r"Limit:? (\d+)\b.*?\bRequested:? (\d+)", _string(complaint.get("message")))
    if size and int(size[2]) > int(size[1]):
        return Verdict.BAD_REQUEST  # more than a whole minute's tokens in one request
    return Verdict.RATE


def _details(complaint: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    details = complaint.get("details")
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, dict):
            yield detail


def _quotas(complaint: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """The quotas that Google says were violated: id in lower case, and value where given."""
    for detail in _details(complaint):
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else []:
            if isinstance(violation, dict):
                quota, value = violation.get("quotaId"), violation.get("quotaValue")
                yield _string(quota).lower(), _count(value)
        metadata = detail.get("metadata")
        if isinstance(metadata, dict) and "quota_limit" in metadata:
            quota, value = metadata["quota_limit"], metadata.get("quota_limit_value")
            yield _string(quota).lower(), _count(value)


def _codes(complaint: dict[str, Any]) -> set[str]:
    """All that is a code in an error, in lower case."""
    inner = complaint.get("innererror")
    holders = [complaint, inner if isinstance(inner, dict) else {}, *_details(complaint)]
    names = ("code", "type", "status", "reason")
    return {str(holder[name]).lower() for holder in holders for name in names if name in holder}


def _moderated(complaint: dict[str, Any]) -> bool:
    """OpenRouter's 403 for a flagged input, which has no code of its own."""
    metadata = complaint.get("metadata")
    return isinstance(metadata, dict) and "flagged_input" in metadata


def _said(complaint: dict[str, Any]) -> str:
    """An error in one line: its code and its words."""
    code = next(
        (
            found
            for name in ("code", "status", "type")
            if (found := _string(complaint.get(name))) and not found.isdigit()
        ),
        "",
    )
    message = complaint.get("message") or complaint.get("detail") or ""
    metadata, inner = complaint.get("metadata"), complaint.get("innererror")
    if isinstance(metadata, dict) and metadata.get("raw"):
        message = f"{message}: {metadata['raw']}"
    if isinstance(inner, dict):
        message = f"{message}{_filters(inner.get('content_filter_result'))}"
    message = message if isinstance(message, str) else json.dumps(message)
    return ": ".join(part for part in (code, message) if part) or "no explanation"


# Headers


def _retry_after(headers: Mapping[str, str], complaint: Mapping[str, Any]) -> float | None:
    """Seconds to wait, from the most exact source that says them."""
    for name, in_a_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        if (wait := _number(headers.get(name))) is not None:
            return wait / in_a_second
    if (wait := _until(headers)) is not None:
        return wait
    for detail in _details(complaint):
        if (wait := _duration(_string(detail.get("retryDelay")))) is not None:
            return wait
    # OpenAI and Azure do not always send the header, but they always write it.
    hint = re.search(
        r"(?:try again|retry) (?:in|after) ((?:\d+(?:\.\d+)?\s?[a-z]+)+)",
        _string(complaint.get("message")),
        re.IGNORECASE,
    )
    return _duration(hint[1]) if hint else None


def _until(headers: Mapping[str, str]) -> float | None:
    """Seconds to the date in `Retry-After`, by the clock of the server that wrote it."""
    then = email.utils.parsedate_tz(headers.get("retry-after", ""))
    now = email.utils.parsedate_tz(headers.get("date", ""))
    if then is None or now is None:
        return None
    try:
        return max(0.0, float(email.utils.mktime_tz(then) - email.utils.mktime_tz(now)))
    except (ValueError, OverflowError):
        return None


def _told(headers: Mapping[str, str], complaint: Mapping[str, Any]) -> Told:
    requests, requests_left, requests_reset = _limit(headers, "requests")
    tokens, tokens_left, tokens_reset = _limit(headers, "tokens")
    for quota, value in _quotas(complaint):
        if value and "perminute" in quota:
            if "token" in quota:
                tokens = tokens or value
            elif "request" in quota:
                requests = requests or value
    return Told(
        limit_requests=requests,
        limit_tokens=tokens,
        remaining_requests=requests_left,
        remaining_tokens=tokens_left,
        reset_requests=requests_reset,
        reset_tokens=tokens_reset,
    )


def _limit(headers: Mapping[str, str], what: str) -> tuple[int | None, int | None, float | None]:
    """Limit a minute, what is left of it, and seconds until it is whole again."""
    limit = _count(headers.get(f"x-ratelimit-limit-{what}"))
    left = _count(headers.get(f"x-ratelimit-remaining-{what}"))
    reset = _duration(headers.get(f"x-ratelimit-reset-{what}", ""))
    if limit == 0 or (limit is None and left is None):
        return None, None, None  # Azure has sent 0 and -1 for "unknown"
    if limit and left is not None and reset and limit > left:
        # On accounts with a limit a day, OpenAI sends that one in the same headers, and Groq
        # always does. What is used comes back evenly, and that tells them apart: 1 of 10,000 in
        # 8.64 s is a day, in 6 ms a minute. What has come back in part is still counted as used.
        come_back = reset * limit / 86_400
        if max(1, limit - left - 1) * 0.98 <= come_back <= (limit - left) * 1.02:
            return None, None, None
    return limit, left, reset


def _request_id(headers: Mapping[str, str]) -> str | None:
    return headers.get("x-request-id") or headers.get("apim-request-id") or None


# Values


_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SECONDS |= {"d": 86_400.0, "second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}


def _duration(text: str) -> float | None:
    """Seconds in `6m0s`, `20ms`, `36.43s`, `9 seconds` or `12`; None in anything else."""
    if (plain := _number(text)) is not None:
        return plain
    parts = re.findall(r"(\d+(?:\.\d+)?)\s?([a-zµ]+)", text.lower())
    units = [unit if unit in _SECONDS else unit.removesuffix("s") for _, unit in parts]
    if not parts or not all(unit in _SECONDS for unit in units):
        return None
    return sum(
        float(amount) * _SECONDS[unit] for (amount, _), unit in zip(parts, units, strict=True)
    )


def _number(value: object) -> float | None:
    """A finite number that is not negative."""
    try:
        found = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and found >= 0 else None


def _count(value: object) -> int | None:
    found = None if isinstance(value, bool) else _number(value)
    return None if found is None else int(found)


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _words(body: bytes) -> str:
    """A body that is not JSON, for people: markup removed."""
    text = body[: 4 * _READ].decode("utf-8", errors="replace")
    text = re.sub(r"(?is)<(script|style)\b.*?</\1>", " ", text)
    return re.sub(r"<[^<>]*>", " ", text).strip() or "an empty body"


_KEY = "[key]"
_READ = 4_000  # characters looked at: enough to keep REASON_LENGTH, and no work for a search
_HIDDEN = (
    (re.compile(r"data:image/[^\s\"'<>]*"), "[image]"),
    # "Incorrect API key provided: sk-pr***xyz. You can", with whatever was given as a key
    (
        re.compile(r"((?<!\w)api[ _-]?key(?: provided)?\s?[:=]\s?).+?(?=[.,;)]\s|[.\"']*$)", re.I),
        rf"\1{_KEY}",
    ),
    (re.compile(r"(bearer )\S+", re.IGNORECASE), rf"\1{_KEY}"),
    (re.compile(r"((?:token|authorization)\)?\s?[:=]\s?)\S+", re.IGNORECASE), rf"\1{_KEY}"),
    (re.compile(r"\b(?:sk|pk|rk|gsk|hf|xai|key)[-_][\w*-]{6,}", re.IGNORECASE), _KEY),
    (re.compile(r"\bAIza[\w-]{10,}"), _KEY),
    (re.compile(r"(?<!\S)\S*?\*{3,}\S*"), _KEY),
)
_RUN = re.compile(r"[A-Za-z0-9+/_-]{32,}={0,2}")


def redacted(text: str, secrets: Collection[str]) -> str:
    """A provider's words for people: one line, cut, without keys and image data.

    Args:
        text: as the provider sent it.
        secrets: as for `of_response`.
    """
    for secret in secrets:
        text = text.replace(secret, _KEY) if secret else text
    # Whatever is cut off here is at the end, and far from being kept.
    text = " ".join(text[:_READ].split())
    for pattern, instead in _HIDDEN:
        text = pattern.sub(instead, text)
    text = _RUN.sub(_unless_named, text)
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 1] + "…"


def _unless_named(run: re.Match[str]) -> str:
    """Long runs with digits among letters are keys, hashes or base64; quotas are named in words."""
    digits = sum(map(str.isdigit, run[0]))
    cases = any(map(str.isupper, run[0])) and any(map(str.islower, run[0]))
    return "[data]" if digits >= 6 or (digits and cases) else run[0]
