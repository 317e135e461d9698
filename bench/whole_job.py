"""A whole facescan run beside vLLM's own offline `LLM.generate` on the same pictures.

    python -m bench.whole_job --case tiny-4        tiny-paligemma, four questions a picture
    python -m bench.whole_job --case trivial-224   random weights, 224 pixels, one question

`LLM.generate` gets decoded pictures that are in memory before the clock starts, 512 a call, and its
answers are thrown away. The run starts from shards on disk and ends with the predictions written:
Ray, Parquet, decoding, journal, merging and parsing are all inside the clock. Both have the same
engine settings and the same weights. The first 2,000 pictures of each are not counted; of the run
they end where the 2,000th picture's replies were made, by the replies' own times. Rounds alternate;
medians of the ratios.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pyarrow.compute as pc
import typer
import yaml
from PIL import Image
from rich.console import Console

from bench.pictures import make_shards
from facescan import models, prompt, protocols, registry, shards, storage
from facescan.run import journal
from facescan.types import Question
from jobs import cluster
from jobs.config import resolve
from jobs.ingest import ingest
from jobs.run import run
from serving import paligemma

WARM = 2_000
CALL = 512
ENGINE_OPTIONS = {"max_model_len": 320, "max_num_seqs": 512, "max_num_batched_tokens": 16384}

_QUIET = Console(file=io.StringIO())


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of what; `questions` are those of one picture."""

    source: Path
    card: str
    checkpoint: str
    questions: tuple[Question, ...]


def tiny(folder: Path, count: int) -> Case:
    """The shipped model on drawn faces, as in the demo."""
    ingest("sample", folder / "shards", _QUIET, size=count, seed=77)
    shipped = models.load("tiny-paligemma")
    assert shipped.checkpoint is not None
    fields = shipped.model_dump(mode="json", exclude={"name", "checkpoints"})
    return _case(folder, "bench-tiny", fields, list(shipped.attributes))


def trivial(folder: Path, count: int) -> Case:
    """Weights so small that the host's work is nearly all there is."""
    from tests import checkpoints

    make_shards(folder / "shards", count)
    weights = checkpoints.paligemma(folder / "weights", image_size=224, width=32, layers=1)
    short = {"description": "x", "extends": "facescan-paligemma", "max_tokens": 3}
    (folder / "protocols").mkdir()
    (folder / "protocols" / "bench-short.yaml").write_text(yaml.safe_dump(short))
    fields = {
        "description": "random weights",
        "engine": "vllm",
        "protocol": "bench-short",
        "attributes": ["race"],
        "checkpoint": {"path": str(weights)},
        "dtype": "float32",
    }
    return _case(folder, "bench-trivial", fields, ["race"])


def _case(folder: Path, name: str, fields: dict[str, Any], attributes: list[str]) -> Case:
    (folder / "models").mkdir()
    text = yaml.safe_dump({**fields, "engine_options": ENGINE_OPTIONS})
    (folder / "models" / f"{name}.yaml").write_text(text)
    registry.include(folder)
    card = models.load(name)
    assert card.checkpoint is not None
    asked = prompt.questions(card, protocols.load(card.protocol), attributes, "")
    return Case(folder / "shards", name, card.checkpoint.path, asked)


CASES: dict[str, Callable[[Path, int], Case]] = {"tiny-4": tiny, "trivial-224": trivial}


@contextmanager
def generator(case: Case) -> Iterator[Callable[[list[Image.Image]], None]]:
    """The offline engine of vLLM, asking the case's questions."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=case.checkpoint,
        hf_overrides=paligemma.HF_OVERRIDES,
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 30,
        limit_mm_per_prompt={"image": 1},
        disable_sliding_window=True,
        **ENGINE_OPTIONS,
    )
    sampling = SamplingParams(temperature=0, max_tokens=case.questions[0].decoding.max_tokens)

    def generate(pictures: list[Image.Image]) -> None:
        for start in range(0, len(pictures), CALL):
            prompts = [
                {"prompt": question.prompt, "multi_modal_data": {"image": picture}}
                for picture in pictures[start : start + CALL]
                for question in case.questions
            ]
            llm.generate(prompts, sampling, use_tqdm=False)

    try:
        yield generate
    finally:
        # Its process is waited for when Python ends, and nobody else tells it to end.
        llm.llm_engine.engine_core.shutdown()


def decoded(source: Path) -> list[Image.Image]:
    """All pictures of the shards, in memory."""
    data = shards.open(str(source))
    return [
        Image.open(io.BytesIO(encoded)).convert("RGB")
        for table in data.read(data.row_groups, ["image"])
        for encoded in pc.struct_field(table.column("image"), "bytes").to_pylist()
    ]


def whole_job(case: Case, target: Path) -> float:
    """Pictures per second of a run, from its 2,000th picture's replies to its predictions."""
    attributes = [question.attributes[0] for question in case.questions]
    flags = {"dataset": str(case.source), "model": [case.card], "attributes": attributes}
    run(resolve({**flags, "output_dir": target}, None), _QUIET)
    ended = time.time()
    replies = storage.at(target / "replies")
    table = journal.reader(replies, journal.files(replies).names, ["created_at"]).read_all()
    times = cast("list[datetime]", table.column("created_at").to_pylist())
    made = sorted(each.timestamp() for each in times)
    warm = WARM * len(case.questions)
    return (len(made) - warm) / len(case.questions) / (ended - made[warm])


def main(case: str = "tiny-4", images: int = 8_000, rounds: int = 3) -> None:
    """Print each round, and the median ratio."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shape = CASES[case](folder, WARM + images)
        pictures = decoded(shape.source)
        with generator(shape) as generate:
            generate(pictures[:WARM])
            cluster.connect(None, 512 * 1024 * 1024, None)
            ratios = []
            for number in range(rounds):
                began = time.monotonic()
                generate(pictures[WARM:])
                bare = images / (time.monotonic() - began)
                whole = whole_job(shape, folder / f"run-{number}")
                ratios.append(whole / bare)
                print(f"round {number}: LLM.generate {bare:.0f}/s, whole job {whole:.0f}/s")
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{case}: whole job / LLM.generate = {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    typer.run(main)
