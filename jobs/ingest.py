"""`facescan ingest`: a dataset as it is published, or a user's own table -> shards."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from facescan import datasets
from facescan.datasets import Dataset, Rejected, Source, SourceRow
from facescan.errors import DataError, UsageError
from facescan.shards import Contents, IngestManifest, ShardWriter
from jobs import loading
from jobs.loading import Loaded

_SECONDS_BETWEEN_LINES = 10.0
_REJECTIONS_SHOWN = 5


def ingest(
    dataset: str,
    output_dir: Path,
    console: Console,
    *,
    source: Path | None = None,
    config: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    size: int | None = None,
    seed: int | None = None,
    allow_missing: bool = False,
) -> IngestManifest:
    """Read a source and write it into `output_dir` as shards; all of it, or nothing.

    An image that cannot be used but is there becomes a row like every other, and ends as
    `bad_image` in a run.

    Args:
        dataset: one of `facescan ls datasets`.
        output_dir: a folder that is new or empty.
        console: shows progress, what is left out, and a summary.
        source: its folder (for `table` also the file); None where the images are drawn.
        config: YAML file with the dataset's options.
        split: only this one.
        limit: only the first so many rows.
        size: option of the dataset `sample`.
        seed: option of the dataset `sample`.
        allow_missing: count rows whose image is missing instead of stopping at the first.

    Raises:
        UsageError: the flags or the options cannot work.
        DataError: the source is not what it should be; says file and row.
    """
    chosen = datasets.load(dataset)
    options = _options(chosen, config, {"size": size, "seed": seed})
    chosen = chosen.described(options)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1")
    opened = Source(_checked_source(chosen, source, output_dir), split, options)
    contents = Contents(
        dataset=chosen.name,
        label_sets=chosen.label_sets,
        values=chosen.values,
        groups=chosen.groups,
        licence=chosen.licence,
        revision=chosen.revision,
    )
    items = loading.loaded(_first(chosen.rows(opened), limit), opened.path and opened.root)
    # Closed here and not by the garbage collector, which may come in a thread that is just being
    # started: its locks and those of the end of the loading threads are the same.
    with (
        ShardWriter(output_dir, contents) as writer,
        _Progress(console) as progress,
        closing(items),
    ):
        if not _copy(items, writer, progress, allow_missing):
            raise DataError(f"{source or dataset}: no images found")
    _print_summary(writer.manifest, output_dir, console)
    return writer.manifest


def _options(dataset: Dataset[Any], config: Path | None, flags: dict[str, Any]) -> Any:
    given: dict[str, Any] = {}
    if config is not None:
        try:
            given = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"{config}: {error}") from error
        if not isinstance(given, dict):
            raise UsageError(f"{config}: must hold `key: value` lines")
    known = dataset.options.model_fields
    for name, value in flags.items():
        if value is None:
            continue
        if name not in known:
            raise UsageError(f"--{name}: the dataset '{dataset.name}' has no such option")
        given[name] = value
    try:
        return dataset.options.model_validate(given)
    except ValidationError as error:
        where = config or f"dataset '{dataset.name}'"
        lines = [
            f"{where}: {'.'.join(map(str, each['loc'])) or 'options'}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)
        ]
        raise UsageError("\n".join([*lines, f"known keys: {', '.join(known)}"])) from error


def _checked_source(dataset: Dataset[Any], source: Path | None, output_dir: Path) -> Path | None:
    if not dataset.needs_source:
        if source is not None:
            raise UsageError(f"--source {source}: the dataset '{dataset.name}' is drawn, not read")
        return None
    if source is None:
        raise UsageError(f"--source is required: where the files of '{dataset.name}' are")
    if not source.exists():
        raise UsageError(f"--source {source}: no such folder or file")
    if output_dir.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"--output-dir {output_dir}: lies inside of --source {source}")
    return source


def _first(
    items: Iterable[SourceRow | Rejected], limit: int | None
) -> Iterator[SourceRow | Rejected]:
    rows = 0
    for item in items:
        yield item
        rows += isinstance(item, SourceRow)
        if rows == limit:
            return


def _copy(
    items: Iterable[Loaded | Rejected],
    writer: ShardWriter,
    progress: "_Progress",
    allow_missing: bool,
) -> int:
    """Write the rows, and return how many.

    Raises:
        DataError: an id comes twice, or an image is missing and must not be.
    """
    seen = set[bytes]()
    for item in items:
        if isinstance(item, Rejected):
            if item.reason == loading.MISSING and not allow_missing:
                raise DataError(
                    f"{item.where}: its image is missing; --allow-missing counts such rows and "
                    "goes on"
                )
            writer.reject(item.reason)
            progress.rejected(item)
            continue
        # A digest is as good as the id, and small however long the ids are.
        key = hashlib.blake2b(item.row.image_id.encode(), digest_size=16).digest()
        if key in seen:
            raise DataError(f"{item.where}: the image id '{item.row.image_id}' is there already")
        seen.add(key)
        if item.unusable is not None:
            writer.unusable(item.unusable)
        writer.add(item.row)
        progress.advance()
    return len(seen)


class _Progress:
    """Counts rows as they are written: live on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._shown = time.monotonic()
        self._written = self._rejected = 0
        self._bar = Progress(
            TextColumn("{task.completed} images, {task.fields[rate]:.0f}/s"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, rate=0.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One more image is written."""
        self._written += 1
        if self._written % 100:
            return
        now = time.monotonic()
        rate = self._written / (now - self._began)
        self._bar.update(self._task, completed=self._written, rate=rate)
        if not self._console.is_terminal and now - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = now
            _say(self._console, f"{self._written} images, {rate:.0f}/s")

    def rejected(self, item: Rejected) -> None:
        """Show the first few rows that are left out; the summary counts them all."""
        self._rejected += 1
        if self._rejected <= _REJECTIONS_SHOWN:
            _say(self._console, f"left out: {item.where}: {item.reason}")


def _say(console: Console, line: str) -> None:
    # File names and labels may hold what Rich would take for markup.
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_summary(manifest: IngestManifest, output_dir: Path, console: Console) -> None:
    splits = ", ".join(f"{name} {rows}" for name, rows in manifest.splits.items())
    _say(console, f"{manifest.dataset}: {manifest.rows} images ({splits})")
    for attribute, counts in manifest.labels.items():
        named = ", ".join(f"{label} {n}" for label, n in counts.items()) or "none"
        unlabelled = manifest.unlabelled[attribute]
        rest = f"; without label {unlabelled}" if unlabelled else ""
        _say(console, f"  {attribute} ({manifest.label_sets[attribute]}): {named}{rest}")
    if manifest.unusable:
        _say(console, f"  cannot be used, will end as bad_image: {_counts(manifest.unusable)}")
    if manifest.rejected:
        _say(console, f"  left out: {_counts(manifest.rejected)}")
    _say(console, f"shards: {output_dir}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in counts.items())
