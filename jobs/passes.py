"""What a run asks of its models: questions, grouped by the weights that answer them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from facescan import attributes as attribute_files
from facescan import models, prompt, protocols
from facescan.errors import UsageError
from facescan.models import Checkpoint, ModelCard
from facescan.types import Question
from jobs.config import RunConfig
from serving import engine as engines
from serving.engines import hosted


@dataclass(frozen=True, slots=True)
class Pass:
    """The questions of a run that one set of weights answers.

    Attributes:
        preprocessing: how pixels are made for them.
        numerics: settings of the engine that can change an answer.
    """

    card: ModelCard
    checkpoint: Checkpoint | None
    questions: tuple[Question, ...]
    preprocessing: str
    numerics: Mapping[str, str]


Asking = Callable[[RunConfig, Mapping[str, str]], list[Pass]]
"""The passes of a configuration over a dataset with these label sets, by attribute."""


def passes(config: RunConfig, label_sets: Mapping[str, str]) -> list[Pass]:
    """What is asked of each model of the run, in the order in which they are given.

    Args:
        config: of the run.
        label_sets: attribute -> label set that the dataset labels it in.

    Raises:
        UsageError: something named does not exist or does not fit.
    """
    made = [each for name in config.model for each in _of_model(config, name, label_sets)]
    asked: dict[tuple[str, str, str], str] = {}
    for question in (question for each in made for question in each.questions):
        for attribute in question.attributes:
            key = (question.model, question.protocol, attribute)
            if asked.setdefault(key, question.identity) != question.identity:
                raise UsageError(
                    f"two models are called '{question.model}'; give one a card of another name"
                )
    return made


def _of_model(config: RunConfig, name: str, label_sets: Mapping[str, str]) -> list[Pass]:
    """One pass, or one for each of the model's checkpoints."""
    card = models.load(name)
    if config.engine is not None:
        card = card.model_copy(update={"engine": config.engine})
    if card.engine == hosted.NAME:
        card = hosted.with_account(
            card,
            base_url=config.model_base_url,
            rpm=config.rpm,
            tpm=config.tpm,
            connections=config.max_connections,
        )
    engine = engines.module(card.engine)
    preprocessing = engine.preprocessing(card)
    protocol = protocols.load(config.protocol or card.protocol)
    by_checkpoint: dict[Checkpoint | None, list[str]] = {}
    answers = [name for name in card.attributes if name in protocol.attributes]
    for attribute in _attributes(config.attributes, card, answers, label_sets):
        by_checkpoint.setdefault(card.checkpoint_for(attribute), []).append(attribute)
    made = [
        Pass(
            card,
            checkpoint,
            prompt.questions(card, protocol, names, preprocessing),
            preprocessing,
            engine.numerics(card),
        )
        for checkpoint, names in by_checkpoint.items()
    ]
    for question in (question for each in made for question in each.questions):
        if (reason := engine.cannot_ask(card, question)) is not None:
            raise UsageError(
                f"model {card.name}, engine {card.engine}, protocol {protocol.name}: {reason}"
            )
    return made


def _attributes(
    wanted: Sequence[str], card: ModelCard, answers: Sequence[str], label_sets: Mapping[str, str]
) -> Sequence[str]:
    """Those asked for; else those that it `answers` and the dataset labels, or all of them."""
    for attribute in wanted:
        attribute_files.load(attribute)
        if attribute not in card.attributes:
            raise UsageError(
                f"model {card.name} cannot be asked for '{attribute}'; "
                f"it answers {', '.join(card.attributes)}"
            )
    if wanted:
        return list(dict.fromkeys(wanted))
    labelled = [attribute for attribute in answers if attribute in label_sets]
    if label_sets and not labelled:
        raise UsageError(
            f"model {card.name} answers {', '.join(answers)}, but the dataset labels "
            f"{', '.join(label_sets)}; name --attributes to ask all the same"
        )
    return labelled or answers
