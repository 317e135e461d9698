"""Checkpoints on disk: what is refused before anything is loaded, and how one is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from facescan.decoding import DecodePool
from facescan.errors import EngineError, UsageError
from facescan.models import Checkpoint, ModelCard
from serving import engine, prompt_forms, weights
from serving.engine import EngineSettings
from tests import checkpoints


def checkpoint(folder: Path, *names: str, architecture: str = "Other") -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    for name in names:
        (folder / name).write_bytes(b"weights of " + name.encode())
    return Checkpoint(path=str(folder))


def card(**fields: Any) -> ModelCard:
    needed = {"description": "", "engine": "vllm", "protocol": "p", "attributes": ("race",)}
    return ModelCard(name="m", **(needed | fields))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "w.ckpt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    found = checkpoint(tmp_path, name)
    with pytest.raises(EngineError, match=f"pickles .{name}.*safetensors"):
        weights.find(found)
    with pytest.raises(EngineError, match="pickles"):
        engine.module("vllm").load(card(), found, EngineSettings(DecodePool(1)))


def test_pickles_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    found = weights.find(checkpoint(tmp_path, "model.safetensors", "training_args.bin"))
    assert found.folder == tmp_path


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no weights"):
        weights.find(checkpoint(tmp_path / "empty"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/model.safetensors").touch()
    with pytest.raises(EngineError, match=r"config\.json"):
        weights.find(Checkpoint(path=str(tmp_path / "bare")))
    with pytest.raises(EngineError, match="neither a folder"):
        weights.find(Checkpoint(path="/nowhere/at/all"))


def test_a_folder_is_named_by_what_is_in_it(tmp_path: Path) -> None:
    first = weights.find(checkpoint(tmp_path / "a", "model.safetensors")).resolved
    again = weights.find(checkpoint(tmp_path / "b", "model.safetensors")).resolved
    assert first.partition("@")[2] == again.partition("@")[2]
    tuned = checkpoint(tmp_path / "c", "model.safetensors")
    (tmp_path / "c/model.safetensors").write_bytes(b"WEIGHTS of model.safetensors")
    other = weights.find(tuned).resolved
    assert other.partition("@")[2] != again.partition("@")[2]


def test_a_repository_is_named_by_its_commit_and_brings_no_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "0123abc"
    checkpoint(snapshot, "model.safetensors")
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(path: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((path, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = weights.find(Checkpoint(path="owner/name", revision="v1", processor="owner/base"))
    assert found.resolved == "owner/name@0123abc, processor owner/base@0123abc"
    (model, revision, patterns), (processor, _, processor_patterns) = asked
    assert (model, revision, processor) == ("owner/name", "v1", "owner/base")
    assert not [pattern for pattern in patterns if pattern.endswith((".bin", ".pt", "*"))]
    assert "*.safetensors" not in processor_patterns


def test_weights_and_processor_are_put_together(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", "model.safetensors", "tokenizer.json")
    checkpoint(tmp_path / "processor", "tokenizer.json", "preprocessor_config.json", "x.bin")
    (tmp_path / "model/config.json").write_text('{"mine": true}')
    found = weights.find(
        Checkpoint(path=str(tmp_path / "model"), processor=str(tmp_path / "processor"))
    )
    with weights.together(found) as folder:
        names = {path.name: path.resolve().parent.name for path in folder.iterdir()}
    assert names == {
        "model.safetensors": "model",
        "config.json": "model",
        "tokenizer.json": "processor",
        "preprocessor_config.json": "processor",
    }
    assert not folder.exists()


def test_a_checkpoint_without_a_processor_is_refused(tmp_path: Path) -> None:
    found = weights.find(checkpoint(tmp_path, "model.safetensors", architecture="GPT2LMHeadModel"))
    with pytest.raises(EngineError, match=r"no usable processor for GPT2LMHeadModel"):
        prompt_forms.form(found)


def test_a_model_that_takes_no_pictures_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.llava(tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json", "chat_template.json"):
        (folder / name).unlink()
    with pytest.raises(EngineError, match=r"takes no pictures|no usable processor"):
        prompt_forms.form(weights.find(Checkpoint(path=str(folder))))


def test_a_chat_model_without_a_template_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.llava(tmp_path)
    (folder / "chat_template.json").unlink()
    with pytest.raises(EngineError, match=r"no chat template.*chat_template\.jinja"):
        prompt_forms.form(weights.find(Checkpoint(path=str(folder))))


def templated(folder: Path, template: str) -> Checkpoint:
    checkpoints.llava(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return Checkpoint(path=str(folder))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0]['content'] }}", r"leaves the picture \(<image>\) out"),
        ("{{ 'USER: ' + messages[0]['content'] }}", r"takes no question with a picture"),
        ("{{ raise_exception('system first') }}", r"no question with a picture.*system first"),
    ],
)
def test_a_template_that_cannot_ask_about_a_picture_is_refused(
    tmp_path: Path, template: str, why: str
) -> None:
    with pytest.raises(EngineError, match=why):
        prompt_forms.form(weights.find(templated(tmp_path, template)))


def test_a_label_ends_as_the_template_ends_a_turn(tmp_path: Path) -> None:
    template = checkpoints.CHAT_TEMPLATES["llava-next"].replace("<eos>", "<pad>\\n")
    checkpoint = templated(tmp_path, template)
    ends = json.loads((tmp_path / "generation_config.json").read_text()) | {"eos_token_id": [1, 0]}
    (tmp_path / "generation_config.json").write_text(json.dumps(ends))
    form = prompt_forms.form(weights.find(checkpoint))
    pad, eos = 0, 1
    assert form.end_tokens == (eos, pad)
    assert form.label_tokens("what?", "Black")[-1] == pad
    begun, whole = form.prompt_tokens("what?"), form.label_tokens("what?", "Black")
    assert form.text(whole) == " Black"
    assert begun[0] == 2, "<bos>, once"
    assert begun[1] != 2


def test_a_template_that_hides_where_an_answer_begins_cannot_be_scored(tmp_path: Path) -> None:
    folder = checkpoints.llava(tmp_path)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    hidden = template.replace("{{ 'ASSISTANT:' }}", "{{ 'BOT:' }}")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": hidden}))
    form = prompt_forms.form(weights.find(Checkpoint(path=str(folder))))
    assert form.prompt_tokens("what?")
    with pytest.raises(ValueError, match=r"begins an answer with .*BOT:.* as .*ASSISTANT: Black"):
        form.label_tokens("what?", "Black")


def test_a_card_that_cannot_work_is_a_usage_error(tmp_path: Path) -> None:
    vllm = engine.module("vllm")
    with pytest.raises(UsageError, match="checkpoint"):
        vllm.load(card(), None, EngineSettings(DecodePool(1)))
    with pytest.raises(UsageError, match="max_seqs"):
        vllm.load(
            card(engine_options={"max_seqs": 3}),
            checkpoint(tmp_path, "model.safetensors"),
            EngineSettings(DecodePool(1)),
        )


def test_numerics_are_the_settings_that_can_change_an_answer() -> None:
    vllm = engine.module("vllm")
    plain = vllm.numerics(card())
    assert set(plain) == {"dtype", "enforce_eager", "tensor_parallel_size"}
    assert vllm.numerics(card(engine_options={"max_num_seqs": 7, "kv_cache_gib": 1.0})) == plain
    for fields in (
        {"dtype": "float32"},
        {"tensor_parallel_size": 2},
        {"engine_options": {"enforce_eager": False}},
        {"engine_options": {"max_model_len": 300}},
    ):
        assert vllm.numerics(card(**fields)) != plain
    with pytest.raises(UsageError, match="max_seqs"):
        vllm.numerics(card(engine_options={"max_seqs": 3}))
