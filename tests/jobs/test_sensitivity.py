"""A whole study: variants in one run, repeats in runs of their own, and what moved."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from facescan import registry, shards
from facescan.errors import UsageError
from facescan.run import manifest
from facescan.run.folder import existing
from facescan.types import AnswerMode
from jobs.config import resolve
from jobs.sensitivity import FILE, Study, sensitivity, study
from tests.conftest import MakeShards

MOODY = '''
"""The fake engine, which answers one image in three otherwise where batches are small."""
from pydantic import BaseModel, Field

from serving.engines import fake

missing, cannot_ask, preprocessing = fake.missing, fake.cannot_ask, fake.preprocessing


class Options(BaseModel):
    batch_size: int = Field(default=32, ge=1)


def numerics(card):
    return {}


def load(card, checkpoint, settings):
    size = Options.model_validate(card.engine_options).batch_size
    return Moody(card.model_copy(update={"engine_options": {}}), settings, size)


class Moody(fake.FakeEngine):
    def __init__(self, card, settings, size):
        super().__init__(card, settings)
        self._small = size < 8

    def _reply(self, request, latency_s, now):
        from dataclasses import replace

        reply = super()._reply(request, latency_s, now)
        labels = request.question.labels
        wanders = int(request.request_id[-2:], 16) % 3 == 0
        if self._small and wanders and reply.raw_response in labels:
            other = labels[(labels.index(reply.raw_response) + 1) % len(labels)]
            return replace(reply, raw_response=other)
        return reply
'''


@pytest.fixture
def moody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an engine whose answers hang on the size of its batches."""
    monkeypatch.setattr(registry, "_included", [])
    for kind, name, text in (
        ("engines", "moody.py", MOODY),
        (
            "models",
            "moody.yaml",
            "description: x\nengine: moody\nprotocol: neutral\nattributes: [race]\ngpus: 0\n",
        ),
    ):
        (tmp_path / "mine" / kind).mkdir(parents=True)
        (tmp_path / "mine" / kind / name).write_text(text)
    return tmp_path / "mine"


def studied(output_dir: Path, study: Study, **flags: Any) -> tuple[list[dict[str, Any]], str]:
    """The results, and what was printed."""
    text = io.StringIO()
    settings = {"model": ["fake"], "attributes": ["race"], "output_dir": output_dir} | flags
    file = sensitivity(resolve(settings, None), study, Console(file=text, width=200))
    assert file == output_dir / FILE
    results: list[dict[str, Any]] = json.loads(file.read_text())["results"]
    return results, text.getvalue()


def predictions(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "predictions").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_study_of_one_model(tmp_path: Path, make_shards: MakeShards) -> None:
    data = make_shards(60)
    (result,), printed = studied(
        tmp_path / "study", Study(wordings=("neutral-which",)), dataset=str(data), limit=40
    )
    combinations = manifest.read(existing(str(tmp_path / "study" / "run"))).combinations
    assert [each.protocol for each in combinations] == [
        *("neutral", "neutral-order-reversed", "neutral-which", "neutral-which-order-reversed"),
        *("neutral-choice", "neutral-score"),
    ]
    assert len({each.question for each in combinations}) == 6
    assert [each["protocol"] for each in result["variants"]] == [e.protocol for e in combinations]
    assert all(each["n"] == 40 for each in result["variants"])

    rows = predictions(tmp_path / "study" / "run")
    by = {
        name: {r["image_id"]: (r["outcome"], r["label"]) for r in rows if r["protocol"] == name}
        for name in (each.protocol for each in combinations)
    }
    hits = {
        name: sum(r["label"] == r["target"] for r in rows if r["protocol"] == name) for name in by
    }
    for each in result["variants"]:
        name = each["protocol"]
        assert each["accuracy"]["value"] == pytest.approx(hits[name] / 40)
        if name != "neutral":
            differ = sum(by[name][image] != by["neutral"][image] for image in by["neutral"])
            assert (each["flips"]["rows"], each["flips"]["flipped"]) == (40, differ)
    assert result["variants"][0]["flips"] is None
    assert result["accuracy"]["low"] == pytest.approx(min(hits.values()) / 40)
    assert result["accuracy"]["high"] == pytest.approx(max(hits.values()) / 40)

    assert [each["number"] for each in result["again"]] == [1, 2]
    assert all((e["flips"]["rows"], e["flips"]["flipped"]) == (40, 0) for e in result["again"])
    assert "again (rows shuffled): 0 of 40 answers differ" in printed
    assert "neutral-order-reversed" in printed
    order = [
        next(iter(shards.open(str(place)).labels())).column("image_id").to_pylist()
        for place in (tmp_path / "study" / "again-1" / "shards", data)
    ]
    assert len(order[0]) == 40
    assert order[0] != [image for image in order[1] if image in order[0]], "shuffled"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_answers_that_hang_on_batches_are_found_and_their_margins_given(
    tmp_path: Path, make_shards: MakeShards, moody: Path
) -> None:
    (result,), printed = studied(
        tmp_path / "study",
        Study(modes=(AnswerMode.SCORE,), orders=1, repeats=2),
        dataset=str(make_shards(60)),
        model=["moody"],
        include_path=[moody],
    )
    small, large = result["again"]
    assert (small["differs"], large["differs"]) == (
        "rows shuffled, batch_size 1",
        "rows shuffled, batch_size 16",
    )
    rows = predictions(tmp_path / "study" / "run")
    wandering = [
        row
        for row in rows
        if row["protocol"] == "neutral"
        and row["outcome"] == "answered"
        and int(row["request_id"][-2:], 16) % 3 == 0
    ]
    assert small["flips"]["flipped"] == len(wandering) > 0
    assert small["flips"]["rows"] == large["flips"]["rows"] == 60
    assert large["flips"]["flipped"] == 0
    assert small["margins"]["protocol"] == "neutral-score"
    assert small["margins"]["flipped"]["rows"] == len(wandering)
    assert small["margins"]["all"]["rows"] == 60
    assert small["margins"]["flipped"]["median"] > 0
    assert large["margins"]["flipped"] == {"rows": 0, "median": None}
    assert "nats where they do" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_same_command_again_asks_nothing_and_says_the_same(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    data = str(make_shards(20))
    first, _ = studied(tmp_path / "study", Study(repeats=1), dataset=data)
    before = {file: file.read_bytes() for file in (tmp_path / "study").rglob("replies/*.parquet")}
    assert len(before) == 2
    second, printed = studied(tmp_path / "study", Study(repeats=1), dataset=data)
    assert second == first
    after = {file: file.read_bytes() for file in (tmp_path / "study").rglob("replies/*.parquet")}
    assert after == before
    assert "nothing is asked" in printed


def test_pictures_are_not_sent_away_without_leave(tmp_path: Path, make_shards: MakeShards) -> None:
    data = str(make_shards(3))
    with pytest.raises(UsageError, match=r"model gpt-4o: pictures are sent to .* --allow-upload"):
        studied(tmp_path / "study", Study(), dataset=data, model=["fake", "gpt-4o"])
    assert not (tmp_path / "study" / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((None, "loud,free", 2, 2), "--modes: unknown loud; possible: free, choice, score"),
        ((None, None, 0, 2), "--orders: expected at least 1, got 0"),
        ((None, None, 2, -1), "--repeats: expected at least 0, got -1"),
    ],
)
def test_what_cannot_be_varied_is_refused(
    flags: tuple[str | None, str | None, int, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        study(*flags)


def test_flags_say_what_is_varied() -> None:
    assert study(None, None, 2, 2) == Study()
    assert study("neutral-which, neutral-photo", "score", 1, 0) == Study(
        ("neutral-which", "neutral-photo"), (AnswerMode.SCORE,), 1, 0
    )


def test_a_study_needs_a_disk(make_shards: MakeShards) -> None:
    flags = {"model": ["fake"], "output_dir": "s3://b/study", "dataset": str(make_shards(3))}
    with pytest.raises(UsageError, match="the folder has to be on a disk"):
        sensitivity(resolve(flags, None), Study(), Console(file=io.StringIO()))
