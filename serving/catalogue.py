"""What the service may be asked: attributes that are switched on, protocols that fit the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from facescan import attributes as attribute_files
from facescan import prompt, protocols
from facescan.errors import UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.protocols import Protocol
from facescan.types import AnswerMode, Question
from serving.engine import EngineModule
from serving.refusals import Refusal

SENSITIVE = frozenset({"race", "emotion"})
"""Off unless switched on: docs/responsible-use.md says what the law has against them."""

RESPONSIBLE_USE = "docs/responsible-use.md"


@dataclass(frozen=True, slots=True)
class Entry:
    """A protocol that the service can ask by."""

    name: str
    answer_mode: AnswerMode
    attributes: tuple[str, ...]


class Catalogue:
    """The questions of one model.

    Args:
        card: of the model.
        engine: that runs it.
        wanted: attributes to answer; None: all that the card has, the sensitive only if switched
            on.
        sensitive: whether race and emotion are switched on.

    Attributes:
        attributes: that the service answers.
        checkpoint: that answers them.
        entries: by protocol, the attributes that can be asked for.

    Raises:
        UsageError: no attribute is left, or they need several checkpoints.
    """

    def __init__(
        self,
        card: ModelCard,
        engine: EngineModule,
        wanted: Sequence[str] | None,
        sensitive: bool,
    ) -> None:
        self._card = card
        self._engine = engine
        self._off = frozenset() if sensitive else SENSITIVE
        self.attributes = _attributes(card, wanted, self._off)
        checkpoints = {card.checkpoint_for(name) for name in self.attributes}
        if len(checkpoints) > 1:
            raise UsageError(
                f"model {card.name} has a checkpoint per attribute, and a service runs one; name "
                f"one of --attributes {', '.join(self.attributes)}"
            )
        self.checkpoint: Checkpoint | None = checkpoints.pop()
        self._preprocessing = engine.preprocessing(card)
        self.entries = {
            entry.name: entry
            for entry in map(self._entry, map(protocols.load, protocols.names()))
            if entry.attributes
        }
        if card.protocol not in self.entries:
            raise UsageError(
                f"model {card.name}: its protocol {card.protocol} asks about none of "
                f"{', '.join(self.attributes)}"
            )
        self._questions = lru_cache(maxsize=1024)(self._make)

    def questions(
        self, protocol: str | None, attributes: Sequence[str] | None
    ) -> tuple[Question, ...]:
        """What is asked of a picture.

        Args:
            protocol: its name; None: the card's.
            attributes: asked for; None: all that the protocol has and are switched on.

        Raises:
            Refusal: race or emotion are asked for and off (403), or something named is not there
                (400).
        """
        name = self._card.protocol if protocol is None else protocol
        if self._off & set(attributes or ()):
            off = " and ".join(sorted(self._off & set(attributes or ())))
            raise Refusal(
                403,
                "switched_off",
                f"This service does not answer about {off}. Whoever runs it can switch that on; "
                f"{RESPONSIBLE_USE} says what to consider first.",
            )
        entry = self.entries.get(name)
        if entry is None:
            # Of the names alone: a client's is never a path.
            if name in protocols.names():
                self._refuse_joint(protocols.load(name))
            raise Refusal(400, "unknown_protocol", "GET /v1/models lists the protocols.")
        asked = entry.attributes if attributes is None else tuple(dict.fromkeys(attributes))
        if not asked or not set(asked) <= set(entry.attributes):
            raise Refusal(
                400,
                "unknown_attribute",
                f"Protocol {name} is asked here about {', '.join(entry.attributes)}.",
            )
        return self._questions(name, asked)

    def _refuse_joint(self, protocol: Protocol) -> None:
        if self._off & _joint(protocol):
            raise Refusal(
                403,
                "switched_off",
                f"Protocol {protocol.name} asks about {' and '.join(sorted(SENSITIVE))} in the "
                f"same words; see {RESPONSIBLE_USE}.",
            )

    def _entry(self, protocol: Protocol) -> Entry:
        joint = _joint(protocol)
        usable = tuple(
            name
            for name in self.attributes
            if name in protocol.attributes
            # All attributes of one wording are asked, whichever are wanted.
            and not (name in joint and (self._off & joint or self._card.checkpoints))
            and self._can_ask(protocol, name)
        )
        return Entry(protocol.name, protocol.answer_mode, usable)

    def _can_ask(self, protocol: Protocol, attribute: str) -> bool:
        asked = prompt.questions(self._card, protocol, [attribute], self._preprocessing)
        return all(self._engine.cannot_ask(self._card, question) is None for question in asked)

    def _make(self, protocol: str, attributes: tuple[str, ...]) -> tuple[Question, ...]:
        return prompt.questions(
            self._card, protocols.load(protocol), attributes, self._preprocessing
        )


def _joint(protocol: Protocol) -> frozenset[str]:
    """The attributes that one wording asks about together."""
    return frozenset(name for name, asked in protocol.attributes.items() if asked.question is None)


def _attributes(
    card: ModelCard, wanted: Sequence[str] | None, off: frozenset[str]
) -> tuple[str, ...]:
    for name in wanted or ():
        attribute_files.load(name)
        if name not in card.attributes:
            raise UsageError(
                f"model {card.name} cannot be asked for '{name}'; it answers "
                f"{', '.join(card.attributes)}"
            )
        if name in off:
            raise UsageError(
                f"{name} is off unless it is switched on: --enable-sensitive and --purpose; "
                f"{RESPONSIBLE_USE} says what to consider first"
            )
    found = tuple(name for name in wanted or card.attributes if name not in off)
    if not found:
        raise UsageError(
            f"model {card.name} answers {', '.join(card.attributes)} only, which is off unless it "
            f"is switched on: --enable-sensitive and --purpose; {RESPONSIBLE_USE} says what to "
            "consider first"
        )
    return tuple(dict.fromkeys(found))
