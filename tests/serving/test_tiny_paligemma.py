"""The model that ships really answers: in transformers and through the vLLM engine."""

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import pytest

from facescan import models, prompt, protocols
from facescan.datasets import sample
from facescan.decoding import DecodePool
from facescan.images import Limits, check
from facescan.types import EncodedImage, Reply, Request, request_id
from recipes import train_tiny_paligemma as recipe
from serving import engine
from serving.engine import EngineSettings

pytestmark = [
    pytest.mark.slow,
    # Third parties, none of it about our calls: SWIG types, vLLM's and torch's use of each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|vllm|transformers)"),
]

CARD = models.load(recipe.CARD)
UNSEEN_SEED = 0
"""The seed of `--dataset sample` when none is given."""


def folder() -> Path:
    assert CARD.checkpoint is not None
    return Path(CARD.checkpoint.path)


def test_it_is_small_and_16_bit() -> None:
    assert sum(path.stat().st_size for path in folder().iterdir()) <= 4_000_000


def test_training_never_saw_the_pictures_it_is_asked_about() -> None:
    assert UNSEEN_SEED not in (recipe.TRAIN_SEED, recipe.CHECK_SEED)
    digests = [
        {hashlib.sha256(sample.draw(seed, index)[0].tobytes()).digest() for index in range(500)}
        for seed in (recipe.TRAIN_SEED, recipe.CHECK_SEED, UNSEEN_SEED)
    ]
    assert len(set.union(*digests)) == 1500


@pytest.mark.parametrize("cropped", [0.0, 1.0], ids=["whole pictures", "cut-out faces"])
def test_its_answers_in_transformers_are_right(cropped: float) -> None:
    made = [recipe.picture(UNSEEN_SEED, cropped, index) for index in range(200)]
    pixels, labels = np.stack([p for p, _ in made]), [truth for _, truth in made]
    shares = recipe.accuracy(folder(), (pixels, labels))
    assert set(shares) == set(CARD.attributes)
    assert min(shares.values()) >= 0.97, shares


def test_its_answers_through_the_engine_are_right() -> None:
    faces = list(sample.faces(UNSEEN_SEED, 0, 1000))
    images = [_checked(face.data) for face in faces]
    module = engine.module(CARD.engine)
    questions = prompt.questions(
        CARD, protocols.load(CARD.protocol), CARD.attributes, module.preprocessing(CARD)
    )
    requests = [
        Request(request_id(question.identity, image.sha256), image, question)
        for image in images
        for question in questions
    ]
    replies = asyncio.run(_answers(requests))
    for asked, question in zip(recipe.questions(), questions, strict=True):
        right = [
            replies[request_id(question.identity, image.sha256)].raw_response
            == asked.answers[face.truth.labels[asked.attribute]]
            for face, image in zip(faces, images, strict=True)
        ]
        assert np.mean(right) >= 0.97, asked.attribute


def _checked(data: bytes) -> EncodedImage:
    return check(data, hashlib.sha256(data).hexdigest(), Limits())


async def _answers(requests: list[Request]) -> dict[str, Reply]:
    decoders = DecodePool(2)
    running = engine.module(CARD.engine).load(CARD, CARD.checkpoint, EngineSettings(decoders))
    try:
        return {reply.request_id: reply async for reply in running.answer(requests)}
    finally:
        await running.close()
        decoders.close()
