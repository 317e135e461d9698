"""The places inside a run folder."""

from dataclasses import dataclass
from pathlib import Path

from facescan.errors import UsageError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder; the layout is part of what users and other tools rely on."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, without secrets."""
        return self.root / "config.resolved.yaml"

    @property
    def manifest(self) -> Path:
        """What was asked of whom, on what data; its presence makes the folder a run."""
        return self.root / "manifest.json"

    @property
    def status(self) -> Path:
        """How far the run is."""
        return self.root / "status.json"

    @property
    def replies(self) -> Path:
        """Folder of `*.parquet`: what models answered, never altered."""
        return self.root / "replies"

    @property
    def predictions(self) -> Path:
        """Folder of `*.parquet`: what the replies say; can be rebuilt at any time."""
        return self.root / "predictions"

    @property
    def shards(self) -> Path:
        """Shards of a generated dataset (`--dataset sample`); absent for other datasets."""
        return self.root / "shards"

    @property
    def logs(self) -> Path:
        """Folder of what the processes of a run had to say."""
        return self.root / "logs"

    @property
    def is_run(self) -> bool:
        """Whether a run was begun here."""
        return self.manifest.is_file()


def existing(root: Path) -> RunFolder:
    """The run in `root`.

    Raises:
        UsageError: there is none.
    """
    folder = RunFolder(root)
    if not folder.is_run:
        raise UsageError(
            f"{root}: not a run folder: it has no manifest.json. "
            "Start one with `facescan run ... --output-dir`."
        )
    return folder


def startable(root: Path) -> RunFolder:
    """A place where a run can begin or go on: a run, an empty folder, or nothing yet.

    Raises:
        UsageError: something else is there.
    """
    folder = RunFolder(root)
    if root.exists() and not root.is_dir():
        raise UsageError(f"--output-dir {root}: a file is there; give a folder")
    # A run that was stopped while its sample was drawn has nothing but shards.
    others = root.is_dir() and {path.name for path in root.iterdir()} - {folder.shards.name}
    if others and not folder.is_run:
        raise UsageError(
            f"--output-dir {root}: the folder is neither empty nor a run (no manifest.json); "
            "give another, or empty it"
        )
    return folder
