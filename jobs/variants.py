"""The same question put otherwise: protocols derived from one by answer mode and option order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from facescan import attributes as attribute_files
from facescan import durable, prompt, protocols
from facescan.models import ModelCard
from facescan.protocols import Asked, Protocol
from facescan.types import AnswerMode
from serving import engine as engines

BASE = "as it is"
"""What the first variant of a model varies."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of asking.

    Attributes:
        varies: what is not as in the first variant: `wording`, `order` or `mode`; of the first
            itself `BASE`.
        protocol: its name.
        answer_mode: of the protocol.
        attributes: that it is asked about.
    """

    varies: str
    protocol: str
    answer_mode: AnswerMode
    attributes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variants:
    """What a model is asked, and what it cannot be asked and why, a sentence each."""

    asked: tuple[Variant, ...]
    left_out: tuple[str, ...]


def of(
    card: ModelCard,
    wordings: Sequence[str],
    modes: Sequence[AnswerMode],
    orders: int,
    attributes: Sequence[str],
    folder: Path,
) -> Variants:
    """The variants of what a model is asked; protocols that do not ship are written as files.

    The first wording is the base. It is asked in every mode, and every wording in every order of
    its options; modes and orders are not combined with each other.

    Args:
        card: of the model.
        wordings: names of protocols, the base first.
        modes: answer modes beside the base's own.
        orders: of the options, the wording's own among them; the second is reversed, further
            ones are shuffled.
        attributes: what the model is asked about.
        folder: where derived protocols are written, to be included in the registry.
    """
    asked, left_out = [], []
    for variant, protocol in _candidates(wordings, modes, orders):
        if isinstance(protocol, str):
            left_out.append(f"{variant}: {protocol}")
            continue
        about = tuple(name for name in attributes if name in protocol.attributes)
        reason = _cannot(card, protocol, about)
        if reason is not None:
            left_out.append(f"{protocol.name}: {reason}")
            continue
        if protocol.name not in protocols.names():
            _write(folder, protocol)
        asked.append(Variant(variant, protocol.name, protocol.answer_mode, about))
    return Variants(tuple(asked), tuple(left_out))


def _candidates(
    wordings: Sequence[str], modes: Sequence[AnswerMode], orders: int
) -> Iterator[tuple[str, Protocol | str]]:
    """Pairs of what varies and the protocol; or of a name and why there is no such protocol."""
    loaded = [protocols.load(name) for name in dict.fromkeys(wordings)]
    for number, wording in enumerate(loaded):
        yield ("wording" if number else BASE), wording
        used: dict[str, list[tuple[str, ...]]] = {}
        for order in range(1, orders):
            name = f"{wording.name}-order-{'reversed' if order == 1 else order}"
            permuted = _permuted(wording, name, order, used)
            yield ("order", permuted) if permuted else (name, "the wording lists no options")
    for mode in dict.fromkeys(modes):
        if mode is not loaded[0].answer_mode:
            yield _in_mode(loaded[0], mode)


def _in_mode(base: Protocol, mode: AnswerMode) -> tuple[str, Protocol | str]:
    name = f"{base.name}-{mode}"
    if name in protocols.names():
        return "mode", protocols.load(name)
    if base.joint_question is not None:
        return name, "a question about several attributes at once is answered freely"
    changed = {"answer_mode": mode, "structured": False}
    return "mode", _derived(base, name, f"answered in mode {mode}", changed)


def _permuted(
    base: Protocol, name: str, order: int, used: dict[str, list[tuple[str, ...]]]
) -> Protocol | None:
    """The attributes whose options the wording lists, in an order not `used` yet."""
    changed: dict[str, Asked] = {}
    moved = False
    for attribute, asked in base.attributes.items():
        own = tuple(
            asked.order or attribute_files.load(attribute).label_set(asked.label_set).labels
        )
        seen = used.setdefault(attribute, [own])
        labels = list(reversed(own))
        if order > 1:
            Random(f"{base.name} {attribute} {order}").shuffle(labels)
        if _lists(base, attribute, asked) and tuple(labels) not in seen:
            seen.append(tuple(labels))
            changed[attribute] = asked.model_copy(update={"order": labels})
            moved = True
        elif asked.question is None:
            # What is asked in one call stays together.
            changed[attribute] = asked
    if not moved:
        return None
    says = "options reversed" if order == 1 else f"options shuffled ({order})"
    return _derived(base, name, says, {"attributes": changed})


def _lists(base: Protocol, attribute: str, asked: Asked) -> bool:
    if asked.question is None:
        return f"{{{attribute}_labels}}" in (base.joint_question or "")
    return "{labels}" in asked.question


def _derived(base: Protocol, name: str, says: str, changed: Mapping[str, Any]) -> Protocol:
    text = f"{base.name}, {says}; made by `facescan sensitivity`."
    return base.model_copy(update={"name": name, "description": text, **changed})


def _cannot(card: ModelCard, protocol: Protocol, attributes: Sequence[str]) -> str | None:
    """Why this model cannot be asked in this protocol; None where it can."""
    if not attributes:
        return "it asks about none of the attributes"
    engine = engines.module(card.engine)
    for question in prompt.questions(card, protocol, attributes, engine.preprocessing(card)):
        if (reason := engine.cannot_ask(card, question)) is not None:
            return reason
    return None


def _write(folder: Path, protocol: Protocol) -> None:
    place = folder / "protocols"
    place.mkdir(parents=True, exist_ok=True)
    fields = protocol.model_dump(mode="json", exclude={"name"})
    durable.write_text(place / f"{protocol.name}.yaml", yaml.safe_dump(fields, sort_keys=False))
