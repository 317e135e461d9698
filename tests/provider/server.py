"""A provider of hosted models on loopback: OpenAI's chat, files and batches, and Gemini's shapes.

    python -m tests.provider.server --port 0 [--config FILE.json]

prints `{"port": N}` on its first line and serves until it is told to end. It checks what it is
sent as strictly as the real ones, keeps strict limits, bills every request that it processed, also
where the answer is lost, and has the accidents that `Config` describes. Answers depend on nothing
but the messages of a request, so that a run in a storm can be compared with one without.

Errors are worded as users of OpenAI and Google report them, or after the documentation. They are
written for these tests, not recorded: what a body means is tested on recorded ones elsewhere.
"""

import argparse
import asyncio
import base64
import binascii
import hashlib
import io
import json
import math
import random
import re
import socket
import struct
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from aiohttp import web
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.provider.running import (
    CHAT,
    LINE,
    PREFIX,
    Config,
    ErrorName,
    Fault,
    Limits,
    Model,
    ShapeName,
)
from tests.provider.windows import SlidingWindow


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


# What is sent back


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes over the wire."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class Refused(Exception):
    """The request is answered by an error, in the words of OpenAI; Gemini's are made of them."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        details: Sequence[object] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error = {"message": message, "type": type, "param": param, "code": code}
        self.details = details
        self.headers = headers or {}


_GOOGLE_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), headers or {})


def _google_error(status: int, message: str, details: Sequence[object] = ()) -> list[object]:
    error: dict[str, object] = {"code": status, "message": message}
    error["status"] = _GOOGLE_STATUS[status]
    if details:
        error["details"] = details
    return [{"error": error}]


def _google_quota(metric: str, quota: str, wait: float | None) -> list[object]:
    failure = {"quotaMetric": f"generativelanguage.googleapis.com/{metric}", "quotaId": quota}
    details: list[object] = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [failure]}
    ]
    if wait is not None:
        delay = f"{math.ceil(wait)}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    return details


def _openai_error(message: str, type: str, code: str | None, param: str | None = None) -> object:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


_SERVER_ERROR = (
    "The server had an error while processing your request. Sorry about that! You can retry your "
    "request, or contact us through our help center at help.openai.com if the error persists."
)
_CHECK_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, read the docs: "
    "https://platform.openai.com/docs/guides/error-codes/api-errors."
)
_GEMINI_QUOTA = "You exceeded your current quota, please check your plan and billing details."

ERRORS: Mapping[ErrorName, Answer] = {
    "500": _json(_openai_error(_SERVER_ERROR, "server_error", None), 500),
    "502": Answer(
        502,
        b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad "
        b"Gateway</h1></center>\r\n<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n",
        content_type="text/html",
    ),
    "503": _json(
        _openai_error(
            "The engine is currently overloaded, please try again later", "server_error", None
        ),
        503,
    ),
    "429": _json(
        _openai_error(
            "Rate limit reached for gpt-4o in organization org-test on requests per min (RPM): "
            "Limit 3, Used 3, Requested 1. Please try again in 1s.",
            "requests",
            "rate_limit_exceeded",
        ),
        429,
        {"retry-after": "1", "retry-after-ms": "1000"},
    ),
    "insufficient_quota": _json(
        _openai_error(_CHECK_QUOTA, "insufficient_quota", "insufficient_quota"), 429
    ),
    "content_policy": _json(
        _openai_error(
            "Your request was rejected as a result of our safety system.",
            "invalid_request_error",
            "content_policy_violation",
        ),
        400,
    ),
    "gemini_500": _json(_google_error(500, "An internal error has occurred."), 500),
    "gemini_503": _json(
        _google_error(503, "The model is overloaded. Please try again later."), 503
    ),
    "gemini_minute": _json(
        _google_error(
            429,
            _GEMINI_QUOTA,
            _google_quota(
                "generate_content_free_tier_requests",
                "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
                1,
            ),
        ),
        429,
    ),
    "gemini_day": _json(
        _google_error(
            429,
            _GEMINI_QUOTA,
            _google_quota(
                "generate_content_free_tier_requests",
                "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
                36,
            ),
        ),
        429,
    ),
}

_SORRY = "I'm sorry, but I can't help with identifying or describing people in this image."

# Parts of a completion that stand in for the ordinary ones.
SHAPES: Mapping[ShapeName, Mapping[str, object]] = {
    "refusal": {"message": {"role": "assistant", "content": None, "refusal": _SORRY}},
    "plain_refusal": {"message": {"role": "assistant", "content": _SORRY, "refusal": None}},
    "content_filter": {
        "finish_reason": "content_filter",
        "message": {"role": "assistant", "content": None, "refusal": None},
    },
    "empty": {"message": {"role": "assistant", "content": "", "refusal": None}},
    # Gemini's
    "no_choices": {"choices": None},
    "no_message": {"finish_reason": "content_filter", "message": {"role": "assistant"}},
    "native_block": {"native": {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}},
    "native_safety": {"native": {"candidates": [{"finishReason": "SAFETY", "index": 0}]}},
}


# What a request may say


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _ImageUrl(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class _Picture(_Strict):
    type: Literal["image_url"]
    image_url: _ImageUrl


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[_Text | _Picture, Field(discriminator="type")]]
    name: str | None = None


class _Schema(_Strict):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = False


class _TextFormat(_Strict):
    type: Literal["text", "json_object"]


class _SchemaFormat(_Strict):
    type: Literal["json_schema"]
    json_schema: _Schema


class _Chat(_Strict):
    """The fields of a chat request that make sense here; those for tools and sound do not."""

    model: str
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    n: Literal[1] | None = None
    stream: Literal[False] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    store: bool | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    response_format: Annotated[_TextFormat | _SchemaFormat | None, Field(discriminator="type")] = (
        None
    )


class _NewBatch(_Strict):
    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(None, max_length=16)


class _Line(_Strict):
    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: dict[str, Any]


@contextmanager
def _openai_words() -> Iterator[None]:
    """Says what pydantic found wrong as OpenAI does."""
    try:
        yield
    except ValidationError as e:
        wrong = max(e.errors(), key=lambda error: len(error["loc"]))  # of a union the nearest
        where = ".".join(str(part) for part in wrong["loc"])
        if wrong["type"] == "extra_forbidden":
            text, code = f"Unknown parameter: '{where}'.", "unknown_parameter"
        elif wrong["type"] == "missing":
            text, code = f"Missing required parameter: '{where}'.", "missing_required_parameter"
        else:
            text, code = f"Invalid value for '{where}': {wrong['msg']}.", "invalid_value"
        raise Refused(400, text, param=where, code=code) from e


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it was sent; `metadata`: there is EXIF, XMP, or a text or comment in it."""

    sha256: str
    format: str
    width: int
    height: int
    metadata: bool


def _picture(url: str) -> Picture:
    found = re.fullmatch(r"data:image/(jpeg|png|gif|webp);base64,(.*)", url, re.DOTALL)
    if found is None:
        message = "Invalid image URL: expected a base64-encoded data URL with an image MIME type."
        raise Refused(400, message, param="messages", code="invalid_image_url")
    try:
        data = base64.b64decode(found[2], validate=True)
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("error")
            kind = image.format or "unknown"
            if kind != found[1].upper():
                raise ValueError(f"{kind} is not {found[1]}")
            image.load()
            words = {"exif", "comment", "xmp", "photoshop"} & set(image.info)
            metadata = bool(words or image.getexif() or getattr(image, "text", None))
            size = image.size
    except (binascii.Error, OSError, SyntaxError, ValueError, Warning) as e:
        message = (
            "You uploaded an unsupported image. Please make sure your image has of one the "
            "following formats: ['png', 'jpeg', 'gif', 'webp']."
        )
        raise Refused(400, message, code="invalid_image_format") from e
    return Picture(hashlib.sha256(data).hexdigest(), kind, *size, metadata)


# Structured output

_SCHEMA_WORDS = frozenset(
    (
        *("type", "title", "description", "properties", "required", "additionalProperties"),
        *("items", "anyOf", "enum", "const", "$ref", "$defs", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minItems", "maxItems"),
    )
)


def _check_schema(name: str, schema: object, context: tuple[str, ...] = ()) -> None:
    """What strict structured output asks of a schema.

    Raises:
        Refused: 400, in OpenAI's words.
    """
    if wrong := _wrong_here(schema, context):
        message = f"Invalid schema for response_format '{name}': In context={context}, {wrong}"
        raise Refused(400, message, param="response_format")
    assert isinstance(schema, dict)
    for group in ("properties", "$defs"):
        for key, inner in schema.get(group, {}).items():
            _check_schema(name, inner, (*context, group, key))
    for number, inner in enumerate(schema.get("anyOf", [])):
        _check_schema(name, inner, (*context, "anyOf", str(number)))
    if "items" in schema:
        _check_schema(name, schema["items"], (*context, "items"))


def _wrong_here(schema: object, context: tuple[str, ...]) -> str | None:
    if not isinstance(schema, dict):
        return f"{schema!r} is not of type 'object'."
    if unknown := sorted(set(schema) - _SCHEMA_WORDS):
        return f"'{unknown[0]}' is not permitted."
    kind = schema.get("type")
    if not context and kind != "object":
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind}\"'."
    if not {"type", "anyOf", "enum", "const", "$ref"} & set(schema):
        return "schema must have a 'type' key."
    if kind == "object" and schema.get("additionalProperties") is not False:
        return "'additionalProperties' is required to be supplied and to be false."
    if kind == "object" and set(schema.get("required", ())) != set(schema.get("properties", ())):
        return (
            "'required' is required to be supplied and to be an array including every key in "
            "properties."
        )
    return None


def _number(identity: str, where: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{identity} {where}".encode()).digest()[:8])


def value_of(
    schema: Mapping[str, Any], identity: str, root: Mapping[str, Any], at: str = ""
) -> Any:
    """A value that fits the schema, chosen by the identity of the request."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    for word in ("enum", "anyOf"):
        if word in schema:
            chosen = schema[word][_number(identity, at) % len(schema[word])]
            return chosen if word == "enum" else value_of(chosen, identity, root, at)
    if "const" in schema:
        return schema["const"]
    kind = schema["type"]
    if isinstance(kind, list):
        kind = kind[_number(identity, at) % len(kind)]
    if kind == "object":
        inner = schema.get("properties", {})
        return {key: value_of(inner[key], identity, root, f"{at}/{key}") for key in inner}
    if kind == "array":
        count = max(1, schema.get("minItems", 1))
        return [value_of(schema["items"], identity, root, f"{at}/{n}") for n in range(count)]
    least = schema.get("minimum", 0)
    span = max(1, schema.get("maximum", least + 99) - least + 1)
    plain = {"string": "text", "boolean": _number(identity, at) % 2 == 0, "null": None}
    return plain[kind] if kind in plain else least + _number(identity, at) % span


# A request that was understood


def identity_of(messages: object) -> str:
    """Names a request by its messages, image bytes included; the same in a call and in a batch."""
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()


def _tokens(text: str) -> int:
    return math.ceil(len(text) / 4)


@dataclass(frozen=True, slots=True)
class Question:
    """A valid request for a completion, its answer and what that costs."""

    identity: str
    model: str
    returned_model: str
    pictures: tuple[Picture, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    tokens_in: int
    tokens_out: int
    reasoning_tokens: int
    most_tokens: int

    def completion(self, shape: Mapping[str, object]) -> object:
        """The body of the answer; `shape` is one of `SHAPES`, or empty."""
        usage = {
            "prompt_tokens": self.tokens_in,
            "completion_tokens": self.tokens_out,
            "total_tokens": self.tokens_in + self.tokens_out,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }
        if "native" in shape:
            native = {"promptTokenCount": self.tokens_in, "totalTokenCount": self.tokens_in}
            assert isinstance(shape["native"], dict)
            return {
                **shape["native"],
                "usageMetadata": native,
                "modelVersion": self.returned_model,
            }
        choice = {
            "index": 0,
            "message": shape.get(
                "message", {"role": "assistant", "content": self.text, "refusal": None}
            ),
            "logprobs": None,
            "finish_reason": shape.get("finish_reason", self.finish_reason),
        }
        return {
            "id": f"chatcmpl-{self.identity[:24]}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.returned_model,
            "choices": shape.get("choices", [choice]),
            "usage": usage,
            "service_tier": "default",
            "system_fingerprint": "fp_0123456789",
        }


def understand(body: object, config: Config) -> Question:
    """Check a request body and make up its answer.

    Raises:
        Refused: 400 or 404, as the API would.
    """
    if not isinstance(body, dict):
        raise Refused(400, "We could not parse the JSON body of your request.")
    with _openai_words():
        chat = _Chat.model_validate({k: v for k, v in body.items() if k not in config.fields})
    model = config.models.get(chat.model)
    if model is None:
        message = f"The model `{chat.model}` does not exist or you do not have access to it."
        raise Refused(404, message, code="model_not_found")
    _check_options(chat, model)
    strings: list[str] = []
    pictures: list[Picture] = []
    for part in (part for message in chat.messages for part in _parts(message)):
        if isinstance(part, _Picture):
            pictures.append(_picture(part.image_url.url))
        else:
            strings.append(part.text)
    identity = identity_of(body["messages"])
    text = _answer_text(chat, identity, config)
    most = chat.max_completion_tokens or chat.max_tokens
    room = math.inf if most is None else max(0, most - model.reasoning_tokens)
    whole = _tokens(text) <= room
    if not whole:
        text = text[: int(room) * 4]
    tokens_out = model.reasoning_tokens + _tokens(text)
    return Question(
        identity=identity,
        model=chat.model,
        returned_model=model.returns or chat.model,
        pictures=tuple(pictures),
        text=text,
        finish_reason="stop" if whole else "length",
        tokens_in=_tokens("\n".join(strings)) + model.image_tokens * len(pictures),
        tokens_out=tokens_out,
        reasoning_tokens=model.reasoning_tokens,
        most_tokens=tokens_out if most is None else most,
    )


def _parts(message: _Message) -> Sequence[_Text | _Picture]:
    if isinstance(message.content, str):
        return [_Text(type="text", text=message.content)]
    return message.content


def _check_options(chat: _Chat, model: Model) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        if getattr(chat, name) is not None and model.max_tokens_field not in (None, name):
            raise Refused(
                400,
                f"Unsupported parameter: '{name}' is not supported with this model. Use "
                f"'{model.max_tokens_field}' instead.",
                param=name,
                code="unsupported_parameter",
            )
    if model.fixed_temperature and chat.temperature not in (None, 1):
        raise Refused(
            400,
            f"Unsupported value: 'temperature' does not support {chat.temperature} with this "
            "model. Only the default (1) value is supported.",
            param="temperature",
            code="unsupported_value",
        )
    wanted = chat.response_format
    if isinstance(wanted, _SchemaFormat) and wanted.json_schema.strict:
        _check_schema(wanted.json_schema.name, wanted.json_schema.schema_)


def _answer_text(chat: _Chat, identity: str, config: Config) -> str:
    text = config.texts[_number(identity, "text") % len(config.texts)]
    if isinstance(chat.response_format, _SchemaFormat):
        schema = chat.response_format.json_schema.schema_
        return json.dumps(value_of(schema, identity, schema))
    if chat.response_format is not None and chat.response_format.type == "json_object":
        return json.dumps({"text": text})
    return text


# Limits


def duration(seconds: float) -> str:
    """As OpenAI writes it: `6ms`, `1.5s`, `6m0s`, `1h2m3s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{math.ceil(rest * 1000) / 1000:g}s"
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}" if minutes else text


@dataclass(frozen=True, slots=True)
class _Kept:
    """A window, and how OpenAI and Google speak of it."""

    window: SlidingWindow
    words: str
    type: Literal["requests", "tokens"]
    metric: str
    quota_id: str


class Quota:
    """The limits of one account on one model."""

    def __init__(self, limits: Limits) -> None:
        requests = "generate_content_paid_tier_requests"
        tokens = "generate_content_paid_tier_input_token_count"
        per_minute = "GenerateRequestsPerMinutePerProjectPerModel"
        rpm = "requests per min (RPM)"
        day = ("requests per day (RPD)", "GenerateRequestsPerDayPerProjectPerModel")
        self._rpm = _Kept(SlidingWindow(0, 60), rpm, "requests", requests, per_minute)
        self._burst = _Kept(SlidingWindow(0, 1), rpm, "requests", requests, per_minute)
        self._tpm = _Kept(
            SlidingWindow(0, 60),
            *("tokens per min (TPM)", "tokens", tokens),
            quota_id="GenerateContentPaidTierInputTokensPerModelPerMinute",
        )
        self._rpd = _Kept(SlidingWindow(0, 86400), day[0], "requests", requests, day[1])
        self.admitted_requests = 0
        self.admitted_tokens = 0
        self.set(limits)

    def set(self, limits: Limits) -> None:
        """Change the limits; what was taken stays taken."""
        self._limits = limits
        for kept, limit, seconds in (
            (self._rpm, limits.rpm, limits.minute_s),
            (self._tpm, limits.tpm, limits.minute_s),
            (self._rpd, limits.rpd, limits.day_s),
        ):
            kept.window.limit = math.inf if limit is None else limit
            kept.window.seconds = seconds
        quantum = limits.quantum_s
        self._burst.window.limit = math.inf
        if quantum is not None and limits.rpm is not None:
            self._burst.window.limit = math.ceil(limits.rpm * quantum / limits.minute_s)
            self._burst.window.seconds = quantum

    def admit(self, question: Question | None, account: str, now: float) -> None:
        """Count one request; None: one that is wrong anyway, which has no tokens.

        Raises:
            Refused: 429; one of the limits has no room.
        """
        tokens = self._tokens(question)
        requests = (self._burst, self._rpm, self._rpd)
        wanted = [*((kept, 1) for kept in requests), (self._tpm, tokens)]
        lacking = [(k, n) for k, n in wanted if k.window.used(now) + n > k.window.limit]
        if lacking:
            kept, amount = max(lacking, key=lambda lack: lack[0].window.seconds_until(lack[1], now))
            used = kept.window.used(now)
            for request in requests if self._limits.refused_count else ():
                request.window.count(1, now)
            model = "the model" if question is None else question.model
            raise self._refused(kept, amount, used, f"{model} in organization {account}", now)
        for kept, amount in wanted:
            kept.window.count(amount, now)
        self.admitted_requests += 1
        self.admitted_tokens += tokens

    def headers(self, now: float) -> dict[str, str]:
        """What answers say of the limits."""
        told: dict[str, str] = {}
        for kept in (self._rpm, self._tpm):
            window = kept.window
            if self._limits.headers and math.isfinite(window.limit):
                left = max(0, math.floor(window.limit - window.used(now)))
                told[f"x-ratelimit-limit-{kept.type}"] = f"{math.floor(window.limit)}"
                told[f"x-ratelimit-remaining-{kept.type}"] = f"{left}"
                reset = duration(window.seconds_until(window.limit, now))
                told[f"x-ratelimit-reset-{kept.type}"] = reset
        return told

    def _tokens(self, question: Question | None) -> int:
        if question is None:
            return 0
        counted = self._limits.max_tokens_count
        return question.tokens_in + (question.most_tokens if counted else question.tokens_out)

    def _refused(self, kept: _Kept, amount: int, used: float, whose: str, now: float) -> Refused:
        wait = kept.window.seconds_until(amount, now)
        headers = self.headers(now)
        said = f"on {kept.words}: Limit {kept.window.limit:g}"
        if math.isinf(wait):
            said = f"Request too large for {whose} {said}, Requested {amount}."
        else:
            said = f"Rate limit reached for {whose} {said}, Used {used:g}, Requested {amount}."
            said += f" Please try again in {duration(wait)}."
            if self._limits.retry_after:
                headers["retry-after"] = str(math.ceil(wait))
                headers["retry-after-ms"] = str(math.ceil(wait * 1000))
        told = wait if self._limits.retry_after and math.isfinite(wait) else None
        details = _google_quota(kept.metric, kept.quota_id, told)
        return Refused(
            429,
            said,
            type=kept.type,
            code="rate_limit_exceeded",
            details=details,
            headers=headers,
        )


# Files, batches and bills


@dataclass(slots=True)
class File:
    id: str
    account: str
    purpose: str
    name: str
    data: bytes
    created_at: int
    deleted: bool = False

    def told(self) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.data),
            "created_at": self.created_at,
            "expires_at": None,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(slots=True)
class Batch:
    id: str
    account: str
    input_file_id: str
    metadata: dict[str, str] | None
    created_at: int
    status: str = "validating"
    polls: int = 0
    lines: list[_Line] | None = None
    errors: list[dict[str, object]] = field(default_factory=list)
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    ended_at: int | None = None

    @property
    def over(self) -> bool:
        return self.ended_at is not None

    def told(self) -> dict[str, object]:
        ends = ("completed", "failed", "expired", "cancelled")
        times = {f"{end}_at": self.ended_at if self.status == end else None for end in ends}
        total = len(self.lines or ())
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.created_at + 86400,
            **times,
            "request_counts": {
                "total": total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
        }


@dataclass(slots=True)
class Bill:
    """What an account owes. `lost_usd`: of it, for answers that an accident swallowed."""

    usd: float = 0.0
    batch_usd: float = 0.0
    lost_usd: float = 0.0
    calls: int = 0
    lines: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(slots=True)
class Call:
    """One request of any kind.

    Attributes:
        at: method and path behind the prefix.
        arrived: seconds of this machine's monotonic clock.
        identity: names the request; equal when it is asked again.
        number: how often it had been asked before.
        account: None: the key was wrong.
        outcome: the status that was answered, the kind of the accident, `open` while it is being
            answered, or `gone`: whoever asked did not wait for the answer.
        billed: USD.
    """

    at: str
    arrived: float
    identity: str | None = None
    number: int = 0
    account: str | None = None
    outcome: str = "open"
    billed: float = 0.0


@dataclass(slots=True)
class _Plan:
    """What is to happen to a request."""

    fault: Fault | None = None
    delay_s: float = 0.0
    shape: Mapping[str, object] = field(default_factory=dict)


def _validated(data: bytes, most: int) -> tuple[list[_Line], list[dict[str, object]]]:
    """The lines of a batch's input file, and what is wrong with them."""
    lines: list[_Line] = []
    errors: list[dict[str, object]] = []
    seen: set[str] = set()
    rows = data.splitlines()
    if not rows:
        return [], [_batch_error("empty_file", "The input file is empty.")]
    if len(rows) > most:
        return [], [_batch_error("too_many_tasks", f"The batch has more than {most} requests.")]
    for number, row in enumerate(rows, 1):
        try:
            line = _Line.model_validate_json(row)
        except ValidationError as e:
            wrong = e.errors()[0]
            param = ".".join(str(part) for part in wrong["loc"]) or None
            code = "url_mismatch" if param == "url" else "invalid_json_line"
            errors.append(_batch_error(code, wrong["msg"], number, param))
            continue
        if line.custom_id in seen:
            said = f"The custom_id '{line.custom_id}' is used more than once."
            errors.append(_batch_error("duplicate_custom_id", said, number, "custom_id"))
        if lines and line.body.get("model") != lines[0].body.get("model"):
            said = "All requests of a batch must be for one model."
            errors.append(_batch_error("model_mismatch", said, number, "body.model"))
        seen.add(line.custom_id)
        lines.append(line)
    return lines, errors


def _batch_error(
    code: str, message: str, line: int | None = None, param: str | None = None
) -> dict[str, object]:
    return {"code": code, "line": line, "message": message, "param": param}


# The server


class Service:
    """Its state and what it does; one request at a time between two awaits."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._script = deque(config.script)
        self._struck: Counter[int] = Counter()  # by the index of the fault
        self._seen: Counter[str] = Counter()  # requests by path, since the faults were configured
        self._asked: Counter[str] = Counter()  # requests by identity
        self._processed: Counter[str] = Counter()
        self._quotas: dict[tuple[str, str], Quota] = {}
        self._bills: dict[str, Bill] = {}
        self._pictures: dict[Picture, int] = {}
        self._files: dict[str, File] = {}
        self._batches: dict[str, Batch] = {}
        self._calls: list[Call] = []
        self._inside = 0
        self._most_inside = 0
        self._sdk_retries = 0
        self._routes = {
            "GET /models": self._list_models,
            "POST /files": self._upload,
            "GET /files": self._list_files,
            "GET /files/{id}": self._tell_file,
            "GET /files/{id}/content": self._content,
            "DELETE /files/{id}": self._delete,
            "POST /batches": self._create_batch,
            "GET /batches": self._list_batches,
            "GET /batches/{id}": self._poll,
            "POST /batches/{id}/cancel": self._cancel,
        }

    def application(self) -> web.Application:
        """Everything that is served."""
        app = web.Application(client_max_size=256 << 20)
        for at in (CHAT, *self._routes):
            method, path = at.split(" ")
            for prefix in PREFIX.values():
                app.router.add_route(method, prefix + path, self._handle)
        app.router.add_post("/-/configure", self._configure)
        app.router.add_get("/-/stats", self._stats)
        app.router.add_get("/-/bill", self._tell_bill)
        app.router.add_get("/-/calls", self._tell_calls)
        return app

    # For the tests

    async def _configure(self, request: web.Request) -> web.Response:
        changes = await request.json()
        settings = self._config.model_dump()
        for part in ("limits", "batches"):
            changes[part] = settings[part] | changes.get(part, {})
        try:
            config = Config.model_validate(settings | changes)
        except ValidationError as e:
            return web.Response(status=400, text=str(e))
        self._config = config
        for quota in self._quotas.values():
            quota.set(config.limits)
        if "script" in changes:
            self._script = deque(config.script)
        if "faults" in changes:
            self._struck.clear()
            self._seen.clear()
        return web.json_response({})

    async def _tell_bill(self, request: web.Request) -> web.Response:
        accounts = {name: asdict(bill) for name, bill in self._bills.items()}
        keys = asdict(Bill())
        total = {key: sum(account[key] for account in accounts.values()) for key in keys}
        return web.json_response({**total, "accounts": accounts})

    async def _tell_calls(self, request: web.Request) -> web.Response:
        return web.json_response([asdict(call) for call in self._calls])

    async def _stats(self, request: web.Request) -> web.Response:
        outcomes: dict[str, Counter[str]] = {}
        for call in self._calls:
            outcomes.setdefault(call.at, Counter())[call.outcome] += 1
        return web.json_response(
            {
                "calls": sum(call.at == CHAT for call in self._calls),
                "processed": sum(self._processed.values()),
                "outcomes": outcomes,
                "most_at_once": self._most_inside,
                "sdk_retries": self._sdk_retries,
                "calls_by_request": self._asked,
                "processed_by_request": self._processed,
                "pictures": [
                    {**asdict(picture), "calls": calls} for picture, calls in self._pictures.items()
                ],
                "admitted": {
                    f"{account} {model}": {
                        "requests": quota.admitted_requests,
                        "tokens": quota.admitted_tokens,
                    }
                    for (account, model), quota in self._quotas.items()
                },
                "faults": [self._struck[index] for index in range(len(self._config.faults))],
                "script_left": len(self._script),
                "files": {f.id: {**f.told(), "deleted": f.deleted} for f in self._files.values()},
                "batches": {batch.id: batch.told() for batch in self._batches.values()},
            }
        )

    # Every request

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        resource = request.match_info.route.resource
        assert resource is not None
        prefix = PREFIX[self._config.dialect]
        if not resource.canonical.startswith(f"{prefix}/"):
            return web.Response(status=404, text=f"the paths of this dialect begin with {prefix}/")
        at = f"{request.method} {resource.canonical.removeprefix(prefix)}"
        call = Call(at, time.monotonic())
        self._calls.append(call)
        self._sdk_retries += request.headers.get("x-stainless-retry-count", "0") != "0"
        self._inside += at == CHAT
        self._most_inside = max(self._most_inside, self._inside)
        try:
            return await self._respond(request, call)
        except asyncio.CancelledError:
            self._lost(call, "gone")
            raise
        finally:
            self._inside -= at == CHAT

    async def _respond(self, request: web.Request, call: Call) -> web.StreamResponse:
        for scripted in self._script:
            if scripted.at == call.at:
                self._script.remove(scripted)
                answer = Answer(scripted.status, scripted.body.encode(), scripted.headers)
                return self._send(answer, call)
        try:
            account = call.account = self._account(request)
            question = await self._admit(request, account, call)
            plan = self._plan(call.at, call.identity or request.path, call.number)
            if plan.fault and not plan.fault.after:
                return await self._strike(request, plan.fault, call, Answer(200, b""))
            if question is None:
                answer = await self._routes[call.at](request, account)
            else:
                answer = self._process(question, account, call, plan)
        except Refused as e:
            return self._send(self._refusal(e), call)
        latency = self._drawn("latency", call.identity, call.number)
        await asyncio.sleep(latency.uniform(*self._config.latency_s) + plan.delay_s)
        if plan.fault:
            return await self._strike(request, plan.fault, call, answer)
        return self._send(answer, call)

    def _account(self, request: web.Request) -> str:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if account := self._config.keys.get(key):
            return account
        if self._config.dialect == "gemini":
            info = "type.googleapis.com/google.rpc.ErrorInfo"
            detail = {"@type": info, "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            message = "API key not valid. Please pass a valid API key."
            raise Refused(400, message, details=[detail])
        masked = f"{key[:4]}{'*' * max(0, len(key) - 8)}{key[8:][-4:]}"
        message = (
            f"Incorrect API key provided: {masked}. You can find your API key at "
            "https://platform.openai.com/account/api-keys."
        )
        raise Refused(401, message, code="invalid_api_key")

    def _plan(self, at: str, identity: str, number: int) -> _Plan:
        plan = _Plan()
        ordinal = self._seen[at]
        self._seen[at] += 1
        for index, fault in enumerate(self._config.faults):
            if fault.at != at or (fault.calls is not None and ordinal not in fault.calls):
                continue
            if fault.times is not None and self._struck[index] >= fault.times:
                continue
            per = fault.per or ("request" if fault.kind == "answer" else "call")
            rng = self._drawn(f"fault {index}", identity, number if per == "call" else 0)
            if rng.random() >= fault.probability:
                continue
            self._struck[index] += 1
            if fault.kind == "delay":
                plan.delay_s += rng.uniform(*fault.delay_s)
            elif fault.kind == "answer":
                plan.shape = plan.shape or SHAPES[fault.shape]
            else:
                plan.fault = fault
                break
        return plan

    def _drawn(self, what: str, identity: str | None, number: int) -> random.Random:
        return random.Random(f"{self._config.seed} {what} {identity} {number}")

    async def _strike(
        self, request: web.Request, fault: Fault, call: Call, answer: Answer
    ) -> web.StreamResponse:
        self._lost(call, fault.kind)
        if fault.kind == "error":
            return self._send(ERRORS[fault.error], call)
        half = answer.body[: len(answer.body) // 2]
        if fault.kind == "malformed":
            return web.Response(body=half, content_type=answer.content_type)
        assert request.transport is not None
        if fault.kind == "truncated":
            response = web.StreamResponse(headers={"Content-Type": answer.content_type})
            response.content_length = len(answer.body)
            await response.prepare(request)
            await response.write(half)
            request.transport.close()
            return response
        if fault.kind == "silence":
            rng = self._drawn("silence", call.identity, call.number)
            await asyncio.sleep(rng.uniform(*fault.delay_s))
        if request.transport is not None:  # None: whoever asked has gone
            connection = request.transport.get_extra_info("socket")
            # A reset, not an orderly end: of what was not yet sent nothing is.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
        return web.Response()

    def _lost(self, call: Call, how: str) -> None:
        if call.account is not None and call.outcome == "open":
            self._bill(call.account).lost_usd += call.billed
        call.outcome = how

    def _send(self, answer: Answer, call: Call) -> web.Response:
        call.outcome = str(answer.status)
        response = web.Response(
            status=answer.status, body=answer.body, content_type=answer.content_type
        )
        if self._config.dialect == "openai":
            response.headers["x-request-id"] = f"req_{len(self._calls):032x}"
            response.headers["openai-processing-ms"] = "1"
        response.headers.update(answer.headers)  # a scripted answer may have its own of any
        return response

    def _refusal(self, refused: Refused) -> Answer:
        if self._config.dialect == "gemini":
            body = _google_error(refused.status, refused.message, refused.details)
            return _json(body, refused.status)
        return _json({"error": refused.error}, refused.status, refused.headers)

    # Chat

    async def _admit(self, request: web.Request, account: str, call: Call) -> Question | None:
        """What a chat request asks; None for requests of other kinds.

        Raises:
            Refused: it is wrong, or more than the account may ask. Both count as a request.
        """
        if call.at != CHAT:
            return None
        now = time.monotonic()
        model = ""
        try:
            body = await self._body(request)
            call.identity = identity_of(body.get("messages"))
            call.number = self._asked[call.identity]
            self._asked[call.identity] += 1
            model = str(body.get("model"))
            question = understand(body, self._config)
        except Refused:
            self._quota(account, model).admit(None, account, now)
            raise
        for picture in question.pictures:
            self._pictures[picture] = self._pictures.get(picture, 0) + 1
        self._quota(account, question.returned_model).admit(question, account, now)
        return question

    def _quota(self, account: str, model: str) -> Quota:
        known = self._config.models.get(model)
        key = (account, (known and known.returns) or model)
        if key not in self._quotas:
            self._quotas[key] = Quota(self._config.limits)
        return self._quotas[key]

    def _bill(self, account: str) -> Bill:
        return self._bills.setdefault(account, Bill())

    def _process(self, question: Question, account: str, call: Call, plan: _Plan) -> Answer:
        call.billed = self._charge(question, account, batch=False)
        headers = {}
        if self._config.dialect == "openai":
            headers = self._quota(account, question.returned_model).headers(time.monotonic())
        return _json(question.completion(plan.shape), headers=headers)

    def _charge(self, question: Question, account: str, *, batch: bool) -> float:
        model = self._config.models[question.model]
        usd = (question.tokens_in * model.input + question.tokens_out * model.output) / 1e6
        bill = self._bill(account)
        if batch:
            usd *= self._config.batches.price
            bill.batch_usd += usd
        bill.usd += usd
        bill.calls += not batch
        bill.lines += batch
        bill.tokens_in += question.tokens_in
        bill.tokens_out += question.tokens_out
        self._processed[question.identity] += 1
        return usd

    async def _body(self, request: web.Request) -> dict[str, Any]:
        try:
            body = json.loads(await request.read())
        except ValueError as e:
            raise Refused(400, "We could not parse the JSON body of your request.") from e
        if not isinstance(body, dict):
            raise Refused(400, "The JSON body of your request is not an object.")
        return body

    async def _list_models(self, request: web.Request, account: str) -> Answer:
        models = [
            {"id": name, "object": "model", "created": 1, "owned_by": "system"}
            for name in self._config.models
        ]
        return _json({"object": "list", "data": models})

    # Files

    async def _upload(self, request: web.Request, account: str) -> Answer:
        form = await request.post()
        sent, purpose = form.get("file"), form.get("purpose")
        if not isinstance(sent, web.FileField):
            raise Refused(400, "Missing required parameter: 'file'.", param="file")
        if purpose != "batch":
            raise Refused(400, "The purpose is not one of ['batch'].", param="purpose")
        if unknown := sorted(set(form) - {"file", "purpose"} - set(self._config.fields)):
            raise Refused(400, f"Unknown parameter: '{unknown[0]}'.", code="unknown_parameter")
        data = sent.file.read()
        if len(data) > self._config.batches.max_bytes:
            raise Refused(400, "The file is too large for a batch.", param="file")
        return _json(self._new_file(account, "batch", sent.filename, data).told())

    def _new_file(self, account: str, purpose: str, name: str, data: bytes) -> File:
        number = len(self._files) + 1
        file = File(f"file-{number:06}", account, purpose, name, data, int(time.time()))
        self._files[file.id] = file
        return file

    def _file(self, request: web.Request, account: str) -> File:
        name = request.match_info["id"]
        file = self._files.get(name)
        if file is None or file.deleted or file.account != account:
            raise Refused(404, f"No such File object: {name}", param="id")
        return file

    async def _list_files(self, request: web.Request, account: str) -> Answer:
        purpose = request.query.get("purpose")
        found = [
            file
            for file in reversed(self._files.values())
            if not file.deleted and file.account == account and purpose in (None, file.purpose)
        ]
        return _page(request, [file.told() for file in found], most=10_000)

    async def _tell_file(self, request: web.Request, account: str) -> Answer:
        return _json(self._file(request, account).told())

    async def _content(self, request: web.Request, account: str) -> Answer:
        data = self._file(request, account).data
        return Answer(200, data, content_type="application/octet-stream")

    async def _delete(self, request: web.Request, account: str) -> Answer:
        file = self._file(request, account)
        file.deleted = True
        return _json({"id": file.id, "object": "file", "deleted": True})

    # Batches

    async def _create_batch(self, request: web.Request, account: str) -> Answer:
        body = await self._body(request)
        with _openai_words():
            wanted = _NewBatch.model_validate(
                {key: value for key, value in body.items() if key not in self._config.fields}
            )
        batch = Batch(
            f"batch_{len(self._batches) + 1:06}",
            account,
            wanted.input_file_id,
            wanted.metadata,
            int(time.time()),
        )
        self._batches[batch.id] = batch
        return _json(batch.told())

    async def _list_batches(self, request: web.Request, account: str) -> Answer:
        found = [batch for batch in self._batches.values() if batch.account == account]
        return _page(request, [batch.told() for batch in reversed(found)], most=100)

    def _batch(self, request: web.Request, account: str) -> Batch:
        name = request.match_info["id"]
        batch = self._batches.get(name)
        if batch is None or batch.account != account:
            raise Refused(404, f"No batch found with id '{name}'.")
        return batch

    async def _poll(self, request: web.Request, account: str) -> Answer:
        batch = self._batch(request, account)
        batch.polls += 1
        if not batch.over:
            self._advance(batch)
        return _json(batch.told())

    async def _cancel(self, request: web.Request, account: str) -> Answer:
        batch = self._batch(request, account)
        if batch.over:
            message = f"Cannot cancel a batch with status '{batch.status}'."
            raise Refused(409, message)
        batch.status = "cancelling"
        return _json(batch.told())

    def _advance(self, batch: Batch) -> None:
        shown: list[str] = []
        for state, polls in zip(
            ("validating", "in_progress", "finalizing"), self._config.batches.polls, strict=True
        ):
            shown += [state] * polls
        cancelling = batch.status == "cancelling"
        if not cancelling:
            if batch.polls <= len(shown):
                batch.status = shown[batch.polls - 1]
            else:
                batch.status = self._config.batches.ends
            if batch.status == "validating":
                return
        if batch.lines is None:
            self._validate(batch)
        if cancelling and not batch.over:
            batch.status = "cancelled"
        if batch.status in ("completed", "expired", "cancelled"):
            self._finish(batch)
        elif batch.status == "failed":
            batch.ended_at = int(time.time())

    def _validate(self, batch: Batch) -> None:
        file = self._files.get(batch.input_file_id)
        if file is None or file.deleted or file.account != batch.account:
            said = f"The input file {batch.input_file_id} cannot be read."
            batch.lines, batch.errors = [], [_batch_error("input_file_not_found", said)]
        else:
            most = self._config.batches.max_requests
            batch.lines, batch.errors = _validated(file.data, most)
        if batch.errors:
            batch.lines = []
            batch.status = "failed"
            batch.ended_at = int(time.time())

    def _finish(self, batch: Batch) -> None:
        """Answer the lines and write the files, in an order that is not that of the input."""
        assert batch.lines is not None
        rng = random.Random(f"{self._config.seed} {batch.id}")
        lines = rng.sample(batch.lines, len(batch.lines))
        if batch.status == "cancelled":
            lines = lines[: round(len(lines) * self._config.batches.done_when_cancelled)]
        good: list[object] = []
        bad: list[object] = []
        for line in lines:
            share = self._config.batches.expired_share if batch.status == "expired" else 0
            expired = self._drawn("expired", line.custom_id, 0).random() < share
            response = None if expired else self._line(line, batch.account)
            row = {
                "id": f"batch_req_{rng.getrandbits(64):016x}",
                "custom_id": line.custom_id,
                "response": response,
                "error": _EXPIRED if expired else None,
            }
            answered = response is not None and response["status_code"] == 200
            (good if answered else bad).append(row)
        batch.completed, batch.failed = len(good), len(bad)
        batch.output_file_id = self._results(batch, "output", good)
        batch.error_file_id = self._results(batch, "error", bad)
        batch.ended_at = int(time.time())

    def _line(self, line: _Line, account: str) -> dict[str, object]:
        identity = identity_of(line.body.get("messages"))
        number = self._asked[identity]
        self._asked[identity] += 1
        plan = self._plan(LINE, identity, number)
        try:
            question = understand(line.body, self._config)
        except Refused as e:
            status, body = e.status, json.loads(self._refusal(e).body)
        else:
            if plan.fault:
                error = ERRORS[plan.fault.error]
                status, body = error.status, json.loads(error.body)
            else:
                self._charge(question, account, batch=True)
                status, body = 200, question.completion(plan.shape)
        return {"status_code": status, "request_id": f"req_{identity[:24]}", "body": body}

    def _results(self, batch: Batch, name: str, rows: Sequence[object]) -> str | None:
        if not rows:
            return None
        data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        return self._new_file(batch.account, "batch_output", f"{batch.id}_{name}.jsonl", data).id


_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


def _page(request: web.Request, items: Sequence[dict[str, object]], most: int) -> Answer:
    """One page of a list, by the query's `limit` and `after`."""
    ids = [item["id"] for item in items]
    after = request.query.get("after")
    if after is not None and after not in ids:
        raise Refused(404, f"No such object: {after}", param="after")
    start = 0 if after is None else ids.index(after) + 1
    limit = min(int(request.query.get("limit", "20")), most)
    page = items[start : start + limit]
    return _json(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": start + limit < len(items),
        }
    )


async def _serve(port: int, config: Config, until_stdin_ends: bool) -> None:
    # Cancellation: whoever is answered by silence and goes away is not waited for.
    runner = web.AppRunner(
        Service(config).application(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    if until_stdin_ends:
        await asyncio.to_thread(sys.stdin.read)
    else:
        await asyncio.Event().wait()
    await runner.cleanup()


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="python -m tests.provider.server")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--config", type=Path, help="a JSON file; see Config")
    parser.add_argument("--until-stdin-ends", action="store_true")
    options = parser.parse_args()
    config = Config()
    if options.config:
        config = Config.model_validate_json(options.config.read_text())
    asyncio.run(_serve(options.port, config, options.until_stdin_ends))


if __name__ == "__main__":
    main()
