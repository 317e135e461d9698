"""Run and training configurations that ship with facescan."""

from itertools import takewhile
from pathlib import Path


def runs() -> dict[Path, str]:
    """Every run configuration (`facescan run -C FILE`): its file, and the first comment in it."""
    return {file: _first_comment(file) for file in sorted(Path(__file__).parent.rglob("*.yaml"))}


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("# "), lines)
    return " ".join(line.removeprefix("# ") for line in comment)
