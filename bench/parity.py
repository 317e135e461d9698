r"""The vLLM engine beside transformers, one picture at a time: does it give the model's answers?

    python -m bench.parity --checkpoint google/paligemma-3b-mix-224 --dtype bfloat16 \
        --images photos/ --protocol neutral --attribute race --prompt-form "answer en {question}"

Without a checkpoint it makes a tiny random one (`--tiny llava` and so on) and random pictures, in
float32. It prints the flip rate, which is the share of pictures whose greedy answer (or best label)
differs, and the largest difference of a label's log-probability. In float32 both are to be 0
(differences below 0.001); in bfloat16 the two implementations round differently, and the flip rate
says how often that changes an answer.
"""

import argparse
import asyncio
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from facescan import images, prompt, protocols
from facescan.decoding import DecodePool
from facescan.models import Checkpoint, ModelCard
from facescan.types import (
    AnswerMode,
    Decoding,
    EncodedImage,
    Question,
    Reply,
    Request,
    request_id,
)
from serving import engine
from serving.engine import Engine, EngineSettings

QUESTION = Question(
    model="tiny",
    protocol="parity",
    attributes=("race",),
    prompt="answer en what is the race of the person in the picture?",
    labels=("from 0 to 9", "from 10 to 19", "more than 70", "Black", "East Asian", "Latino"),
    answer_mode=AnswerMode.FREE,
    decoding=Decoding(max_tokens=8),
    identity="parity",
)
"""Asked where no protocol is named; labels share first tokens and have several."""


class Reference:
    """The same questions, answered by transformers with the processor's Pillow backend.

    PaliGemma is asked in its processor's form, any other model through its chat template.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        elsewhere = checkpoint.processor is not None
        self._processor = AutoProcessor.from_pretrained(
            checkpoint.processor or checkpoint.path,
            revision=None if elsewhere else checkpoint.revision,
            backend="pil",
        )
        self._model = (
            AutoModelForImageTextToText.from_pretrained(
                checkpoint.path, revision=checkpoint.revision, dtype=getattr(torch, dtype)
            )
            .to(device)
            .eval()
        )

    def _inputs(self, image: EncodedImage, question: Question, label: str | None = None) -> Any:
        """What the model is given; with a label as if it had answered so."""
        if self._model.config.model_type == "paligemma":
            text = f"<image>{question.prompt}"
            options: dict[str, Any] = {} if label is None else {"suffix": label}
        else:
            text = self._templated(question, label)
            bos = self._processor.tokenizer.bos_token
            options = {"add_special_tokens": not (bos and text.startswith(bos))}
        inputs = self._processor(
            images=Image.fromarray(images.decode(image)), text=text, return_tensors="pt", **options
        )
        inputs.pop("labels", None)
        return inputs.to(self._model.device)

    def _templated(self, question: Question, label: str | None) -> str:
        """The chat so far; with a label up to the end token of the turn that says it."""
        content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
        chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
        begun = str(self._processor.apply_chat_template(chat, add_generation_prompt=True))
        if label is None:
            return begun
        chat.append({"role": "assistant", "content": [{"type": "text", "text": label}]})
        turn = str(self._processor.apply_chat_template(chat))
        end = turn.index(label, len(begun)) + len(label)
        tokenizer = self._processor.tokenizer
        rest = turn[end:].strip()
        special = [name for name in tokenizer.all_special_tokens if rest.startswith(name)]
        return turn[:end] + (special[0] if special else str(tokenizer.eos_token))

    def _length(self, image: EncodedImage, question: Question) -> int:
        return int(self._inputs(image, question)["input_ids"].shape[1])

    def _generate(self, image: EncodedImage, question: Question, **options: Any) -> list[int]:
        inputs = self._inputs(image, question)
        tokens = self._model.generate(**inputs, do_sample=False, **options)
        return [int(token) for token in tokens[0, inputs["input_ids"].shape[1] :]]

    def free(self, image: EncodedImage, question: Question) -> str:
        """The greedy answer's text."""
        tokens = self._generate(image, question, max_new_tokens=question.decoding.max_tokens)
        return str(self._processor.tokenizer.decode(tokens, skip_special_tokens=True))

    def choice(self, image: EncodedImage, question: Question) -> str:
        """The label that greedy decoding over the trie of all labels arrives at."""
        length = self._length(image, question)
        sequences = {
            tuple(self._inputs(image, question, label)["input_ids"][0, length:].tolist()): label
            for label in question.labels
        }

        def allowed(_: int, tokens: Any) -> list[int]:
            made = tuple(int(token) for token in tokens[length:])
            following = {
                sequence[len(made)] for sequence in sequences if sequence[: len(made)] == made
            }
            return sorted(following) or [self._processor.tokenizer.eos_token_id]

        longest = max(map(len, sequences))
        tokens = self._generate(
            image, question, max_new_tokens=longest, prefix_allowed_tokens_fn=allowed
        )
        return sequences[tuple(tokens)]

    def score(self, image: EncodedImage, question: Question) -> dict[str, float]:
        """Each label's summed log-probability, end token included."""
        import torch

        length = self._length(image, question)
        scores = {}
        for label in question.labels:
            inputs = self._inputs(image, question, label)
            with torch.no_grad():
                logprobs = self._model(**inputs).logits[0].float().log_softmax(-1)
            tokens = inputs["input_ids"][0, length:]
            places = torch.arange(length - 1, length - 1 + len(tokens))
            scores[label] = float(logprobs[places, tokens].sum())
        return scores


def noise_pictures(count: int, seed: int = 0) -> list[EncodedImage]:
    """PNGs of random pixels, 20 to 120 wide and high: nothing but the pixels tells them apart."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        height, width = rng.integers(20, 121, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        pictures.append(encoded(file.getvalue()))
    return pictures


def encoded(data: bytes) -> EncodedImage:
    """The bytes of one picture, checked."""
    return images.check(data, hashlib.sha256(data).hexdigest(), images.Limits())


def variants(question: Question) -> dict[AnswerMode, Question]:
    """The same question in every answer mode."""
    return {
        mode: replace(question, answer_mode=mode, identity=f"{question.identity}-{mode}")
        for mode in AnswerMode
    }


async def answers(
    running: Engine, questions: Iterable[Question], pictures: Sequence[EncodedImage]
) -> dict[str, Reply]:
    """The replies of an engine to every question about every picture, by request id."""
    questions = tuple(questions)
    requests = [
        Request(request_id(question.identity, picture.sha256), picture, question)
        for picture in pictures
        for question in questions
    ]
    return {reply.request_id: reply async for reply in running.answer(requests)}


def compare(
    reference: Reference, replies: dict[str, Reply], question: Question, picture: EncodedImage
) -> tuple[bool, bool, float]:
    """Whether the greedy answer and the best label are equal, and the scores' largest difference.

    The difference is in natural-log probability.
    """
    by_mode = variants(question)

    def reply(mode: AnswerMode) -> Reply:
        return replies[request_id(by_mode[mode].identity, picture.sha256)]

    scores = reference.score(picture, question)
    found = dict(reply(AnswerMode.SCORE).label_logprobs)
    return (
        reply(AnswerMode.FREE).raw_response == reference.free(picture, question),
        reply(AnswerMode.SCORE).raw_response == max(scores, key=lambda label: scores[label]),
        max(abs(scores[label] - found[label]) for label in scores),
    )


def report(
    card: ModelCard, checkpoint: Checkpoint, question: Question, pictures: Sequence[EncodedImage]
) -> None:
    """Run both sides and print what differs."""
    decoders = DecodePool(2)
    running = engine.module("vllm").load(card, checkpoint, EngineSettings(decoders))

    async def ask() -> dict[str, Reply]:
        try:
            return await answers(running, variants(question).values(), pictures)
        finally:
            await running.close()
            decoders.close()

    replies = asyncio.run(ask())
    reference = Reference(checkpoint, running.info.numerics["dtype"])
    rows = [compare(reference, replies, question, picture) for picture in pictures]
    total = len(rows)
    free = variants(question)[AnswerMode.FREE].identity
    said = {replies[request_id(free, picture.sha256)].raw_response for picture in pictures}
    greedy = sum(not same for same, _, _ in rows)
    best = sum(not same for _, same, _ in rows)
    print(f"{running.info.resolved_model}, {running.info.engine}, {running.info.numerics['dtype']}")
    print(f"greedy answers that differ: {greedy} of {total} ({greedy / total:.2%})")
    print(f"distinct greedy answers:    {len(said)}")
    print(f"best labels that differ:    {best} of {total} ({best / total:.2%})")
    print(f"largest difference of a label's log-probability: {max(row[2] for row in rows):.6f}")


def _question(arguments: argparse.Namespace, card: ModelCard) -> Question:
    if arguments.protocol is None:
        return QUESTION
    (question,) = prompt.questions(
        card, protocols.load(arguments.protocol), [arguments.attribute], "parity"
    )
    return question


def main() -> None:
    """Read the arguments and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkpoint", help="folder or repository; default: a tiny random one")
    parser.add_argument("--tiny", default="paligemma", help="paligemma, llava or llava-next")
    parser.add_argument("--revision")
    parser.add_argument("--processor", help="where its processor's files are, if elsewhere")
    parser.add_argument("--images", type=Path, help="folder of pictures; default: random ones")
    parser.add_argument("--limit", type=int, default=64, help="pictures at most")
    parser.add_argument("--protocol", help="default: a question made up for this check")
    parser.add_argument("--attribute", default="race")
    parser.add_argument("--prompt-form", default="{question}", help="as in a model card")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    arguments = parser.parse_args()
    card = ModelCard(
        name="parity",
        description="",
        engine="vllm",
        protocol=arguments.protocol or "neutral",
        attributes=(arguments.attribute,),
        prompt=arguments.prompt_form,
        dtype=arguments.dtype,
    )
    if arguments.images is None:
        pictures = noise_pictures(arguments.limit)
    else:
        files = sorted(path for path in arguments.images.iterdir() if path.is_file())
        pictures = [encoded(path.read_bytes()) for path in files[: arguments.limit]]
    with TemporaryDirectory() as folder:
        if arguments.checkpoint is None:
            from tests import checkpoints

            makers: dict[str, Callable[[Path], Path]] = {
                "paligemma": checkpoints.paligemma,
                "llava": partial(checkpoints.llava, model="llava"),
                "llava-next": partial(checkpoints.llava, model="llava-next"),
            }
            arguments.checkpoint = str(makers[arguments.tiny](Path(folder)))
        checkpoint = Checkpoint(
            path=arguments.checkpoint,
            revision=arguments.revision,
            processor=arguments.processor,
        )
        report(card, checkpoint, _question(arguments, card), pictures)


if __name__ == "__main__":
    main()
