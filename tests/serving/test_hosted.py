"""The hosted engine against a strict provider on loopback: what is sent, retried, paid, and not."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from datetime import date, datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from facescan import prompt, protocols
from facescan.decoding import DecodePool
from facescan.errors import AccessDenied, BudgetExhausted, EngineUnavailable, QuotaExhausted
from facescan.images import Limits, check
from facescan.models import Checkpoint, ModelCard
from facescan.run import ledger
from facescan.run.ledger import Ledger
from facescan.storage import LocalStorage
from facescan.types import EncodedImage, FinishReason, Outcome, Reply, Request, request_id
from serving import estimate, limiter
from serving.account import Account, NotAskedError, Queue
from serving.engine import EngineSettings
from serving.engines import hosted
from serving.limiter import Limiter
from serving.provider import Reading
from serving.tokens import HostedOptions
from tests.conftest import jpeg
from tests.provider.running import Config, Fault, Provider, Scripted, provider_server

pytestmark = pytest.mark.slow

KEY = "TEST_KEY"
PRICE = {"input": 2.5, "output": 10.0, "as_of": "2026-11-01", "source": "this test"}


def card(provider: Provider, **options: Any) -> ModelCard:
    return ModelCard(
        name="hosted-model",
        description="",
        engine="hosted",
        protocol="neutral-joint",
        attributes=("race", "gender", "age", "emotion"),
        checkpoint=Checkpoint(path="gpt-4o-2024-08-06"),
        engine_options={
            "base_url": provider.base_url,
            "api_key": KEY,
            "account": "test",
            "image": {"detail": "low", "max_side": 512},
            "image_tokens": {"kind": "tiles", "base": 85, "tile": 170},
            "price": PRICE,
            "retention": {"terms": "None.", "source": "this test", "as_of": "2026-11-01"},
        }
        | options,
    )


def picture(seed: int) -> EncodedImage:
    data = jpeg(seed)
    return check(data, hashlib.sha256(data).hexdigest(), Limits())


def requests(model: ModelCard, count: int, protocol: str = "neutral-joint") -> list[Request]:
    asked = prompt.questions(
        model, protocols.load(protocol), model.attributes, hosted.preprocessing(model)
    )
    return [
        Request(request_id(question.identity, image.sha256), image, question)
        for image in map(picture, range(count))
        for question in asked
    ]


class Runner:
    """One engine with an account of its own."""

    def __init__(self, folder: Path, max_usd: float | None = None) -> None:
        self.money = LocalStorage(str(folder / "ledger"))
        self._max_usd = max_usd

    def answers(self, model: ModelCard, asked: Sequence[Request]) -> list[Reply]:
        return asyncio.run(self._answers(model, asked))

    async def _answers(self, model: ModelCard, asked: Sequence[Request]) -> list[Reply]:
        queue = Queue(Limiter(limiter.Limits(connections=16)))
        account = Account("test", queue, Ledger(self.money, "session", self._max_usd))
        decoders = DecodePool(1)
        engine = hosted.load(model, None, EngineSettings(decoders, account=account))
        try:
            return [reply async for reply in engine.answer(asked)]
        finally:
            await engine.close()
            decoders.close()


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setenv(KEY, "test-key")
    monkeypatch.setattr(hosted, "_BACKOFF_S", 0.01)
    monkeypatch.setattr(hosted, "_LONGEST_BACKOFF_S", 0.02)
    return Runner(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with provider_server() as running:
        yield running


@pytest.fixture
def provider(server: Provider) -> Provider:
    server.configure(faults=[], script=[], fields=[], limits=Config().limits, latency_s=(0.0, 0.0))
    return server


def test_every_request_gets_its_own_answer(provider: Provider, runner: Runner) -> None:
    asked = requests(card(provider), 8)
    replies = runner.answers(card(provider), asked)
    assert {reply.request_id for reply in replies} == {request.request_id for request in asked}
    for reply in replies:
        assert reply.finish_reason is FinishReason.STOP
        answer = json.loads(reply.raw_response or "")
        assert set(answer) == {"race", "gender", "age", "emotion"}
        assert reply.attempts == 1
        assert reply.resolved_model == "gpt-4o-2024-08-06"
        assert reply.provider_request_id


def test_what_a_call_has_cost_is_what_the_provider_bills(
    provider: Provider, runner: Runner
) -> None:
    before = provider.bill()["usd"]
    replies = runner.answers(card(provider), requests(card(provider), 5))
    billed = provider.bill()["usd"] - before
    assert sum(reply.cost_usd or 0 for reply in replies) == pytest.approx(billed)
    assert ledger.spent(runner.money).total_usd == pytest.approx(billed)


def test_without_a_price_there_is_no_ledger(provider: Provider, runner: Runner) -> None:
    unpriced = card(provider, price=None)
    (reply,) = runner.answers(unpriced, requests(unpriced, 1))
    assert reply.cost_usd is None
    assert ledger.spent(runner.money).calls == 0


class Clock(datetime):
    """The clock of `serving.estimate` in the test of a price that ends: its day is set."""

    set_to = date(2026, 11, 30)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Clock":
        return cls(cls.set_to.year, cls.set_to.month, cls.set_to.day, tzinfo=tz)


@pytest.fixture
def price_ends_during_a_call(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The price."""
    call = hosted.HostedEngine._call

    async def until_the_next_day(engine: hosted.HostedEngine, body: dict[str, Any]) -> Reading:
        reading = await call(engine, body)
        monkeypatch.setattr(Clock, "set_to", date(2026, 12, 1))
        return reading

    monkeypatch.setattr(estimate, "datetime", Clock)
    monkeypatch.setattr(hosted.HostedEngine, "_call", until_the_next_day)
    return PRICE | {"until": "2026-11-30"}


def test_a_call_during_which_its_price_ends_is_answered_and_costs_what_was_reserved(
    provider: Provider, runner: Runner, price_ends_during_a_call: dict[str, Any]
) -> None:
    before = provider.bill()["usd"]
    model = card(provider, price=price_ends_during_a_call)
    (reply,) = runner.answers(model, requests(model, 1))
    spent = ledger.spent(runner.money)
    assert (spent.calls, spent.unknown) == (1, 0)
    assert reply.raw_response
    assert reply.cost_usd == spent.settled_usd > provider.bill()["usd"] - before > 0


def test_no_call_is_made_after_the_price_has_ended(
    provider: Provider, runner: Runner, price_ends_during_a_call: dict[str, Any]
) -> None:
    provider.configure(faults=[Fault(kind="error", error="503", calls=[0])])
    before = provider.stats()["calls"]
    model = card(provider, price=price_ends_during_a_call)
    with pytest.raises(QuotaExhausted, match="its price has ended"):
        runner.answers(model, requests(model, 1))
    assert provider.stats()["calls"] == before + 1


def test_fields_that_only_the_server_knows_are_sent_as_they_stand_in_the_card(
    provider: Provider, runner: Runner
) -> None:
    model = card(provider, extra={"top_k": 1, "timeout": 7, "seed": 3})
    (reply,) = runner.answers(model, requests(model, 1))
    assert reply.error_kind is Outcome.PROVIDER_ERROR
    assert "top_k" in (reply.error or ""), "the server has seen it, and knows none"
    provider.configure(fields=["top_k", "timeout"])
    (reply,) = runner.answers(model, requests(model, 1))
    assert reply.error_kind is None


def test_one_attribute_a_call_by_protocol(provider: Provider, runner: Runner) -> None:
    asked = requests(card(provider), 1, "neutral")
    assert len(asked) == 4
    assert len(runner.answers(card(provider), asked)) == 4


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="error", error="500", calls=[0, 1]),
        Fault(kind="error", error="503", calls=[0]),
        Fault(kind="error", error="429", calls=[0]),
        Fault(kind="reset", calls=[0]),
        Fault(kind="reset", processed=True, calls=[0]),
        Fault(kind="truncated", calls=[0]),
        Fault(kind="malformed", calls=[0]),
        Fault(kind="error", error="gemini_503", calls=[0]),
    ],
    ids=str,
)
def test_what_may_pass_is_asked_again(provider: Provider, runner: Runner, fault: Fault) -> None:
    provider.configure(faults=[fault])
    asked = requests(card(provider), 1)
    (reply,) = runner.answers(card(provider), asked)
    assert reply.error_kind is None
    assert reply.attempts == 1 + len(fault.calls or [])


@pytest.mark.parametrize(
    ("shape", "finish_reason"),
    [
        ("refusal", FinishReason.REFUSAL),
        ("content_filter", FinishReason.BLOCKED),
        ("native_block", FinishReason.BLOCKED),
    ],
)
def test_a_refusal_is_a_result_and_asked_once(
    provider: Provider, runner: Runner, shape: Any, finish_reason: FinishReason
) -> None:
    provider.configure(faults=[Fault(kind="answer", shape=shape)])
    (reply,) = runner.answers(card(provider), requests(card(provider), 1))
    assert reply.finish_reason is finish_reason
    assert reply.error_kind is None
    assert reply.attempts == 1
    assert reply.raw_response or reply.error


def test_what_a_filter_says_is_stored(provider: Provider, runner: Runner) -> None:
    provider.configure(faults=[Fault(kind="error", error="content_policy")])
    (reply,) = runner.answers(card(provider), requests(card(provider), 1))
    assert reply.finish_reason is FinishReason.BLOCKED
    assert "content_policy" in (reply.error or "")


def test_a_redirect_takes_no_picture_elsewhere(provider: Provider, runner: Runner) -> None:
    elsewhere = f"{provider.base_url}/chat/completions?elsewhere"
    before = provider.stats()["calls"]
    provider.configure(script=[Scripted(status=307, headers={"location": elsewhere})])
    with pytest.raises(AccessDenied, match="307"):
        runner.answers(card(provider), requests(card(provider), 1))
    assert provider.stats()["calls"] == before + 1


def test_no_attempt_takes_longer_than_the_card_says(provider: Provider, runner: Runner) -> None:
    provider.configure(faults=[Fault(kind="delay", delay_s=(30.0, 30.0), calls=[0])])
    impatient = card(provider, timeout_s=3)
    (reply,) = runner.answers(impatient, requests(impatient, 1))
    assert reply.attempts == 2
    assert reply.latency_s < 20


def test_a_pause_that_a_failing_provider_asks_for_is_kept(
    provider: Provider, runner: Runner
) -> None:
    provider.configure(script=[Scripted(status=503, headers={"retry-after": "1"})])
    (reply,) = runner.answers(card(provider), requests(card(provider), 1))
    assert reply.attempts == 2
    assert reply.latency_s >= 1


def test_refusals_for_the_rate_are_no_failures_of_a_request(
    provider: Provider, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted, "_ATTEMPTS", 1)
    refused = Scripted(status=429, headers={"retry-after-ms": "10"})
    provider.configure(script=[refused, refused])
    (reply,) = runner.answers(card(provider), requests(card(provider), 1))
    assert reply.error_kind is None
    assert reply.attempts == 3
    monkeypatch.setattr(hosted, "_REFUSALS", 2)
    provider.configure(script=[refused, refused])
    with pytest.raises(QuotaExhausted, match="refused one request 2 times"):
        runner.answers(card(provider), requests(card(provider), 1))


@pytest.mark.parametrize(
    "change",
    [{"thinking_tokens": 8}, {"temperature": False}, {"max_tokens_field": "max_tokens"}],
    ids=str,
)
def test_settings_that_can_change_answers_are_in_the_fingerprint(
    provider: Provider, change: dict[str, Any]
) -> None:
    assert hosted.numerics(card(provider)) != hosted.numerics(card(provider, **change))


def test_a_request_that_never_works_ends_as_the_providers_error(
    provider: Provider, runner: Runner
) -> None:
    provider.configure(faults=[Fault(kind="error", error="500")])
    (reply,) = runner.answers(card(provider), requests(card(provider), 1))
    assert reply.error_kind is Outcome.PROVIDER_ERROR
    assert reply.attempts == 20
    assert "500" in (reply.error or "")


def test_an_outage_is_waited_for_with_one_call_at_a_time(
    provider: Provider, runner: Runner
) -> None:
    asked = requests(card(provider), 30)
    provider.configure(faults=[Fault(kind="error", error="503", calls=list(range(60)))])
    before = len(provider.calls())
    replies = runner.answers(card(provider), asked)
    assert {reply.error_kind for reply in replies} == {None}
    made = provider.calls()[before:]
    assert len(made) == 90
    # Those in flight when it began come back at once; then nobody fails beside another.
    assert sum(reply.attempts > 1 for reply in replies) <= 30


def test_a_provider_that_fails_too_often_is_given_up(
    provider: Provider, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted, "_FREE_RETRIES", 5)
    monkeypatch.setattr(hosted, "_RETRIES_PER_ANSWER", 0.5)
    provider.configure(faults=[Fault(kind="error", error="500", probability=0.8)])
    with pytest.raises(QuotaExhausted, match=r"calls failed beside \d+ answers"):
        runner.answers(card(provider), requests(card(provider), 40))


def test_a_provider_that_is_gone_for_long_stops_the_run(
    provider: Provider, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted, "_OUTAGE_S", 0.0)
    provider.configure(faults=[Fault(kind="error", error="503")])
    with pytest.raises(QuotaExhausted, match=r"2\d calls in a row failed"):
        runner.answers(card(provider), requests(card(provider), 30))


def test_no_log_level_of_the_sdk_puts_pictures_into_logs(
    provider: Provider, runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    logging.getLogger("openai").setLevel("DEBUG")
    runner.answers(card(provider), requests(card(provider), 1))
    assert "base64" not in caplog.text


@pytest.mark.parametrize("error", ["insufficient_quota", "gemini_day"])
def test_an_exhausted_account_stops_the_run_at_once(
    provider: Provider, runner: Runner, error: Any
) -> None:
    provider.configure(faults=[Fault(kind="error", error=error)])
    before = provider.stats()["calls"]
    with pytest.raises(QuotaExhausted):
        runner.answers(card(provider), requests(card(provider), 1))
    assert provider.stats()["calls"] == before + 1


def test_a_wrong_key_is_told_without_the_key(
    provider: Provider, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "sk-canary-0123456789abcdef")
    with pytest.raises(AccessDenied) as raised:
        runner.answers(card(provider), requests(card(provider), 1))
    assert "canary" not in str(raised.value)


def test_a_key_may_come_from_a_file(
    provider: Provider, runner: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(KEY)
    (tmp_path / "key").write_text("test-key\n")
    monkeypatch.setenv(f"{KEY}_FILE", str(tmp_path / "key"))
    assert len(runner.answers(card(provider), requests(card(provider), 1))) == 1


def test_no_key_says_which_variable_to_set(
    provider: Provider, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY)
    with pytest.raises(EngineUnavailable, match="TEST_KEY_FILE"):
        runner.answers(card(provider), requests(card(provider), 1))


def test_a_key_in_the_place_of_its_files_path_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv(f"{KEY}_FILE", "sk-canary-0123456789abcdef")
    with pytest.raises(EngineUnavailable, match="TEST_KEY_FILE names: No such file") as raised:
        hosted.key(KEY)
    assert "canary" not in str(raised.value)


def test_the_budget_holds_by_the_providers_own_bill(
    provider: Provider, runner: Runner, tmp_path: Path
) -> None:
    before = provider.bill()["usd"]
    frugal = Runner(tmp_path / "frugal", 0.01)
    with pytest.raises(BudgetExhausted):
        frugal.answers(card(provider), requests(card(provider), 40))
    billed = provider.bill()["usd"] - before
    assert 0 < billed <= 0.01
    assert ledger.spent(frugal.money).total_usd >= billed - 1e-9


def test_a_call_whose_answer_was_lost_stays_in_the_ledger(
    provider: Provider, runner: Runner
) -> None:
    before = provider.bill()["usd"]
    provider.configure(faults=[Fault(kind="reset", processed=True, calls=[0])])
    runner.answers(card(provider), requests(card(provider), 1))
    assert ledger.spent(runner.money).total_usd >= provider.bill()["usd"] - before


def test_a_stopped_engine_asks_nothing_more(provider: Provider, tmp_path: Path) -> None:
    async def stopped() -> None:
        account = Account(
            "test", Queue(Limiter(limiter.Limits())), Ledger(LocalStorage(str(tmp_path)), "s")
        )
        account.stop.set()
        with pytest.raises(NotAskedError):
            await account.turn(100)
        with pytest.raises(NotAskedError):
            await account.pause(100)

    asyncio.run(stopped())


def test_pictures_are_sent_without_their_metadata_and_not_larger_than_the_card_says(
    provider: Provider,
) -> None:
    import base64
    import io

    import numpy as np
    from PIL import Image

    from serving import chat_request

    pixels = np.zeros((600, 1200, 3), np.uint8)
    uri, size = chat_request.picture(pixels, card(provider).options(HostedOptions).image)
    kind, _, data = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.size == size == (512, 256)
    assert not sent.getexif()
