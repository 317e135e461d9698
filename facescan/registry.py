"""Finding things by the name of their file: no list to edit, no decorator.

A kind of thing is a package ("facescan.attributes", "serving.engines"); its members are the files
in it, `race.py` or `neutral.yaml`, and the file name is the name. A family lives in one file and
is addressed as `file.member`. `include` adds folders of the user's own, laid out by the last word
of the package: `<folder>/attributes/hat.py`, `<folder>/models/mine.yaml`.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from facescan.errors import UnknownNameError, UsageError

_included: list[Path] = []


def include(folder: Path) -> None:
    """Search `folder` too, after the names that ship; a shipped name cannot be replaced.

    Raises:
        UsageError: `folder` is not a folder.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UsageError(f"--include-path {folder}: not a folder")
    if folder not in _included:
        _included.append(folder)


@contextmanager
def including(folder: Path) -> Iterator[None]:
    """Search `folder` too, for as long as the block lasts.

    Raises:
        UsageError: `folder` is not a folder.
    """
    before = list(_included)
    include(folder)
    try:
        yield
    finally:
        _included[:] = before


def included() -> tuple[Path, ...]:
    """The folders added so far, for handing on to other processes."""
    return tuple(_included)


def files(package: str) -> dict[str, Path]:
    """Every member of a kind: name -> its file, sorted by name.

    Raises:
        UsageError: an included folder has a file with a shipped name.
    """
    kind = package.rpartition(".")[2]
    shipped = Path(importlib.import_module(package).__path__[0])
    found: dict[str, Path] = {}
    for folder in (shipped, *(root / kind for root in _included)):
        for path in sorted(folder.glob("*")):
            if path.suffix not in (".py", ".yaml") or path.stem.startswith("_"):
                continue
            if path.stem in found:
                raise UsageError(f"{path}: the name '{path.stem}' is taken by {found[path.stem]}")
            found[path.stem] = path
    return dict(sorted(found.items()))


def names(package: str) -> tuple[str, ...]:
    """The names of a kind, sorted; families count as their file."""
    return tuple(files(package))


def path(package: str, name: str) -> Path:
    """The file that carries `name`; for `family.member` the family's file.

    Raises:
        UnknownNameError: no such file; the message lists the known names.
    """
    found = files(package)
    if name in found:
        return found[name]
    family = found.get(name.partition(".")[0])
    if family is not None and family.suffix == ".py":
        return family
    raise UnknownNameError(package.rpartition(".")[2].removesuffix("s"), name, found)


def load(package: str, name: str) -> ModuleType:
    """Import the Python file that carries `name`, and nothing else of its kind.

    Raises:
        UnknownNameError: no such file.
    """
    file = path(package, name)
    if file.parent == Path(importlib.import_module(package).__path__[0]):
        return importlib.import_module(f"{package}.{file.stem}")
    module_name = f"{package}.included_{file.stem}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


def fields(file: Path) -> dict[str, Any]:
    """The `key: value` lines of a YAML file; none where it is empty.

    Raises:
        UsageError: it is not YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{file}: not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{file}: expected `key: value` lines, found {content!r}")
    return content
