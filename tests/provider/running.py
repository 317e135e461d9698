"""Runs the provider of `tests.provider.server` in a process of its own, set up by `Config`.

with provider_server(Config(limits=Limits(rpm=60))) as provider:
    client = openai.OpenAI(base_url=provider.base_url, api_key=provider.key, max_retries=0)
    ...
    assert provider.stats()["calls"] == 1
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_jsonable_python

CHAT = "POST /chat/completions"
LINE = "LINE"  # where a fault strikes one line of a batch

# What stands before the paths of the API, by dialect.
PREFIX = {"openai": "/v1", "gemini": "/v1beta/openai"}

ROOT = Path(__file__).parents[2]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Model(_Settings):
    """One model on offer. Prices are USD per million tokens.

    Attributes:
        returns: the dated name that answers carry; None: the name it was asked by.
        max_tokens_field: the only field for the limit of an answer that the model takes.
        fixed_temperature: takes no temperature but 1, as reasoning models do.
        reasoning_tokens: thought and billed before each answer; they count in its limit.
        image_tokens: what an image costs, whatever its size.
    """

    returns: str | None = None
    input: float = 2.5
    output: float = 10.0
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    fixed_temperature: bool = False
    reasoning_tokens: int = 0
    image_tokens: int = 85


class Limits(_Settings):
    """What an account may ask of each model; None: anything.

    Attributes:
        rpm: requests per minute.
        tpm: tokens per minute.
        rpd: requests per day.
        minute_s: how long a minute is, so that a test need not wait for one.
        day_s: how long a day is.
        quantum_s: requests are also spread: a window of so many seconds holds its share of rpm,
            rounded up. None: a whole minute's requests may come at once.
        refused_count: a request answered by 429 counts as one, as OpenAI does it.
        max_tokens_count: tokens are counted as prompt + the most that may be answered, as OpenAI
            does it; otherwise as they will be billed.
        headers: the headers `x-ratelimit-*` are sent.
        retry_after: 429 says for how long to wait.
    """

    rpm: float | None = None
    tpm: float | None = None
    rpd: float | None = None
    minute_s: float = 60.0
    day_s: float = 86400.0
    quantum_s: float | None = None
    refused_count: bool = True
    max_tokens_count: bool = True
    headers: bool = True
    retry_after: bool = True


Kind = Literal["error", "reset", "silence", "truncated", "malformed", "delay", "answer"]
ErrorName = Literal[
    "500",
    "502",
    "503",
    "429",
    "insufficient_quota",
    "content_policy",
    "gemini_500",
    "gemini_503",
    "gemini_minute",
    "gemini_day",
]
ShapeName = Literal[
    "refusal",
    "plain_refusal",
    "content_filter",
    "empty",
    "no_choices",
    "no_message",
    "native_block",
    "native_safety",
]


class Fault(_Settings):
    """An accident, and which requests it strikes.

    Of several that strike one request the first in the list happens, together with the delays and
    the answer's shape before it.

    Attributes:
        kind: `error`: the answer named by `error`. `reset`: the connection is reset. `silence`: no
            answer for `delay_s`, then a reset. `truncated`: half the answer, then the connection
            ends. `malformed`: half the answer, as if it were whole. `delay`: the answer comes
            after `delay_s` more. `answer`: the shape named by
            `shape` instead of the ordinary answer.
        processed: it strikes after the request was processed and billed; always so for the kinds
            `truncated`, `malformed`, `delay` and `answer`.
        error: which, for `error`; the server's `ERRORS` has them.
        shape: which, for `answer`; the server's `SHAPES` has them.
        delay_s: least and most seconds, for `silence` and `delay`.
        probability: of striking a request that it may strike.
        per: `call`: drawn for each call, so that a request asked again may pass; `request`: drawn
            for each request, however often it is asked. None: `request` for the kind `answer`.
        calls: strikes only these, numbered from 0 since the faults were configured, of those `at`.
        times: strikes so often at most.
        at: method and path behind the prefix, with `{id}` for an id; or `LINE`, where only the
            kinds `error` and `answer` mean something.
    """

    kind: Kind
    processed: bool = False
    error: ErrorName = "500"
    shape: ShapeName = "refusal"
    delay_s: tuple[float, float] = Field(default=(3600.0, 3600.0), strict=False)
    probability: float = 1.0
    per: Literal["call", "request"] | None = None
    calls: list[int] | None = None
    times: int | None = None
    at: str = CHAT

    @property
    def after(self) -> bool:
        """Strikes once the request was processed."""
        return self.processed or self.kind in ("truncated", "malformed", "delay", "answer")


class Scripted(_Settings):
    """A whole answer, given to the next request `at` its path before anything is looked at."""

    status: int = 200
    headers: dict[str, str] = {}
    body: str = ""
    at: str = CHAT


class Batches(_Settings):
    """How batches go.

    Attributes:
        polls: how many answers show the states `validating`, `in_progress` and `finalizing`.
        ends: what becomes of a batch whose lines are valid.
        expired_share: of the lines, where it ends as `expired`.
        done_when_cancelled: share of the lines that a cancelled batch has answered and billed.
        price: factor on the price.
        max_requests: more lines in a file are refused.
        max_bytes: larger files are refused.
    """

    polls: tuple[int, int, int] = Field(default=(1, 1, 0), strict=False)
    ends: Literal["completed", "expired", "failed"] = "completed"
    expired_share: float = 0.5
    done_when_cancelled: float = 0.5
    price: float = 0.5
    max_requests: int = 50_000
    max_bytes: int = 200_000_000


class Config(_Settings):
    """Everything that can be set; every key can be changed while the server runs.

    Attributes:
        dialect: `gemini`: its path prefix, errors as an array of one, and no rate headers.
        seed: of all that is drawn.
        keys: the account of each key. Limits hold, files are kept, and bills are sent by account.
        models: by the name to ask for.
        fields: further fields that a request body may have.
        texts: one of them is the answer where no schema is asked for.
        latency_s: least and most seconds of an ordinary answer.
        script: answers in order; those left over from before are dropped.
    """

    dialect: Literal["openai", "gemini"] = "openai"
    seed: int = 0
    keys: dict[str, str] = {"test-key": "account"}
    models: dict[str, Model] = {
        "gpt-4o": Model(returns="gpt-4o-2024-08-06"),
        "gpt-4o-2024-08-06": Model(),
        "gpt-4o-mini-2024-07-18": Model(input=0.15, output=0.6, image_tokens=2833),
        "gemini-2.5-flash": Model(input=0.3, output=2.5, image_tokens=258),
    }
    fields: list[str] = []
    limits: Limits = Limits()
    texts: list[str] = ["The picture shows one person."]
    latency_s: tuple[float, float] = Field(default=(0.0, 0.0), strict=False)
    faults: list[Fault] = []
    script: list[Scripted] = []
    batches: Batches = Batches()


class Provider:
    """The server, seen from the tests."""

    def __init__(self, port: int, config: Config) -> None:
        self._port = port
        self.base_url = f"http://127.0.0.1:{port}{PREFIX[config.dialect]}"
        self.key = next(iter(config.keys))

    def configure(self, **changes: object) -> None:
        """Change keys of `Config` while it runs.

        Of `limits` and `batches` only what is named changes. Windows keep what was taken from
        them; `script` and `faults` begin anew where they are named. The dialect stays.
        """
        sent = {
            name: value.model_dump(mode="json", exclude_unset=True)
            if isinstance(value, BaseModel)
            else to_jsonable_python(value)
            for name, value in changes.items()
        }
        self._ask("POST", "/-/configure", json.dumps(sent))

    def stats(self) -> dict[str, Any]:
        """What was counted since the start.

        calls: chat requests that came. processed: requests answered and billed, lines of batches
        included. outcomes: by path, how many ended how (see `Call` of the server). most_at_once:
        chat requests. sdk_retries: requests that the SDK sent again by itself. calls_by_request,
        processed_by_request: by identity. pictures: sha256, format, width, height, metadata (EXIF
        and the like was in it), calls. admitted: requests and tokens by "account model". faults:
        how often each struck. script_left: answers not yet played. files: by id, as the API tells
        them, and whether deleted. batches: by id, as the API tells them.
        """
        return dict(self._told("/-/stats"))

    def bill(self) -> dict[str, Any]:
        """What all accounts owe, and each in `accounts`.

        usd; batch_usd and lost_usd, parts of it: for batches, and for answers that an accident
        swallowed or nobody waited for; calls and lines billed; tokens_in, tokens_out.
        """
        return dict(self._told("/-/bill"))

    def calls(self) -> list[dict[str, Any]]:
        """Every request in order of arrival: at (method and path), arrived (seconds of this
        machine's monotonic clock), identity, number (how often it had been asked before), account,
        outcome, billed (USD).
        """
        return list(self._told("/-/calls"))

    def _told(self, path: str) -> Any:
        return json.loads(self._ask("GET", path))

    def _ask(self, method: str, path: str, body: str | None = None) -> str:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{method} {path}: the provider answered {answer.status}: {text}")
        return text


@contextmanager
def provider_server(config: Config | None = None) -> Iterator[Provider]:
    """Serve for as long as the context lasts; takes about a second to start."""
    config = config or Config()
    with NamedTemporaryFile("w", suffix=".json") as file:
        file.write(config.model_dump_json())
        file.flush()
        command = [sys.executable, "-m", "tests.provider.server", "--config", file.name]
        with subprocess.Popen(
            [*command, "--until-stdin-ends"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"the provider ended with {process.wait()}"
            try:
                yield Provider(json.loads(line)["port"], config)
            finally:
                process.terminate()
