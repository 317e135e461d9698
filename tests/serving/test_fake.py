"""The fake engine's options, and its answers about pictures that are really decoded."""

import asyncio
import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facescan import images, registry
from facescan.decoding import DecodePool
from facescan.errors import UsageError
from facescan.models import ModelCard
from facescan.types import AnswerMode, Decoding, EncodedImage, Outcome, Question, Reply, Request
from serving import engine
from serving.engine import EngineSettings
from tests.conftest import jpeg

FAKE = engine.module("fake")
QUESTION = Question(
    model="m",
    protocol="p",
    attributes=("race",),
    prompt="Which?",
    labels=("one", "other"),
    answer_mode=AnswerMode.FREE,
    decoding=Decoding(),
    identity="0" * 64,
)


def card(**options: Any) -> ModelCard:
    return ModelCard(
        name="m",
        description="",
        engine="fake",
        protocol="p",
        attributes=("race",),
        engine_options=options,
    )


def picture(seed: int) -> EncodedImage:
    data = jpeg(seed)
    return images.check(data, hashlib.sha256(data).hexdigest(), images.Limits())


@pytest.fixture
def decoders() -> Iterator[DecodePool]:
    pool = DecodePool(1)
    yield pool
    pool.close()


def answers(decoders: DecodePool, requests: list[Request], **options: Any) -> list[Reply]:
    running = FAKE.load(card(**options), None, EngineSettings(decoders))

    async def ask() -> list[Reply]:
        return [reply async for reply in running.answer(requests)]

    return asyncio.run(ask())


def test_a_picture_that_cannot_be_decoded_fails_with_its_requests_alone(
    decoders: DecodePool,
) -> None:
    pictures = [picture(seed) for seed in range(40)]
    pictures[7] = replace(pictures[7], sha256="0" * 64)
    requests = [
        Request(f"{seed:08x}{number}", image, QUESTION)
        for seed, image in enumerate(pictures)
        for number in range(2)
    ]
    replies = {reply.request_id: reply for reply in answers(decoders, requests)}
    assert set(replies) == {request.request_id for request in requests}
    bad = {key for key, reply in replies.items() if reply.error_kind is Outcome.BAD_IMAGE}
    assert bad == {"000000070", "000000071"}
    assert all(reply.error is None for key, reply in replies.items() if key not in bad)


def test_answers_take_their_time_side_by_side(decoders: DecodePool) -> None:
    requests = [Request(f"{seed:08x}", picture(seed), QUESTION) for seed in range(50)]
    started = time.monotonic()
    replies = answers(decoders, requests, latency_ms=500)
    assert {reply.error for reply in replies} == {None}
    assert min(reply.latency_s for reply in replies) >= 0.5
    assert time.monotonic() - started < 50 * 0.5


def test_it_is_a_local_engine_unless_its_card_says_otherwise(decoders: DecodePool) -> None:
    settings = EngineSettings(decoders)
    assert FAKE.load(card(), None, settings).calls_in_flight is None
    assert FAKE.load(card(calls_in_flight=8), None, settings).calls_in_flight == 8


@pytest.mark.parametrize("options", [{"latency": 3}, {"latency_ms": -1}, {"calls_in_flight": 0}])
def test_options_it_does_not_know_are_refused(
    decoders: DecodePool, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"model 'm': engine_options.*\n{next(iter(options))}"):
        FAKE.load(card(**options), None, EngineSettings(decoders))
    with pytest.raises(UsageError, match="engine_options"):
        FAKE.numerics(card(**options))


def test_none_of_its_options_changes_an_answer(decoders: DecodePool) -> None:
    requests = [Request(f"{seed:08x}", picture(seed), QUESTION) for seed in range(20)]
    plain = {each.request_id: each.raw_response for each in answers(decoders, requests)}
    options: dict[str, Any] = {"latency_ms": 1.0, "calls_in_flight": 3}
    others = answers(decoders, requests, **options)
    assert {each.request_id: each.raw_response for each in others} == plain
    assert FAKE.numerics(card(**options)) == FAKE.numerics(card()) == {}


def test_an_engine_file_that_is_none_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "half.py").write_text(
        "from serving.engines.fake import load, missing, numerics\n"
    )
    registry.include(tmp_path)
    with pytest.raises(UsageError, match=r"engine 'half': .* no preprocessing, cannot_ask"):
        engine.module("half")
