"""Our vLLM engine beside vLLM's own offline `LLM.generate`: images per second, encoded bytes in.

    python -m bench.engine_throughput --case tiny-4
    python -m bench.engine_throughput --case trivial-224

Both sides run the same weights and architecture with the same engine settings, each in a process
of its own, in alternating rounds; the first 2,000 images of each side are not counted. Both start
from JPEG files in memory. `LLM.generate` gets what Pillow makes of them, 512 images a call.
"""

import argparse
import asyncio
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from bench import parity
from facescan.decoding import DecodePool
from facescan.models import Checkpoint, ModelCard
from facescan.types import Decoding, EncodedImage, Question, Request, request_id
from serving import engine, paligemma
from serving.engine import EngineSettings

CASES = {
    "tiny-4": {"image_size": 56, "width": 64, "layers": 2, "questions": 4, "side": 224},
    "trivial-224": {"image_size": 224, "width": 32, "layers": 1, "questions": 1, "side": 224},
}
LENGTH = 320
SEATS = 512
STEP_TOKENS = 8192
WARM = 2000
CALL = 512


def questions(count: int, max_tokens: int) -> list[Question]:
    """Questions of equal length about different attributes."""
    return [
        replace(
            parity.QUESTION,
            prompt=f"answer en what is the {name} of the person?",
            decoding=Decoding(max_tokens=max_tokens),
            identity=name,
        )
        for name in ("race", "gender", "age", "emotion")[:count]
    ]


def pictures(count: int, side: int) -> list[EncodedImage]:
    """JPEGs of smooth random pictures, about 10 KB each, as of faces at that size."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG")
        made.append(parity.encoded(file.getvalue()))
    return made


def engine_side(folder: str, asked: list[Question]) -> Callable[[list[EncodedImage]], None]:
    """What runs pictures through our engine."""
    card = ModelCard(
        name="throughput",
        description="",
        engine="vllm",
        protocol="neutral",
        attributes=("race",),
        dtype="float32",
        engine_options={
            "max_model_len": LENGTH,
            "max_num_seqs": SEATS,
            "max_num_batched_tokens": STEP_TOKENS,
        },
    )
    settings = EngineSettings(DecodePool(2))
    running = engine.module("vllm").load(card, Checkpoint(path=folder), settings)

    async def answer(images: list[EncodedImage]) -> None:
        requests = [
            Request(request_id(question.identity, image.sha256), image, question)
            for image in images
            for question in asked
        ]
        replies = [reply async for reply in running.answer(requests)]
        assert len(replies) == len(requests)
        assert all(reply.error is None for reply in replies)

    loop = asyncio.new_event_loop()
    return lambda images: loop.run_until_complete(answer(images))


def llm_side(folder: str, asked: list[Question]) -> Callable[[list[EncodedImage]], None]:
    """What runs pictures through `LLM.generate`."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=folder,
        hf_overrides=paligemma.HF_OVERRIDES,
        dtype="float32",
        enforce_eager=True,
        max_model_len=LENGTH,
        max_num_seqs=SEATS,
        max_num_batched_tokens=STEP_TOKENS,
        kv_cache_memory_bytes=SEATS * LENGTH * 4096,
        limit_mm_per_prompt={"image": 1},
        disable_sliding_window=True,
    )
    sampling = SamplingParams(temperature=0, max_tokens=asked[0].decoding.max_tokens)

    def generate(images: list[EncodedImage]) -> None:
        for start in range(0, len(images), CALL):
            prompts = [
                {"prompt": question.prompt, "multi_modal_data": {"image": picture}}
                for image in images[start : start + CALL]
                for picture in [Image.open(io.BytesIO(image.data)).convert("RGB")]
                for question in asked
            ]
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            assert len(outputs) == len(prompts)

    return generate


SIDES = {"engine": engine_side, "llm": llm_side}


def serve(side: str, case: str, folder: str, max_tokens: int) -> None:
    """Be one side: for each number on standard input, run so many images and print the seconds."""
    shape = CASES[case]
    run = SIDES[side](folder, questions(shape["questions"], max_tokens))
    print("ready", flush=True)
    images: list[EncodedImage] = []
    for line in sys.stdin:
        count = int(line)
        if len(images) < count:
            images = pictures(count, shape["side"])
        started = time.perf_counter()
        run(images[:count])
        print(f"seconds {time.perf_counter() - started}", flush=True)


class Side:
    """The other end of `serve`."""

    def __init__(self, name: str, arguments: argparse.Namespace, folder: str) -> None:
        self.name = name
        self.rates: list[float] = []
        command = [sys.executable, "-m", "bench.engine_throughput", "--side", name]
        command += ["--case", arguments.case, "--checkpoint", folder]
        command += ["--max-tokens", str(arguments.max_tokens)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line("ready")

    def _line(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        raise SystemExit(f"the side '{self.name}' ended with {self._process.wait()}")

    def run(self, count: int) -> float:
        """Seconds for so many images."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._line("seconds"))

    def close(self) -> None:
        """End the process by ending its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(arguments: argparse.Namespace, folder: str) -> None:
    """Alternate the two sides and print medians and their ratio."""
    sides = [Side(name, arguments, folder) for name in SIDES]
    for side in sides:
        side.run(WARM)
    for _ in range(arguments.rounds):
        for side in sides:
            side.rates.append(arguments.images / side.run(arguments.images))
    for side in sides:
        side.close()
        rates = ", ".join(f"{rate:.0f}" for rate in side.rates)
        print(f"{side.name}: median {statistics.median(side.rates):.0f} images/s of {rates}")
    ours, theirs = (statistics.median(side.rates) for side in sides)
    print(f"{arguments.case}: engine / LLM.generate = {ours / theirs:.2f}")


def main() -> None:
    """Read the arguments; measure, or be one side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", choices=CASES, default="tiny-4")
    parser.add_argument("--images", type=int, default=2000, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=3, help="a label and its end")
    parser.add_argument("--checkpoint", help="default: random weights of the case's shape")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        serve(arguments.side, arguments.case, arguments.checkpoint, arguments.max_tokens)
        return
    with TemporaryDirectory() as made:
        folder = arguments.checkpoint
        if folder is None:
            from tests import checkpoints

            shape = CASES[arguments.case]
            folder = str(
                checkpoints.paligemma(
                    Path(made),
                    image_size=shape["image_size"],
                    width=shape["width"],
                    layers=shape["layers"],
                )
            )
        measure(arguments, folder)


if __name__ == "__main__":
    main()
