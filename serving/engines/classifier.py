"""Image classifiers as models: a network with one head for each attribute, and no words.

Asked in a protocol of answer mode `score` whose labels the heads have, such as
`label-probabilities`. What a label gets is the log of its softmax over its head.

`engine_options` of a card:

- `heads`: attribute -> its labels in the order of the network's outputs, one head after the other.
- `architecture`: `resnet34` is torchvision's, on pictures as FairFace's `predict.py` makes them
  (`recipes/convert_fairface.py`); `transformers` is any image classification checkpoint of Hugging
  Face's, its image processor included.
- `batch_size` (64): pictures of a step.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import groupby
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from facescan.decoding import Pixels
from facescan.errors import BadImage, EngineError, EngineUnavailable, UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.types import AnswerMode, FinishReason, Question, Reply, Request
from serving import weights
from serving.engine import EngineInfo, EngineSettings, failed

FAIRFACE_SIDE = 224
FAIRFACE_MEAN = (0.485, 0.456, 0.406)
FAIRFACE_STD = (0.229, 0.224, 0.225)
"""Of dchen236/FairFace `predict.py`: ImageNet's, after scaling to 0 to 1."""

_Floats = npt.NDArray[np.float32]


class Options(BaseModel):
    """A card's `engine_options`; the module's docstring says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["resnet34", "transformers"]
    heads: dict[str, list[str]] = Field(min_length=1)
    batch_size: int = Field(default=64, ge=1)

    @property
    def outputs(self) -> int:
        """Of the network."""
        return sum(map(len, self.heads.values()))


def missing() -> str | None:
    """See `serving.engine.EngineModule`."""
    for package in ("torch", "torchvision", "transformers"):
        if find_spec(package) is None:
            return f"{package} is not installed; install facescan[cpu], or facescan[gpu] for CUDA"
    return None


def options(card: ModelCard) -> Options:
    """The checked `engine_options` of a card.

    Raises:
        UsageError: they are not what this engine knows.
    """
    try:
        return Options.model_validate(card.engine_options)
    except ValidationError as error:
        raise UsageError(f"model '{card.name}': engine_options: {error}") from error


def preprocessing(card: ModelCard) -> str:
    """See `serving.engine.EngineModule`."""
    if options(card).architecture == "resnet34":
        return f"upright RGB; bilinear to {FAIRFACE_SIDE} px by Pillow; ImageNet mean and deviation"
    return "upright RGB; the checkpoint's own image processor, on Pillow"


def numerics(card: ModelCard) -> dict[str, str]:
    """See `serving.engine.EngineModule`; the heads' order decides what an output means."""
    heads = {f"head.{name}": ", ".join(labels) for name, labels in options(card).heads.items()}
    return {"dtype": card.dtype, **heads}


def cannot_ask(card: ModelCard, question: Question) -> str | None:
    """See `serving.engine.EngineModule`."""
    if question.answer_mode is not AnswerMode.SCORE:
        return (
            f"a classifier gives probabilities and generates nothing; answer mode "
            f"'{question.answer_mode}' needs another engine, or give a protocol of mode 'score' "
            "such as label-probabilities"
        )
    heads = options(card).heads
    for attribute, offered in zip(question.attributes, question.offered, strict=True):
        if attribute not in heads:
            return f"`heads` of the card have no '{attribute}'"
        absent = [label for _, label in offered if label not in heads[attribute]]
        if absent:
            return f"the head of '{attribute}' has no {', '.join(absent)}"
    return None


def load(
    card: ModelCard, checkpoint: Checkpoint | None, settings: EngineSettings
) -> "ClassifierEngine":
    """See `serving.engine.EngineModule`."""
    if (lacking := missing()) is not None:
        raise EngineUnavailable(lacking)
    if checkpoint is None:
        raise UsageError(f"model '{card.name}' names no checkpoint, and this engine needs one")
    import torch

    torch.set_num_threads(settings.cpus)
    chosen = options(card)
    build = {"resnet34": _resnet34, "transformers": _transformers}[chosen.architecture]
    device = "cuda" if settings.gpus else "cpu"
    dtype = torch.float32 if card.dtype == "auto" else getattr(torch, card.dtype)
    resolved, network, tensor = build(checkpoint, chosen, lambda model: model.to(device, dtype))

    def logits(pictures: Sequence[Pixels]) -> _Floats:
        with torch.inference_mode():
            found = network(torch.stack([tensor(each) for each in pictures]).to(device, dtype))
        return np.asarray(found.float().cpu())

    info = EngineInfo(
        f"classifier, torch {torch.__version__} ({device})",
        resolved,
        {"dtype": str(dtype).removeprefix("torch."), "torch": torch.__version__},
    )
    return ClassifierEngine(info, chosen, logits, settings)


_Built = tuple[str, Callable[[Any], Any], Callable[[Pixels], Any]]
"""What was loaded, batch tensor -> logits, and pixels -> tensor."""


def fairface_tensor(pixels: Pixels) -> Any:
    """A picture as FairFace's ResNet-34 takes it: float32, shape (3, 224, 224)."""
    import torch

    small = Image.fromarray(pixels).resize((FAIRFACE_SIDE,) * 2, Image.Resampling.BILINEAR)
    scaled = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (FAIRFACE_MEAN, FAIRFACE_STD))
    return (scaled - mean) / deviation


def _resnet34(checkpoint: Checkpoint, chosen: Options, place: Callable[[Any], Any]) -> _Built:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torchvision.models import resnet34

    found = weights.find(checkpoint)
    model = resnet34(weights=None, num_classes=chosen.outputs)
    try:
        model.load_state_dict(load_file(found.folder / "model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise EngineError(
            f"{checkpoint.path}: model.safetensors is not a ResNet-34 with {chosen.outputs} "
            f"outputs, as the card's `heads` want: {error}"
        ) from error
    return found.resolved, place(model.eval()), fairface_tensor


def _transformers(checkpoint: Checkpoint, chosen: Options, place: Callable[[Any], Any]) -> _Built:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    found = weights.find(checkpoint)
    try:
        model = AutoModelForImageClassification.from_pretrained(found.folder, use_safetensors=True)
        processor = AutoImageProcessor.from_pretrained(found.processor, backend="pil")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EngineError(f"{checkpoint.path}: transformers cannot load it: {error}") from error
    if model.config.num_labels != chosen.outputs:
        raise EngineError(
            f"{checkpoint.path}: {model.config.num_labels} outputs, and the card's `heads` have "
            f"{chosen.outputs} labels"
        )
    network = place(model.eval())

    def tensor(pixels: Pixels) -> Any:
        made = processor(images=Image.fromarray(pixels), return_tensors="pt")
        return made["pixel_values"][0]

    return found.resolved, lambda batch: network(pixel_values=batch).logits, tensor


class ClassifierEngine:
    """See the module's docstring and `serving.engine.Engine`.

    Args:
        info: see `serving.engine.Engine`.
        chosen: of the card.
        logits: pictures of any sizes -> shape (pictures, outputs).
        settings: of the run.
    """

    def __init__(
        self,
        info: EngineInfo,
        chosen: Options,
        logits: Callable[[Sequence[Pixels]], _Floats],
        settings: EngineSettings,
    ) -> None:
        self.info = info
        self.calls_in_flight: int | None = None
        self._logits = logits
        self._columns = dict(_columns(chosen.heads))
        self._batch_size = chosen.batch_size
        self._decoders = settings.decoders
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="classifier")

    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """One pass of the network for each picture, however many questions there are about it."""
        loop = asyncio.get_running_loop()
        pictures = [list(group) for _, group in groupby(requests, lambda r: r.image.sha256)]
        for start in range(0, len(pictures), self._batch_size):
            began = time.monotonic()
            batch = pictures[start : start + self._batch_size]
            decoding = self._decoders.decode([about[0].image for about in batch])
            good: list[tuple[list[Request], Pixels]] = []
            decoded = await asyncio.wrap_future(decoding)
            for about, pixels in zip(batch, decoded, strict=True):
                if isinstance(pixels, BadImage):
                    seconds = time.monotonic() - began
                    for request in about:
                        yield failed(request.request_id, self.info, pixels, latency_s=seconds)
                else:
                    good.append((about, pixels))
            if not good:
                continue
            together = [pixels for _, pixels in good]
            outputs = await loop.run_in_executor(self._steps, self._logits, together)
            for (about, _), row in zip(good, outputs, strict=True):
                for request in about:
                    yield self._reply(request, row, time.monotonic() - began)

    async def close(self) -> None:
        """See `serving.engine.Engine`."""
        await asyncio.to_thread(self._steps.shutdown)

    def _reply(self, request: Request, outputs: _Floats, seconds: float) -> Reply:
        (attribute,), (offered,) = request.question.attributes, request.question.offered
        columns = self._columns[attribute]
        head = outputs[list(columns.values())].astype(np.float64)
        logs = head - head.max()
        logs -= np.log(np.exp(logs).sum())
        by_label = dict(zip(columns, logs.tolist(), strict=True))
        scored = tuple((text, by_label[label]) for text, label in offered)
        return Reply(
            request_id=request.request_id,
            raw_response=max(scored, key=lambda pair: pair[1])[0],
            finish_reason=FinishReason.STOP,
            engine=self.info.engine,
            resolved_model=self.info.resolved_model,
            created_at=datetime.now(UTC),
            latency_s=seconds,
            label_logprobs=scored,
        )


def _columns(heads: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Attribute -> label -> which output it is."""
    first = 0
    for attribute, labels in heads.items():
        yield attribute, {label: first + place for place, label in enumerate(labels)}
        first += len(labels)
