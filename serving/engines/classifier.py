"""Image classifiers as models: networks that give each label a probability and generate nothing.

Most have one head for each attribute and are asked in a protocol of answer mode `score` whose
labels the heads have, such as `label-probabilities`. What a label gets is the log of its softmax
over its head. CLIP has no heads: a picture is compared with the texts that a protocol offers, such
as those of `clip-zero-shot`, and the softmax is over them (`serving/clip.py`).

`engine_options` of a card:

- `architecture`: `resnet34` is torchvision's, on pictures as FairFace's `predict.py` makes them
  (`recipes/convert_fairface.py`); `transformers` is any image classification checkpoint of Hugging
  Face's, its image processor included; `clip` is a CLIP of transformers'.
- `heads`: attribute -> its labels in the order of the network's outputs, one head after the other;
  `clip` has none.
- `batch_size` (64): pictures of a step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from facescan.decoding import Pixels
from facescan.errors import EngineError, EngineUnavailable
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, Question
from serving import clip, weights
from serving.engine import EngineInfo, EngineSettings, given, uninstalled
from serving.steps import Answer, StepEngine, likeliest

FAIRFACE_SIDE = 224
FAIRFACE_MEAN = (0.485, 0.456, 0.406)
FAIRFACE_STD = (0.229, 0.224, 0.225)
"""Of dchen236/FairFace `predict.py`: ImageNet's, after scaling to 0 to 1."""

_Floats = npt.NDArray[np.float32]


class Options(BaseModel):
    """A card's `engine_options`; the module's docstring says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["resnet34", "transformers", "clip"]
    heads: dict[str, list[str]] = Field(default_factory=dict)
    batch_size: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _heads_are_of_the_architecture(self) -> Self:
        if self.architecture == "clip":
            if self.heads:
                raise ValueError("`clip` has no `heads`; its labels are the texts of a protocol")
        elif not self.heads:
            raise ValueError(
                f"`{self.architecture}` needs `heads`: for each attribute its labels, in the order "
                "of the network's outputs"
            )
        for attribute, labels in self.heads.items():
            if len(set(labels)) != len(labels):
                raise ValueError(f"the head of '{attribute}' names a label twice: {labels}")
        return self

    @property
    def outputs(self) -> int:
        """Of the network."""
        return sum(map(len, self.heads.values()))


def missing() -> str | None:
    """See `serving.engine.EngineModule`."""
    return uninstalled("torch", "torchvision", "transformers")


def preprocessing(card: ModelCard) -> str:
    """See `serving.engine.EngineModule`."""
    if card.options(Options).architecture == "resnet34":
        return f"upright RGB; bilinear to {FAIRFACE_SIDE} px by Pillow; ImageNet mean and deviation"
    return "upright RGB; the checkpoint's own image processor, on Pillow"


def numerics(card: ModelCard) -> dict[str, str]:
    """See `serving.engine.EngineModule`; the heads' order decides what an output means."""
    chosen = card.options(Options)
    heads = {f"head.{name}": ", ".join(labels) for name, labels in chosen.heads.items()}
    return {"dtype": card.dtype, **heads}


def cannot_ask(card: ModelCard, question: Question) -> str | None:
    """See `serving.engine.EngineModule`."""
    if question.answer_mode is not AnswerMode.SCORE:
        return (
            f"a classifier gives probabilities and generates nothing; answer mode "
            f"'{question.answer_mode}' needs another engine, or give a protocol of mode 'score' "
            "such as label-probabilities"
        )
    chosen = card.options(Options)
    if chosen.architecture == "clip":
        return clip.cannot_ask(question)
    heads = chosen.heads
    for attribute, offered in zip(question.attributes, question.offered, strict=True):
        if attribute not in heads:
            return f"`heads` of the card have no '{attribute}'"
        absent = [label for _, label in offered if label not in heads[attribute]]
        if absent:
            return f"the head of '{attribute}' has no {', '.join(absent)}"
    return None


def load(card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings) -> StepEngine:
    """See `serving.engine.EngineModule`."""
    if (lacking := missing()) is not None:
        raise EngineUnavailable(lacking)
    checkpoint = given(card, checkpoint)
    import torch

    torch.set_num_threads(settings.cpus)
    chosen = card.options(Options)
    builders = {"resnet34": _resnet34, "transformers": _transformers, "clip": _clip}
    device = "cuda" if settings.gpus else "cpu"
    dtype = torch.float32 if card.dtype == "auto" else getattr(torch, card.dtype)
    loaded = builders[chosen.architecture](checkpoint, chosen, lambda m: m.to(device, dtype))

    def outputs(pictures: Sequence[Pixels]) -> _Floats:
        tensors = torch.stack([loaded.tensor(each) for each in pictures]).to(device, dtype)
        with torch.inference_mode():
            return np.asarray(loaded.outputs(tensors).float().cpu())

    info = EngineInfo(
        f"classifier, torch {torch.__version__} ({device})",
        loaded.resolved,
        {"dtype": str(dtype).removeprefix("torch."), "torch": torch.__version__},
    )
    return StepEngine(_Classifier(info, outputs, loaded.logits), chosen.batch_size, settings)


_Logits = Callable[[Question, _Floats], Mapping[str, float]]
"""Question and a picture's outputs -> logits by label, over all labels that share the softmax."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A network and what belongs to it.

    Attributes:
        resolved: the checkpoint and the commit loaded.
        tensor: a picture -> what the network takes.
        outputs: batch of these -> shape (pictures, outputs).
        logits: see `_Logits`.
    """

    resolved: str
    tensor: Callable[[Pixels], Any]
    outputs: Callable[[Any], Any]
    logits: _Logits


_Place = Callable[[Any], Any]
"""Network -> the same on its device, in its dtype."""


def _of_heads(heads: Mapping[str, Sequence[str]]) -> _Logits:
    """The logits of networks with heads: a slice of their outputs."""
    slices, first = {}, 0
    for attribute, labels in heads.items():
        slices[attribute] = (labels, slice(first, first + len(labels)))
        first += len(labels)

    def logits(question: Question, outputs: _Floats) -> Mapping[str, float]:
        (attribute,) = question.attributes
        labels, place = slices[attribute]
        return dict(zip(labels, outputs[place].tolist(), strict=True))

    return logits


def fairface_tensor(pixels: Pixels) -> Any:
    """A picture as FairFace's ResNet-34 takes it: float32, shape (3, 224, 224)."""
    import torch

    small = Image.fromarray(pixels).resize((FAIRFACE_SIDE,) * 2, Image.Resampling.BILINEAR)
    scaled = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (FAIRFACE_MEAN, FAIRFACE_STD))
    return (scaled - mean) / deviation


def _resnet34(checkpoint: Checkpoint, chosen: Options, place: _Place) -> _Loaded:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torchvision.models import resnet34

    found = weights.find(checkpoint)
    model = resnet34(weights=None, num_classes=chosen.outputs)
    try:
        state = load_file(found.folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise EngineError(
            f"{checkpoint.path}: model.safetensors cannot be read: {error}"
        ) from error
    if (difference := _difference(model.state_dict(), state)) is not None:
        raise EngineError(
            f"{checkpoint.path}: model.safetensors is not a ResNet-34 with {chosen.outputs} "
            f"outputs, as the card's `heads` want: {difference}"
        )
    model.load_state_dict(state)
    return _Loaded(found.resolved, fairface_tensor, place(model.eval()), _of_heads(chosen.heads))


def _difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first thing in which weights are not those wanted."""
    for name, weight in wanted.items():
        if name not in found:
            return f"it has no {name}"
        if found[name].shape != weight.shape:
            return f"{name} is {tuple(found[name].shape)}, expected {tuple(weight.shape)}"
    more = sorted(found.keys() - wanted.keys())
    return f"it has {more[0]} as well" if more else None


def _transformers(checkpoint: Checkpoint, chosen: Options, place: _Place) -> _Loaded:
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KINDS,
    )

    found = weights.find(checkpoint)
    kind = found.config.get("model_type")
    if kind not in KINDS:
        raise EngineError(
            f"{checkpoint.path}: a checkpoint of '{kind}', which is no image classifier of "
            "transformers'; another engine may run it"
        )
    model = weights.load_model(AutoModelForImageClassification, found)
    if model.config.num_labels != chosen.outputs:
        raise EngineError(
            f"{checkpoint.path}: {model.config.num_labels} outputs, and the card's `heads` have "
            f"{chosen.outputs} labels"
        )
    _check_names(checkpoint, chosen, model.config.id2label)
    network = place(model)
    return _Loaded(
        found.resolved,
        _tensor(weights.load_processor(AutoImageProcessor, found)),
        lambda batch: network(pixel_values=batch).logits,
        _of_heads(chosen.heads),
    )


def _check_names(checkpoint: Checkpoint, chosen: Options, names: Mapping[int, str]) -> None:
    """Refuse heads in another order than the checkpoint says that its outputs have."""
    labels = [label for head in chosen.heads.values() for label in head]
    known = {label.casefold() for label in labels}
    for output, label in enumerate(labels):
        name = names[output]
        if name.casefold() != label.casefold() and name.casefold() in known:
            raise EngineError(
                f"{checkpoint.path}: its config.json calls output {output} '{name}', and the "
                f"card's `heads` call it '{label}'; `heads` must be in the order of the outputs"
            )


def _tensor(processor: Any) -> Callable[[Pixels], Any]:
    """A picture by the checkpoint's own image processor."""

    def tensor(pixels: Pixels) -> Any:
        made = processor(images=Image.fromarray(pixels), return_tensors="pt")
        return made["pixel_values"][0]

    return tensor


def _clip(checkpoint: Checkpoint, chosen: Options, place: _Place) -> _Loaded:
    del chosen
    found = weights.find(checkpoint)
    model = clip.Clip(found, place)
    return _Loaded(found.resolved, _tensor(model.image_processor), model.pictures, model.logits)


class _Classifier:
    """See `serving.steps.Network`.

    Args:
        info: what is answering.
        outputs: pictures of any sizes -> shape (pictures, outputs).
        logits: see `_Logits`.
    """

    def __init__(
        self, info: EngineInfo, outputs: Callable[[Sequence[Pixels]], _Floats], logits: _Logits
    ) -> None:
        self.info = info
        self.size: tuple[int, int] | None = None
        self._outputs = outputs
        self._logits = logits

    def see(self, pictures: Sequence[Pixels]) -> _Floats:
        """The network's outputs: one pass however many questions there are about a picture."""
        return self._outputs(pictures)

    def ask(self, question: Question, seen: _Floats) -> list[Answer]:
        """See `serving.steps.Network`."""
        return [self._answer(question, outputs) for outputs in seen]

    def _answer(self, question: Question, outputs: _Floats) -> Answer:
        logits = self._logits(question, outputs)
        values = np.array(list(logits.values()), np.float64)
        values -= values.max()
        values -= np.log(np.exp(values).sum())
        by_label = dict(zip(logits, values.tolist(), strict=True))
        (offered,) = question.offered
        return likeliest((text, by_label[label]) for text, label in offered)
