"""Joining or starting Ray, and how many engines fit on what it has."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from facescan.errors import UsageError
from facescan.models import ModelCard

_NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}


_ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Share:
    """What engines of one model get.

    Attributes:
        replicas: engine actors.
        gpus: of each.
        cpus: threads each may keep busy.
    """

    replicas: int
    gpus: int
    cpus: int


def check(address: str) -> None:
    """Find out within seconds that nothing listens at `host:port`; Ray itself tries for minutes.

    Raises:
        UsageError: nothing does.
    """
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if not colon:
        return  # "auto": Ray looks for a cluster of this machine, and says at once if there is none
    try:
        with socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS):
            return
    except (OSError, ValueError) as error:
        raise UsageError(f"--ray-address {address}: no Ray cluster answers: {error}") from error


def is_own(address: str | None) -> bool:
    """Whether a run starts a Ray of its own: no address is given, and it is no Ray job."""
    return address is None and RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ


def connect(address: str | None, object_store_bytes: int, replicas: int | None) -> None:
    """Join the cluster at `address`; without one start a Ray of our own.

    Inside a submitted Ray job the job's cluster is joined. Elsewhere no cluster is joined by
    accident: Ray's own default would take any that RAY_ADDRESS or a file of its names.

    Ray makes SIGTERM end the process; whoever wants it otherwise says so again afterwards.

    Raises:
        UsageError: no cluster answers.
    """
    if ray.is_initialized():
        return
    os.environ.update(_NO_TELEMETRY)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if is_own(address):
        # One logical CPU beyond the engines', for reading: it waits for disks more than it works.
        cpus = max(os.cpu_count() or 1, replicas or 1) + 1
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=2 * object_store_bytes,
            **quiet,
        )
        return
    try:
        ray.init(address=address or "auto", runtime_env={"env_vars": _NO_TELEMETRY}, **quiet)
    except ConnectionError as error:
        raise UsageError(f"--ray-address {address}: no Ray cluster answers: {error}") from error


def share(card: ModelCard, replicas: int | None) -> Share:
    """How many engines of this model run, and what each gets, on the cluster joined.

    Raises:
        UsageError: the cluster has not the GPUs or the cores for it.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    available = sum(int(node.get("GPU", 0)) for node in nodes)
    gpus = card.gpus if card.gpus is not None else (card.tensor_parallel_size if available else 0)
    # The GPUs of one engine are on one node.
    places = sum(int(node.get("GPU", 0)) // gpus for node in nodes) if gpus else None
    if replicas is None:
        replicas = 1 if places is None else max(1, places)
    if places is not None and replicas > places:
        raise UsageError(
            f"model {card.name}: {replicas} engines of {gpus} GPUs each, but the cluster has "
            f"{available} GPUs and room for {places}; lower --replicas or the card's "
            "tensor_parallel_size"
        )
    cores = sum(int(node.get("CPU", 0)) for node in nodes)
    if replicas >= cores:
        raise UsageError(
            f"model {card.name}: {replicas} engines need a core each and one for reading, but the "
            f"cluster has {cores}; lower --replicas"
        )
    hosts = [int(node.get("CPU", 0)) for node in nodes if int(node.get("GPU", 0)) >= gpus]
    each = -(-replicas // len(hosts))
    # One core of a node is left for reading, as in a Ray of our own.
    return Share(replicas, gpus, max(1, (min(hosts) - 1) // each))


@contextmanager
def native_messages_to(log: Path) -> Iterator[None]:
    """Send what compiled code prints to stderr to a file; Python's own messages stay visible.

    Ray's core prints an error about every actor pool of Ray Data that may be restarted, which
    here means nothing (ray issue 53727); it has no level of its own to switch off.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    terminal = os.dup(2)
    python_stderr = sys.stderr
    try:
        with log.open("ab") as file, os.fdopen(terminal, "w", closefd=False) as visible:
            os.dup2(file.fileno(), 2)
            sys.stderr = visible
            yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        sys.stderr = python_stderr
