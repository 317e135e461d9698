"""`facescan serve`: the online service on this machine, until Ctrl-C."""

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from facescan.errors import EngineError, EngineUnavailable, UsageError
from jobs import cluster
from jobs.stop_signals import stoppable
from serving import api_keys, front, service
from serving.service import Plan, ServiceSettings

_APP, _RAW_APP = "facescan", "facescan-raw"

RAW_PREFIX = "/raw"

OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Of bodies above 100 KB, which travel through it: as many as the front lets in at a time. Ray gets
twice as much, and pictures are never written to a disk."""

_FRONT_SECONDS = "FACESCAN_SERVICE_TIMEOUT_S"
_CHEAPER = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Each is a thread more for a request to wake; nothing of ours holds up an event loop."""

_FRONT_KEYLESS = "FACESCAN_SERVICE_KEYLESS"
_FRONT_REQUESTS = "FACESCAN_SERVICE_MAX_REQUESTS"
_FRONT_BYTES = "FACESCAN_SERVICE_MAX_BODY_BYTES"


def settings(given: Mapping[str, Any]) -> ServiceSettings:
    """The settings of a service from the flags that were given.

    Raises:
        UsageError: a value cannot be.
    """
    fewest = given.get("min_replicas", 1)
    try:
        return ServiceSettings.model_validate({"max_replicas": fewest, **given})
    except ValidationError as error:
        lines = [
            f"--{str(item['loc'][0]).replace('_', '-')}: {item['msg'][0].lower()}{item['msg'][1:]}"
            for item in error.errors(include_url=False)
        ]
        raise UsageError("\n".join(lines)) from error


def serve(
    wanted: ServiceSettings,
    console: Console,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Path | None = None,
    metrics_port: int | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM, then let what is being answered end.

    Args:
        wanted: of the service.
        console: for people.
        host: address to listen on; another than loopback needs keys.
        port: to listen on.
        keys: a file with API keys; None: those of the environment.
        metrics_port: for Prometheus, which Ray serves on all addresses; None: anywhere.

    Raises:
        UsageError: something named does not exist or does not fit, or the port is taken (exit 2).
        EngineError: the engine cannot start (exit 1).
    """
    planned = service.plan(wanted)
    if (lacking := planned.module.missing()) is not None:
        raise EngineUnavailable(
            f"model {planned.card.name}: engine {planned.card.engine} cannot run here: {lacking}"
        )
    if keys is not None:
        os.environ[api_keys.FILE] = str(keys.absolute())
    if not api_keys.read() and not front.is_loopback(host):
        raise UsageError(
            f"--host {host}: without keys the service answers this machine only; name a file with "
            f"--api-keys, or set {api_keys.FILE} or {api_keys.KEYS}"
        )
    _check_free(host, port)
    front.settings()
    _serve(wanted, planned, console, host, port, metrics_port)


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"--host {host} --port {port}: cannot listen there: {error.strerror}; name another "
                "--port"
            ) from error


def _serve(
    wanted: ServiceSettings,
    planned: Plan,
    console: Console,
    host: str,
    port: int,
    metrics_port: int | None,
) -> None:
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with (
        stoppable() as signals,
        started(wanted, host, port, signals.listen, metrics_port=metrics_port),
    ):
        try:
            answers = ", ".join(planned.catalogue.attributes)
            console.print(
                f"{planned.card.name} answers about {answers} at {where}/v1/attributes "
                "(Ctrl-C ends it)",
                highlight=False,
                soft_wrap=True,
            )
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("facescan: what is being answered is waited for", highlight=False)


@contextmanager
def started(
    wanted: ServiceSettings,
    host: str,
    port: int,
    ray_is_there: Callable[[], None] = lambda: None,
    *,
    metrics_port: int | None = None,
) -> Iterator[None]:
    """The service for as long as the block lasts; then what is being answered is waited for.

    Args:
        wanted: of the service.
        host: address to listen on.
        port: to listen on.
        ray_is_there: called once Ray runs, which takes signals for itself.
        metrics_port: for Prometheus; None: anywhere.

    Raises:
        EngineError: it cannot start.
    """
    _set_environment(wanted, host)
    replicas = wanted.max_replicas * (2 if wanted.raw else 1)
    cluster.connect(None, OBJECT_STORE_BYTES, replicas * wanted.cpus, metrics_port=metrics_port)
    ray_is_there()
    import ray
    from ray import serve as ray_serve

    said = logging.root.manager.disable
    try:
        # It says three things before it answers, which are of no use to who waits for the address.
        logging.disable(logging.WARNING)
        ray_serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        deploy(wanted)
        _check_front(host, port)
        yield
        # The proxy goes on until every replica has answered what it has.
        for name in ray_serve.status().applications:
            ray_serve.delete(name)
    finally:
        ray.shutdown()
        logging.disable(said)


def _set_environment(wanted: ServiceSettings, host: str) -> None:
    """Of Ray Serve's processes, which inherit it."""
    os.environ |= {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.app:front",
        _FRONT_KEYLESS: str(front.is_loopback(host)),
    }
    for name, value in {
        _FRONT_SECONDS: str(wanted.timeout_s),
        _FRONT_REQUESTS: str(wanted.max_replicas * (wanted.running + wanted.waiting)),
        _FRONT_BYTES: str(front.body_bytes(wanted.max_image_bytes)),
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Of the proxy, which Ray Serve gives 5 s; 4.9 were seen on a busy machine.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # Of glibc: with an arena for each thread, proxy and replica had 10 MB of freed memory each
        # after 80 s at 80/s and 16 after ten minutes, that nobody used again; with two 3 to 5.
        "MALLOC_ARENA_MAX": "2",
        **_CHEAPER,
    }.items():
        os.environ.setdefault(name, value)


def deploy(wanted: ServiceSettings) -> None:
    """Have Ray Serve run this, in the place of what it runs; returns when it answers.

    Raises:
        EngineError: it cannot start.
    """
    from ray import serve as ray_serve

    from serving import app

    args = wanted.model_dump(mode="json")
    applications = {_APP: ("/", app.build)}
    if wanted.raw:
        applications[_RAW_APP] = (RAW_PREFIX, app.build_raw)
    for name, (prefix, build) in applications.items():
        try:
            ray_serve.run(build(args), name=name, route_prefix=prefix)
        except RuntimeError as error:
            raise EngineError(f"the service cannot start: {error}") from error


def _check_front(host: str, port: int) -> None:
    """That what listens checks keys: a Ray that was started otherwise has proxies without."""
    connection = HTTPConnection(host, port, timeout=10)
    with closing(connection):
        connection.request("GET", "/health/live", headers={"Host": "localhost"})
        found = connection.getresponse().status
    if found != HTTPStatus.OK:
        raise EngineError(f"the service has no front: GET /health/live was answered by {found}")
