"""JPEGs that do to their decoder, wherever it runs, what a broken decoder does to its process."""

from pathlib import Path

from tests.conftest import jpeg

CRASHES = b"this picture crashes"
HANGS = b"this picture hangs"
EXHAUSTS = b"this picture exhausts memory"

# Found by every Python that starts with this file's folder on PYTHONPATH.
_SITECUSTOMIZE = f"""
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


def poisoned(opened):
    def _open(self):
        data = self.fp.read()
        self.fp.seek(0)
        if {CRASHES!r} in data:
            import ctypes
            ctypes.string_at(0)
        while {HANGS!r} in data:
            pass
        hoard = []
        while {EXHAUSTS!r} in data:
            hoard.append(bytearray(16 << 20))
        opened(self)
    return _open


class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "PIL.JpegImagePlugin":
            return None
        spec = PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.JpegImageFile._open = poisoned(module.JpegImageFile._open)
        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def environment(folder: Path) -> dict[str, str]:
    """Variables with which poison works in a process, written to a folder that stays."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return {"PYTHONPATH": str(folder)}


def poisonous(marker: bytes, seed: int = 0) -> bytes:
    """A picture that is fine but for the marker, which stands where only its decoder looks."""
    data = jpeg(seed)
    metadata = b"\xff\xe1" + (len(marker) + 2).to_bytes(2, "big") + marker
    return data[:2] + metadata + data[2:]
