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
import re
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
    return [ROOT / "install" / name for name in (*names, "lock-pip.txt")]


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


def pip_install(*arguments: str) -> str:
    """Install with pip in the environment: its complaint where it failed, else nothing."""
    # Two `-q` leave the errors: that a configured package source lacks a package is a warning,
    # for each of the 200.
    command = [str(PYTHON), "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(
        [*command, "install", "--no-deps", "--no-compile", *arguments],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    return done.stderr.strip() or "pip failed" if done.returncode else ""


def must(complaint: str) -> None:
    """End the installation where a step failed."""
    if complaint:
        sys.exit(f"{complaint}\ninstall: failed; the next `make` starts afresh")


def install_lock(lock: Path) -> str:
    """Install exactly what `lock` says; a file with another hash is refused."""
    # No dependencies are looked for: the lock is complete, and torch's builds ask for different
    # ones.
    return pip_install("--only-binary", ":all:", "--require-hashes", "-r", str(lock))


def install_torch() -> None:
    """Torch's CPU build where a package source has it, else the general one.

    Unlike every other package the CPU build is held to its version and not to a hash: it does
    not come from the general index, whose hashes the locks hold.
    """
    lock = ROOT / "install" / "lock-torch.txt"
    source = []
    if index := os.environ.get("FACESCAN_TORCH_INDEX"):
        # A machine that cannot reach it falls back at once: 0.5 s where the name is unknown.
        source = ["--index-url", index, "--retries", "0", "--timeout", "5"]
    torch, torchvision = re.findall(r"^torch(?:vision)?==[\w.]+", lock.read_text(), re.MULTILINE)
    if complaint := pip_install(*source, f"{torch}+cpu"):
        say(f"{complaint.splitlines()[-1]}; taking the CUDA build of torch, 3 GB more")
        must(install_lock(lock))
    else:
        # Where there is none, the lock brings the one for CUDA, and the workaround is needed.
        pip_install(*source, f"{torchvision}+cpu")


def compile_packages() -> None:
    """Write the bytecode of all packages where Python is told to write none.

    Left to Python, the files that vLLM imports take 13 s once; where it writes none, each process
    would take them again. All 31,000 take 72 s of CPU time, which pip spends on one core.
    """
    # It fails where any file is not of this Python's syntax, and some package has one.
    subprocess.run([PYTHON, "-m", "compileall", "-qq", "-j", "0", VENV / "lib"], check=False)


def say(line: str) -> None:
    """Tell the person who waits."""
    print(f"install: {line}", flush=True)


def install(build: str) -> None:
    """Bring `.venv` to this build; the caller stamps it."""
    if not PYTHON.exists():
        # Not sys.executable: `make` may be called from inside the environment itself.
        base = getattr(sys, "_base_executable", sys.executable)
        if subprocess.run([base, "-m", "venv", VENV], check=False).returncode:
            must("python -m venv failed; Debian and Ubuntu have it in the package python3-venv")
    must(install_lock(ROOT / "install" / "lock-pip.txt"))
    if build == "cpu":
        install_torch()
    lock = locks(build)[0]
    say(f"packages of {lock.name}, hashes checked")
    must(install_lock(lock))
    # No build isolation: it would fetch setuptools again, unlocked.
    must(pip_install("--no-build-isolation", "--editable", str(ROOT)))
    subprocess.run([PYTHON, HOOK], check=True)
    if sys.dont_write_bytecode:
        compile_packages()


def main() -> None:
    """Install what is not there; say nothing where everything is."""
    # The folder's lock keeps a second `make` out until the first is done.
    folder = os.open(ROOT / "install", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        bring_up_to_date()
    finally:
        os.close(folder)


def bring_up_to_date() -> None:
    """Compare the stamp with what it should be, and install where they differ."""
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
