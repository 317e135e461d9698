"""`facescan plan`: what a run would ask, send and cost, before any of it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

from rich.console import Console

from facescan import datasets, images, registry, shards, storage
from facescan.datasets.sample import SIDE
from facescan.errors import BadImage
from facescan.run import ledger, manifest
from facescan.run.folder import RunFolder
from facescan.run.plan import plan as open_requests
from facescan.run.selection import image_ids, sample
from facescan.shards import Shards
from facescan.types import Question
from jobs.config import RunConfig
from jobs.passes import Pass, passes
from jobs.run import SAMPLE, SAMPLE_SIZE
from serving import estimate, tokens
from serving.engines import hosted
from serving.tokens import HostedOptions

_LOOKED_AT = 200
"""Pictures whose headers are read, to know their sizes."""

_ANSWER_TOKENS = 12
"""Of a value in an answer, about: a label, quotes and the name of the attribute."""


@dataclass(frozen=True, slots=True)
class Between:
    """A forecast: about `low`, and not above `high`."""

    low: float
    high: float

    def __mul__(self, factor: float) -> "Between":
        return Between(self.low * factor, self.high * factor)

    def __add__(self, other: "Between") -> "Between":
        return Between(self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the open requests of one pass come to; `usd` is None where no price is known."""

    tokens_in: Between
    tokens_out: Between
    usd: Between | None


def plan(config: RunConfig, console: Console) -> None:
    """Print what `facescan run` would do with this configuration; nothing is sent or written.

    Raises:
        UsageError: something named does not exist or does not fit.
    """
    for path in config.include_path:
        registry.include(path)
    folder = RunFolder(storage.at(config.output_dir))
    if config.dataset == SAMPLE:
        label_sets = datasets.load(SAMPLE).label_sets
        data = _drawn(config, folder)
    else:
        data = shards.open(config.dataset, config.split)
        label_sets = data.label_sets
    total = Between(0, 0)
    for each in passes(config, label_sets):
        requests, done = _requests(config, folder, data, each)
        asked = ", ".join(name for question in each.questions for name in question.attributes)
        _line(
            console,
            f"{each.card.name}: {requests:,} requests about {asked}, {done:,} have their replies; "
            f"protocol {each.questions[0].protocol}, engine {each.card.engine}",
        )
        if each.card.engine == hosted.NAME:
            options = each.card.options(HostedOptions)
            sizes = list(_sizes(config, data, options))
            batch = config.batch and options.price is not None and options.price.batch is not None
            found = forecast(options, each.questions, sizes, requests, batch)
            _describe(console, options, found, requests)
            total += found.usd or Between(0, 0)
    spent = ledger.spent(folder.ledger).total_usd
    if total.high or spent:
        _line(console, f"in all: {_usd(total)}, and ${spent:,.2f} spent before")
    if config.max_cost is not None and spent + total.high > config.max_cost:
        _line(console, f"--max-cost ${config.max_cost:,.2f} may end the run before its end")


def _drawn(config: RunConfig, folder: RunFolder) -> Shards | None:
    """The sample of a run that has drawn as much of it as is wanted; else None."""
    if not folder.is_run:
        return None
    known = manifest.read(folder).dataset
    if known.seed != config.seed or (config.limit or SAMPLE_SIZE) > (known.limit or SAMPLE_SIZE):
        return None
    return shards.open(known.location, config.split)


def forecast(
    options: HostedOptions,
    questions: Sequence[Question],
    sizes: Sequence[tuple[int, int]],
    requests: int,
    batch: bool = False,
) -> Forecast:
    """What so many requests come to, one question after the other about pictures of these sizes.

    Low is what usage usually says; high is what is reserved: no text has more tokens than bytes,
    and no answer more than it may have.
    """
    pictures = [estimate.picture_tokens(options, size) for size in sizes]
    mean = sum(pictures) / len(pictures)
    # Others of the dataset may be larger than those looked at.
    largest = max(*pictures, estimate.picture_tokens(options, (options.image.max_side,) * 2))
    tokens_in = tokens_out = Between(0, 0)
    for question in questions:
        text = question.prompt + question.answer_schema
        about, most = tokens.text_tokens_about(text), tokens.text_tokens_at_most(text)
        tokens_in += Between(mean + about, largest + most)
        answer = _ANSWER_TOKENS * _values(question)
        most_out = estimate.tokens_out_at_most(options, question)
        tokens_out += Between(min(answer, most_out), most_out)
    share = requests / len(questions)
    tokens_in, tokens_out = tokens_in * share, tokens_out * share
    price = estimate.price(options)
    if price is None:
        return Forecast(tokens_in, tokens_out, None)
    low, high = (
        tokens.cost_usd(price, round(given), round(made), batch)
        for given, made in ((tokens_in.low, tokens_out.low), (tokens_in.high, tokens_out.high))
    )
    return Forecast(tokens_in, tokens_out, Between(low, high))


def _values(question: Question) -> int:
    """In an answer: a schema has all attributes of the wording, whichever are asked."""
    if not question.answer_schema:
        return len(question.attributes)
    return len(json.loads(question.answer_schema)["properties"])


def _requests(
    config: RunConfig, folder: RunFolder, data: Shards | None, each: Pass
) -> tuple[int, int]:
    """How many are open, and how many are not."""
    if data is None:
        return (config.limit or SAMPLE_SIZE) * len(each.questions), 0
    selection = sample(image_ids(data), config.limit, config.seed)
    if folder.is_run:
        found = open_requests(data, selection, each.questions, folder.replies, config.retry)
        return found.requests, sum(found.done.values())
    rows = data.rows if config.limit is None else min(config.limit, data.rows)
    return rows * len(each.questions), 0


def _sizes(
    config: RunConfig, data: Shards | None, options: HostedOptions
) -> Iterator[tuple[int, int]]:
    """(width, height) of some pictures, as they would be sent; those unfit are left out."""
    if data is None:
        yield SIDE, SIDE
        return
    limits = config.limits()
    found = False
    for data_of_one, sha256 in islice(_files(data), _LOOKED_AT):
        try:
            image = images.check(data_of_one, sha256, limits)
        except BadImage:
            continue
        scale = min(1.0, options.image.max_side / max(image.width, image.height))
        found = True
        yield max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if not found:
        yield options.image.max_side, options.image.max_side


def _files(data: Shards) -> Iterator[tuple[bytes, str]]:
    for table in data.read(data.row_groups, ("image_sha256", "image")):
        for row in table.to_pylist():
            image = cast("dict[str, bytes | None]", row["image"])
            yield image["bytes"] or b"", str(row["image_sha256"])


def _describe(console: Console, options: HostedOptions, found: Forecast, requests: int) -> None:
    _line(console, f"  sent to {hosted.server(options)}. {hosted.terms(options)}")
    _line(console, f"  tokens in {_count(found.tokens_in)}, out {_count(found.tokens_out)}")
    price = estimate.price(options)
    if found.usd is None or price is None:
        _line(console, "  cost not known: the card has no price")
    else:
        _line(
            console,
            f"  cost {_usd(found.usd)}; ${price.input:g} and ${price.output:g} per million tokens "
            f"in and out on {price.as_of} ({price.source})",
        )
    if options.thinking_tokens:
        _line(
            console,
            "  the lower figures are without what the model thinks, which is billed as output: up "
            f"to {options.thinking_tokens:,} tokens an answer",
        )
    for text in _durations(options, found, requests):
        _line(console, f"  {text}")


def _durations(options: HostedOptions, found: Forecast, requests: int) -> Iterator[str]:
    limits = options.limits
    used = found.tokens_in + found.tokens_out
    minutes = [
        (requests / limits.rpm, f"{limits.rpm:,.0f} requests") if limits.rpm else None,
        (used.low / limits.tpm, f"{limits.tpm:,.0f} tokens") if limits.tpm else None,
    ]
    known = [each for each in minutes if each is not None]
    if known:
        longest, why = max(known)
        yield f"at least {_duration(longest)} at {why} a minute"
    else:
        yield "how long it takes is not known: give --rpm and --tpm, the limits of your account"
    if limits.rpd and requests > limits.rpd:
        yield f"at least {requests / limits.rpd:.1f} days at {limits.rpd:,} requests a day"


def _duration(minutes: float) -> str:
    if minutes < 1:
        return f"{minutes * 60:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _count(between: Between) -> str:
    return f"{between.low:,.0f} to {between.high:,.0f}"


def _usd(between: Between) -> str:
    return f"${between.low:,.2f} to ${between.high:,.2f}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
