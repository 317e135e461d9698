"""The same rows again, in another order and in other batches: what an audit of determinism asks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from facescan import durable, shards
from facescan.models import FOLDER_CARD, ModelCard
from facescan.run.selection import Selection
from facescan.shards import Contents, ShardRow, Shards, ShardWriter
from serving import engine as engines

_BATCH_OPTIONS = ("max_num_seqs", "batch_size")
"""Under what name engines have the number of pictures or sequences that they work on at once."""

_BATCH_SIZES = (1, 16, 64)
"""Of the first repeat, the second, the third; then from the first again."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """One more asking of the same rows.

    Attributes:
        model: what `--model` takes: a folder with the same card but for the size of batches, or
            the model itself where its engine has no such option.
        says: what is not as it was.
    """

    model: str
    says: str


def of(card: ModelCard, model: str, number: int, folder: Path) -> Repeat:
    """How a model is asked again.

    Args:
        card: of the model.
        model: as `--model` was given.
        number: of the repeat, from 1.
        folder: where a model folder is written, if one is needed.
    """
    option = _batch_option(card)
    if option is None:
        return Repeat(model, "rows shuffled")
    size = _BATCH_SIZES[(number - 1) % len(_BATCH_SIZES)]
    options: dict[str, Any] = {**card.engine_options, option: size}
    fields = card.model_dump(mode="json", exclude={"name"}) | {"engine_options": options}
    # A model folder is called by its name, so the questions are the same, and their keys.
    home = folder / card.name
    home.mkdir(parents=True, exist_ok=True)
    durable.write_text(home / FOLDER_CARD, yaml.safe_dump(fields, sort_keys=False))
    return Repeat(str(home), f"rows shuffled, {option} {size}")


def _batch_option(card: ModelCard) -> str | None:
    options = getattr(engines.module(card.engine), "Options", None)
    known = options.model_fields if options is not None else ()
    return next((name for name in _BATCH_OPTIONS if name in known), None)


def shuffle(data: Shards, selection: Selection, seed: int, folder: Path) -> None:
    """Write the selected rows as shards of another order, unless they are there.

    Row groups change places, and rows within them: no more than one is held in memory.
    """
    if (folder / shards.MANIFEST).is_file():
        return
    names = data.schema.names
    contents = Contents(
        dataset=data.datasets[0],
        label_sets=data.label_sets,
        values=tuple(n.removeprefix("value_") for n in names if n.startswith("value_")),
        groups=tuple(n.removeprefix("group_") for n in names if n.startswith("group_")),
        licence=data.licence,
        revision=data.revision,
    )
    random = Random(seed)
    groups = list(data.row_groups)
    random.shuffle(groups)
    with ShardWriter(folder, contents) as writer:
        for group in groups:
            rows = [
                row
                for table in data.read([group], names)
                for row, taken in _with_selection(table.to_pylist(), selection)
                if taken
            ]
            random.shuffle(rows)
            for row in rows:
                writer.add(_row(row, contents))


def _with_selection(
    rows: list[dict[str, Any]], selection: Selection
) -> Iterator[tuple[dict[str, Any], bool]]:
    return zip(rows, selection.taken([row["image_id"] for row in rows]), strict=True)


def _row(row: dict[str, Any], contents: Contents) -> ShardRow:
    image = row["image"] or {"bytes": None, "path": None}
    return ShardRow(
        image_id=row["image_id"],
        image_sha256=row["image_sha256"],
        data=image["bytes"],
        path=image["path"],
        split=row["split"],
        subject_id=row["subject_id"],
        labels={name: row[f"label_{name}"] for name in contents.label_sets},
        values={name: row[f"value_{name}"] for name in contents.values},
        groups={name: row[f"group_{name}"] for name in contents.groups},
    )
