"""The vLLM engine on tiny random checkpoints, beside transformers."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from bench import parity
from facescan import images
from facescan.decoding import DecodePool
from facescan.errors import EngineError
from facescan.models import Checkpoint, ModelCard
from facescan.types import (
    AnswerMode,
    Decoding,
    EncodedImage,
    FinishReason,
    Outcome,
    Question,
    Reply,
    Request,
    request_id,
)
from serving import engine, vllm_engine
from serving.engine import Engine, EngineSettings
from tests import checkpoints
from tests.serving.third_parties import VLLM

pytestmark = VLLM

CARD = ModelCard(
    name="tiny",
    description="",
    engine="vllm",
    protocol="neutral",
    attributes=("race",),
    dtype="float32",
    engine_options={"max_model_len": 256},
)
QUESTIONS = parity.variants(parity.QUESTION)
FREE = QUESTIONS[AnswerMode.FREE]
PICTURES = 64


@dataclass
class Served:
    """One checkpoint, its engine, and what the engine answered to every picture."""

    name: str
    checkpoint: Checkpoint
    whole: Path
    engine: Engine
    loop: asyncio.AbstractEventLoop
    pictures: list[EncodedImage]
    replies: dict[str, Reply]
    reference: parity.Reference

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def ask(self, requests: list[Request]) -> list[Reply]:
        async def gather() -> list[Reply]:
            return [reply async for reply in self.engine.answer(requests)]

        return cast(list[Reply], self.run(gather()))

    def reply(self, mode: AnswerMode, picture: EncodedImage) -> Reply:
        return self.replies[request_id(QUESTIONS[mode].identity, picture.sha256)]


def about(picture: EncodedImage, question: Question) -> Request:
    return Request(request_id(question.identity, picture.sha256), picture, question)


def processor_elsewhere(whole: Path, folder: Path) -> Checkpoint:
    """The same checkpoint as FaceScanPaliGemma ships: weights here, processor there."""
    weights, processor = folder / "weights", folder / "processor"
    weights.mkdir()
    processor.mkdir()
    for path in whole.iterdir():
        model = path.suffix == ".safetensors" or path.name.endswith("config.json")
        model = model and not path.name.startswith(("preprocessor", "tokenizer"))
        shutil.copy(path, weights if model else processor)
    return Checkpoint(path=str(weights), processor=str(processor))


MAKE = {
    "paligemma1": partial(checkpoints.paligemma, version=1),
    "paligemma2": partial(checkpoints.paligemma, version=2),
    "llava": partial(checkpoints.llava, model="llava"),
    "llava-next": partial(checkpoints.llava, model="llava-next"),
}
PALIGEMMAS = pytest.mark.parametrize("served", ["paligemma1", "paligemma2"], indirect=True)


@pytest.fixture(scope="module", params=MAKE)
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("checkpoint")
    whole = MAKE[request.param](folder / "whole")
    checkpoint = Checkpoint(path=str(whole))
    if request.param == "paligemma1":
        checkpoint = processor_elsewhere(whole, folder)
    decoders = DecodePool(2)
    running = engine.module("vllm").load(CARD, checkpoint, EngineSettings(decoders))
    loop = asyncio.new_event_loop()
    pictures = parity.noise_pictures(PICTURES)
    replies = loop.run_until_complete(parity.answers(running, QUESTIONS.values(), pictures))
    reference = parity.Reference(checkpoint, "float32")
    yield Served(request.param, checkpoint, whole, running, loop, pictures, replies, reference)
    loop.run_until_complete(running.close())
    decoders.close()
    loop.close()


def test_greedy_answers_are_those_of_transformers(served: Served) -> None:
    expected = [served.reference.free(picture, FREE) for picture in served.pictures]
    found = [served.reply(AnswerMode.FREE, picture).raw_response for picture in served.pictures]
    assert found == expected
    assert len(set(expected)) >= PICTURES // 2, "answers too alike to prove anything"


def test_label_scores_are_those_of_transformers(served: Served) -> None:
    best = set()
    for picture in served.pictures[:32]:
        expected = served.reference.score(picture, FREE)
        reply = served.reply(AnswerMode.SCORE, picture)
        assert tuple(label for label, _ in reply.label_logprobs) == FREE.labels
        assert dict(reply.label_logprobs) == pytest.approx(expected, abs=1e-3, rel=0)
        assert reply.raw_response == max(expected, key=lambda label: expected[label])
        best.add(tuple(expected.values()))
    assert len(best) > 16


def test_choice_is_greedy_over_the_trie_of_labels(served: Served) -> None:
    expected = [served.reference.choice(picture, FREE) for picture in served.pictures[:32]]
    found = [
        served.reply(AnswerMode.CHOICE, picture).raw_response for picture in served.pictures[:32]
    ]
    assert found == expected
    assert len(set(expected)) > 1


@PALIGEMMAS
def test_stock_vllm_fails_the_same_check(served: Served, tmp_path: Path) -> None:
    pixels = [images.decode(picture, (checkpoints.IMAGE_SIZE,) * 2) for picture in served.pictures]
    np.savez(tmp_path / "pixels.npz", *pixels)
    script = Path(__file__).with_name("stock_vllm.py")
    ran = subprocess.run(
        [sys.executable, script, served.whole, tmp_path / "pixels.npz", FREE.prompt, "8"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    tokens = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    assert len(tokens) == PICTURES
    form = cast(vllm_engine.VllmEngine, served.engine).form
    same = [
        form.text(answer) == served.reply(AnswerMode.FREE, picture).raw_response
        for answer, picture in zip(tokens, served.pictures, strict=True)
    ]
    assert sum(same) < PICTURES // 2


@PALIGEMMAS
def test_stock_architecture_stays_vllms(served: Served) -> None:
    from vllm import ModelRegistry

    assert (
        served.engine.info.numerics["architecture"] == "FacescanPaliGemmaForConditionalGeneration"
    )
    stock = ModelRegistry.models["PaliGemmaForConditionalGeneration"]
    assert stock.load_model_cls().__module__ == "vllm.model_executor.models.paligemma"


def test_replies_carry_what_answered(served: Served) -> None:
    assert len(served.replies) == 3 * PICTURES
    info = served.engine.info
    for reply in served.replies.values():
        assert reply.error_kind is None
        assert reply.engine == info.engine
        assert reply.resolved_model == info.resolved_model
        assert reply.attempts == 1
        assert reply.tokens_in is not None
        assert reply.tokens_in > 16
    assert info.resolved_model.startswith(f"{served.checkpoint.path}@sha256:")
    finished = {
        served.reply(AnswerMode.CHOICE, picture).finish_reason for picture in served.pictures
    }
    assert finished == {FinishReason.STOP}


def test_requests_of_one_image_share_its_pixels(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    real = DecodePool.decode

    def count(
        pool: DecodePool, encoded: Sequence[EncodedImage], size: tuple[int, int] | None = None
    ) -> Any:
        decoded.extend(image.sha256 for image in encoded)
        return real(pool, encoded, size)

    monkeypatch.setattr(DecodePool, "decode", count)
    picture = served.pictures[0]
    replies = served.ask([about(picture, question) for question in QUESTIONS.values()])
    assert decoded == [picture.sha256]
    assert {reply.request_id for reply in replies} == {
        request_id(question.identity, picture.sha256) for question in QUESTIONS.values()
    }


def test_a_bad_image_fails_alone(served: Served) -> None:
    good = served.pictures[:3]
    broken = replace(good[1], data=good[1].data[:-40], sha256="0" * 64)
    requests = [about(picture, FREE) for picture in (good[0], broken, good[2])]
    replies = {reply.request_id: reply for reply in served.ask(requests)}
    assert replies[requests[1].request_id].error_kind is Outcome.BAD_IMAGE
    for request in (requests[0], requests[2]):
        expected = served.reply(AnswerMode.FREE, request.image)
        assert replies[request.request_id].raw_response == expected.raw_response


def test_a_question_that_is_too_long_fails_alone(served: Served) -> None:
    long = replace(FREE, prompt="what is this? " * 200, identity="long")
    bare = replace(QUESTIONS[AnswerMode.SCORE], labels=(), identity="bare")
    picture = served.pictures[0]
    replies = served.ask([about(picture, question) for question in (long, bare, FREE)])
    kinds = {reply.request_id: reply.error_kind for reply in replies}
    assert kinds[about(picture, long).request_id] is Outcome.ENGINE_ERROR
    assert kinds[about(picture, bare).request_id] is Outcome.ENGINE_ERROR
    assert kinds[about(picture, FREE).request_id] is None


def test_truncated_answers_say_so(served: Served) -> None:
    short = replace(FREE, decoding=Decoding(max_tokens=1), identity="short")
    (reply,) = served.ask([about(served.pictures[0], short)])
    assert reply.finish_reason is FinishReason.LENGTH
    assert reply.tokens_out == 1


def test_calls_overlap_and_may_be_abandoned(served: Served) -> None:
    async def first(requests: list[Request]) -> Reply:
        replies = served.engine.answer(requests)
        async for reply in replies:
            await replies.aclose()  # type: ignore[attr-defined] # a generator
            return reply
        raise AssertionError("no reply")

    async def both() -> tuple[Reply, dict[str, Reply]]:
        return await asyncio.gather(
            first([about(picture, FREE) for picture in served.pictures]),
            parity.answers(served.engine, [FREE], served.pictures[:8]),
        )

    reply, replies = served.run(both())
    assert reply.error_kind is None
    assert len(replies) == 8
    assert len(served.ask([about(served.pictures[9], FREE)])) == 1


def test_a_second_engine_of_one_process_is_refused(served: Served) -> None:
    with pytest.raises(EngineError, match="own process"):
        engine.module("vllm").load(CARD, served.checkpoint, EngineSettings(DecodePool(1)))


def test_the_engine_starts_no_process(served: Served) -> None:
    import multiprocessing

    assert multiprocessing.active_children() == []
    children = Path("/proc/self/task").glob("*/children")
    names = [
        Path(f"/proc/{child}/cmdline").read_bytes()
        for file in children
        for child in file.read_text().split()
    ]
    assert not [name for name in names if b"VLLM" in name or b"EngineCore" in name]
