"""`facescan sensitivity`: the same rows, asked in other words, orders and modes, and asked again.

run/               one run, with a protocol for each variant; scored, and a run like any other
variants/          the protocols that were derived
again-1/run/       the same rows in another order and in batches of another size
sensitivity.json   what moved
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from facescan import durable, registry, shards
from facescan.errors import UsageError
from facescan.models import Checkpoint
from facescan.run.selection import image_ids, sample
from facescan.score.output import NOTE
from facescan.storage import LocalStorage, at
from facescan.types import AnswerMode
from jobs import repeats, stability, stability_table, uploads, variants
from jobs.config import RunConfig
from jobs.ingest import ingest
from jobs.passes import Pass, passes
from jobs.run import SAMPLE, run
from jobs.score import score
from jobs.stability import Subject
from jobs.variants import Variant

VERSION = 1
"""Of `sensitivity.json`; raised when a key changes its meaning."""

FILE = "sensitivity.json"

IMAGES = 1_000
"""Asked about where no limit is given."""


@dataclass(frozen=True, slots=True)
class Study:
    """What is varied.

    Attributes:
        wordings: protocols beside the base, which is the run's own or each model's.
        modes: answer modes beside the base's own.
        orders: of the options, the base's own among them; at least 1.
        repeats: how often the base is asked again.
    """

    wordings: tuple[str, ...] = ()
    modes: tuple[AnswerMode, ...] = tuple(AnswerMode)
    orders: int = 2
    repeats: int = 2


def study(protocols: str | None, modes: str | None, orders: int, repeats: int) -> Study:
    """What the flags say; lists are written `a,b`.

    Raises:
        UsageError: a value cannot be.
    """
    for name, value, least in (("orders", orders, 1), ("repeats", repeats, 0)):
        if value < least:
            raise UsageError(f"--{name}: expected at least {least}, got {value}")
    chosen = list(AnswerMode)
    if modes is not None:
        unknown = [mode for mode in _listed(modes) if mode not in chosen]
        if unknown:
            raise UsageError(
                f"--modes: unknown {', '.join(unknown)}; possible: {', '.join(AnswerMode)}"
            )
        chosen = [AnswerMode(mode) for mode in _listed(modes)]
    return Study(tuple(_listed(protocols or "")), tuple(chosen), orders, repeats)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def sensitivity(config: RunConfig, study: Study, console: Console) -> Path:
    """Ask, score and compare; the same command again continues.

    Of `max_cost` the run of the variants and each repeat may spend an equal part.

    Returns:
        The file that holds what moved; it is printed as well.

    Raises:
        UsageError: something named does not exist or does not fit, or pictures would be sent to a
            server without leave; nothing was asked.
        FacescanError: as `jobs.run.run`.
        KeyboardInterrupt: as there.
    """
    for path in config.include_path:
        registry.include(path)
    root = _folder(config)
    (root / "variants").mkdir(parents=True, exist_ok=True)
    config = _settled(config, study, root, console)
    subjects = [_subject(config, study, name, root) for name in config.model]
    for subject in subjects:
        for line in subject.variants.left_out:
            _say(console, f"{subject.card.name}: left out: {line}")
    with registry.including(root / "variants"):
        together = {subject.model: subject.variants.asked for subject in subjects}
        _ask(config, root / "run", together, console)
        said = _ask_again(config, study, root, subjects, console)
    for place in stability.runs(root, study.repeats):
        score(str(place), Console(quiet=True))
    found = stability.of(root, subjects, said)
    file = root / FILE
    text = json.dumps({"version": VERSION, "note": NOTE, "results": found}, indent=2)
    durable.write_text(file, text + "\n")
    for line in (*stability_table.lines(found), NOTE, str(file)):
        _say(console, line)
    return file


def _folder(config: RunConfig) -> Path:
    place = at(config.output_dir)
    if not isinstance(place, LocalStorage):
        raise UsageError(
            f"--output-dir {config.output_dir}: derived protocols and shuffled pictures are "
            "written beside the runs, so the folder has to be on a disk"
        )
    return Path(place.location)


def _settled(config: RunConfig, study: Study, root: Path, console: Console) -> RunConfig:
    """The configuration that all runs share."""
    changed: dict[str, Any] = {"limit": config.limit or IMAGES}
    if config.max_cost is not None:
        changed["max_cost"] = config.max_cost / (1 + study.repeats)
    if config.dataset == SAMPLE:
        place = root / "shards" / f"{SAMPLE}-{config.seed}-{changed['limit']}"
        if not (place / shards.MANIFEST).is_file():
            ingest(SAMPLE, place, console, size=changed["limit"], seed=config.seed)
        changed["dataset"] = str(place)
    return config.model_copy(update=changed)


def _subject(config: RunConfig, study: Study, model: str, root: Path) -> Subject:
    """What a model will be asked; refuses what a run of it would refuse."""
    data = shards.open(config.dataset, config.split)
    planned = passes(config.model_copy(update={"model": [model]}), data.label_sets)
    uploads.check(config, planned, Console(quiet=True))
    questions = [question for each in planned for question in each.questions]
    asked = variants.of(
        planned[0].card,
        [questions[0].protocol, *study.wordings],
        study.modes,
        study.orders,
        [attribute for question in questions for attribute in question.attributes],
        root / "variants",
    )
    return Subject(model, planned[0].card, asked)


def _ask(
    config: RunConfig, place: Path, asked: Mapping[str, Sequence[Variant]], console: Console
) -> None:
    """One run, in which each model answers all of its variants without being loaded again."""

    def asking(config: RunConfig, label_sets: Mapping[str, str]) -> list[Pass]:
        return [
            each
            for model, its in asked.items()
            for each in _together(_passes(config, model, variant, label_sets) for variant in its)
        ]

    changed = {"model": list(asked), "protocol": None, "output_dir": str(place)}
    run(config.model_copy(update=changed), console, asking)


def _passes(
    config: RunConfig, model: str, variant: Variant, label_sets: Mapping[str, str]
) -> list[Pass]:
    changed = {"model": [model], "protocol": variant.protocol}
    changed["attributes"] = list(variant.attributes)
    return passes(config.model_copy(update=changed), label_sets)


def _together(variants: Iterable[list[Pass]]) -> list[Pass]:
    """The passes of one model, those of the same weights as one."""
    merged: dict[Checkpoint | None, Pass] = {}
    for each in chain.from_iterable(variants):
        before = merged.get(each.checkpoint)
        questions = (*before.questions, *each.questions) if before else each.questions
        merged[each.checkpoint] = replace(each, questions=questions)
    return list(merged.values())


def _ask_again(
    config: RunConfig, study: Study, root: Path, subjects: Sequence[Subject], console: Console
) -> dict[tuple[int, str], str]:
    """For each repeat and model what was not as in the run; the base alone is asked again."""
    data = shards.open(config.dataset, config.split)
    selection = sample(image_ids(data), config.limit, config.seed)
    said = {}
    for number in range(1, study.repeats + 1):
        place = stability.again(root, number)
        shuffled = place.parent / "shards"
        repeats.shuffle(data, selection, number, shuffled)
        asked = {}
        for subject in subjects:
            repeat = repeats.of(subject.card, subject.model, number, place.parent / "models")
            said[number, subject.card.name] = repeat.says
            asked[repeat.model] = subject.variants.asked[:1]
        _ask(
            config.model_copy(update={"dataset": str(shuffled), "limit": None}),
            place,
            asked,
            console,
        )
    return said


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
