"""A whole run with the fake engine: real shards, real Ray, real Parquet."""

import asyncio
import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from facescan import registry, storage
from facescan.errors import (
    EngineError,
    MixingError,
    TooManyFailures,
    UnknownNameError,
    UsageError,
)
from facescan.run import journal, manifest
from facescan.run.folder import existing
from jobs.config import resolve
from jobs.run import run
from jobs.watch import Watch
from tests.conftest import MakeShards, jpeg

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

QUIET = Console(file=io.StringIO())


def answered(output_dir: Path, **flags: Any) -> Path:
    settings = {"model": ["fake"], "attributes": ["race"], "output_dir": output_dir} | flags
    return Path(run(resolve(settings, None), QUIET).root.location)


def predictions(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "predictions").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def replies(folder: Path) -> dict[str, dict[str, Any]]:
    place = storage.at(folder / "replies")
    found = journal.reader(place, journal.files(place).names).read_all().to_pylist()
    assert len({row["request_id"] for row in found}) == len(found)
    return {row["request_id"]: row for row in found}


def test_every_image_has_one_row_per_attribute_and_one_reply_per_request(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    folder = answered(tmp_path / "run", dataset=str(make_shards(30)), attributes=["race", "gender"])
    rows = predictions(folder)
    assert Counter(row["attribute"] for row in rows) == {"race": 30, "gender": 30}
    assert len({(row["image_id"], row["attribute"]) for row in rows}) == 60
    assert {row["request_id"] for row in rows} == set(replies(folder))
    race = next(row for row in rows if row["attribute"] == "race")
    assert (race["target"], race["target_label_set"]) == (race["label_race"], "race-7")
    assert (race["dataset"], race["split"], race["model"]) == ("tiny", "test", "fake")
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["answered"], status["requests"]) == ("answered", 60, 60)


def test_the_same_command_again_asks_nothing(tmp_path: Path, make_shards: MakeShards) -> None:
    shards = str(make_shards())
    folder = answered(tmp_path / "run", dataset=shards)
    before = {path: path.read_bytes() for path in (folder / "replies").iterdir()}
    rows = predictions(folder)
    answered(tmp_path / "run", dataset=shards)
    assert {path: path.read_bytes() for path in (folder / "replies").iterdir()} == before
    assert predictions(folder) == rows


def test_a_run_grows_by_images_attributes_and_models(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    shards = str(make_shards())
    folder = answered(tmp_path / "run", dataset=shards, limit=5)
    first = replies(folder)
    assert len(first) == 5
    answered(tmp_path / "run", dataset=shards, limit=12)
    answered(tmp_path / "run", dataset=shards, limit=12, attributes=["gender"])
    grown = replies(folder)
    assert len(grown) == 24
    assert {key: grown[key] for key in first} == first
    combinations = manifest.read(existing(str(folder))).combinations
    assert [each.attribute for each in combinations] == ["race", "gender"]
    assert Counter(row["attribute"] for row in predictions(folder)) == {"race": 12, "gender": 12}


def test_several_models_answer_the_same_images_in_one_run(
    tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    card = tmp_path / "mine" / "models" / "other.yaml"
    card.parent.mkdir(parents=True)
    card.write_text(
        "description: x\nengine: fake\nprotocol: neutral-score\nattributes: [race, age]\ngpus: 0\n"
    )
    folder = answered(
        tmp_path / "run",
        dataset=str(make_shards(8)),
        model=["fake", "other"],
        attributes=["race", "age"],
        include_path=[card.parents[1]],
    )
    rows = predictions(folder)
    assert Counter((row["model"], row["answer_mode"], row["attribute"]) for row in rows) == {
        (model, mode, attribute): 8
        for model, mode in (("fake", "free"), ("other", "score"))
        for attribute in ("race", "age")
    }
    assert len(replies(folder)) == 32


def test_what_another_command_asked_for_is_pending_not_missing(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    shards = str(make_shards())
    answered(tmp_path / "run", dataset=shards, limit=5, attributes=["race"])
    folder = answered(tmp_path / "run", dataset=shards, limit=12, attributes=["gender"])
    found = Counter((row["attribute"], row["outcome"] == "pending") for row in predictions(folder))
    assert found == {("race", False): 5, ("race", True): 7, ("gender", False): 12}
    folder = answered(tmp_path / "run", dataset=shards, limit=3, attributes=["gender"])
    assert len(predictions(folder)) == 24
    answered(tmp_path / "run", dataset=shards, limit=12, attributes=["race"])
    assert not any(row["outcome"] == "pending" for row in predictions(folder))


def test_another_checkpoint_in_the_same_run_is_refused_before_it_answers(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    shards = str(make_shards(6))
    folder = answered(tmp_path / "run", dataset=shards, limit=3)
    record = manifest.read(existing(str(folder)))
    (combination,) = record.combinations
    assert combination.answered_by is not None
    moved = combination.answered_by.model_copy(update={"resolved_model": "fake@other"})
    combination = combination.model_copy(update={"answered_by": moved})
    record.model_copy(update={"combinations": [combination]}).write(existing(str(folder)))
    before = replies(folder)
    with pytest.raises(MixingError, match="resolved_model was fake@other, now fake"):
        answered(tmp_path / "run", dataset=shards)
    assert replies(folder) == before


def test_two_models_of_one_name_are_refused(tmp_path: Path, make_shards: MakeShards) -> None:
    for parent in ("a", "b"):
        weights = tmp_path / parent / "checkpoint-1000"
        weights.mkdir(parents=True)
        (weights / "config.json").write_text(parent)
        (weights / "facescan.yaml").write_text(
            "description: x\nengine: fake\nprotocol: neutral\nattributes: [race]\n"
            "checkpoint: {path: ./.}\n"
        )
    models = [str(tmp_path / parent / "checkpoint-1000") for parent in ("a", "b")]
    with pytest.raises(UsageError, match="two models are called 'checkpoint-1000'"):
        answered(tmp_path / "run", dataset=str(make_shards(3)), model=models)
    assert not (tmp_path / "run").exists()


def test_another_dataset_in_the_same_folder_is_refused(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    answered(tmp_path / "run", dataset=str(make_shards(5)))
    with pytest.raises(MixingError, match="digest"):
        answered(tmp_path / "run", dataset=str(make_shards(6, name="other")))


def test_a_changed_prompt_of_a_known_combination_is_refused_by_name(
    tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    protocol = tmp_path / "mine" / "protocols" / "short.yaml"
    protocol.parent.mkdir(parents=True)
    wording = {
        "description": "x",
        "attributes": {"race": {"label_set": "race-7", "question": "Race? {labels}"}},
    }
    protocol.write_text(yaml.safe_dump(wording))
    flags: dict[str, Any] = {
        "dataset": str(make_shards(3)),
        "protocol": "short",
        "include_path": [protocol.parents[1]],
    }
    answered(tmp_path / "run", **flags)
    race = wording["attributes"]["race"]  # type: ignore[index] # YAML: any value
    race["question"] = "Which race? {labels}"
    (protocol.parent / "short.yaml").write_text(yaml.safe_dump(wording))
    from facescan import protocols

    protocols._read.cache_clear()
    with pytest.raises(MixingError, match=r"attribute race: prompt was 'Race\?"):
        answered(tmp_path / "run", **flags)


def test_a_bad_image_ends_as_bad_image_and_the_others_are_answered(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    shards = make_shards(6, data={1: b"", 2: b"<html>no</html>", 3: jpeg(3)[:400]})
    folder = answered(tmp_path / "run", dataset=str(shards))
    outcomes = {row["image_id"]: row["outcome"] for row in predictions(folder)}
    bad = {image for image, outcome in outcomes.items() if outcome == "bad_image"}
    assert bad == {"image-0001", "image-0002", "image-0003"}
    assert all(row["error"] for row in replies(folder).values() if row["error_kind"])


def test_images_with_equal_bytes_share_a_reply(tmp_path: Path, make_shards: MakeShards) -> None:
    shards = make_shards(4, data={number: jpeg(0) for number in range(3)})
    folder = answered(tmp_path / "run", dataset=str(shards))
    assert len(replies(folder)) == 2
    assert len(predictions(folder)) == 4


def test_the_sample_needs_no_files_and_grows(tmp_path: Path) -> None:
    attributes = ["race", "gender", "age", "emotion"]
    folder = answered(tmp_path / "run", dataset="sample", limit=20, attributes=attributes)
    first = replies(folder)
    assert len(first) == 80
    answered(tmp_path / "run", dataset="sample", limit=30, attributes=attributes)
    grown = replies(folder)
    assert len(grown) == 120
    assert set(first) <= set(grown)


def test_more_gpus_than_there_are_is_a_usage_error(
    tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    card = tmp_path / "mine" / "models" / "huge.yaml"
    card.parent.mkdir(parents=True)
    card.write_text(
        "description: x\nengine: fake\nprotocol: neutral\nattributes: [race]\n"
        "tensor_parallel_size: 8\n"
    )
    flags = {"model": ["huge"], "include_path": [card.parents[1]]}
    with pytest.raises(UsageError, match="8 GPUs each, but the cluster has 2"):
        answered(tmp_path / "run", dataset=str(make_shards(3)), **flags)
    assert not (tmp_path / "run").exists()


_BROKEN = """
import os
import time
from serving.engines.fake import FakeEngine, cannot_ask, missing, numerics, preprocessing
from serving.engine import failed
from facescan.errors import EngineError, MixingError

def load(card, checkpoint, settings):
    {load}
    return Broken(card, settings)

class Broken(FakeEngine):
    async def answer(self, requests):
        {answer}
        async for reply in super().answer(requests):
            yield reply
"""


def broken_engine(
    folder: Path, load: str = "pass", answer: str = "pass", gpus: int = 0
) -> dict[str, Any]:
    for kind in ("engines", "models"):
        (folder / kind).mkdir(parents=True)
    (folder / "engines" / "broken.py").write_text(_BROKEN.format(load=load, answer=answer))
    (folder / "models" / "breaks.yaml").write_text(
        f"description: x\nengine: broken\nprotocol: neutral\nattributes: [race]\ngpus: {gpus}\n"
    )
    return {"model": ["breaks"], "include_path": [folder]}


@pytest.mark.parametrize(("replicas", "gpus"), [(None, 2), (1, 1)])
def test_two_engines_on_two_gpus_get_one_each(
    tmp_path: Path,
    make_shards: MakeShards,
    monkeypatch: pytest.MonkeyPatch,
    replicas: int | None,
    gpus: int,
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    monkeypatch.setattr("facescan.shards.writing.ROW_GROUP_ROWS", 20)
    # No engine is ready before all are there: the first would have answered everything by then.
    here = tmp_path / "here"
    here.mkdir()
    flags = broken_engine(
        tmp_path / "mine",
        load=f"""
    open(os.path.join({str(here)!r}, os.environ["CUDA_VISIBLE_DEVICES"]), "x").close()
    while len(os.listdir({str(here)!r})) < {gpus}:
        time.sleep(0.05)
""",
        gpus=1,
    )
    answered(tmp_path / "run", dataset=str(make_shards(60)), replicas=replicas, **flags)
    # Which one an engine gets, where it needs one of two, depends on who had them before.
    names = {path.name for path in here.iterdir()}
    assert len(names) == gpus
    assert names <= {"0", "1"}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"load": "raise EngineError('the weights are gone')"}, "the weights are gone"),
        ({"answer": "raise EngineError('the device is gone')"}, "the device is gone"),
        ({"answer": "requests = requests[1:]"}, "answered 9 of 10 requests; missing"),
        ({"load": "raise MixingError('other weights')"}, "other weights"),
        ({"answer": "os._exit(1)"}, "model breaks, engine broken"),
    ],
)
def test_an_engine_that_cannot_answer_ends_the_run_with_its_reason(
    tmp_path: Path,
    make_shards: MakeShards,
    monkeypatch: pytest.MonkeyPatch,
    broken: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    flags = broken_engine(tmp_path / "mine", **broken)
    with pytest.raises((EngineError, MixingError), match=message):
        answered(tmp_path / "run", dataset=str(make_shards(10)), **flags)
    assert "pending" in {row["outcome"] for row in predictions(tmp_path / "run")}
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert message in status["reason"]


def test_an_engine_that_died_once_is_started_again(
    tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    mark = tmp_path / "died"
    once = f"os.path.exists({str(mark)!r}) or (open({str(mark)!r}, 'w').close(), os._exit(1))"
    flags = broken_engine(tmp_path / "mine", answer=once)
    folder = answered(tmp_path / "run", dataset=str(make_shards(10)), **flags)
    assert mark.exists()
    assert len(replies(folder)) == 10


def test_unknown_names_write_nothing(tmp_path: Path, make_shards: MakeShards) -> None:
    shards = str(make_shards(3))
    for wrong in ({"model": ["faek"]}, {"attributes": ["hat"]}, {"protocol": "n"}):
        with pytest.raises(UnknownNameError, match="known: "):
            answered(tmp_path / "run", dataset=shards, **wrong)
    assert not (tmp_path / "run").exists()


def failing(number: int) -> str:
    """Code of `broken_engine`: so many of its requests fail, which are all in one batch."""
    return (
        f"for one in requests[:{number}]: yield failed(one.request_id, self.info, "
        f"EngineError('no'), latency_s=0)\n        requests = requests[{number}:]"
    )


def status(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return content


def test_a_request_that_kills_the_engine_is_one_error_row_until_it_is_asked_again(
    tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    cure = tmp_path / "cured"
    culprit = hashlib.sha256(jpeg(7)).hexdigest()
    flags = broken_engine(
        tmp_path / "mine",
        answer=f"os.path.exists({str(cure)!r}) or "
        f"any(one.image.sha256 == {culprit!r} for one in requests) and os._exit(1)",
    )
    flags["dataset"] = str(make_shards(10))
    folder = answered(tmp_path / "run", **flags)
    (row,) = [row for row in predictions(folder) if row["outcome"] == "engine_error"]
    assert row["image_id"] == "image-0007"
    before = replies(folder)
    assert len(before) == 10
    assert "process died each time" in before[row["request_id"]]["error"]
    assert status(folder)["failed"] == {"engine_error": 1}

    # The command again asks nothing, and its totals are those of the run.
    answered(tmp_path / "run", **flags)
    totals = ("state", "requests", "answered", "failed")
    ended = {name: status(folder)[name] for name in totals}
    assert ended == {
        "state": "answered",
        "requests": 10,
        "answered": 9,
        "failed": {"engine_error": 1},
    }
    assert replies(folder) == before

    cure.touch()
    answered(tmp_path / "run", **flags, retry=["engine_error"])
    after = replies(folder)
    assert after[row["request_id"]]["raw_response"] is not None
    others = before.keys() - {row["request_id"]}
    assert {key: after[key] for key in others} == {key: before[key] for key in others}
    assert after.keys() == before.keys()
    assert "engine_error" not in {row["outcome"] for row in predictions(folder)}
    assert (status(folder)["answered"], status(folder)["failed"]) == (10, {})


@pytest.mark.parametrize(
    ("failures", "fail_on_error", "message"),
    [
        (4, 3, "4 of 12 requests failed, and --fail-on-error is 3"),
        (4, 0.25, "4 of 12 requests failed, and --fail-on-error is 0.25"),
        (12, None, "all 12 requests failed"),
    ],
)
def test_more_failures_than_are_borne_fail_the_run(
    tmp_path: Path,
    make_shards: MakeShards,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
    fail_on_error: float | None,
    message: str,
) -> None:
    monkeypatch.setattr(registry, "_included", [])
    flags = broken_engine(tmp_path / "mine", answer=failing(failures))
    flags |= {"dataset": str(make_shards(12)), "fail_on_error": fail_on_error}
    with pytest.raises(TooManyFailures, match=message):
        answered(tmp_path / "run", **flags)
    found = status(tmp_path / "run")
    assert (found["state"], found["failed"]) == ("failed", {"engine_error": failures})
    assert message in found["reason"]
    assert len(predictions(tmp_path / "run")) == len(replies(tmp_path / "run")) == 12
    if failures < 12:
        answered(tmp_path / "run", **flags | {"fail_on_error": failures})
        assert status(tmp_path / "run")["state"] == "answered"


def test_a_run_ends_when_its_failures_are_counted(
    tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowWatch(Watch):
        async def count(self, worker: str, model: str, replies: dict[str, int]) -> None:
            await asyncio.sleep(2)
            await super().count(worker, model, replies)

    monkeypatch.setattr("jobs.pipeline.Watch", SlowWatch)
    monkeypatch.setattr(registry, "_included", [])
    flags = broken_engine(tmp_path / "mine", answer=failing(4))
    folder = answered(tmp_path / "run", dataset=str(make_shards(12)), **flags)
    assert (status(folder)["answered"], status(folder)["failed"]) == (8, {"engine_error": 4})


def test_a_whole_run_on_an_object_store(
    tmp_path: Path, make_shards: MakeShards, object_store: str
) -> None:
    # A command of its own: workers have the environment of whoever starts Ray.
    words = ["--dataset", make_shards(20), "--model", "fake", "--attributes", "race,gender"]
    words += ["--output-dir", object_store, "--no-score"]
    command = [sys.executable, "-m", "jobs.cli", "run", *map(str, words)]
    said = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "every request has its reply; nothing is asked" in said[1]
    folder = existing(object_store)
    found = journal.files(folder.replies)
    assert not found.unmerged
    assert journal.reader(folder.replies, found.names).read_all().num_rows == 40
    assert not folder.root.exists("lease.json")
    outcomes = Counter[str]()
    for name in folder.predictions.names():
        with folder.predictions.open(name) as file:
            table = pq.read_table(file)
        assert table.num_rows == 20
        outcomes.update(map(str, table.column("outcome").to_pylist()))
    assert outcomes.total() == 40
    assert outcomes["answered"] > 30
    assert "pending" not in outcomes
    ended = json.loads(folder.root.read("status.json"))
    assert (ended["state"], ended["answered"], ended["requests"]) == ("answered", 40, 40)
