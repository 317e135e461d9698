"""Lets a CUDA-built torchvision be imported beside a CPU-built torch.

A machine that reaches only the general package index gets torchvision built for CUDA. Its compiled
operators need libtorch_cuda, so beside a CPU torch they do not load, and `import torchvision` dies
with `operator torchvision::nms does not exist`. facescan, vLLM and transformers' image processors
call none of those operators; declaring their schemas before the import is enough.

It must hold in every process from interpreter start, vLLM's and Ray's own included: a vLLM plugin
is too late, because importing vLLM already imports torchvision. So

    python -m serving.torchvision_schemas

copies this file, and a `.pth` that imports it, into the site-packages of that Python. `make` does
so; someone who installs by extras runs it once. It declares nothing where the two are built alike.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder, SourceFileLoader

# Every Python of the environment runs this file at its start, which takes 10 ms without it: 14 with
# these imports, 23 with typing and collections.abc, 28 with re and pathlib. mypy reads the block.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType

NAME = "torchvision_schemas"

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# Kept for the life of the process: dropping a torch Library undeclares its schemas.
_declared: list[object] = []


def built_for_cuda(version_file: str) -> bool:
    """Whether torchvision's or torch's `version.py` names a CUDA build.

    Read, not imported: importing either's version module imports the whole package.
    """
    with open(version_file, encoding="utf-8") as file:
        return any(line.startswith("__version__") and "+cu" in line for line in file)


class _Loader(SourceFileLoader):
    """Declares the schemas when torchvision is imported, not when it is merely looked for."""

    def exec_module(self, module: ModuleType) -> None:
        import torch

        version_file = self.path.replace("__init__.py", "version.py")
        if torch.version.cuda is None and built_for_cuda(version_file):
            library = torch.library.Library("torchvision", "DEF")
            for schema in _SCHEMAS:
                library.define(schema)
            _declared.append(library)
        super().exec_module(module)


class _Finder:
    """Finds torchvision as Python would, and gives it the loader above."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path)
        return spec


def activate() -> None:
    """Stand before Python's own finders; the `.pth` calls this at interpreter start."""
    sys.meta_path.insert(0, _Finder())


def active() -> bool:
    """Whether this interpreter was started with the workaround in place."""
    return NAME in sys.modules


def needed() -> bool:
    """Whether the torchvision here is built for CUDA and the torch beside it is not."""
    found = [PathFinder.find_spec(name) for name in ("torch", "torchvision")]
    files = [
        spec.origin.replace("__init__.py", "version.py") for spec in found if spec and spec.origin
    ]
    return [built_for_cuda(file) for file in files] == [False, True]


def install(site_packages: Path) -> None:
    """Put this file and the `.pth` that activates it into `site_packages`."""
    with open(__file__, encoding="utf-8") as file:
        (site_packages / f"{NAME}.py").write_text(file.read(), encoding="utf-8")
    # The .pth comes last: without its module it would complain at every start of Python.
    pth = site_packages / f"{NAME}.pth"
    pth.write_text(f"import {NAME}; {NAME}.activate()\n", encoding="utf-8")


if __name__ == "__main__":
    import sysconfig
    from pathlib import Path

    install(Path(sysconfig.get_paths()["purelib"]))
