"""The Florence-2 engine on tiny random checkpoints, beside a plain loop of transformers."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from bench import parity
from facescan import images, models
from facescan.decoding import DecodePool
from facescan.errors import EngineError, UsageError
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
from serving.engine import EngineSettings
from serving.engines import florence
from tests import checkpoints

pytestmark = pytest.mark.slow

QUESTION = replace(
    parity.QUESTION,
    prompt="<DocVQA>what is the emotion of the person in the picture?",
    labels=("from 0 to 9", "from 10 to 19", "sad", "fear", "female", "anger"),
)
QUESTIONS = parity.variants(QUESTION)


def card(**options: int) -> ModelCard:
    return ModelCard(
        name="tiny",
        description="",
        engine="florence",
        protocol="paper-florence",
        attributes=("race",),
        dtype="float32",
        engine_options={"batch_size": 24, **options},
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(path=str(checkpoints.florence(tmp_path_factory.mktemp("florence"))))


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> "Reference":
    return Reference(checkpoint)


def answered(
    asked: ModelCard,
    checkpoint: Checkpoint | None,
    questions: Sequence[Question],
    pictures: Sequence[EncodedImage],
) -> dict[str, Reply]:
    async def ask() -> dict[str, Reply]:
        decoders = DecodePool(2)
        try:
            # Layers this small lose more to a second thread than they gain.
            running = florence.load(asked, checkpoint, EngineSettings(decoders, cpus=1))
            try:
                return await parity.answers(running, questions, pictures)
            finally:
                await running.close()
        finally:
            decoders.close()

    return asyncio.run(ask())


class Reference:
    """The same questions, one picture at a time, as transformers' documentation asks them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._processor = AutoProcessor.from_pretrained(checkpoint.path, backend="pil")
        self._model = AutoModelForImageTextToText.from_pretrained(checkpoint.path).eval()

    def _inputs(self, picture: EncodedImage) -> Any:
        return self._processor(
            images=Image.fromarray(images.decode(picture)),
            text=QUESTION.prompt,
            return_tensors="pt",
        )

    def free(self, picture: EncodedImage, beams: int) -> str:
        tokens = self._model.generate(
            **self._inputs(picture),
            num_beams=beams,
            # The forced first token is not counted by us.
            max_new_tokens=QUESTION.decoding.max_tokens + 1,
            forced_eos_token_id=None,
        )
        return str(self._processor.batch_decode(tokens, skip_special_tokens=True)[0])

    def _label(self, label: str) -> list[int]:
        """As `tokenizer(label)` of the published checkpoints gives them."""
        tokenizer = self._processor.tokenizer
        tokens = tokenizer(label, add_special_tokens=False)["input_ids"]
        return [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]

    def _logprobs(self, picture: EncodedImage, tokens: list[int]) -> Any:
        """After each token of the decoder, (tokens + 1, vocabulary)."""
        import torch

        begun = [self._model.config.text_config.decoder_start_token_id, *tokens]
        with torch.no_grad():
            out = self._model(**self._inputs(picture), decoder_input_ids=torch.tensor([begun]))
        return out.logits[0].log_softmax(-1)

    def score(self, picture: EncodedImage) -> dict[str, float]:
        scores = {}
        for label in QUESTION.labels:
            tokens = self._label(label)
            found = self._logprobs(picture, tokens[:-1])
            scores[label] = sum(float(found[i, tokens[i]]) for i in range(1, len(tokens)))
        return scores

    def choice(self, picture: EncodedImage) -> str:
        labels = {tuple(self._label(label)): label for label in QUESTION.labels}
        made = next(iter(labels))[:1]
        while made not in labels:
            found = self._logprobs(picture, list(made))[-1]
            following = {tokens[len(made)] for tokens in labels if tokens[: len(made)] == made}
            made = (*made, max(following, key=lambda token: float(found[token])))
        return labels[made]


@pytest.mark.parametrize("beams", [1, 3])
def test_free_answers_are_those_of_a_plain_loop(
    beams: int, checkpoint: Checkpoint, reference: Reference
) -> None:
    pictures = parity.noise_pictures(64)
    free = QUESTIONS[AnswerMode.FREE]
    replies = answered(card(beams=beams), checkpoint, [free], pictures)
    said = {p.sha256: replies[request_id(free.identity, p.sha256)].raw_response for p in pictures}
    assert said == {p.sha256: reference.free(p, beams) for p in pictures}
    assert len(set(said.values())) >= 32


def test_beams_change_answers(checkpoint: Checkpoint) -> None:
    pictures = parity.noise_pictures(16)
    free = QUESTIONS[AnswerMode.FREE]
    greedy, searched = (
        answered(card(beams=beams), checkpoint, [free], pictures) for beams in (1, 3)
    )
    assert any(greedy[key].raw_response != searched[key].raw_response for key in greedy)


def test_labels_are_scored_and_chosen_as_in_a_plain_loop(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    pictures = parity.noise_pictures(64)
    score, choice = QUESTIONS[AnswerMode.SCORE], QUESTIONS[AnswerMode.CHOICE]
    # Beams are for free answers only.
    replies = answered(card(beams=3), checkpoint, [score, choice], pictures)
    scores, choices = set(), set()
    for picture in pictures:
        expected = reference.score(picture)
        scored = replies[request_id(score.identity, picture.sha256)]
        assert dict(scored.label_logprobs) == pytest.approx(expected, abs=1e-3)
        assert scored.raw_response == max(expected, key=lambda label: expected[label])
        scores.add(tuple(round(score, 1) for score in expected.values()))
        chosen = replies[request_id(choice.identity, picture.sha256)]
        assert chosen.raw_response == reference.choice(picture)
        choices.add(chosen.raw_response)
    assert len(scores) >= 32
    assert len(choices) > 1


def test_answers_of_a_batch_are_those_of_single_pictures(checkpoint: Checkpoint) -> None:
    pictures = parity.noise_pictures(16)
    questions = list(QUESTIONS.values())
    together, alone = (
        answered(card(beams=3, batch_size=size), checkpoint, questions, pictures)
        for size in (16, 1)
    )
    assert together.keys() == alone.keys()
    for key, reply in together.items():
        assert reply.raw_response == alone[key].raw_response
        assert dict(reply.label_logprobs) == pytest.approx(
            dict(alone[key].label_logprobs), abs=1e-3
        )


def test_a_picture_is_seen_once_and_read_once_for_each_question(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bart.modeling_bart import BartEncoder
    from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

    counts: dict[type, int] = {}
    for each in (Florence2VisionBackbone, BartEncoder):

        def counting(self: Any, *args: Any, _run: Any = each.forward, **kwargs: Any) -> Any:
            rows = next(value for value in (*args, *kwargs.values()) if hasattr(value, "shape"))
            counts[type(self)] = counts.get(type(self), 0) + len(rows)
            return _run(self, *args, **kwargs)

        monkeypatch.setattr(each, "forward", counting)
    questions = [QUESTIONS[AnswerMode.SCORE], QUESTIONS[AnswerMode.CHOICE]]
    answered(card(), checkpoint, questions, parity.noise_pictures(5))
    of_the_check = 1
    assert counts == {Florence2VisionBackbone: 5 + of_the_check, BartEncoder: 2 * 5}


def test_a_bad_picture_is_one_reply_and_its_neighbours_are_answered(
    checkpoint: Checkpoint,
) -> None:
    good, other = parity.noise_pictures(2)
    bad = EncodedImage(good.sha256[::-1], good.data, good.format, good.width, good.height)
    free = QUESTIONS[AnswerMode.FREE]
    both = answered(card(), checkpoint, [free], [good, bad, other])
    kinds = [both[request_id(free.identity, p.sha256)].error_kind for p in (good, bad, other)]
    assert kinds == [None, Outcome.BAD_IMAGE, None]
    (alone,) = answered(card(), checkpoint, [free], [bad]).values()
    assert alone.error_kind is Outcome.BAD_IMAGE


def test_an_answer_that_did_not_end_says_so(checkpoint: Checkpoint) -> None:
    """The checkpoint would force an end token there, and a cut answer pass for a whole one."""
    free = replace(QUESTIONS[AnswerMode.FREE], decoding=Decoding(max_tokens=2))
    replies = answered(card(), checkpoint, [free], parity.noise_pictures(8))
    for reply in replies.values():
        assert reply.tokens_out == 2
        assert reply.finish_reason is FinishReason.LENGTH


def test_a_question_that_is_too_long_fails_and_the_others_are_answered(
    checkpoint: Checkpoint,
) -> None:
    free = QUESTIONS[AnswerMode.FREE]
    endless = replace(free, prompt="Which? " * 400, identity="e" * 64)
    (picture,) = parity.noise_pictures(1)
    replies = answered(card(), checkpoint, [free, endless], [picture])
    assert replies[request_id(free.identity, picture.sha256)].error_kind is None
    failed = replies[request_id(endless.identity, picture.sha256)]
    assert failed.error_kind is Outcome.ENGINE_ERROR
    assert "tokens, and the model reads at most" in str(failed.error)


def test_a_model_that_was_taught_ends_its_answers() -> None:
    taught = models.load("tiny-florence")
    free = replace(QUESTIONS[AnswerMode.FREE], prompt="<DocVQA>What is the gender?")
    replies = answered(taught, taught.checkpoint, [free], parity.noise_pictures(4))
    assert {reply.finish_reason for reply in replies.values()} == {FinishReason.STOP}


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    other = Checkpoint(path=str(checkpoints.llava(tmp_path / "weights", model="llava")))
    with pytest.raises(
        EngineError, match="a checkpoint of 'llava'; engine florence runs 'florence2'"
    ):
        answered(card(), other, [QUESTIONS[AnswerMode.FREE]], [])


def test_a_checkpoint_in_the_layout_of_remote_code_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.florence(tmp_path / "weights")
    file = folder / "model.safetensors"
    found = {
        name.replace("model.multi_modal_projector.image_projection", "image_projection"): weight
        for name, weight in load_file(file).items()
    }
    save_file(found, file, metadata={"format": "pt"})
    with pytest.raises(
        EngineError,
        match=r"1 weights of .* are not in its files, .*image_projection.* must be converted first",
    ):
        answered(card(), Checkpoint(path=str(folder)), [QUESTIONS[AnswerMode.FREE]], [])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"do_center_crop": True, "crop_size": {"height": 20, "width": 20}}, "does more than"),
        ({"resample": 2}, "does more than"),
        ({"image_seq_length": 9}, "a picture is 17 tokens of the model, .* room for 9"),
    ],
    ids=["crop", "resampling", "tokens"],
)
def test_a_processor_that_is_not_understood_is_refused(
    setting: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = checkpoints.florence(tmp_path / "weights")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(EngineError, match=message):
        answered(card(), Checkpoint(path=str(folder)), [QUESTIONS[AnswerMode.FREE]], [])


def test_a_checkpoint_without_a_processor_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.florence(tmp_path / "weights")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(EngineError, match="no usable processor"):
        answered(card(), Checkpoint(path=str(folder)), [QUESTIONS[AnswerMode.FREE]], [])


def test_an_option_that_it_does_not_know_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="engine_options"):
        florence.numerics(card(beam=3))


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (replace(QUESTION, answer_schema="{}"), "JSON schema"),
        (replace(QUESTION, decoding=Decoding(8, 0.7)), "temperature"),
    ],
    ids=["schema", "temperature"],
)
def test_what_it_cannot_ask_is_said(question: Question, reason: str) -> None:
    assert reason in str(florence.cannot_ask(card(), question))
