"""The models that ship really answer: in transformers and through their engines."""

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import pytest

from facescan import attributes, models, prompt, protocols
from facescan.datasets import sample
from facescan.decoding import DecodePool
from facescan.images import Limits, check
from facescan.models import ModelCard
from facescan.types import EncodedImage, Question, Reply, Request, request_id
from recipes import (
    tiny_models,
    train_tiny_florence,
    train_tiny_llava,
    train_tiny_paligemma,
    train_tiny_resnet,
)
from recipes.tiny_models import Recipe
from serving import engine
from serving.engine import EngineSettings

pytestmark = [
    pytest.mark.slow,
    # Third parties, none of it about our calls: SWIG types, vLLM's and torch's use of each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|vllm|transformers)"),
]

EACH = pytest.mark.parametrize(
    "recipe",
    [train_tiny_paligemma.RECIPE, train_tiny_llava.RECIPE, train_tiny_florence.RECIPE],
    ids=lambda each: each.card,
)
LEAST = {"tiny-paligemma": 0.97, "tiny-llava": 0.95, "tiny-florence": 0.95, "tiny-resnet": 0.95}
"""Share of right answers to each question."""

EACH_CARD = pytest.mark.parametrize("name", LEAST)
CROPPED = pytest.mark.parametrize("cropped", [0.0, 1.0], ids=["whole pictures", "cut-out faces"])

UNSEEN_SEED = 0
"""The seed of `--dataset sample` when none is given."""


def folder(card: ModelCard) -> Path:
    assert card.checkpoint is not None
    return Path(card.checkpoint.path)


def unseen(cropped: float) -> tuple[tiny_models.Pixels, list[dict[str, str]]]:
    made = [tiny_models.picture(UNSEEN_SEED, cropped, index) for index in range(200)]
    return np.stack([pixels for pixels, _ in made]), [truth for _, truth in made]


@EACH_CARD
def test_it_is_small(name: str) -> None:
    files = folder(models.load(name)).iterdir()
    assert sum(path.stat().st_size for path in files) <= 4_000_000


@EACH
def test_it_was_taught_what_its_card_asks(recipe: Recipe) -> None:
    card = models.load(recipe.card)
    assert card.protocol == recipe.protocol
    assert set(card.attributes) == {asked.attribute for asked in tiny_models.questions(recipe)}


def test_the_resnet_was_taught_the_heads_of_its_card() -> None:
    heads = models.load("tiny-resnet").engine_options["heads"]
    assert isinstance(heads, dict)
    assert list(heads.items()) == list(train_tiny_resnet.heads().items())


def test_training_never_saw_the_pictures_they_are_asked_about() -> None:
    assert UNSEEN_SEED not in (tiny_models.TRAIN_SEED, tiny_models.CHECK_SEED)
    digests = [
        {hashlib.sha256(sample.draw(seed, index)[0].tobytes()).digest() for index in range(500)}
        for seed in (tiny_models.TRAIN_SEED, tiny_models.CHECK_SEED, UNSEEN_SEED)
    ]
    assert len(set.union(*digests)) == 1500


@EACH
@CROPPED
def test_its_answers_in_transformers_are_right(recipe: Recipe, cropped: float) -> None:
    card = models.load(recipe.card)
    shares = tiny_models.accuracy(recipe, folder(card), unseen(cropped))
    assert set(shares) == set(card.attributes)
    assert min(shares.values()) >= LEAST[recipe.card], shares


@CROPPED
def test_the_resnets_answers_in_transformers_are_right(cropped: float) -> None:
    card = models.load("tiny-resnet")
    shares = train_tiny_resnet.accuracy(folder(card), unseen(cropped))
    assert set(shares) == set(card.attributes)
    assert min(shares.values()) >= LEAST["tiny-resnet"], shares


@EACH_CARD
def test_its_answers_through_the_engine_are_right(name: str) -> None:
    faces = list(sample.faces(UNSEEN_SEED, 0, 400))
    images = [_checked(face.data) for face in faces]
    card = models.load(name)
    module = engine.module(card.engine)
    questions = prompt.questions(
        card, protocols.load(card.protocol), card.attributes, module.preprocessing(card)
    )
    requests = [
        Request(request_id(question.identity, image.sha256), image, question)
        for image in images
        for question in questions
    ]
    replies = asyncio.run(_answers(card, requests))
    for question in questions:
        right = [
            _label(question, replies[request_id(question.identity, image.sha256)])
            == _asked_for(question, face.truth)
            for face, image in zip(faces, images, strict=True)
        ]
        assert np.mean(right) >= LEAST[name], question.attributes


def _label(question: Question, reply: Reply) -> str | None:
    (offered,) = question.offered
    return dict(offered).get((reply.raw_response or "").strip())


def _asked_for(question: Question, truth: sample.Truth) -> str:
    """The label of a drawn face in the set that the question asks."""
    (attribute,), (label_set,) = question.attributes, question.label_sets
    view = attributes.load(attribute).view(sample.LABEL_SETS[attribute], label_set)
    assert view is not None
    return view.merges[truth.labels[attribute]]


def _checked(data: bytes) -> EncodedImage:
    return check(data, hashlib.sha256(data).hexdigest(), Limits())


async def _answers(card: ModelCard, requests: list[Request]) -> dict[str, Reply]:
    decoders = DecodePool(2)
    running = engine.module(card.engine).load(card, card.checkpoint, EngineSettings(decoders))
    try:
        return {reply.request_id: reply async for reply in running.answer(requests)}
    finally:
        await running.close()
        decoders.close()
