"""A setting that can change an answer is refused by name in a run that has answers; others pass.

What is compared is made as `facescan run` makes it, from files of the user's own.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from facescan import models, parse, protocols, registry, shards, storage
from facescan.errors import DataError, MixingError
from facescan.run import manifest
from facescan.run.folder import RunFolder
from facescan.run.manifest import AnsweredBy, Manifest
from jobs import cli, record
from jobs.config import resolve
from jobs.passes import passes
from tests.conftest import MakeShards

# Its pixels and its numerics are what the card says, each for itself.
_ENGINE = """
from serving.engines.fake import load, missing

def preprocessing(card):
    return f"{card.engine_options.get('side', 224)} px"

def cannot_ask(card, question):
    return None

def numerics(card):
    return {"dtype": card.dtype}
"""

Change = Callable[["Setup"], None]


@dataclass
class Setup:
    """Everything that a run is made of, as files and flags; changed by tests, one thing each.

    Attributes:
        vllm: the card of a model that vLLM runs; only read here, never loaded.
        hub: the card of a model with a revision.
        lens: the card of a model of an engine of our own.
    """

    folder: Path
    flags: dict[str, Any]
    vllm: dict[str, Any] = field(default_factory=dict)
    hub: dict[str, Any] = field(default_factory=dict)
    lens: dict[str, Any] = field(default_factory=dict)
    single: dict[str, Any] = field(default_factory=dict)
    joint: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> RunFolder:
        return RunFolder(storage.at(self.folder / "run"))

    def write(self) -> None:
        for kind, name in (
            ("models", "vllm"),
            ("models", "hub"),
            ("models", "lens"),
            ("protocols", "single"),
            ("protocols", "joint"),
        ):
            place = self.folder / "mine" / kind
            place.mkdir(parents=True, exist_ok=True)
            stem = "my-vllm" if name == "vllm" else name
            (place / f"{stem}.yaml").write_text(yaml.safe_dump(getattr(self, name)))
        models._read.cache_clear()
        protocols._read.cache_clear()

    def record(self) -> Manifest:
        """What the command would write now, having been compared with what is there."""
        self.write()
        config = resolve(self.flags, None)
        registry._included[:] = []
        for path in config.include_path:
            registry.include(path)
        data = shards.open(config.dataset, config.split)
        return record.of(config, self.run, data, passes(config, data.label_sets))


@pytest.fixture
def setup(tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """A run that has been begun; `record` compares with it."""
    monkeypatch.setattr(registry, "_included", [])
    engines = tmp_path / "mine" / "engines"
    engines.mkdir(parents=True)
    for name in ("lens", "mirror"):
        (engines / f"{name}.py").write_text(_ENGINE)
        monkeypatch.delitem(sys.modules, f"serving.engines.included_{name}", raising=False)
    weights = tmp_path / "mine" / "models" / "weights"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    card = {"description": "x", "protocol": "single", "attributes": ["race", "gender", "age"]}
    wording = {"race": "Race? One of {race_labels}.", "gender": "Gender? {gender_labels}."}
    made = Setup(
        folder=tmp_path,
        flags={
            "dataset": str(make_shards(6)),
            "model": ["my-vllm", "hub", "lens"],
            "attributes": ["race"],
            "output_dir": str(tmp_path / "run"),
            "include_path": [str(tmp_path / "mine")],
            "limit": 3,
        },
        vllm=card
        | {
            "engine": "vllm",
            "dtype": "float32",
            "checkpoint": {"path": "./weights"},
            "engine_options": {"max_num_seqs": 4, "kv_cache_gib": 1.0},
        },
        hub=card
        | {"engine": "fake", "gpus": 0, "checkpoint": {"path": "org/hub", "revision": "aaaa"}},
        lens=card | {"engine": "lens", "gpus": 0},
        single={
            "description": "x",
            "attributes": {
                "race": {
                    "label_set": "race-7",
                    "question": "What is the race?",
                    "offered": {"Latino_Hispanic": "Latino"},
                },
                "gender": {"label_set": "gender-2", "question": "What is the gender?"},
            },
        },
        joint={
            "description": "x",
            "joint_question": " ".join(wording.values()),
            "attributes": {
                "race": {"label_set": "race-7"},
                "gender": {"label_set": "gender-2"},
            },
        },
    )
    made.record().write(made.run)
    return made


def flag(name: str, value: Any) -> Change:
    return lambda setup: setup.flags.update({name: value})


def card(which: str, **changes: Any) -> Change:
    return lambda setup: getattr(setup, which).update(changes)


def options(which: str, **changes: Any) -> Change:
    return lambda setup: getattr(setup, which).setdefault("engine_options", {}).update(changes)


def protocol(**changes: Any) -> Change:
    return lambda setup: setup.single.update(changes)


def asked(**changes: Any) -> Change:
    return lambda setup: setup.single["attributes"]["race"].update(changes)


def other_weights(setup: Setup) -> None:
    (setup.folder / "mine" / "models" / "weights" / "config.json").write_text('{"x": 1}')


LABELS = ["White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian"]

CHANGES: dict[str, tuple[Change, str]] = {
    "split": (flag("split", "test"), "dataset split = None, now 'test'"),
    "seed": (flag("seed", 1), "dataset seed = 0, now 1"),
    "max_image_bytes": (flag("max_image_bytes", 999), "dataset max_bytes = 20971520, now 999"),
    "max_image_pixels": (flag("max_image_pixels", 99), "dataset max_pixels = 40000000, now 99"),
    "label_set": (asked(label_set="race-6"), "label_set was 'race-7', now 'race-6'"),
    "offered": (asked(offered={"Latino_Hispanic": "Latinx"}), "offered was .*Latinx"),
    "order": (asked(order=[*reversed(LABELS), "Middle Eastern"]), "offered was {'White': "),
    "wording": (asked(question="Which race?"), r"prompt was 'What is the race\?', now 'Which"),
    "card prompt": (card("hub", prompt="en {question}"), "model hub.*prompt was .* now 'en "),
    "answer_mode": (protocol(answer_mode="score"), "answer_mode was 'free', now 'score'"),
    "max_tokens": (protocol(max_tokens=17), "max_tokens was 16, now 17"),
    "temperature": (protocol(temperature=0.5), "temperature was 0.0, now 0.5"),
    "repository": (
        card("hub", checkpoint={"path": "org/other", "revision": "aaaa"}),
        "model hub.*checkpoint was .*org/hub.*org/other",
    ),
    "revision": (
        card("hub", checkpoint={"path": "org/hub", "revision": "bbbb"}),
        "model hub.*checkpoint was .*aaaa.*bbbb",
    ),
    "processor": (
        card("hub", checkpoint={"path": "org/hub", "revision": "aaaa", "processor": "org/p"}),
        "model hub.*checkpoint was .*'processor': 'org/p'",
    ),
    "weights": (other_weights, "model my-vllm.*checkpoint was .*sha256:.*sha256:"),
    "preprocessing": (options("lens", side=448), "preprocessing was '224 px', now '448 px'"),
    "engine": (card("lens", engine="mirror"), "model lens.*engine was 'lens', now 'mirror'"),
    "dtype": (card("vllm", dtype="bfloat16"), "numerics was .*'float32'.*'dtype': 'bfloat16'"),
    "eager": (options("vllm", enforce_eager=False), "numerics was .*'enforce_eager': 'false'"),
    "length": (options("vllm", max_model_len=64), "numerics was .*'max_model_len': '64'"),
    "parallel": (
        card("vllm", tensor_parallel_size=2),
        "numerics was .*now .*'tensor_parallel_size': '2'",
    ),
}


def refused(setup: Setup, message: str) -> None:
    before = {name: setup.run.root.read(name) for name in setup.run.root.names()}
    with pytest.raises(MixingError, match=f"(?s){message}.*; give another --output-dir"):
        setup.record()
    assert {name: setup.run.root.read(name) for name in setup.run.root.names()} == before


@pytest.mark.parametrize("changed", CHANGES)
def test_a_setting_that_can_change_an_answer_is_refused_by_name(setup: Setup, changed: str) -> None:
    change, message = CHANGES[changed]
    change(setup)
    refused(setup, message)


def test_other_pictures_are_refused(setup: Setup, make_shards: MakeShards) -> None:
    setup.flags["dataset"] = str(make_shards(7, name="other"))
    refused(setup, "dataset digest = ")


def test_an_attribute_added_to_a_call_for_all_is_refused(setup: Setup) -> None:
    setup.flags["protocol"] = "joint"
    setup.record().write(setup.run)
    setup.joint["attributes"]["age"] = {"label_set": "age-9"}
    # Its wording unchanged, the labels that belong to the question still change.
    refused(setup, "attribute race: what is asked beside this attribute is not what it was")
    setup.joint["joint_question"] += " Age? {age_labels}"
    refused(setup, "protocol joint, attribute race: prompt was 'Race.*now 'Race.* Age. 0-2")


def test_further_attributes_of_a_call_for_all_are_growth_and_need_no_new_call(
    setup: Setup,
) -> None:
    setup.flags["protocol"] = "joint"
    setup.record().write(setup.run)
    setup.flags["attributes"] = ["race", "gender"]
    joint = [each for each in setup.record().combinations if each.protocol == "joint"]
    assert {each.attribute for each in joint} == {"race", "gender"}
    assert len({(each.model, each.question) for each in joint}) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "1"], "dataset seed = 0, now 1"),
        (["--max-image-bytes", "4096"], "dataset max_bytes = 20971520, now 4096"),
        ([], "model my-vllm, protocol single, attribute race: checkpoint was"),
    ],
)
def test_the_command_line_ends_with_4_and_says_what_changed(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    if not flags:
        other_weights(setup)
    before = {name: setup.run.root.read(name) for name in setup.run.root.names()}
    words = ["--dataset", setup.flags["dataset"], "--model", "my-vllm,hub,lens"]
    words += ["--attributes", "race", "--output-dir", str(setup.folder / "run")]
    words += ["--include-path", str(setup.folder / "mine"), "--limit", "3"]
    monkeypatch.setattr(sys, "argv", ["facescan", "run", *words, *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 4
    assert message in capsys.readouterr().err
    after = {name: setup.run.root.read(name) for name in setup.run.root.names()}
    assert after == before


def include_path_moved(setup: Setup) -> None:
    shutil.move(setup.folder / "mine", setup.folder / "theirs")
    shutil.copytree(setup.folder / "theirs", setup.folder / "mine")
    setup.flags["include_path"] = [str(setup.folder / "theirs")]


def dataset_moved(setup: Setup) -> None:
    shutil.move(setup.flags["dataset"], setup.folder / "elsewhere")
    setup.flags["dataset"] = str(setup.folder / "elsewhere")


@pytest.mark.parametrize(
    "change",
    [
        flag("replicas", 2),
        flag("object_store_mb", 1024),
        flag("score", False),
        flag("retry", ["bad_image"]),
        flag("fail_on_error", 0.1),
        flag("ray_address", "ray.example:6379"),
        flag("limit", 2),
        options("vllm", max_num_seqs=64),
        options("vllm", kv_cache_gib=2.0),
        options("vllm", gpu_memory_utilization=0.5),
        options("hub", latency_ms=5.0),
        options("hub", calls_in_flight=8),
        card("hub", description="y", licence="z"),
        protocol(description="y", source="z"),
        include_path_moved,
        dataset_moved,
    ],
)
def test_what_changes_no_answer_is_accepted(setup: Setup, change: Change) -> None:
    before = manifest.read(setup.run)
    change(setup)
    now = setup.record()
    assert now.combinations == before.combinations
    assert now.dataset.limit == before.dataset.limit


def test_another_parser_is_accepted(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    before = manifest.read(setup.run)
    monkeypatch.setattr(parse, "PARSER_VERSION", "another")
    assert setup.record().combinations == before.combinations


@pytest.mark.parametrize(
    ("change", "added"),
    [
        (flag("model", ["lens", "fake"]), {("fake", "neutral", "race")}),
        (
            flag("attributes", ["gender"]),
            {(model, "single", "gender") for model in ("my-vllm", "hub", "lens")},
        ),
        (
            flag("protocol", "neutral"),
            {(model, "neutral", "race") for model in ("my-vllm", "hub", "lens")},
        ),
    ],
)
def test_what_is_not_there_yet_is_growth(
    setup: Setup, change: Change, added: set[tuple[str, str, str]]
) -> None:
    before = manifest.read(setup.run)
    change(setup)
    now = setup.record()
    assert now.combinations[: len(before.combinations)] == before.combinations
    assert {each.key for each in now.combinations[len(before.combinations) :]} == added
    assert now.created_at == before.created_at


@pytest.mark.parametrize(("limit", "grown"), [(5, 5), (2, 3), (None, None)])
def test_a_run_keeps_the_largest_limit_it_had(
    setup: Setup, limit: int | None, grown: int | None
) -> None:
    setup.flags["limit"] = limit
    assert setup.record().dataset.limit == grown


def test_other_weights_or_numerics_of_a_running_engine_are_refused() -> None:
    before = AnsweredBy(engine="e 1", resolved_model="m@a", numerics={"dtype": "float32"})
    manifest.check_same("m", before, before.model_copy(update={"engine": "e 2"}))
    for change, message in (
        ({"resolved_model": "m@b"}, "model m: resolved_model was m@a, now m@b"),
        ({"numerics": {"dtype": "float16"}}, "model m: numerics was .*float32.*float16"),
    ):
        with pytest.raises(MixingError, match=message):
            manifest.check_same("m", before, before.model_copy(update=change))


def test_the_manifest_reads_back(setup: Setup) -> None:
    record = setup.record()
    record.write(setup.run)
    assert manifest.read(setup.run) == record


def test_a_manifest_of_another_version_says_whose_it_is(setup: Setup) -> None:
    content = json.loads(setup.run.root.read("manifest.json"))
    for version in (1, 3, None):
        changed = content | {"schema_version": version, "facescan": "9.9"}
        setup.run.root.write("manifest.json", json.dumps(changed).encode())
        with pytest.raises(
            DataError,
            match=rf"manifest\.json: schema version {version}, expected 2: .* facescan 9\.9; use",
        ):
            manifest.read(setup.run)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe\x00",
        b"\x80",
        b'{"schema_version": 2}',
        b'{"schema_version": 2, "dataset": {"seed": "x"}}',
    ],
)
def test_a_damaged_manifest_is_said_clearly(setup: Setup, content: bytes) -> None:
    setup.run.root.write("manifest.json", content)
    with pytest.raises(DataError, match=r"run/manifest\.json: damaged: .*another --output-dir"):
        setup.record()
