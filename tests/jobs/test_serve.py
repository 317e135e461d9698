"""`facescan serve`: its messages, and the commands of docs/service.md on a real checkpoint."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from facescan.errors import FacescanError, UsageError
from jobs import cli
from jobs.serve import serve, settings
from serving import api_keys
from tests.conftest import jpeg
from tests.nodes import free_ports
from tests.serving.serving_process import serving

PAGE = Path(__file__).parents[2] / "docs" / "service.md"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (api_keys.FILE, api_keys.KEYS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "host", "says"),
    [
        ({"model": "fakee"}, "127.0.0.1", "Did you mean 'fake'"),
        ({"model": "gpt-4o"}, "127.0.0.1", "facescan run --allow-upload"),
        ({"model": "fake"}, "0.0.0.0", "--api-keys"),
        ({"model": "fake", "attributes": ["race"]}, "127.0.0.1", "--enable-sensitive"),
        ({"model": "fake", "raw": True}, "127.0.0.1", "--enable-sensitive"),
        (
            {"model": "fake", "raw": True, "enable_sensitive": True, "purpose": "a test"},
            "127.0.0.1",
            "chat models",
        ),
    ],
)
def test_what_cannot_be_served_is_told_before_ray_starts(
    given: dict[str, Any], host: str, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        serve(settings(given), Console(quiet=True), host=host, port=free_ports(1)[0])


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: cannot listen there"):
            serve(settings({"model": "fake"}), Console(quiet=True), port=port)


def test_flags_that_cannot_be_are_named() -> None:
    with pytest.raises(UsageError, match="--running: input should be greater"):
        settings({"model": "fake", "running": 0})


def test_keys_that_cannot_be_read_are_named_without_showing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(api_keys.FILE, "")
    keys = tmp_path / "keys"
    keys.write_text("too-short\n")
    with pytest.raises(UsageError, match="at least 16") as refused:
        serve(settings({"model": "fake"}), Console(quiet=True), port=free_ports(1)[0], keys=keys)
    assert "too-short" not in str(refused.value)


def test_the_command_takes_the_settings_of_a_service() -> None:
    asked = ["serve", "--model", "fake", "--attributes", "age,race", "--waiting", "3"]
    ended = CliRunner().invoke(cli.app, asked)
    assert isinstance(ended.exception, FacescanError)
    assert "race is off" in str(ended.exception)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_of_the_page_work(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    start, *asked = [line for block in blocks for line in block.splitlines()]
    (tmp_path / "face.jpg").write_bytes(jpeg(1))
    assert start.startswith("facescan serve ")
    assert len(asked) >= 4
    with serving(*start.split()[2:]) as running:
        for command in asked:
            command = command.replace("localhost:8000", f"localhost:{running.port}")
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=os.environ | {"no_proxy": "*"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, command + done.stderr
            assert done.stdout.startswith("{"), command
        scored = running.ask(jpeg(1), protocol="label-probabilities", attributes="gender").json
        assert sum(scored["answers"][0]["probabilities"].values()) == pytest.approx(1)
