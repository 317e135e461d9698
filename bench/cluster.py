"""A run on a closed cluster of several Ray nodes, beside the same run on this machine alone.

    python -m bench.cluster [--images 5000] [--model fake] [--nodes 3]

The sample dataset is put on an S3-compatible server on loopback, and `facescan run` is given twice
by `ray job submit --working-dir .` to nodes that `ray start` has started with token authentication:
once undisturbed, and once while a worker node with an engine on it is killed (SIGKILL to all its
processes, as soon as replies are durable). Both must come to the rows of a run on this machine
alone, and a submission without the token, or with another, must be refused.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.kills import found
from facescan import storage

if TYPE_CHECKING:
    from tests.nodes import Node

_SECONDS = 600.0


def laptop(shards: Path, target: Path, model: str, attributes: str, replicas: int) -> float:
    """Run on this machine alone; seconds."""
    command = [sys.executable, "-m", "jobs.cli", "run", "--dataset", shards, "--model", model]
    command += ["--attributes", attributes, "--replicas", replicas, "--no-score"]
    began = time.monotonic()
    subprocess.run(
        [str(word) for word in [*command, "--output-dir", target]],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=_SECONDS,
    )
    return time.monotonic() - began


def upload(local: Path, remote: str) -> None:
    """Put the files of a folder into one of an object store."""
    for file in sorted(local.iterdir()):
        storage.at(remote).write(file.name, file.read_bytes())


def download(remote: str, local: Path) -> Path:
    """A run folder of an object store, as far as `bench.kills.found` reads it."""
    for folder in (".", "replies", "predictions"):
        place = storage.at(remote) if folder == "." else storage.at(remote).below(folder)
        (local / folder).mkdir(parents=True, exist_ok=True)
        for name in place.names():
            (local / folder / name).write_bytes(place.read(name))
    return local


def parts(remote: str) -> int:
    """Files of replies that a run has so far."""
    return sum(name.startswith("part-") for name in storage.at(remote).below("replies").names())


def with_engine(workers: list["Node"]) -> "Node | None":
    """A node that an engine runs on."""
    for node in workers:
        if any(b"EngineActor" in words for words in node.processes().values()):
            return node
    return None


def wait_for_replies(remote: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the run has durable ones.

    Raises:
        AssertionError: the job ended before.
    """
    deadline = time.monotonic() + _SECONDS
    while not parts(remote):
        assert process.poll() is None, f"the job ended before, with {process.returncode}"
        assert time.monotonic() < deadline, "no replies"
        time.sleep(0.05)


def main(
    images: int = 5_000,
    model: str = "fake",
    attributes: str = "race,gender,age,emotion",
    nodes: Annotated[int, typer.Option(help="A head and workers, of two cores each.")] = 3,
) -> None:
    """Print what was refused, the seconds of each run, and whether the rows were the same."""
    from tests.nodes import nodes as started  # moto and Ray's tools are for development only
    from tests.s3 import serving

    with tempfile.TemporaryDirectory() as made, serving() as (server, rights):
        place, remote = Path(made), f"s3://{server.bucket}"
        os.environ.update(rights)
        ingest = [sys.executable, "-m", "jobs.cli", "ingest", "sample", "--size", str(images)]
        subprocess.run([*ingest, "--output-dir", str(place / "shards")], check=True)
        upload(place / "shards", f"{remote}/shards")
        seconds = laptop(place / "shards", place / "laptop", model, attributes, nodes - 1)
        expected = found(place / "laptop")
        print(f"this machine alone: {expected['rows']} replies, {seconds:.0f} s", flush=True)
        with started(nodes, rights) as cluster:
            for token, said in (("", "without a token"), ("another", "with another token")):
                status, _ = cluster.ask("api/jobs/", {"entrypoint": "id"}, token)
                print(f"submitted {said}: {status}", flush=True)
                assert status in (401, 403), "an unauthenticated submission was taken"
            for name in ("undisturbed", "a node killed"):
                run = f"{remote}/runs/{name.split()[-1]}"
                folder = place / name
                folder.mkdir()
                (folder / "run.yaml").write_text(
                    f"dataset: {remote}/shards\noutput_dir: {run}\nmodel: [{model}]\n"
                    f"attributes: [{attributes}]\nreplicas: {nodes - 1}\nscore: false\n"
                )
                began = time.monotonic()
                process = cluster.submit(folder, "facescan", "run", "-C", "run.yaml")
                if name != "undisturbed":
                    wait_for_replies(run, process)
                    victim = with_engine(cluster.workers)
                    assert victim is not None, "all engines are on the head"
                    victim.kill()
                    print(f"a node killed when {parts(run)} files of replies were durable")
                output, _ = process.communicate(timeout=_SECONDS)
                assert process.returncode == 0, output.decode()
                same = found(download(run, folder / "run")) == expected
                print(
                    f"{name}: {time.monotonic() - began:.0f} s, rows identical: {same}", flush=True
                )
                assert same


if __name__ == "__main__":
    typer.run(main)
