"""A hosted run against vLLM's own server beside a bare script of asyncio and openai: rows a second.

    python -m bench.hosted_vllm [--pictures 250] [--rounds 5] [--connections 32] [--shared]

Both sides send the same requests, four questions a picture, to one server of vLLM with the
tiny-llava that ships with facescan, and may make as many calls at a time. They alternate. The
server's caches of pictures and prompts are off: the second to ask would be faster. The script makes
all its requests before its clock starts; a run reads, decodes and encodes each picture as it comes.

The server has one half of the cores to itself and whoever asks the other, as a server elsewhere has
a machine to itself. With --shared all have all cores: then a second of a run's processor is
a second that the server lacks, which says how much a run needs rather than how fast it is.

What is timed is from the beginning of the first call to the end of the last answer: of a run by the
times in its replies. Its start (Ray, the engine's process) and its end are not in that. By
Little's law the seconds that the server says it has spent on calls, as a part of those, are how
many calls were with it at a time.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Annotated, Any
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow.parquet as pq
import typer

from facescan import images, models, prompt, protocols, shards
from facescan.decoding import DecodePool
from facescan.errors import BadImage
from facescan.types import request_id
from serving import chat_request
from serving.engines import hosted
from serving.tokens import HostedOptions

NAME = "tiny-llava"
PROTOCOL = "neutral"
SECONDS_TO_START = 300.0


@contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """What is started in here runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def vllm_server(log: Path, cores: set[int]) -> Iterator[str]:
    """The OpenAI server of vLLM with tiny-llava on some of this machine's cores; its address."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(models.__file__).parent / NAME
    # Not `vllm serve`: the CPU build's does not find its own version.
    words: list[object] = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    words += ["--model", folder, "--served-model-name", NAME]
    words += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager"]
    words += ["--max-model-len", 1024, "--limit-mm-per-prompt", '{"image": 1}']
    words += ["--no-enable-prefix-caching", "--mm-processor-cache-gb", 0]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    quiet["OMP_NUM_THREADS"] = str(len(cores))
    with log.open("wb") as output, _on(cores):
        process = subprocess.Popen(
            list(map(str, words)), stdout=output, stderr=output, env=os.environ | quiet
        )
    with process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            with urlopen(address, timeout=5):
                return
        except URLError:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(0.5)


def seconds_of_calls(address: str) -> float:
    """What the server has spent on its calls so far, all together."""
    name = 'http_request_duration_seconds_sum{handler="/v1/chat/completions"'
    with urlopen(address.removesuffix("/v1") + "/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def bodies(data: str, address: str) -> dict[str, dict[str, Any]]:
    """What a run sends about the pictures of some shards, by request."""
    card = hosted.with_account(
        models.load(f"{hosted.NAME}:{NAME}"),
        base_url=address,
        rpm=None,
        tpm=None,
        connections=None,
    )
    options = card.options(HostedOptions)
    questions = prompt.questions(
        card, protocols.load(PROTOCOL), card.attributes, hosted.preprocessing(card)
    )
    opened = shards.open(data, None)
    decoders = DecodePool(1)
    made = {}
    try:
        for table in opened.read(opened.row_groups, ["image", "image_sha256"]):
            for row in table.to_pylist():
                encoded = images.check(row["image"]["bytes"], row["image_sha256"], images.Limits())
                (pixels,) = decoders.decode([encoded]).result()
                assert not isinstance(pixels, BadImage)
                uri, _ = chat_request.picture(pixels, options.image)
                for question in questions:
                    key = request_id(question.identity, encoded.sha256)
                    made[key] = chat_request.body(options, NAME, question, uri)
    finally:
        decoders.close()
    return made


async def bare(
    address: str, requests: dict[str, dict[str, Any]], connections: int
) -> tuple[dict[str, str | None], float]:
    """What anybody would write; the answers, and the seconds they took."""
    from openai import AsyncOpenAI

    seats = asyncio.Semaphore(connections)
    answers = {}
    async with AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:

        async def ask(key: str, body: dict[str, Any]) -> None:
            async with seats:
                completion = await client.chat.completions.create(**body)
            answers[key] = completion.choices[0].message.content

        began = time.monotonic()
        await asyncio.gather(*(ask(key, body) for key, body in requests.items()))
        seconds = time.monotonic() - began
    return answers, seconds


def bare_run(address: str, data: str, connections: int) -> tuple[dict[str, str | None], float]:
    """`bare` in a process of its own."""
    command = [sys.executable, "-m", "bench.hosted_vllm", "--bare", address, "--data", data]
    command += ["--connections", str(connections)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    answers, seconds = json.loads(said)
    return answers, seconds


def facescan_run(
    address: str, data: str, connections: int, place: Path
) -> tuple[dict[str, str | None], float]:
    """`facescan run`; its answers, and the seconds as of `bare`."""
    command = [sys.executable, "-m", "jobs.cli", "run", "--dataset", data]
    command += ["--model", f"{hosted.NAME}:{NAME}", "--model-base-url", address]
    command += ["--protocol", PROTOCOL, "--attributes", "race,gender,age,emotion"]
    command += ["--allow-upload", "--allow-unknown-price", "--no-score"]
    command += ["--max-connections", str(connections), "--output-dir", str(place)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [
        row
        for file in (place / "replies").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    ]
    failed = [row["error"] for row in rows if row["error_kind"] is not None]
    assert not failed, failed[:3]
    began = min(row["created_at"].timestamp() - row["latency_s"] for row in rows)
    ended = max(row["created_at"].timestamp() for row in rows)
    return {row["request_id"]: row["raw_response"] for row in rows}, ended - began


def compare(pictures: int, rounds: int, connections: int, shared: bool) -> list[float]:
    """Print the rates of each round; the ratios, the run's to the script's.

    Raises:
        AssertionError: a run's answers are not those of the script.
    """
    ratios = []
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        data = str(place / "shards")
        draw = [sys.executable, "-m", "jobs.cli", "ingest", "sample", "--size", str(pictures)]
        subprocess.run([*draw, "--output-dir", data], check=True, stdout=subprocess.DEVNULL)
        cores = sorted(os.sched_getaffinity(0))
        half = len(cores) if shared else len(cores) // 2
        with vllm_server(place / "log", set(cores[:half])) as address, _on(set(cores[-half:])):
            bare_run(address, data, connections)  # the first answers of a server are slow
            for number in range(rounds):
                before = seconds_of_calls(address)
                theirs, bare_s = bare_run(address, data, connections)
                between = seconds_of_calls(address)
                ours, run_s = facescan_run(address, data, connections, place / f"run-{number}")
                at_once = (seconds_of_calls(address) - between) / run_s
                assert ours.keys() == theirs.keys(), "other requests than the run's"
                same = sum(ours[key] == theirs[key] for key in ours)
                ratios.append(bare_s / run_s)
                print(
                    f"{len(ours)} rows: run {len(ours) / run_s:.1f}/s, {at_once:.1f} calls at a "
                    f"time; script {len(ours) / bare_s:.1f}/s, {(between - before) / bare_s:.1f}: "
                    f"{ratios[-1]:.2f}; {same} answers the same",
                    flush=True,
                )
                assert same == len(ours), "other answers"
    return ratios


def main(
    pictures: int = 250,
    rounds: int = 5,
    connections: int = 32,
    shared: Annotated[bool, typer.Option("--shared")] = False,
    bare_at: Annotated[str | None, typer.Option("--bare", hidden=True)] = None,
    data: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print a line for each round, and the median."""
    if bare_at is not None:
        print(json.dumps(asyncio.run(bare(bare_at, bodies(data, bare_at), connections))))
        return
    ratios = compare(pictures, rounds, connections, shared)
    print(f"median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    typer.run(main)
