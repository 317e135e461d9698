"""Makes file operations on a run folder fail, or kill their process, at a named step.

Every Python that starts with this folder on PYTHONPATH obeys the file that FACESCAN_FAULT names,
which `bench.kills.Fault` writes. Nothing of the product knows of it. Steps are `operation:file`:

    open write sync rename sync-folder mkdir delete rmdir
    part replies merged lease manifest status config predictions lock scratch folder other
"""

import errno
import fcntl
import io
import json
import os
import pathlib
import re
import signal
import sys
import threading
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

_FAULT = os.environ.get("FACESCAN_FAULT", "")
_NAMES = {
    "lease.json": "lease",
    "manifest.json": "manifest",
    "status.json": "status",
    "config.resolved.yaml": "config",
    "merged.json": "merged",
    ".lock": "lock",
}
_last = threading.local()


def _kind(where: str) -> str:
    path = pathlib.PurePath(where)
    name = path.name
    if any(part.startswith(".scratch-") for part in path.parts):
        return "scratch"
    name = re.sub(r"^\.(.*)\.[0-9a-f]{8}\.tmp$", r"\1", name)
    if name in _NAMES:
        return _NAMES[name]
    if name.startswith(("part-", "replies-")):
        return name.partition("-")[0]
    if path.parent.name == "predictions" and name.endswith(".parquet"):
        return "predictions"
    return "folder" if not path.suffix else "other"


def _path(path: Any, dir_fd: int | None = None) -> str:
    if isinstance(path, int):
        path = os.readlink(f"/proc/self/fd/{path}")
    within = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.abspath(os.path.join(within, os.fsdecode(path)))


class _Step:
    """One operation: whether the fault strikes before it, in its midst, or after it."""

    def __init__(
        self, operation: str, path: Any, dir_fd: int | None = None, kind: str | None = None
    ) -> None:
        self.at: str | None = None
        self.operation = operation
        self.path = path = _path(path, dir_fd)
        with io.FileIO(_FAULT) as file:
            self.plan = plan = json.loads(file.readall())
        if not path.startswith(plan["root"] + "/"):
            return
        name = f"{operation}:{kind or _kind(path)}"
        role = "engine" if "RAY_RAYLET_PID" in os.environ else "driver"
        with io.FileIO(plan["log"], "a+") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            log.seek(0)
            seen = log.readall().decode().splitlines()
            log.write(f"{role} {name}\n".encode())
            wanted = plan["role"] in (None, role) and re.fullmatch(plan["step"] or "x", name)
            if not wanted:
                return
            number = 1 + sum(
                1
                for line in seen
                if plan["role"] in (None, line.split()[0])
                and re.fullmatch(plan["step"], line.split()[1])
            )
            if number < plan["number"] or (number > plan["number"] and plan["once"]):
                return
            self.at = plan["at"]
            log.write(f"STRUCK {role} {name}\n".encode())

    def strike(self, at: str) -> None:
        if self.at != at:
            return
        if self.plan["errno"]:
            number = getattr(errno, self.plan["errno"])
            # As the kernel's callers do: writing and syncing know only a descriptor.
            named = self.operation not in ("write", "sync", "sync-folder", "close")
            raise OSError(number, os.strerror(number), *([self.path] if named else []))
        os.kill(os.getpid(), signal.SIGKILL)


def _wrapped(function: Any, operation: str, which: int) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        path = args[which]
        if operation == "sync" and isinstance(path, int) and os.path.isdir(_path(path)):
            inside = os.path.join(_path(path), "x")
            step = _Step("sync-folder", inside, kind=_last.__dict__.get("kind"))
        else:
            step = _Step(operation, path, kwargs.get("dir_fd"))
        if operation in ("rename", "mkdir"):
            _last.kind = _kind(_path(path))
        step.strike("before")
        result = function(*args, **kwargs)
        step.strike("after")
        return result

    return wrapper


def _opening(function: Any) -> Any:
    def wrapper(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return function(file, mode, *args, **kwargs)
        step = _Step("open", file)
        step.strike("before")
        result = function(file, mode, *args, **kwargs)
        step.strike("after")
        return result

    return wrapper


def _writing(function: Any) -> Any:
    def wrapper(self: pathlib.Path, data: bytes) -> Any:
        step = _Step("write", self)
        step.strike("before")
        if step.at == "midst":
            function(self, data[: len(data) // 2])
            step.strike("midst")
        result = function(self, data)
        step.strike("after")
        return result

    return wrapper


def _parquet(module: Any) -> None:
    written: Any = module.ParquetWriter

    class ParquetWriter(written):  # type: ignore[misc] # a base that is only known when it runs
        def __init__(self, where: Any, *args: Any, **kwargs: Any) -> None:
            self._faulty = isinstance(where, (str, os.PathLike))
            self._where = where
            self._met("open", lambda: super(ParquetWriter, self).__init__(where, *args, **kwargs))

        def write_table(self, *args: Any, **kwargs: Any) -> None:
            self._met("write", lambda: super(ParquetWriter, self).write_table(*args, **kwargs))

        def close(self) -> None:
            # Once, as the file below is closed once, whatever comes of it.
            if self.is_open and not self.__dict__.setdefault("_closing", False):
                self._closing = True
                self._met("close", super().close)

        def _met(self, operation: str, act: Any) -> None:
            if not self._faulty:
                act()
                return
            step = _Step(operation, self._where)
            step.strike("before")
            act()
            step.strike("midst")
            step.strike("after")

    module.ParquetWriter = ParquetWriter


def _sooner(name: str, value: float) -> Any:
    def change(module: Any) -> None:
        setattr(module, name, value)

    return change


_CHANGES: dict[str, Any] = {
    "pyarrow.parquet.core": _parquet,
    # So that a short run meets them.
    "facescan.run.lease": _sooner("RENEWAL", 0.5),
    "facescan.run.journal": _sooner("_SMALL_PARTS", 8),
}


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        change = _CHANGES.get(name)
        if change is None:
            return None
        spec: Any = PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            change(module)

        spec.loader.exec_module = exec_module
        found: ModuleSpec = spec
        return found


if _FAULT:
    sys.meta_path.insert(0, _Finder())
    for _name, _operation, _which in (
        ("fsync", "sync", 0),
        ("replace", "rename", 1),
        ("unlink", "delete", 0),
        ("mkdir", "mkdir", 0),
        ("rmdir", "rmdir", 0),
    ):
        _new = _wrapped(getattr(os, _name), _operation, _which)
        if getattr(os, _name) in os.supports_dir_fd:
            os.supports_dir_fd.add(_new)
        setattr(os, _name, _new)
    io.open = _opening(io.open)
    setattr(  # noqa: B010 - an assignment to a method would be a type error
        pathlib.Path, "write_bytes", _writing(pathlib.Path.write_bytes)
    )
