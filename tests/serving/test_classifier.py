"""Classifiers beside plain torchvision and transformers loops, and what is refused before a row.

What a user sees of the refusals is in `tests/jobs/test_wrong_weights.py`.
"""

import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from bench import parity
from facescan import images, models, prompt, protocols
from facescan.decoding import DecodePool
from facescan.errors import EngineError, UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.types import Reply, request_id
from recipes import convert_fairface
from serving.engine import EngineSettings
from serving.engines import classifier
from tests import checkpoints
from tests.serving.third_parties import VLLM

pytestmark = VLLM

REAL = Path(__file__).parents[3] / "shared" / "data" / "real_photos" / "crops"
ASKED = ("race", "gender", "age")


PICTURES = parity.noise_pictures(64)
PIXELS = [images.decode(each) for each in PICTURES]


def tell_apart(network: Any, last: Any, tensors: list[Any]) -> None:
    """Outputs of a random network are nearly alike; have each vary around 0."""
    import torch

    with torch.no_grad():
        outputs = network(torch.stack([each.float() for each in tensors[:16]]))
        scale = 2 / outputs.std(0)
        last.weight.mul_(scale[:, None])
        last.bias.copy_((last.bias - outputs.mean(0)) * scale)


@pytest.fixture(scope="module")
def fairface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FairFace's network at its true size, random, published as it is: a pickle of its state."""
    import torch
    from torchvision.models import resnet34

    torch.manual_seed(0)
    model = resnet34(weights=None, num_classes=18).eval()
    tell_apart(model, model.fc, [classifier.fairface_tensor(each) for each in PIXELS])
    folder = tmp_path_factory.mktemp("fairface")
    torch.save(model.state_dict(), folder / "published.pt")
    convert_fairface.convert(folder / "published.pt", folder / "model")
    return folder


def replies(card: ModelCard, pictures: list[Any], attributes: tuple[str, ...] = ASKED) -> Any:
    asked = prompt.questions(
        card, protocols.load(card.protocol), attributes, classifier.preprocessing(card)
    )
    for question in asked:
        assert classifier.cannot_ask(card, question) is None

    async def ask() -> dict[str, Reply]:
        decoders = DecodePool(2)
        running = classifier.load(card, card.checkpoint, EngineSettings(decoders))
        try:
            return await parity.answers(running, asked, pictures)
        finally:
            await running.close()
            decoders.close()

    found = asyncio.run(ask())
    return {
        (question.attributes[0], picture.sha256): found[
            request_id(question.identity, picture.sha256)
        ]
        for question in asked
        for picture in pictures
    }


def test_fairface_answers_are_those_of_its_own_predict_py(fairface: Path) -> None:
    import torch
    from torchvision import transforms
    from torchvision.models import resnet34

    pictures = PICTURES
    found = replies(models.load(str(fairface / "model")), pictures)
    network = resnet34(weights=None, num_classes=18)
    network.load_state_dict(torch.load(fairface / "published.pt", weights_only=True))
    network.eval()
    # The pipeline and the slices of dchen236/FairFace `predict.py`.
    reference = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    races = ["White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian"]
    slices = {
        "race": (slice(0, 7), [*races, "Middle Eastern"]),
        "gender": (slice(7, 9), ["Male", "Female"]),
        "age": (
            slice(9, 18),
            ["0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"],
        ),
    }
    said = set()
    for picture in pictures:
        tensor = reference(images.decode(picture))
        with torch.no_grad():
            outputs = network(tensor[None])[0].double().numpy()
        for attribute, (place, labels) in slices.items():
            reply = found[attribute, picture.sha256]
            scores = np.exp(outputs[place]) / np.exp(outputs[place]).sum()
            assert reply.raw_response == labels[int(scores.argmax())]
            for label, logprob in reply.label_logprobs:
                expected = scores[labels.index(label)]
                assert math.exp(logprob) == pytest.approx(expected, abs=1e-4)
            said.add((attribute, reply.raw_response))
    assert len(said) > 6


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/real_photos is not there")
def test_real_crops_become_the_tensors_of_the_reference_pipeline() -> None:
    import torch
    from torchvision import transforms

    reference = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    crops = sorted(path for path in REAL.iterdir() if path.suffix in (".jpg", ".png"))
    assert crops
    for path in crops:
        pixels = images.decode(parity.encoded(path.read_bytes()))
        difference = (classifier.fairface_tensor(pixels) - reference(pixels)).abs().max()
        assert float(difference) <= 1e-6
        assert torch.is_tensor(reference(pixels))


def small(folder: Path) -> ModelCard:
    """A tiny random ResNet of transformers with two heads."""
    import torch
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=9
    )
    model = ResNetForImageClassification(config).eval()
    tensors = [torch.from_numpy(np.resize(each, (64, 64, 3))).permute(2, 0, 1) for each in PIXELS]
    tell_apart(lambda batch: model(batch).logits, model.classifier[1], tensors)
    model.save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=1.0).save_pretrained(folder)
    labels = protocols.load("label-probabilities")
    assert labels.answer_mode == "score"
    return ModelCard(
        name="small",
        description="",
        engine="classifier",
        protocol="label-probabilities",
        attributes=("race", "gender"),
        checkpoint=Checkpoint(path=str(folder)),
        engine_options={
            "architecture": "transformers",
            "heads": {"gender": ["Female", "Male"], "race": list(convert_fairface.RACES)},
        },
    )


def test_a_checkpoint_of_transformers_answers_as_in_a_plain_loop(tmp_path: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    card = small(tmp_path)
    pictures = PICTURES
    found = replies(card, pictures, ("race", "gender"))
    model = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for picture in pictures:
        inputs = processor(images=Image.fromarray(images.decode(picture)), return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs).logits[0]
        gender, race = outputs[:2], outputs[2:]
        said = found["gender", picture.sha256].raw_response
        assert said == ["Female", "Male"][int(gender.argmax())]
        assert found["race", picture.sha256].raw_response == convert_fairface.RACES[race.argmax()]


def small_clip(folder: Path) -> ModelCard:
    """A tiny random CLIP; its pictures' embeddings are centred, or all would get one answer."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CLIPModel, CLIPProcessor

    checkpoints.clip(folder)
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images=PIXELS[:16], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        middle = model.vision_model(pixel_values=pixels).pooler_output.mean(0)
    state = load_file(folder / "model.safetensors")
    state["vision_model.post_layernorm.bias"] -= middle
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return ModelCard(
        name="small-clip",
        description="",
        engine="classifier",
        protocol="clip-zero-shot",
        attributes=("race", "gender", "age", "emotion"),
        checkpoint=Checkpoint(path=str(folder)),
        engine_options={"architecture": "clip"},
    )


def test_clip_answers_as_in_a_plain_loop(tmp_path: Path) -> None:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    card = small_clip(tmp_path)
    found = replies(card, PICTURES, card.attributes)
    model = CLIPModel.from_pretrained(tmp_path).eval()
    processor = CLIPProcessor.from_pretrained(tmp_path, backend="pil")
    said = set()
    for attribute in card.attributes:
        (offered,) = question(card, "clip-zero-shot", attribute).offered
        texts = [text for text, _ in offered]
        for picture in PICTURES:
            shown = Image.fromarray(images.decode(picture))
            inputs = processor(text=texts, images=shown, padding=True, return_tensors="pt")
            with torch.no_grad():
                logprobs = model(**inputs).logits_per_image[0].log_softmax(-1)
            reply = found[attribute, picture.sha256]
            assert reply.raw_response == texts[int(logprobs.argmax())]
            assert dict(reply.label_logprobs) == pytest.approx(
                dict(zip(texts, logprobs.tolist(), strict=True)), abs=1e-4
            )
            said.add(reply.raw_response)
    assert len(said) > 12


def test_clip_compares_with_the_captions_of_the_protocol() -> None:
    card = models.load("clip-vit-base-patch32")
    asked = question(card, card.protocol, "race")
    assert "a photo of an East Asian person" in asked.labels
    assert classifier.cannot_ask(card, asked) is None
    assert classifier.cannot_ask(card, question(card, "label-probabilities", "race")) is None
    worded = classifier.cannot_ask(card, question(card, "neutral-score", "race"))
    assert "this protocol's question says more" in str(worded)
    free = classifier.cannot_ask(card, question(card, "neutral", "race"))
    assert "answer mode 'free'" in str(free)


def test_a_caption_that_clip_cannot_read_to_its_end_ends_the_run(tmp_path: Path) -> None:
    card = small_clip(tmp_path)
    asked = question(card, "clip-zero-shot", "gender")
    long = f"a photo of {'a very ' * 20}old man"
    longer = replace(asked, labels=(long, "b"), offered=(((long, "Male"), ("b", "Female")),))

    async def ask() -> None:
        decoders = DecodePool(2)
        running = classifier.load(card, card.checkpoint, EngineSettings(decoders))
        try:
            await parity.answers(running, [longer], PICTURES[:1])
        finally:
            await running.close()
            decoders.close()

    with pytest.raises(UsageError, match=r"very old man' has \d+ tokens, and small-clip reads 77"):
        asyncio.run(ask())


def question(card: ModelCard, protocol: str, attribute: str) -> Any:
    return prompt.questions(card, protocols.load(protocol), [attribute], "p")[0]


def test_a_head_that_does_not_cover_the_labels_is_told(tmp_path: Path) -> None:
    card = small(tmp_path)
    heads = {"gender": ["Female", "Male"], "race": list(convert_fairface.RACES[:-1])}
    short = card.model_copy(update={"engine_options": card.engine_options | {"heads": heads}})
    asked = question(short, "label-probabilities", "race")
    said = classifier.cannot_ask(short, asked)
    assert said == "the head of 'race' has no Middle Eastern"
    free = classifier.cannot_ask(card, question(card, "neutral", "race"))
    assert "answer mode 'free'" in str(free)


def test_weights_that_do_not_fit_are_told_before_a_row_is_read(
    tmp_path: Path, fairface: Path
) -> None:
    card = small(tmp_path / "small")
    heads = {"gender": ["Female", "Male"]}
    few = card.model_copy(update={"engine_options": card.engine_options | {"heads": heads}})
    with pytest.raises(EngineError, match=r"9 outputs, and the card's `heads` have 2"):
        replies(few, [], ("gender",))
    resnet = models.load(str(fairface / "model"))
    wrong = resnet.model_copy(update={"engine_options": resnet.engine_options | {"heads": heads}})
    with pytest.raises(EngineError, match="not a ResNet-34 with 2 outputs"):
        replies(wrong, [], ("gender",))
    (tmp_path / "empty").mkdir()
    empty = card.model_copy(update={"checkpoint": Checkpoint(path=str(tmp_path / "empty"))})
    with pytest.raises(EngineError, match="holds no weights"):
        replies(empty, [], ("gender",))


def load(card: ModelCard) -> None:
    """Load it and close it again."""
    decoders = DecodePool(1)
    try:
        asyncio.run(classifier.load(card, card.checkpoint, EngineSettings(decoders)).close())
    finally:
        decoders.close()


def changed(card: ModelCard, **options: Any) -> ModelCard:
    return card.model_copy(update={"engine_options": card.engine_options | options})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "architecture"),
        ({"architecture": "transformers"}, "`transformers` needs `heads`"),
        ({"architecture": "clip", "heads": {"gender": ["Male", "Female"]}}, "has no `heads`"),
        (
            {"architecture": "resnet34", "heads": {"gender": ["Male", "Male"]}},
            "the head of 'gender' names a label twice",
        ),
    ],
)
def test_a_card_that_makes_no_classifier_says_why(options: dict[str, Any], why: str) -> None:
    card = models.load("clip-vit-base-patch32").model_copy(update={"engine_options": options})
    with pytest.raises(UsageError, match=why):
        classifier.numerics(card)


def test_a_checkpoint_of_another_architecture_is_told(tmp_path: Path, fairface: Path) -> None:
    card = small(tmp_path / "small")
    clip = checkpoints.clip(tmp_path / "clip")
    paligemma = checkpoints.paligemma(tmp_path / "paligemma")
    only = {"engine_options": {"architecture": "clip"}}
    published = models.load(str(fairface / "model"))
    for wrong, folder, why in (
        (card, paligemma, "a checkpoint of 'paligemma', which is no image classifier"),
        (card, clip, "classifier.bias among them"),
        (card.model_copy(update=only), tmp_path / "small", "a checkpoint of 'resnet'"),
        (published, tmp_path / "small", "not a ResNet-34 with 18 outputs.*it has no conv1.weight"),
    ):
        place = {"checkpoint": Checkpoint(path=str(folder))}
        with pytest.raises(EngineError, match=why):
            load(wrong.model_copy(update=place))


def test_a_clip_without_its_tokenizer_is_told(tmp_path: Path) -> None:
    card = small_clip(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match="a tokenizer of 2 tokens, and the model knows 514"):
        load(card)


def test_weights_without_a_head_or_with_another_are_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    card = small(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({k: v for k, v in whole.items() if "classifier" not in k}, file)
    with pytest.raises(EngineError, match=r"2 weights of .* are not in its files"):
        load(card)
    head = {k: v[:4].contiguous() if "classifier" in k else v for k, v in whole.items()}
    save_file(head, file)
    with pytest.raises(EngineError, match=r"classifier.1.bias is \(4,\), .* makes it \(9,\)"):
        load(card)


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    card = small(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match="transformers cannot load it"):
        load(card)


def test_heads_in_another_order_than_the_checkpoint_names_its_outputs_are_told(
    tmp_path: Path,
) -> None:
    card = small(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = ["male", "female", *convert_fairface.RACES]
    config["id2label"] = {str(output): name for output, name in enumerate(names)}
    config["label2id"] = {name: output for output, name in enumerate(names)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="calls output 0 'male', and the card's `heads` call it"):
        load(card)
    heads = {"gender": ["Male", "Female"], "race": list(convert_fairface.RACES)}
    load(changed(card, heads=heads))


def test_what_is_not_fairfaces_state_is_not_converted(tmp_path: Path) -> None:
    import pickle

    import typer

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(typer.BadParameter, match="not the state of a ResNet-34"):
        convert_fairface.convert(tmp_path / "evil.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_converted_model_is_a_card(fairface: Path) -> None:
    written = yaml.safe_load((fairface / "model" / "facescan.yaml").read_text())
    assert written["engine_options"]["heads"]["race"][2] == "Latino_Hispanic"
    card = models.load(str(fairface / "model"))
    assert card.checkpoint is not None
    assert Path(card.checkpoint.path) == fairface / "model"
