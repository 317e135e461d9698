"""Lets a CUDA-built torchvision be imported beside a CPU-built torch.

A machine that reaches only the general package index gets torchvision built for CUDA. Its compiled
operators need libtorch_cuda, so beside a CPU torch they do not load, and `import torchvision` dies
with `operator torchvision::nms does not exist`. facescan, vLLM and transformers' image processors
call none of those operators; declaring their schemas before the import is enough.

The installation puts this file and a `.pth` that imports it into the virtual environment, because
it must hold in every process from interpreter start, vLLM's and Ray's own included. It is inactive
where torch and torchvision are built alike.
"""

import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _is_cuda_build(folder: Path) -> bool:
    # Read, not imported: version.py imports torchvision itself.
    return re.search(r"__version__ = '[^']*\+cu", (folder / "version.py").read_text()) is not None


class _DeclareSchemas:
    """A finder that runs once, at the first import of torchvision, and then steps aside."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.origin is None:
            return None
        import torch

        if torch.version.cuda is None and _is_cuda_build(Path(spec.origin).parent):
            # Kept for the life of the process: dropping the Library undeclares its schemas.
            library = torch.library.Library("torchvision", "DEF")
            for schema in _SCHEMAS:
                library.define(schema)
            sys.modules[__name__].__dict__["library"] = library
        return spec


sys.meta_path.insert(0, _DeclareSchemas())
