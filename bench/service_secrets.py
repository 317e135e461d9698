"""Canary keys and pictures of the online service on a cluster, looked for everywhere but in it.

    python -m bench.service_secrets

The service is deployed by `serve deploy` to a Ray node that `ray start` has started, with token
authentication, dashboard and job API. Pictures that can be recognised are sent to it with and
without the key, as forms and as JSON, whole and broken, more at a time than it takes, and clients
go away. Then key, pictures and the cluster's token are looked for in what dashboard, job API and
state API tell, in all of Ray's files, and in command lines and environments of its processes.
Ends with an error where one is found.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import typer
import yaml

from serving import api_keys, app

PICTURES = 40
_SECONDS = 180.0
_PAGES = (
    *("api/serve/applications/", "api/v0/logs?node_ip=127.0.0.2", "api/grafana_health"),
    *("api/prometheus_health", "api/component_activities", "api/v0/cluster_events"),
)
"""What the dashboard tells of a service, beside what it tells of a job."""


def status(port: int, key: str | None, body: bytes, kind: str, wait_s: float = 60.0) -> int:
    """Of the answer to this request; 0: the client did not wait for it."""
    headers = {"Content-Type": kind} | ({} if key is None else {"X-API-Key": key})
    request = Request(f"http://127.0.0.1:{port}/v1/attributes", body, headers)
    try:
        with urlopen(request, timeout=wait_s) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except TimeoutError:
        return 0
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            return 0
        raise


def as_json(picture: bytes, **fields: object) -> bytes:
    """A request's body."""
    return json.dumps({"image": base64.b64encode(picture).decode(), **fields}).encode()


def ask(port: int, key: str, pictures: list[bytes]) -> Counter[int]:
    """Send everything that a log might tell of; how often each status came."""
    kind = "application/json"
    requests: list[tuple[str | None, bytes, str, float]]
    requests = [(key, as_json(picture), kind, 60.0) for picture in pictures]
    requests += [(None, as_json(pictures[0]), kind, 60.0), (key[::-1], pictures[0], kind, 60.0)]
    for picture in pictures[:8]:
        requests += [
            (key, as_json(picture[: len(picture) // 2]), kind, 60.0),
            (key, as_json(picture, attributes=["race"]), kind, 60.0),
            (key, as_json(picture, model=base64.b64encode(picture).decode()), kind, 60.0),
            (key, picture, "image/jpeg", 60.0),
            (key, as_json(picture), kind, 0.05),
        ]
    with ThreadPoolExecutor(24) as threads:
        return Counter(threads.map(lambda each: status(port, *each), requests))


def deploy(address: str, client: dict[str, str], config: Path, port: int) -> None:
    """As people do, and wait for the first answer.

    Raises:
        AssertionError: there is none.
    """
    command = [Path(sys.executable).with_name("serve"), "deploy", config, "--address", address]
    subprocess.run([str(word) for word in command], env=client, check=True)
    until = time.monotonic() + _SECONDS
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise AssertionError(f"no service: {error}") from error
        time.sleep(0.2)


def main() -> None:
    """Print what was sent and how much was searched; end with an error where something is found."""
    from tests import canaries  # what tests need is for development only
    from tests.nodes import free_ports, nodes

    pictures = [canaries.canary_picture(number) for number in range(PICTURES)]
    with tempfile.TemporaryDirectory(prefix="service-") as place:
        keys, config = Path(place) / "keys", Path(place) / "serve.yaml"
        keys.write_text(f"{canaries.KEY}\n")
        keys.chmod(0o600)
        (port,) = free_ports(1)
        service = {"model": "fake", "gpus": 0, "running": 4, "waiting": 4}
        application = {"name": "facescan", "import_path": "serving.app:build", "args": service}
        config.write_text(
            yaml.safe_dump(
                {
                    "proxy_location": "HeadOnly",
                    "http_options": {"host": "127.0.0.1", "port": port},
                    "applications": [{**application, "route_prefix": "/"}],
                }
            )
        )
        environment = {
            api_keys.FILE: str(keys),
            app.FRONT_VARIABLE: app.FRONT,
            "PYTHONPATH": os.getcwd(),
        }
        with nodes(1, environment, cpus=4) as running:
            deploy(f"http://{running.dashboard}", dict(running.client), config, port)
            print(f"statuses: {dict(sorted(ask(port, canaries.KEY, pictures).items()))}")
            told = {page: running.ask(page)[1] for page in (*canaries.PAGES, *_PAGES)}
            words = {str(pid): line for pid, line in running.processes().items()}
            environments = {
                str(pid): Path(f"/proc/{pid}/environ").read_bytes() for pid in running.processes()
            }
            files = canaries.files_below(running.files)
            del files[running.lock]
            secrets = [*canaries.canaries(pictures[0]), running.token.encode()]
    assert canaries.hits({"the request": as_json(pictures[0])}, secrets), (
        "no canary is searched for"
    )
    found = 0
    searched: dict[str, dict[str, bytes]] = {
        "dashboard, job API, state API": told,
        "Ray's files": files,
        "command lines": words,
        "environments": environments,
    }
    for name, places in searched.items():
        hits = canaries.hits(places, secrets)
        found += len(hits)
        size = sum(map(len, places.values()))
        print(f"{name}: {len(places)}, {size:,} bytes, {len(hits)} found {hits[:3]}")
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
