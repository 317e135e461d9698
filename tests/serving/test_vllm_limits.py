"""The vLLM engine where it runs out: of KV cache, and of life."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench import parity
from facescan.decoding import DecodePool
from facescan.errors import EngineError
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, Decoding, EncodedImage, Outcome, Question, Reply
from serving import engine, vllm_core
from serving.engine import Engine, EngineSettings
from tests import checkpoints
from tests.serving.third_parties import VLLM

pytestmark = VLLM

# A block of vLLM's CPU cache is 128 tokens; the prompt fills the first, the answer needs a second.
BLOCK_BYTES = 128 * 512
BLOCKS = 12
CARD = ModelCard(
    name="tiny",
    description="",
    engine="vllm",
    protocol="neutral",
    attributes=("race",),
    dtype="float32",
    engine_options={"max_model_len": 256, "kv_cache_gib": BLOCKS * BLOCK_BYTES / (1 << 30)},
)
LONG = Question(
    model="tiny",
    protocol="parity",
    attributes=("race",),
    prompt="what is the race, the gender, the emotion? " * 4,
    labels=(),
    answer_mode=AnswerMode.FREE,
    decoding=Decoding(max_tokens=100),
    identity="long",
)


@dataclass
class Small:
    """An engine with a KV cache of a few blocks, and its answers while that was enough."""

    engine: Engine
    loop: asyncio.AbstractEventLoop
    pictures: list[EncodedImage]
    expected: dict[str, Reply]

    def ask(self, question: Question) -> dict[str, Reply]:
        return self.loop.run_until_complete(parity.answers(self.engine, [question], self.pictures))


@pytest.fixture(scope="module")
def small(tmp_path_factory: Any) -> Iterator[Small]:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    checkpoint = Checkpoint(path=str(checkpoints.paligemma(folder)))
    decoders = DecodePool(1)
    running = engine.module("vllm").load(CARD, checkpoint, EngineSettings(decoders))
    loop = asyncio.new_event_loop()
    served = Small(running, loop, parity.noise_pictures(16), {})
    served.expected = served.ask(LONG)
    yield served
    loop.run_until_complete(running.close())
    decoders.close()
    loop.close()


def test_admission_leaves_vllm_nothing_to_preempt(small: Small) -> None:
    tokens_in = {reply.tokens_in for reply in small.expected.values()}
    assert len(tokens_in) == 1
    assert 64 < (tokens_in.pop() or 0) < 128
    assert {reply.attempts for reply in small.expected.values()} == {1}
    assert {reply.error for reply in small.expected.values()} == {None}


def test_preempted_requests_are_asked_again(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_core, "blocks_needed", lambda generation, size: 0)
    replies = small.ask(LONG)
    assert max(reply.attempts for reply in replies.values()) > 1, "nothing was preempted"
    for key, reply in replies.items():
        assert reply.raw_response == small.expected[key].raw_response


def test_preempted_too_often_is_an_error(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_core, "blocks_needed", lambda generation, size: 0)
    monkeypatch.setattr(vllm_core, "MAX_ATTEMPTS", 1)
    replies = small.ask(LONG).values()
    errors = [reply for reply in replies if reply.error is not None]
    assert 0 < len(errors) < len(replies)
    assert {reply.error_kind for reply in errors} == {Outcome.ENGINE_ERROR}
    assert all("preempted" in (reply.error or "") for reply in errors)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_raises_and_stays_dead(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(small.engine._core._llm, "step", fail)  # type: ignore[attr-defined] # of VllmEngine
    for _ in range(2):
        with pytest.raises(EngineError, match="out of memory"):
            small.ask(replace(LONG, identity="after"))
