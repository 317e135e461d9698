"""A checkpoint as its card names it -> files on disk, and the commit or digest they are of."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from facescan.errors import EngineError
from facescan.models import Checkpoint, folder_digest

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PROCESSOR_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint on disk.

    Attributes:
        folder: holds the configuration and the weights.
        processor: holds the tokenizer and the image processor.
        resolved: `path@commit` for a repository, `path@sha256:...` for a folder, and the same of
            the processor where it is another's; goes into every reply.
        config: the parsed `config.json`.
    """

    folder: Path
    processor: Path
    resolved: str
    config: dict[str, Any]


def find(checkpoint: Checkpoint) -> Weights:
    """The files of a checkpoint, downloaded where `path` is a repository.

    Raises:
        EngineError: not there, no configuration, no weights, or weights only as pickles: loading
            a pickle runs whatever code it holds.
    """
    folder, commit = _located(
        checkpoint.path, checkpoint.revision, [*_PROCESSOR_FILES, "*.safetensors"]
    )
    resolved = f"{checkpoint.path}@{commit or folder_digest(folder)}"
    processor = folder
    if checkpoint.processor:
        processor, commit = _located(checkpoint.processor, None, _PROCESSOR_FILES)
        resolved += f", processor {checkpoint.processor}@{commit or folder_digest(processor)}"
    _refuse_pickles(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise EngineError(f"{checkpoint.path}: no readable config.json: {error}") from error
    return Weights(folder, processor, resolved, config)


def load_model(kind: Any, found: Weights, *, hint: str = "", **options: Any) -> Any:
    """A model by a class of transformers', in evaluation mode, with every weight from its files.

    Args:
        kind: the class, such as `AutoModelForImageClassification`.
        found: the files.
        hint: what to do where weights are not there.
        options: for its `from_pretrained`.

    Raises:
        EngineError: transformers cannot load it, or would make up weights that are not there.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        model, loading = kind.from_pretrained(
            found.folder,
            use_safetensors=True,
            output_loading_info=True,
            # Raised, it says no more than that a report was logged.
            ignore_mismatched_sizes=True,
            **options,
        )
    except (
        *(OSError, ValueError, RuntimeError, KeyError, TypeError),
        SafetensorError,
        StrictDataclassError,
    ) as error:
        raise EngineError(f"{found.resolved}: transformers cannot load it: {error}") from error
    if mismatched := sorted(loading["mismatched_keys"]):
        name, there, wanted = mismatched[0]
        raise EngineError(
            f"{found.resolved}: {name} is {tuple(there)}, and its config.json makes it "
            f"{tuple(wanted)}; the weights are of another model"
        )
    if missing := sorted(loading["missing_keys"]):
        raise EngineError(
            f"{found.resolved}: {len(missing)} weights of {type(model).__name__} are not in its "
            f"files, {missing[0]} among them; they are of another model, or a part is "
            f"missing{'; ' if hint else ''}{hint}"
        )
    return model.eval()


def load_processor(kind: Any, found: Weights) -> Any:
    """A processor by a class of transformers', on Pillow.

    Raises:
        EngineError: its files are not there, or are not of such a processor.
    """
    try:
        return kind.from_pretrained(found.processor, backend="pil")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{found.processor}: transformers cannot load the processor: {error}"
        ) from error


@contextmanager
def together(found: Weights) -> Iterator[Path]:
    """A folder with the weights and the processor's files side by side, as vLLM wants them."""
    if found.processor == found.folder:
        yield found.folder
        return
    with TemporaryDirectory(prefix="facescan-weights-") as name:
        folder = Path(name)
        for source, patterns in (
            (found.folder, _MODEL_FILES),
            (found.processor, _PROCESSOR_FILES),
        ):
            for path in (path for pattern in patterns for path in source.glob(pattern)):
                link = folder / path.name
                if not link.exists():
                    link.symlink_to(path.resolve())
        yield folder


def _located(path: str, revision: str | None, patterns: list[str]) -> tuple[Path, str | None]:
    if Path(path).is_absolute() and Path(path).is_dir():
        return Path(path), None
    if path.startswith((".", "/")) or path.count("/") != 1:
        raise EngineError(f"{path}: neither a folder nor the name of a repository")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        # Pickles are not among the patterns, so a repository of pickles ends as one without
        # weights instead of on this disk.
        folder = snapshot_download(path, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise EngineError(f"{path}: cannot be downloaded: {error}") from error
    return Path(folder), Path(folder).name


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise EngineError(
            f"{folder}: the weights are pickles ({', '.join(pickles)}), and loading a pickle runs "
            "whatever code it holds; convert them to safetensors first"
        )
    raise EngineError(f"{folder}: holds no weights (*.safetensors)")
