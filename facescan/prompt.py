"""(attributes, protocol, model) -> Questions; the only place that formats one."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from facescan import attributes as attribute_files
from facescan import models
from facescan.errors import UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.protocols import CANNOT_DETERMINE, Asked, Protocol
from facescan.types import AnswerMode, Decoding, Question

_Offered = tuple[tuple[str, str], ...]


def _offered(protocol: Protocol, attribute: str, asked: Asked) -> _Offered:
    """The pairs (offered text, label) in offered order."""
    labels = attribute_files.load(attribute).label_set(asked.label_set).labels
    where = f"protocol '{protocol.name}', attribute '{attribute}'"
    if unknown := set(asked.offered) - set(labels):
        raise UsageError(f"{where}: `offered` names no label of {asked.label_set}: {unknown}")
    order = tuple(asked.order or labels)
    if sorted(order) != sorted(labels):
        raise UsageError(f"{where}: `order` must hold each label of {asked.label_set} once")
    offered = tuple((asked.offered.get(label, label), label) for label in order)
    if len({text for text, _ in offered}) != len(offered):
        raise UsageError(f"{where}: one text is offered for two labels")
    return offered


def _listing(asked: Asked, offered: _Offered) -> str:
    return asked.separator.join(f"{asked.quote}{text}{asked.quote}" for text, _ in offered)


def _identity(
    card: ModelCard,
    checkpoint: Checkpoint | None,
    question: tuple[str, tuple[str, ...], AnswerMode, Decoding],
    answer_schema: str,
    preprocessing: str,
    attribute: str | None,
) -> str:
    prompt, labels, answer_mode, decoding = question
    content: dict[str, object] = {
        "model": card.name,
        "checkpoint": None if checkpoint is None else models.identity(checkpoint),
        "prompt": prompt,
        "labels": labels,
        "answer_mode": answer_mode,
        "decoding": asdict(decoding),
        "preprocessing": preprocessing,
    }
    if answer_schema:
        content["answer_schema"] = answer_schema
    if attribute is not None:
        # A classifier answers by it alone: two heads may have the same labels, and so one prompt.
        content["attribute"] = attribute
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _question(
    card: ModelCard,
    protocol: Protocol,
    attributes: tuple[str, ...],
    wording: str,
    offered: dict[str, _Offered],
    preprocessing: str,
    *,
    joint: bool = False,
) -> Question:
    """One question; `offered` covers all attributes of the wording, of which some are asked."""
    prompt = wording if protocol.verbatim else card.prompt.replace("{question}", wording)
    labels = tuple(text for pairs in offered.values() for text, _ in pairs)
    decoding = Decoding(protocol.max_tokens, protocol.temperature)
    answer_schema = _answer_schema(offered) if protocol.structured else ""
    return Question(
        model=card.name,
        protocol=protocol.name,
        attributes=attributes,
        prompt=prompt,
        labels=labels,
        answer_mode=protocol.answer_mode,
        decoding=decoding,
        identity=_identity(
            card,
            card.checkpoint_for(attributes[0]),
            (prompt, labels, protocol.answer_mode, decoding),
            answer_schema,
            preprocessing,
            None if joint else attributes[0],
        ),
        label_sets=tuple(protocol.attributes[name].label_set for name in attributes),
        offered=tuple(offered[name] for name in attributes),
        answer_schema=answer_schema,
    )


def _answer_schema(offered: dict[str, _Offered]) -> str:
    """One closed list for each attribute, in the subset of JSON Schema that providers enforce."""
    properties = {
        name: {"type": "string", "enum": [*(text for text, _ in pairs), CANNOT_DETERMINE]}
        for name, pairs in offered.items()
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return json.dumps(schema, separators=(",", ":"))


def _joint(
    card: ModelCard, protocol: Protocol, attributes: tuple[str, ...], preprocessing: str
) -> Question:
    """The question about several attributes: its whole wording, whichever of them are asked.

    So asking about a further attribute later finds the replies that are there already.
    """
    if card.checkpoints:
        raise UsageError(
            f"model '{card.name}' has a checkpoint per attribute; protocol '{protocol.name}' "
            f"asks about {', '.join(attributes)} in one call"
        )
    wording = protocol.joint_question or ""
    offered = {}
    for name, asked in protocol.attributes.items():
        if asked.question is None:
            offered[name] = _offered(protocol, name, asked)
            wording = wording.replace(f"{{{name}_labels}}", _listing(asked, offered[name]))
    return _question(card, protocol, attributes, wording, offered, preprocessing, joint=True)


def _alone(
    card: ModelCard, protocol: Protocol, attribute: str, wording: str, preprocessing: str
) -> Question:
    asked = protocol.attributes[attribute]
    offered = _offered(protocol, attribute, asked)
    wording = wording.replace("{labels}", _listing(asked, offered))
    return _question(card, protocol, (attribute,), wording, {attribute: offered}, preprocessing)


def questions(
    card: ModelCard, protocol: Protocol, attributes: Sequence[str], preprocessing: str
) -> tuple[Question, ...]:
    """What is asked of every image: first the protocol's joint question, then the others.

    Args:
        card: the model that is asked.
        protocol: how it is asked.
        attributes: what it is asked about.
        preprocessing: what the engine says of how it makes pixels for this model.

    Raises:
        UsageError: the model or the protocol cannot be asked about one of the attributes, or the
            protocol contradicts itself.
    """
    wanted = tuple(dict.fromkeys(attributes))
    if not wanted:
        raise UsageError(f"no attributes to ask model '{card.name}' about")
    for name in wanted:
        for kind, owner, known in (
            ("model", card.name, card.attributes),
            ("protocol", protocol.name, tuple(protocol.attributes)),
        ):
            if name not in known:
                raise UsageError(
                    f"{kind} '{owner}' does not ask about '{name}'; possible: {', '.join(known)}"
                )
    wordings = {name: protocol.attributes[name].question for name in wanted}
    joint = tuple(name for name, wording in wordings.items() if wording is None)
    made = [_joint(card, protocol, joint, preprocessing)] if joint else []
    made += [
        _alone(card, protocol, name, wording, preprocessing)
        for name, wording in wordings.items()
        if wording is not None
    ]
    return tuple(made)
