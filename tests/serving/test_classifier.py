"""Classifiers beside plain torchvision and transformers loops, and what is refused before a row."""

import asyncio
import math
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
    with pytest.raises(UsageError, match="engine_options"):
        replies(card.model_copy(update={"engine_options": {}}), [])


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
