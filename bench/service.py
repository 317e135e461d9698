"""What the online service holds: overload, overhead, chaos, rolling updates, disconnects, time.

    python -m bench.service --part overhead      the service beside the bare engine, 100 requests/s
    python -m bench.service --part overload      three times what it can do, after what it can do
    python -m bench.service --part scaling       more than one replica can do, where two may be
    python -m bench.service --part chaos         two replicas, one killed every 20 s for 5 minutes
    python -m bench.service --part rolling       new versions under load
    python -m bench.service --part disconnects   1,000 clients that go away
    python -m bench.service --part soak          half of what it can do for an hour (--seconds)
    python -m bench.service --part openai        OpenAI's client, `vllm bench serve`, a tiny model

The service is Ray Serve's real one, with the fake engine, on loopback. Load comes from a process
of its own, open loop: a request is sent when it is due, however late the answers before it are, and
its time counts from when it was due. Everything shares the machine.
"""

import asyncio
import base64
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from bench.pictures import jpeg
from facescan import registry
from facescan.models import Checkpoint
from serving.service import Service, ServiceSettings

_PICTURES = [jpeg(number) for number in range(32)]
_BOUNDARY = "bench"
_PAUSE_S = 3.0
"""After a start, before anything is counted."""

_MODEL = """
description: Answers after {latency_ms} ms.
engine: fake
protocol: neutral
attributes: [gender, age]
engine_options: {{latency_ms: {latency_ms}}}
gpus: 0
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: seconds from the start when it was due, its status (0: no answer), seconds."""

    due: float
    status: int
    seconds: float


def quantiles(values: Sequence[float]) -> str:
    """In milliseconds."""
    if len(values) < 2:
        return "too few"
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return ", ".join(f"p{p} {1000 * cuts[p - 1]:.1f}" for p in (50, 95, 99)) + " ms"


async def open_loop(
    rate: float, seconds: float, one: Callable[[int], Awaitable[int]]
) -> list[Sent]:
    """Begin a request each 1/rate seconds; `one` gives its status."""
    sent: list[Sent] = []
    started = time.monotonic()

    async def send(number: int, due: float) -> None:
        status = await one(number)
        sent.append(Sent(due, status, time.monotonic() - started - due))

    tasks: set[asyncio.Task[None]] = set()
    for number in range(int(rate * seconds)):
        due = number / rate
        await asyncio.sleep(max(0.0, started + due - time.monotonic()))
        task = asyncio.create_task(send(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return sent


def _form(image: bytes) -> tuple[dict[str, str], bytes]:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}, body


async def _over_http(port: int, rate: float, seconds: float, retries: int) -> list[Sent]:
    bodies = [_form(image) for image in _PICTURES]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def once(number: int) -> int:
            headers, body = bodies[number % len(bodies)]
            try:
                async with session.post(
                    f"http://127.0.0.1:{port}/v1/attributes",
                    data=body,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=60),
                ) as response:
                    await response.read()
                    return response.status
            except (aiohttp.ClientError, TimeoutError, OSError):
                return 0

        async def one(number: int) -> int:
            status = await once(number)
            for _ in range(retries):
                if status in (0, 500, 502, 503):
                    await asyncio.sleep(1)
                    status = await once(number)
            return status

        return await open_loop(rate, seconds, one)


class Load:
    """A process that asks; `sent` waits for its end."""

    def __init__(self, port: int, rate: float, seconds: float, retries: int = 0) -> None:
        asked = json.dumps([port, rate, seconds, retries])
        # A file: of a pipe nobody would read while it is waited for.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.service", "--load", asked], stdout=self._said
        )

    def sent(self) -> list[Sent]:
        """What came of it; waits for its end."""
        if self._process.wait():
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        with self._said:
            self._said.seek(0)
            return [Sent(*each) for each in json.load(self._said)]

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None


@contextmanager
def service(latency_ms: float = 0.0, **settings: Any) -> Iterator[tuple[int, ServiceSettings]]:
    """The service in a Ray of this process; its port and settings."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        models.mkdir()
        models.joinpath("bench-fake.yaml").write_text(_MODEL.format(latency_ms=latency_ms))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        wanted = ServiceSettings.model_validate(
            {"model": "bench-fake", "include_path": [folder], **settings}
        )
        from jobs import serve

        with registry.including(Path(folder)), serve.started(wanted, "127.0.0.1", port):
            time.sleep(_PAUSE_S)
            yield port, wanted


def _children() -> dict[int, str]:
    """All processes below this one: number and title."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                titles[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(status[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: titles[pid] for pid in found}


def _of_service(title: str) -> dict[int, str]:
    return {pid: name for pid, name in _children().items() if title in name}


_KEPT = ("ray::ServeReplica", "ray::ProxyActor")
"""The processes through which requests go."""


def _memories_mb() -> dict[str, float]:
    """Of memory that is their own, by kind of process.

    Pages of files are left out: as other Python processes came and went, and shared more or fewer
    of them, the two had 15 MB of PSS more after six minutes in which they kept nothing.
    """
    found = dict.fromkeys(_KEPT, 0.0)
    for pid, name in _children().items():
        for title in _KEPT:
            if title in name:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                sizes = dict(line.split()[:2] for line in text.splitlines()[1:])
                found[title] += (int(sizes["Pss_Anon:"]) + int(sizes["Pss_Shmem:"])) / 1024
    return found


def _files() -> int:
    return sum(
        len(list(Path(f"/proc/{pid}/fd").iterdir()))
        for title in _KEPT
        for pid in _of_service(title)
    )


def _ready(port: int) -> dict[str, Any]:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def overhead(rate: float, seconds: float) -> None:
    """The service beside the bare engine, both with one process for decoding."""
    wanted = ServiceSettings(model="fake")
    bare_service = Service(wanted)
    questions = bare_service.catalogue.questions(None, None)

    async def bare() -> list[Sent]:
        async def one(number: int) -> int:
            image = await bare_service.checked(_PICTURES[number % len(_PICTURES)])
            await bare_service.answer(image, questions)
            return 200

        await open_loop(rate, 3, one)
        return await open_loop(rate, seconds, one)

    alone = [each.seconds for each in asyncio.run(bare())]
    asyncio.run(bare_service.close())
    print(f"bare engine, check and decoding: {quantiles(alone)}", flush=True)
    with service() as (port, _):
        Load(port, rate, 5).sent()
        sent = Load(port, rate, seconds).sent()
    through = [each.seconds for each in sent]
    print(f"through the service:             {quantiles(through)}; {_statuses(sent)}")
    cuts = [statistics.quantiles(each, n=100, method="inclusive") for each in (alone, through)]
    added = [1000 * (cuts[1][p - 1] - cuts[0][p - 1]) for p in (50, 95, 99)]
    print("added: p50 {:.1f}, p95 {:.1f}, p99 {:.1f} ms".format(*added))


def _statuses(sent: Sequence[Sent]) -> str:
    return ", ".join(
        f"{count:,} x {status}"
        for status, count in sorted(Counter(each.status for each in sent).items())
    )


def _goodput(sent: Sequence[Sent], seconds: float) -> float:
    return sum(each.status == 200 for each in sent) / seconds


def overload(latency_ms: float, seconds: float) -> None:
    """Peak, then three times as much, then less than it can do."""
    with service(latency_ms, running=4, waiting=8) as (port, wanted):
        capacity = wanted.running / (latency_ms / 1000)
        Load(port, capacity / 2, 10).sent()
        peak = max(
            _goodput(Load(port, factor * capacity, 15).sent(), 15) for factor in (0.9, 1.0, 1.2)
        )
        before = sum(_memories_mb().values())
        sent = Load(port, 3 * capacity, seconds).sent()
        ended = time.monotonic()
        after = sum(_memories_mb().values())
        recovered: float | None = None
        while time.monotonic() - ended < 30:
            second = Load(port, 0.8 * capacity, 1).sent()
            if all(each.status == 200 for each in second):
                recovered = time.monotonic() - ended
                break
    refused = [each.seconds for each in sent if each.status == 429]
    answered = [each.seconds for each in sent if each.status == 200]
    good = _goodput(sent, seconds)
    print(f"4 at a time of {latency_ms:g} ms: peak {peak:.1f}/s of {capacity:g}/s")
    print(
        f"at {3 * capacity:g}/s for {seconds:g} s: {good:.1f}/s, {100 * good / peak:.0f} % of "
        f"peak; {_statuses(sent)}"
    )
    print(f"refused: {quantiles(refused)}; answered: {quantiles(answered)}")
    print(
        f"memory of replica and proxy: {before:.0f} -> {after:.0f} MB "
        f"({100 * (after / before - 1):+.1f} %)"
    )
    print(
        "a second without refusals at 0.8 of it: "
        + ("none in 30 s" if recovered is None else f"{recovered:.1f} s after the end")
    )


def scaling(latency_ms: float, seconds: float) -> None:
    """One and a half times what one replica can do, where there may be two."""
    with service(latency_ms, running=4, waiting=8, max_replicas=2) as (port, wanted):
        rate = 1.5 * wanted.running / (latency_ms / 1000)
        before = len(_of_service("ray::ServeReplica:facescan"))
        load = Load(port, rate, seconds)
        started = time.monotonic()
        second: float | None = None
        while not load.over:
            time.sleep(0.2)
            if second is None and len(_of_service("ray::ServeReplica:facescan")) > before:
                second = time.monotonic() - started
        sent = load.sent()
    later = [each for each in sent if each.due > seconds / 2]
    said = (
        "no second one came" if second is None else f"a second one's process after {second:.1f} s"
    )
    print(f"{rate:g}/s for {seconds:g} s at {before} replica: {said}; {_statuses(sent)}")
    print(f"second half: {_statuses(later)}; {quantiles([each.seconds for each in later])}")


def chaos(rate: float, seconds: float, every: float) -> None:
    """Two replicas, one killed now and then, asked by clients that try once more or not at all."""
    for retries in (1, 0):
        with service(20, min_replicas=2, max_replicas=2) as (port, _):
            load = Load(port, rate, seconds, retries)
            killed: list[float] = []
            due = time.monotonic() + every / 2
            while not load.over:
                time.sleep(0.2)
                if time.monotonic() >= due:
                    replicas = sorted(_of_service("ray::ServeReplica:facescan"))
                    if len(replicas) == 2:
                        os.kill(replicas[len(killed) % 2], signal.SIGKILL)
                        killed.append(time.monotonic())
                    due += every
            sent = load.sent()
        good = sum(each.status == 200 for each in sent)
        print(
            f"{retries} retries, {len(killed)} kills in {seconds:g} s at {rate:g}/s: "
            f"{100 * good / len(sent):.3f} % of {len(sent):,}; {_statuses(sent)}",
            flush=True,
        )


def rolling(rate: float, updates: int) -> None:
    """New versions of the application while it is asked; each may take no longer than the front."""
    with service(20, min_replicas=2, max_replicas=2) as (port, wanted):
        from jobs import serve

        load = Load(port, rate, 15.0 * updates)
        for number in range(updates):
            time.sleep(3)
            serve.deploy(wanted.model_copy(update={"timeout_s": 59.0 - number}))
        sent = load.sent()
    print(
        f"{updates} updates under {rate:g}/s: {_statuses(sent)}; "
        f"{quantiles([each.seconds for each in sent])}"
    )


def disconnects(count: int) -> None:
    """Clients that go away while they are answered."""
    with service(2000, running=100, waiting=100) as (port, _):
        headers, body = _form(_PICTURES[0])
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        message = (
            f"POST /v1/attributes HTTP/1.1\r\nHost: localhost\r\n{head}"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

        async def leave(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            # A third of them leave within the upload.
            writer.write(message if number % 3 else message[: len(message) // 2])
            await writer.drain()
            # The others leave while they wait, or at once.
            await asyncio.sleep(0.3 if number % 2 else 0)
            writer.close()

        async def many() -> None:
            for start in range(0, count, 50):
                await asyncio.gather(*(leave(start + each) for each in range(50)))

        # What is made once is made now.
        asyncio.run(leave(1))
        before, files = _ready(port), _files()
        asyncio.run(many())
        left = time.monotonic()
        while (after := _ready(port))["requests"] and time.monotonic() - left < 10:
            time.sleep(0.05)
        freed = time.monotonic() - left
        time.sleep(2)
        after = _ready(port)
        print(f"{count} disconnects: {before} -> {after}, places free {freed:.1f} s after the last")
        print(f"open files of replica and proxy: {files} -> {_files()}")


def soak(latency_ms: float, seconds: float) -> None:
    """Half of what it can do; memory's slope after the first tenth and of the second half."""
    with service(latency_ms, running=4, waiting=8) as (port, wanted):
        rate = wanted.running / (latency_ms / 1000) / 2
        load = Load(port, rate, seconds)
        started = time.monotonic()
        points: list[tuple[float, dict[str, float], int]] = []
        while not load.over:
            time.sleep(min(10.0, seconds / 30))
            before = points[-1][0] if points else 0.0
            points.append((time.monotonic() - started, _memories_mb(), _files()))
            past, memory, files = points[-1]
            if past * 10 // seconds > before * 10 // seconds:
                each = ", ".join(f"{title} {of_it:.1f}" for title, of_it in memory.items())
                total = sum(memory.values())
                print(f"{past:6.0f} s: {total:.1f} MB ({each}), {files} files", flush=True)
        sent = load.sent()
    print(f"{seconds:g} s at {rate:g}/s: {_statuses(sent)}; {quantiles([e.seconds for e in sent])}")
    for name, start in (("after the first tenth", 0.1), ("second half", 0.5)):
        kept = [point for point in points if start * seconds < point[0] <= seconds]
        hours = [point[0] / 3600 for point in kept]
        megabytes = [sum(point[1].values()) for point in kept]
        slope = statistics.linear_regression(hours, megabytes).slope / statistics.mean(megabytes)
        print(
            f"{name}: memory {megabytes[0]:.1f} -> {megabytes[-1]:.1f} MB, slope "
            f"{100 * slope:+.2f} %/h; files {kept[0][2]} -> {kept[-1][2]}"
        )


def openai_client() -> None:
    """OpenAI's client and `vllm bench serve`, as they are, against a tiny model served raw."""
    import openai

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    from facescan import models
    from jobs import serve

    wanted = ServiceSettings(
        model="tiny-llava", enable_sensitive=True, purpose="bench", raw=True, timeout_s=120
    )
    with serve.started(wanted, "127.0.0.1", port):
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}{serve.RAW_PREFIX}/v1", api_key="-"
        )
        print("models:", [each.id for each in client.models.list()])
        url = f"data:image/jpeg;base64,{base64.b64encode(_PICTURES[0]).decode()}"
        question = "What is the gender of the main person in the image?"
        content: Any = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ]
        said = client.chat.completions.create(
            model="tiny-llava", max_tokens=8, messages=[{"role": "user", "content": content}]
        )
        print("chat:", said.choices[0].message.content)
        checkpoint = models.load("tiny-llava").checkpoint
        assert isinstance(checkpoint, Checkpoint)
        # The command `vllm` looks for a package of that name, which the CPU build is not.
        code = (
            "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
            "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"
        )
        subprocess.run(
            [
                *(sys.executable, "-c", code, "--backend", "openai-chat"),
                *("--base-url", f"http://127.0.0.1:{port}{serve.RAW_PREFIX}"),
                *("--endpoint", "/v1/chat/completions", "--model", "tiny-llava"),
                *("--tokenizer", checkpoint.path, "--dataset-name", "random-mm"),
                *("--random-mm-base-items-per-request", "1"),
                *("--random-mm-bucket-config", "{(64, 64, 1): 1.0}"),
                *("--random-mm-limit-mm-per-prompt", '{"image": 1, "video": 0}'),
                *("--random-input-len", "16", "--random-output-len", "8"),
                *("--num-prompts", "50", "--request-rate", "5"),
            ],
            check=True,
        )


def main(
    part: Annotated[str, typer.Option(help="See above.")] = "overhead",
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 0.0,
    seconds: Annotated[float, typer.Option(help="Of load.")] = 0.0,
    latency_ms: Annotated[float, typer.Option(help="Of the fake engine.")] = 100.0,
    count: Annotated[int, typer.Option(help="Disconnects, or updates.")] = 0,
    load: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print one part."""
    if load is not None:
        port, at, during, retries = json.loads(load)
        sent = asyncio.run(_over_http(port, at, during, retries))
        print(json.dumps([[each.due, each.status, each.seconds] for each in sent]))
        return
    parts: dict[str, Callable[[], None]] = {
        "overhead": lambda: overhead(rate or 100, seconds or 30),
        "overload": lambda: overload(latency_ms, seconds or 60),
        "scaling": lambda: scaling(latency_ms, seconds or 90),
        "chaos": lambda: chaos(rate or 50, seconds or 300, 20),
        "rolling": lambda: rolling(rate or 50, count or 10),
        "disconnects": lambda: disconnects(count or 1000),
        "soak": lambda: soak(latency_ms, seconds or 3600),
        "openai": openai_client,
    }
    if part not in parts:
        raise typer.BadParameter(f"one of {', '.join(parts)}", param_hint="--part")
    parts[part]()


if __name__ == "__main__":
    typer.run(main)
