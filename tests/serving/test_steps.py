"""The engine of networks that are run here: steps, what is wrong with one, and what ends it."""

import asyncio
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from facescan import images
from facescan.decoding import DecodePool, Pixels
from facescan.errors import EngineError
from facescan.types import (
    AnswerMode,
    Decoding,
    EncodedImage,
    FinishReason,
    Outcome,
    Question,
    Reply,
    Request,
)
from serving import steps
from serving.engine import EngineInfo, EngineSettings
from serving.steps import Answer, StepEngine, UnaskableError, likeliest
from tests.conftest import jpeg

QUESTION = Question(
    model="m",
    protocol="p",
    attributes=("gender",),
    prompt="Which?",
    labels=("one", "other"),
    answer_mode=AnswerMode.SCORE,
    decoding=Decoding(),
    identity="0" * 64,
)
OTHER = replace(QUESTION, prompt="And which?", identity="1" * 64)

Ask = Callable[[Question, Any], Sequence[Answer]]


class Network:
    """Sees the mean of a picture, and says it."""

    def __init__(self, ask: Ask | None = None) -> None:
        self.info = EngineInfo("means", "m", {})
        self.size: tuple[int, int] | None = None
        self.seen: list[int] = []
        self.asked = 0
        self._ask = ask or self._means

    def see(self, pictures: Sequence[Pixels]) -> Any:
        self.seen.append(len(pictures))
        return np.array([picture.mean() for picture in pictures])

    def ask(self, question: Question, seen: Any) -> Sequence[Answer]:
        self.asked += 1
        return self._ask(question, seen)

    @staticmethod
    def _means(question: Question, seen: Any) -> Sequence[Answer]:
        return [Answer(f"{question.prompt} {mean:.6f}", FinishReason.STOP) for mean in seen]


def picture(seed: int, side: int = 64) -> EncodedImage:
    data = jpeg(seed, side)
    return images.check(data, hashlib.sha256(data).hexdigest(), images.Limits())


def broken() -> EncodedImage:
    return replace(picture(99), data=b"\xff\xd8 no picture", sha256="f" * 64)


def requests(pictures: Sequence[EncodedImage], *questions: Question) -> list[Request]:
    return [
        Request(f"{index:04x}{number:04x}", each, question)
        for index, each in enumerate(pictures)
        for number, question in enumerate(questions)
    ]


@pytest.fixture(scope="module")
def settings() -> Iterator[EngineSettings]:
    decoders = DecodePool(1)
    yield EngineSettings(decoders)
    decoders.close()


async def collected(engine: StepEngine, asked: Sequence[Request]) -> dict[str, Reply]:
    return {reply.request_id: reply async for reply in engine.answer(asked)}


def answers(
    network: Network, settings: EngineSettings, asked: Sequence[Request], batch_size: int = 4
) -> dict[str, Reply]:
    async def go() -> dict[str, Reply]:
        engine = StepEngine(network, batch_size, settings)
        try:
            return await collected(engine, asked)
        finally:
            await engine.close()

    return asyncio.run(go())


def test_each_request_gets_the_answer_about_its_own_picture(settings: EngineSettings) -> None:
    network = Network()
    pictures = [picture(seed) for seed in range(10)]
    pictures.insert(3, broken())
    asked = requests(pictures, QUESTION, OTHER)
    replies = answers(network, settings, asked)
    assert len(replies) == len(asked)
    for request in asked:
        reply = replies[request.request_id]
        if request.image is pictures[3]:
            assert (reply.error_kind, reply.raw_response) == (Outcome.BAD_IMAGE, None)
        else:
            mean = images.decode(request.image).mean()
            assert reply.raw_response == f"{request.question.prompt} {mean:.6f}"
    # Each picture once, however many questions; the broken one has a place in its step.
    assert network.seen == [3, 4, 3]
    assert network.asked == 6


def test_a_step_is_bounded_in_pixels_and_a_large_picture_has_one_for_itself(
    settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_STEP_PIXELS", 2 * 64 * 64)
    network = Network()
    pictures = [picture(0), picture(1), picture(2), picture(3, 200), picture(4)]
    assert len(answers(network, settings, requests(pictures, QUESTION))) == 5
    assert network.seen == [2, 1, 1, 1]


def test_pictures_that_are_decoded_to_one_size_count_for_that_size(
    settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_STEP_PIXELS", 4 * 8 * 8)
    network = Network()
    network.size = (8, 8)
    answers(network, settings, requests([picture(seed, 200) for seed in range(6)], QUESTION))
    assert network.seen == [4, 2]


def test_a_question_that_cannot_be_put_fails_alone(settings: EngineSettings) -> None:
    def ask(question: Question, seen: Any) -> Sequence[Answer]:
        if question is OTHER:
            raise UnaskableError("too long")
        return [Answer("one", FinishReason.STOP) for _ in seen]

    asked = requests([picture(0), picture(1)], QUESTION, OTHER)
    replies = answers(Network(ask), settings, asked)
    kinds = [replies[each.request_id].error_kind for each in asked]
    assert kinds == [None, Outcome.ENGINE_ERROR] * 2
    assert "too long" in str(replies[asked[1].request_id].error)


def test_what_a_network_raises_is_the_death_of_the_engine(settings: EngineSettings) -> None:
    def ask(question: Question, seen: Any) -> Sequence[Answer]:
        raise RuntimeError("out of memory")

    with pytest.raises(EngineError, match="RuntimeError: out of memory"):
        answers(Network(ask), settings, requests([picture(0)], QUESTION))


def test_who_asks_a_closed_engine_is_told_that_it_is_dead(settings: EngineSettings) -> None:
    async def go() -> None:
        engine = StepEngine(Network(), 1, settings)
        asked = requests([picture(0), picture(1)], QUESTION)
        answering = engine.answer(asked)
        await anext(answering)
        await engine.close()
        with pytest.raises(EngineError, match="shutdown"):
            await anext(answering)

    asyncio.run(go())


def test_a_probability_that_is_no_number_is_no_answer(settings: EngineSettings) -> None:
    def ask(question: Question, seen: Any) -> Sequence[Answer]:
        return [
            likeliest([("one", math.nan if mean > 100 else -0.1), ("other", -2.0)])
            for mean in (200, 50)
        ]

    first, second = requests([picture(0), picture(1)], QUESTION)
    replies = answers(Network(ask), settings, [first, second])
    assert replies[first.request_id].error_kind is Outcome.ENGINE_ERROR
    assert "not a number" in str(replies[first.request_id].error)
    assert replies[second.request_id].raw_response == "one"


def test_nothing_asked_is_nothing_answered(settings: EngineSettings) -> None:
    assert answers(Network(), settings, []) == {}
