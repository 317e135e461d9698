"""Predictions say what the replies say, with the probability of the label where there is one."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from math import inf, log
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from facescan import shards
from facescan.run import journal, predictions
from facescan.run.folder import RunFolder
from facescan.run.selection import Selection
from facescan.storage import LocalStorage
from facescan.types import AnswerMode, Decoding, Question, Reply, request_id
from tests.conftest import MakeShards
from tests.facescan.run.replies import reply

QUESTION = Question(
    model="seer",
    protocol="scored",
    attributes=("race",),
    prompt="race?",
    labels=("white", "black"),
    answer_mode=AnswerMode.SCORE,
    decoding=Decoding(),
    identity="the identity",
    label_sets=("race-7",),
    offered=((("white", "White"), ("black", "Black")),),
)

Logprobs = tuple[tuple[str, float], ...]


def built(
    tmp_path: Path, make_shards: MakeShards, logprobs: Iterable[Logprobs], question: Question
) -> list[dict[str, Any]]:
    """The predictions about pictures that were answered `white` with these log-probabilities."""
    scored = list(logprobs)
    data = shards.open(str(make_shards(len(scored))))
    folder = RunFolder(LocalStorage(str(tmp_path / "run")))
    digests = [str(row["image_sha256"]) for batch in data.labels() for row in batch.to_pylist()]
    writer = journal.Journal(folder.replies, "s", "w")
    for digest, each in zip(digests, scored, strict=True):
        writer.append(answer(request_id(question.identity, digest), each))
    asyncio.run(writer.durable())
    predictions.build(folder, data, Selection(), [question])
    with folder.predictions.open("seer.scored.race.parquet") as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def answer(key: str, logprobs: Logprobs) -> Reply:
    return replace(reply(key, "white"), label_logprobs=logprobs)


def test_the_probability_is_the_label_s_share_of_what_was_offered(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    logprobs: list[Logprobs] = [
        (("white", log(0.2)), ("black", log(0.05))),
        (("white", -4000.0), ("black", -4000.0 - log(3))),
        (("white", -1.0), ("black", -inf)),
    ]
    rows = built(tmp_path, make_shards, logprobs, QUESTION)
    assert [row["label"] for row in rows] == ["White"] * 3
    assert [row["probability"] for row in rows] == pytest.approx([0.8, 0.75, 1.0], abs=1e-12)


def test_without_log_probabilities_there_is_no_probability(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    rows = built(tmp_path, make_shards, [(), (("white", -inf), ("black", -inf))], QUESTION)
    assert [row["probability"] for row in rows] == [None, None]


def test_a_mode_that_does_not_score_has_no_probability(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    question = replace(QUESTION, answer_mode=AnswerMode.FREE)
    (row,) = built(tmp_path, make_shards, [(("white", -1.0), ("black", -2.0))], question)
    assert (row["outcome"], row["probability"]) == ("answered", None)


def test_a_failed_request_has_no_probability(tmp_path: Path, make_shards: MakeShards) -> None:
    data = shards.open(str(make_shards(1)))
    folder = RunFolder(LocalStorage(str(tmp_path / "run")))
    predictions.build(folder, data, Selection(), [QUESTION])
    with folder.predictions.open("seer.scored.race.parquet") as file:
        (row,) = pq.read_table(file).to_pylist()
    assert (row["outcome"], row["label"], row["probability"]) == ("pending", None, None)
