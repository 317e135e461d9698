"""Files of requests and of results, and the provider's desk for them, against a strict server."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from facescan.errors import AccessDenied, QuotaExhausted
from serving import batches
from serving.batches import (
    ATTEMPTS,
    Desk,
    Line,
    Lines,
    NotThereError,
    RefusedError,
    UncertainError,
    UnreachableError,
    fill,
    read,
)
from serving.provider import REASON_LENGTH, Verdict
from serving.tokens import HostedOptions, Price
from tests.provider.running import Config, Fault, Provider, provider_server

# What is sent


def lines(*sizes: int, usd: float = 1.0) -> Lines:
    return Lines(Line(f"r{n}", b"x" * (size - 1) + b"\n", usd) for n, size in enumerate(sizes))


def test_a_line_is_one_line_of_json_for_the_chat_endpoint() -> None:
    made = batches.line("abc", {"model": "m", "messages": ["a\nb"]}, 0.5)
    assert made.data.endswith(b"\n")
    assert made.data.count(b"\n") == 1
    assert json.loads(made.data) == {
        "custom_id": "abc",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": ["a\nb"]},
    }


def test_a_file_ends_at_the_number_of_requests(tmp_path: Path) -> None:
    some = lines(10, 10, 10, 10, 10)
    assert list(fill(some, tmp_path / "1", most_requests=3)) == ["r0", "r1", "r2"]
    assert list(fill(some, tmp_path / "2", most_requests=3)) == ["r3", "r4"]
    assert fill(some, tmp_path / "3") == {}
    assert (tmp_path / "1").stat().st_size == 30


def test_a_file_ends_before_it_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MOST_BYTES", 25)
    some = lines(10, 15, 1, 30, 5)
    sizes = []
    while some.peek() is not None:
        fill(some, tmp_path / "file")
        sizes.append((tmp_path / "file").stat().st_size)
    # One that is too large by itself is for the provider to refuse: it cannot be split.
    assert sizes == [25, 1, 30, 5]


def test_a_file_ends_before_it_is_too_dear(tmp_path: Path) -> None:
    some = lines(1, 1, 1, usd=0.4)
    assert fill(some, tmp_path / "file", most_usd=1.0) == {"r0": 0.4, "r1": 0.4}
    assert fill(some, tmp_path / "file", most_usd=0.39) == {}
    assert list(fill(some, tmp_path / "file", most_usd=0.4)) == ["r2"]


# What comes back


def results(tmp_path: Path, *rows: object) -> list[batches.Result]:
    path = tmp_path / "results.jsonl"
    path.write_text(
        "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows)
    )
    return list(read(path, secrets=("sk-secret",)))


def row(status: int, body: object, custom_id: str = "r0") -> dict[str, Any]:
    response = {"status_code": status, "request_id": "req_1", "body": body}
    return {"id": "b", "custom_id": custom_id, "response": response, "error": None}


COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-2024-08-06",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "male"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 3, "total_tokens": 103},
}


def test_answers_are_read_as_those_of_single_calls(tmp_path: Path) -> None:
    (found,) = results(tmp_path, row(200, COMPLETION))
    assert found.request_id == "r0"
    assert found.reading is not None
    assert (found.reading.verdict, found.reading.text) == (Verdict.ANSWER, "male")
    assert (found.reading.tokens_in, found.reading.tokens_out) == (100, 3)
    assert found.reading.request_id == "req_1"


def test_errors_of_lines_are_read_as_those_of_single_calls(tmp_path: Path) -> None:
    error = {"error": {"message": "key sk-secret is used up", "code": "insufficient_quota"}}
    (found,) = results(tmp_path, row(429, error))
    assert found.reading is not None
    assert found.reading.verdict is Verdict.QUOTA
    assert "sk-secret" not in found.reason


@pytest.mark.parametrize(
    ("code", "was_asked"),
    [("batch_expired", False), ("batch_cancelled", False), ("server_error", True)],
)
def test_lines_without_a_response_say_why(tmp_path: Path, code: str, was_asked: bool) -> None:
    told = {"custom_id": "r0", "response": None, "error": {"code": code, "message": "Sorry."}}
    (found,) = results(tmp_path, told)
    assert (found.request_id, found.reading, found.asked) == ("r0", None, was_asked)
    assert found.reason == f"{code}: Sorry."


def test_errors_of_lines_without_a_response_show_no_key_no_picture_and_are_cut(
    tmp_path: Path,
) -> None:
    message = f"key sk-secret, url data:image/jpeg;base64,{'Ab1' * 50} {'word ' * 500}"
    told = {"custom_id": "r0", "error": {"code": "invalid_request", "message": message}}
    (found,) = results(tmp_path, told)
    assert found.reason.startswith("invalid_request: key [key], url [image] word")
    assert len(found.reason) <= REASON_LENGTH


def test_an_error_of_a_line_that_is_no_object_is_its_reason(tmp_path: Path) -> None:
    boom, nothing, known = results(
        tmp_path,
        {"custom_id": "r0", "error": "boom"},
        {"custom_id": "r1"},
        row(200, COMPLETION, "r2"),
    )
    assert (boom.request_id, boom.reading, boom.asked, boom.reason) == ("r0", None, True, "boom")
    assert (nothing.asked, nothing.reason) == (True, "neither a response nor an error")
    assert known.reading is not None


@pytest.mark.parametrize("text", ["{", "[]", '{"id": "b"}', '"custom_id"'])
def test_lines_that_name_no_request_are_not_dropped(tmp_path: Path, text: str) -> None:
    unknown, known = results(tmp_path, text, row(200, COMPLETION))
    assert unknown.request_id is None
    assert known.request_id == "r0"


def test_a_request_costs_the_share_of_batches(tmp_path: Path) -> None:
    price = Price(input=2.5, output=10.0, batch=0.5, as_of=datetime.now(UTC).date(), source="-")
    known = HostedOptions.model_validate({"account": "a", "image": {"max_side": 512}})
    (answered,) = results(tmp_path, row(200, COMPLETION))
    (refused,) = results(tmp_path, row(400, {"error": {"message": "no"}}))
    (broken,) = results(tmp_path, row(500, {"error": {"message": "oh"}}))
    readings = [each.reading for each in (answered, refused, broken)]
    assert None not in readings

    def costs(price: Price | None) -> list[float]:
        options = known.model_copy(update={"price": price})
        today, most = datetime.now(UTC).date(), 0.0 if price is None else 7.0
        return [batches.cost_usd(options, each, most, today) for each in readings if each]

    assert costs(price) == pytest.approx([(100 * 2.5 + 3 * 10) / 2e6, 0.0, 7.0])
    dear = price.model_copy(update={"batch": None})
    assert costs(dear) == pytest.approx([(100 * 2.5 + 3 * 10) / 1e6, 0.0, 7.0])
    assert costs(None) == [0.0, 0.0, 0.0]


def test_a_request_is_paid_at_the_price_of_the_day_its_batch_was_made(tmp_path: Path) -> None:
    dear = Price(input=25.0, output=100.0, batch=0.5, as_of=date(2026, 1, 1), source="-")
    ends = {"input": 2.5, "output": 10.0, "until": date(2026, 1, 31)}
    options = HostedOptions.model_validate({"account": "a", "image": {"max_side": 512}})
    (found,) = results(tmp_path, row(200, COMPLETION))
    assert found.reading is not None
    for then, after in ((dear, 2800 / 2e6), (None, 7.0)):
        price = dear.model_copy(update=ends | {"then": then})
        known = options.model_copy(update={"price": price})
        costs = [
            batches.cost_usd(known, found.reading, 7.0, day)
            for day in (date(2026, 1, 31), date(2026, 2, 1))
        ]
        assert costs == pytest.approx([280 / 2e6, after])


# The provider

KEY = "TEST_KEY"
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with provider_server(Config()) as running:
        yield running


@pytest.fixture
def provider(server: Provider, monkeypatch: pytest.MonkeyPatch) -> Provider:
    monkeypatch.setenv(KEY, server.key)
    server.configure(faults=[], script=[])
    return server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long it was paused; nothing is waited for."""
    seconds: list[float] = []
    monkeypatch.setattr(batches, "pause", seconds.append)
    return seconds


@pytest.fixture
def desk(provider: Provider, waits: list[float]) -> Iterator[Desk]:
    given = {"account": "a", "image": {"max_side": 512}, "api_key": KEY}
    made = Desk(HostedOptions.model_validate(given | {"base_url": provider.base_url}))
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    body = {"model": "gpt-4o-2024-08-06", "messages": [{"role": "user", "content": "Hello"}]}
    path.write_bytes(batches.line("r0", body, 0.0).data)
    return path


@pytest.mark.slow
def test_a_file_goes_up_and_its_answers_come_down(desk: Desk, file: Path, tmp_path: Path) -> None:
    file_id = desk.upload(file, "token-1")
    assert desk.uploads("token-1") == [file_id]
    assert desk.uploads("token") == []
    batch = desk.create(file_id, "token-1", LONG_AGO)
    assert desk.find("token-1", LONG_AGO) == batch
    assert desk.find("token", LONG_AGO) is None
    while not batch.over:
        batch = desk.look(batch.id)
    assert (batch.status, batch.completed, batch.token) == ("completed", 1, "token-1")
    desk.cancel(batch.id)
    (results_id,) = batch.results
    desk.download(results_id, tmp_path / "results")
    (found,) = read(tmp_path / "results")
    assert found.request_id == "r0"
    for each in (file_id, results_id, results_id):
        desk.delete(each)
    assert desk.uploads("token-1") == []
    with pytest.raises(NotThereError):
        desk.download(results_id, tmp_path / "results")


@pytest.mark.slow
def test_an_upload_whose_answer_was_lost_leaves_one_file(
    desk: Desk, provider: Provider, file: Path
) -> None:
    provider.configure(faults=[Fault(kind="reset", processed=True, calls=[0], at="POST /files")])
    assert [desk.upload(file, "token-2")] == desk.uploads("token-2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reset", "malformed", "truncated"])
def test_a_batch_whose_creation_was_answered_by_an_accident_is_created_once(
    kind: Any, desk: Desk, provider: Provider, file: Path
) -> None:
    before = len(provider.stats()["batches"])
    provider.configure(faults=[Fault(kind=kind, processed=True, calls=[0], at="POST /batches")])
    made = desk.create(desk.upload(file, f"token-{kind}"), f"token-{kind}", LONG_AGO)
    assert made.token == f"token-{kind}"
    assert len(provider.stats()["batches"]) == before + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "raised"),
    [
        ([(503, "3600")], UncertainError),
        ([(503, None), (401, None)], UncertainError),
        ([(429, "3600")], QuotaExhausted),
        ([(429, None), (401, None)], AccessDenied),
    ],
)
def test_an_error_says_whether_something_may_have_been_made_all_the_same(
    answers: list[tuple[int, str | None]],
    raised: type[Exception],
    desk: Desk,
    provider: Provider,
    file: Path,
) -> None:
    for at, make in (
        ("POST /files", lambda: desk.upload(file, "token-5")),
        ("POST /batches", lambda: desk.create("file", "token-5", LONG_AGO)),
    ):
        provider.configure(
            script=[
                {"status": status, "body": "{}", "headers": {"retry-after": after or "0"}, "at": at}
                for status, after in answers
            ]
        )
        with pytest.raises(raised):
            make()


@pytest.mark.slow
def test_a_batch_is_found_behind_hundreds_of_others(
    desk: Desk, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_PER_PAGE", 2)
    file_id = desk.upload(file, "token-3")
    for number in range(7):
        desk.create(file_id, f"many-{number}", LONG_AGO)
    found = desk.find("many-0", LONG_AGO)
    assert found is not None
    assert found.token == "many-0"
    # Those created long before the one that is looked for are not gone through.
    assert desk.find("many-0", datetime.now(UTC) + timedelta(days=1)) is None


@pytest.mark.slow
def test_what_may_pass_is_tried_again_with_pauses_and_then_given_up(
    desk: Desk, provider: Provider, waits: list[float]
) -> None:
    provider.configure(faults=[Fault(kind="error", error="503", at="GET /batches/{id}")])
    with pytest.raises(UnreachableError, match="batch batch_1"):
        desk.look("batch_1")
    assert len(waits) == ATTEMPTS - 1
    assert all(0 <= each <= 60 for each in waits)
    waits.clear()
    provider.configure(faults=[Fault(kind="error", error="429", calls=[0], at="GET /files")])
    assert desk.uploads("nothing") == []
    assert waits[0] >= 1, "it says for how long to wait"


@pytest.mark.slow
def test_what_will_not_pass_is_not_tried_again(
    desk: Desk, provider: Provider, file: Path, waits: list[float]
) -> None:
    with pytest.raises(NotThereError):
        desk.look("batch_unknown")
    with pytest.raises(NotThereError):
        desk.cancel("batch_unknown")
    for status, error in ((401, AccessDenied), (404, AccessDenied), (400, RefusedError)):
        provider.configure(script=[{"status": status, "body": "{}", "at": "POST /files"}])
        with pytest.raises(error):
            desk.upload(file, "token-4")
    provider.configure(faults=[Fault(kind="error", error="insufficient_quota", at="POST /batches")])
    with pytest.raises(QuotaExhausted):
        desk.create("file", "token-4", LONG_AGO)
    assert not waits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (
            {"data": [{"code": "invalid_url", "message": "test-key: data:image/png;base64,AAAA"}]},
            ("invalid_url", "[key]: [image]"),
        ),
        ({"data": ["key test-key"]}, ("", "key [key]")),
        ("key test-key", ("", "key [key]")),
    ],
)
def test_errors_of_a_batch_show_neither_key_nor_picture(
    errors: object, expected: tuple[str, str], desk: Desk, provider: Provider
) -> None:
    told = {"id": "batch_1", "status": "failed", "errors": errors}
    provider.configure(script=[{"body": json.dumps(told), "at": "GET /batches/{id}"}])
    assert desk.look("batch_1").errors == (expected,)


@pytest.mark.slow
def test_errors_do_not_show_the_key(
    provider: Provider, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "sk-canary-0123456789abcdef")
    given = {"account": "a", "image": {"max_side": 512}, "api_key": KEY}
    made = Desk(HostedOptions.model_validate(given | {"base_url": provider.base_url}))
    with pytest.raises(AccessDenied) as raised:
        made.uploads("token")
    assert "canary" not in str(raised.value)
    made.close()
