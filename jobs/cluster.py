"""Joining or starting Ray, and how many engines fit on what it has."""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.autoscaler.sdk import request_resources

from facescan.errors import UsageError
from facescan.models import ModelCard

_NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}


_ANSWER_SECONDS = 5.0

_NODE_SECONDS = 1_200.0
"""For the first node with GPUs: to be found by the provider, started and set up."""

_SECONDS_BETWEEN_LOOKS = 1.0


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


def connect(
    address: str | None,
    object_store_bytes: int,
    replicas: int | None,
    *,
    metrics_port: int | None = None,
) -> None:
    """Join the cluster at `address`; without one start a Ray of our own.

    Inside a submitted Ray job the job's cluster is joined. Elsewhere no cluster is joined by
    accident: Ray's own default would take any that RAY_ADDRESS or a file of its names.

    Args:
        address: `host:port`, or None.
        object_store_bytes: of what is done here; a Ray of our own gets twice as many, of which it
            would begin to write to disk at 80 %.
        replicas: engines, where they are known.
        metrics_port: where a Ray of our own publishes its metrics, on all addresses of the machine;
            None: anywhere.

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
            _metrics_export_port=metrics_port,
            **quiet,
        )
        return
    try:
        ray.init(address=address or "auto", runtime_env={"env_vars": _NO_TELEMETRY}, **quiet)
    except ConnectionError as error:
        raise UsageError(f"--ray-address {address}: no Ray cluster answers: {error}") from error


def share(card: ModelCard, replicas: int | None, gpus_of_each: int | None = None) -> Share:
    """How many engines of this model run, and what each gets, on the cluster joined.

    Args:
        card: of the model.
        replicas: None for as many as the GPUs allow.
        gpus_of_each: given where the cluster may have to start nodes for the engines. Returns
            when the first is there; the other engines start as their nodes come.

    Raises:
        UsageError: the cluster has not the GPUs or the cores for it.
    """
    if gpus_of_each is not None:
        return _share_of_nodes_to_come(card, replicas, gpus_of_each)
    nodes = _nodes()
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
            f"tensor_parallel_size, or give --gpus {gpus} where the cluster starts nodes by itself"
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


def _share_of_nodes_to_come(card: ModelCard, replicas: int | None, gpus: int) -> Share:
    _wait_for_gpus(card, replicas or 1, gpus)
    hosts = [node for node in _nodes() if node.get("GPU", 0) >= gpus]
    places = [int(node["GPU"]) // gpus for node in hosts]
    cores = min(int(node.get("CPU", 0)) for node in hosts)
    return Share(replicas or sum(places), gpus, max(1, (cores - 1) // max(places)))


def _nodes() -> list[dict[str, float]]:
    """What each node that is there has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _wait_for_gpus(card: ModelCard, replicas: int, gpus: int) -> None:
    """Ask the cluster's autoscaler for nodes, and return when the first is there.

    Raises:
        UsageError: none came; the cluster starts no nodes, or none with so many GPUs.
    """
    until = time.monotonic() + _NODE_SECONDS
    request_resources(bundles=[{"CPU": 1, "GPU": gpus}] * replicas)
    try:
        while not any(node.get("GPU", 0) >= gpus for node in _nodes()):
            if time.monotonic() > until:
                raise UsageError(
                    f"model {card.name}: no node with {gpus} GPUs came within "
                    f"{_NODE_SECONDS / 60:.0f} minutes; `ray status` on the cluster says why, and "
                    "without --gpus a run takes the nodes that are there"
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        # What is asked for so is kept for ever; the engines ask for their nodes themselves.
        request_resources(bundles=[])


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
