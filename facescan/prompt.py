"""(image, attributes, protocol, model) -> Request; the only place that formats a question."""

from collections.abc import Sequence

from facescan.models import ModelCard
from facescan.protocols import Protocol
from facescan.types import EncodedImage, Question, Request


def questions(
    card: ModelCard, protocol: Protocol, attributes: Sequence[str], preprocessing: str
) -> tuple[Question, ...]:
    """What is asked of every image; one question per attribute, or one for all (joint).

    Raises:
        UsageError: the model or the protocol cannot be asked about one of the attributes.
    """
    raise NotImplementedError


def requests(image: EncodedImage, asked: Sequence[Question]) -> list[Request]:
    """One request per question about this image."""
    raise NotImplementedError
