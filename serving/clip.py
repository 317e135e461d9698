"""CLIP zero-shot: a picture is compared with the texts that a protocol offers.

A label's logit is the cosine of its text and the picture, times the scale that the checkpoint has
learned. The offered texts are the prompts, whole and as they stand in the protocol; they are
embedded once for each question. Nothing else of a question reaches the model, so a protocol whose
question says more is refused.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from facescan.errors import EngineError, UsageError
from facescan.types import Question
from serving import weights
from serving.weights import Weights

_MODEL_TYPE = "clip"

_Floats = npt.NDArray[np.float32]


def cannot_ask(question: Question) -> str | None:
    """Why CLIP cannot be asked this, or None where it can."""
    longest_first = sorted(question.labels, key=len, reverse=True)
    rest = re.sub("|".join(map(re.escape, longest_first)), "", question.prompt)
    if re.search(r"\w", rest):
        return (
            "CLIP compares a picture with the offered texts and reads nothing else, and this "
            "protocol's question says more than they do; give a protocol whose question is "
            "'{labels}', such as clip-zero-shot"
        )
    return None


class Clip:
    """A CLIP of transformers'.

    Args:
        found: its files.
        place: moves the model to its device and dtype.

    Raises:
        EngineError: it is another model, or cannot be loaded.
    """

    def __init__(self, found: Weights, place: Callable[[Any], Any]) -> None:
        from transformers import CLIPModel, CLIPProcessor

        kind = found.config.get("model_type")
        if kind != _MODEL_TYPE:
            raise EngineError(
                f"{found.resolved}: a checkpoint of '{kind}'; architecture 'clip' runs "
                f"'{_MODEL_TYPE}'"
            )
        self._model = place(weights.load_model(CLIPModel, found))
        processor = weights.load_processor(CLIPProcessor, found)
        self.image_processor = processor.image_processor
        self._tokenizer = processor.tokenizer
        words, known = self._model.config.text_config.vocab_size, len(self._tokenizer)
        if known < words:
            # Without its files transformers makes an empty one, to which all texts are alike.
            raise EngineError(
                f"{found.processor}: a tokenizer of {known} tokens, and the model knows {words}; "
                "its files (tokenizer.json, or vocab.json and merges.txt) are not there, or are of "
                "another model"
            )
        self._scale = float(self._model.logit_scale.detach().float().exp())
        self._texts: dict[str, _Floats] = {}

    def pictures(self, tensors: Any) -> Any:
        """A batch of the image processor's tensors -> embeddings of length 1."""
        return _unit(self._model.get_image_features(pixel_values=tensors).pooler_output)

    def logits(self, question: Question, picture: _Floats) -> Mapping[str, float]:
        """Label -> logit, for the embedding of one picture.

        Raises:
            UsageError: an offered text is longer than the model reads.
        """
        if question.identity not in self._texts:
            self._texts[question.identity] = self._embedded(question)
        values = self._scale * (self._texts[question.identity] @ picture)
        (offered,) = question.offered
        return {label: float(value) for (_, label), value in zip(offered, values, strict=True)}

    def _embedded(self, question: Question) -> _Floats:
        """The offered texts, (texts, width)."""
        import torch

        longest = self._model.config.text_config.max_position_embeddings
        for text in question.labels:
            length = len(self._tokenizer(text)["input_ids"])
            if length > longest:
                raise UsageError(
                    f"protocol '{question.protocol}': '{text}' has {length} tokens, and "
                    f"{question.model} reads {longest}; offer a shorter text"
                )
        tokens = self._tokenizer(list(question.labels), padding=True, return_tensors="pt")
        with torch.inference_mode():
            made = self._model.get_text_features(**tokens.to(self._model.device)).pooler_output
            return np.asarray(_unit(made).cpu())


def _unit(embeddings: Any) -> Any:
    embeddings = embeddings.float()
    return embeddings / embeddings.norm(dim=-1, keepdim=True)
