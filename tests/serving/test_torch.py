"""The torch engine on tiny random checkpoints, beside a plain loop, and beside vLLM."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from safetensors.torch import load_file, save_file

from bench import parity
from facescan import models, prompt, protocols
from facescan.datasets import sample
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
    request_id,
)
from serving import engine
from serving.engine import EngineSettings
from serving.engines import torch as torch_engine
from tests import checkpoints
from tests.serving.third_parties import VLLM

pytestmark = VLLM

QUESTIONS = parity.variants(parity.QUESTION)
CARD = ModelCard(
    name="tiny",
    description="",
    engine="torch",
    protocol="neutral",
    attributes=("race",),
    dtype="float32",
    engine_options={"batch_size": 24},
)


def answered(
    name: str,
    card: ModelCard,
    checkpoint: Checkpoint | None,
    questions: Sequence[Question],
    pictures: Sequence[EncodedImage],
) -> dict[str, Reply]:
    """The replies of the engine of that name."""

    async def ask() -> dict[str, Reply]:
        decoders = DecodePool(2)
        running = engine.module(name).load(card, checkpoint, EngineSettings(decoders))
        try:
            return await parity.answers(running, questions, pictures)
        finally:
            await running.close()
            decoders.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("version", [1, 2])
def test_answers_are_those_of_a_plain_loop(version: Literal[1, 2], tmp_path: Path) -> None:
    checkpoint = Checkpoint(path=str(checkpoints.paligemma(tmp_path / "weights", version)))
    pictures = parity.noise_pictures(64)
    replies = answered("torch", CARD, checkpoint, list(QUESTIONS.values()), pictures)
    reference = parity.Reference(checkpoint, "float32")
    choice = QUESTIONS[AnswerMode.CHOICE]
    for picture in pictures:
        same, best, difference = parity.compare(reference, replies, parity.QUESTION, picture)
        assert same
        assert best
        assert difference < 1e-3
        chosen = replies[request_id(choice.identity, picture.sha256)].raw_response
        assert chosen == reference.choice(picture, parity.QUESTION)
    free = QUESTIONS[AnswerMode.FREE].identity
    said = {replies[request_id(free, picture.sha256)].raw_response for picture in pictures}
    assert len(said) >= 32


def test_torch_and_vllm_name_the_same_labels_with_the_same_probabilities() -> None:
    card = models.load("tiny-paligemma")
    asked = prompt.questions(
        card, protocols.load("facescan-paligemma-score"), card.attributes, "the same"
    )
    pictures = [parity.encoded(face.data) for face in sample.faces(0, 0, 250)]
    ours, theirs = (
        answered(name, card, card.checkpoint, asked, pictures) for name in ("torch", "vllm")
    )
    assert ours.keys() == theirs.keys()
    assert len(ours) == 1_000
    for key, reply in ours.items():
        assert reply.raw_response == theirs[key].raw_response
        expected = dict(theirs[key].label_logprobs)
        assert dict(reply.label_logprobs) == pytest.approx(expected, abs=1e-3)


def test_a_bad_picture_is_one_reply_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    checkpoint = Checkpoint(path=str(checkpoints.paligemma(tmp_path / "weights")))
    good, other = parity.noise_pictures(2)
    bad = EncodedImage(good.sha256[::-1], good.data, good.format, good.width, good.height)
    free = QUESTIONS[AnswerMode.FREE]
    replies = answered("torch", CARD, checkpoint, [free], [good, bad, other])
    kinds = [replies[request_id(free.identity, p.sha256)].error_kind for p in (good, bad, other)]
    assert kinds == [None, Outcome.BAD_IMAGE, None]


def test_an_answer_that_did_not_end_says_so(tmp_path: Path) -> None:
    checkpoint = Checkpoint(path=str(checkpoints.paligemma(tmp_path / "weights")))
    pictures = parity.noise_pictures(8)
    free = QUESTIONS[AnswerMode.FREE]
    replies = answered("torch", CARD, checkpoint, [free], pictures)
    for reply in replies.values():
        full = reply.tokens_out == free.decoding.max_tokens
        assert (reply.finish_reason is FinishReason.LENGTH) == full


def test_weights_with_a_hole_are_refused_and_not_made_up(tmp_path: Path) -> None:
    folder = checkpoints.paligemma(tmp_path / "weights", 1)
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights[next(name for name in weights if "multi_modal_projector" in name)]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"weights of .* are not in its files, .*projector"):
        answered("torch", CARD, Checkpoint(path=str(folder)), [QUESTIONS[AnswerMode.FREE]], [])


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(path=str(checkpoints.llava(tmp_path / "weights", model="llava")))
    with pytest.raises(EngineError, match="a checkpoint of 'llava'; engine torch runs 'paligemma'"):
        answered("torch", CARD, checkpoint, [QUESTIONS[AnswerMode.FREE]], [])


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (replace(parity.QUESTION, answer_schema="{}"), "JSON schema"),
        (replace(parity.QUESTION, decoding=Decoding(8, 0.7)), "greedy"),
    ],
    ids=["schema", "temperature"],
)
def test_what_it_cannot_ask_is_said(question: Question, reason: str) -> None:
    assert reason in str(torch_engine.cannot_ask(CARD, question))
