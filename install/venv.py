"""Sets up `.venv`: what `make install` does, and every other target of the Makefile first.

Runs on nothing but Python's own library. What is installed is the lock of this machine's build
(CUDA where there is a GPU, else CPU), facescan itself as an editable install, and the torchvision
workaround. pip's own configuration and PIP_* decide where packages come from. Two variables
decide what else is left open:

    FACESCAN_BUILD=cpu|gpu    instead of looking for a GPU
    FACESCAN_TORCH_INDEX=URL  a package index asked first for the CPU builds of torch and
                              torchvision, such as PyTorch's own; one that cannot be reached
                              is given up at once
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "facescan-install.json"
HOOK = ROOT / "serving" / "torchvision_schemas.py"


def find_build() -> str:
    """`gpu` where NVIDIA's driver shows a GPU, else `cpu`."""
    asked = os.environ.get("FACESCAN_BUILD")
    if asked in ("cpu", "gpu"):
        return asked
    if asked:
        sys.exit(f"FACESCAN_BUILD={asked}: say cpu or gpu, or leave it unset")
    # Containers and WSL may lack one of the two. The tool alone proves nothing: CUDA images
    # carry it on machines without a GPU.
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return "gpu"
    tool = shutil.which("nvidia-smi")
    if tool and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0:
        return "gpu"
    return "cpu"


def locks(build: str) -> list[Path]:
    """The lock files that this build may install from."""
    names = ["lock-gpu.txt"] if build == "gpu" else ["lock-cpu.txt", "lock-torch.txt"]
    return [ROOT / "install" / name for name in names]


def wanted(build: str) -> dict[str, str]:
    """What a finished installation from these files by this Python is stamped with."""
    inputs = hashlib.sha256()
    for file in (ROOT / "pyproject.toml", Path(__file__), HOOK, *locks(build)):
        inputs.update(file.read_bytes())
    # The folder too: scripts in a virtual environment name it, so a moved one does not work.
    return {
        "environment": f"{build}, Python {sys.version} of {sys.base_prefix}, in {VENV}",
        "inputs": inputs.hexdigest(),
    }


def found() -> dict[str, str]:
    """The stamp in `.venv`; empty where there is none, or an installation was cut short."""
    if not STAMP.exists() or not PYTHON.exists():
        return {}
    stamp: dict[str, str] = json.loads(STAMP.read_text() or "{}")
    return stamp


def pip(*arguments: str, quiet: bool = False) -> bool:
    """Run pip in the environment; with `quiet` a failure is an answer, not a message."""
    # Two `-q` leave the errors: a configured package source that lacks one package is a warning,
    # for each of the 200.
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "-qq",
        "--disable-pip-version-check",
        "--no-input",
        *arguments,
    ]
    return (
        subprocess.run(
            command, check=False, stderr=subprocess.DEVNULL if quiet else None
        ).returncode
        == 0
    )


def must(succeeded: bool, what: str) -> None:
    """End the installation where a step failed; pip has said why."""
    if not succeeded:
        sys.exit(f"installation failed: {what}. The next `make` starts it afresh.")


def install_torch() -> None:
    """Torch's CPU build where a package source has it, else the general one.

    Unlike every other package the CPU build is held to its version and not to a hash: it does
    not come from the general index, whose hashes the locks hold.
    """
    lock = ROOT / "install" / "lock-torch.txt"
    pins = dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)
    source = []
    if index := os.environ.get("FACESCAN_TORCH_INDEX"):
        # A machine that cannot reach it falls back at once: 0.5 s where the name is unknown.
        source = ["--index-url", index, "--retries", "0", "--timeout", "5"]
    for package in ("torch", "torchvision"):
        version = pins[package].split()[0].rstrip("\\")
        if not pip("install", "--no-deps", *source, f"{package}=={version}+cpu", quiet=True):
            if package == "torch":
                say("no CPU build of torch is offered; taking the CUDA build (3 GB more)")
                must(pip("install", "--no-deps", "--require-hashes", "-r", str(lock)), "torch")
            return


def say(line: str) -> None:
    """Tell the person who waits."""
    print(f"install: {line}", flush=True)


def install(build: str) -> None:
    """Bring `.venv` to this build; the caller stamps it."""
    if not PYTHON.exists():
        # Not sys.executable: `make` may be called from inside the environment itself.
        base = getattr(sys, "_base_executable", sys.executable)
        made = subprocess.run([base, "-m", "venv", VENV], check=False).returncode == 0
        must(made, "python -m venv (on Debian and Ubuntu it is the package python3-venv)")
    if build == "cpu":
        install_torch()
    lock = locks(build)[0]
    say(f"packages of {lock.name}, hashes checked")
    # --no-deps: the lock is complete, and torch's builds differ in what they ask for.
    locked = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(lock)]
    must(pip("install", *locked), lock.name)
    # No build isolation: it would fetch setuptools again, unlocked.
    itself = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    must(pip("install", *itself), "facescan itself")
    hooked = subprocess.run([PYTHON, HOOK], check=False).returncode == 0
    must(hooked, "the torchvision workaround")


def main() -> None:
    """Install what is not there; say nothing where everything is."""
    # The folder's lock keeps a second `make` out until the first is done.
    folder = os.open(ROOT / "install", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    build = find_build()
    stamp = wanted(build)
    before = found()
    if before == stamp:
        return
    started = time.monotonic()
    # An installation that was cut short may hold half a package that pip takes for a whole one,
    # and the two builds of vLLM overwrite each other's files.
    cut_short = STAMP.exists() and not before
    if cut_short or before.get("environment", stamp["environment"]) != stamp["environment"]:
        say("removing .venv, made by another Python or build, or cut short")
        shutil.rmtree(VENV)
    VENV.mkdir(exist_ok=True)
    STAMP.write_text("")
    say(f"{stamp['environment'].replace(chr(10), ' ')} (2 to 5 minutes where it is new)")
    install(build)
    done = STAMP.with_suffix(".new")
    done.write_text(json.dumps(stamp))
    done.rename(STAMP)
    say(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
