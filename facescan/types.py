"""The rows that flow through facescan, in order: Request -> Reply -> Prediction.

    shard row ──prompt──> Request ──engine──> Reply ──parse──> Prediction ──> scores

A Request is one call to a model: one image, one question, possibly about several attributes. A
Reply is what came back, kept as it came. A Prediction is what the reply says of one attribute of
one person. Replies and predictions are Parquet; their Arrow schemas stand here beside the rows.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa


class AnswerMode(StrEnum):
    """How an answer is had from a model."""

    FREE = "free"
    """Generate text greedily, then parse it."""
    CHOICE = "choice"
    """Greedy over the trie of the offered labels' canonical tokens: always names one label."""
    SCORE = "score"
    """Sum of log p over each offered label's canonical tokens and its end token; highest wins."""


class Outcome(StrEnum):
    """What became of one attribute of one person; a closed set.

    Those of the model say something about it and count in its accuracy; those of the run say
    something about us (files, servers, crashes), count in neither accuracy and mark a score as
    incomplete.
    """

    ANSWERED = "answered"
    ABSTAINED = "abstained"
    REFUSED = "refused"
    BLOCKED = "blocked"
    UNPARSED = "unparsed"
    AMBIGUOUS = "ambiguous"
    OFF_LIST = "off_list"
    TRUNCATED = "truncated"
    MISSED = "missed"
    SPURIOUS = "spurious"

    BAD_IMAGE = "bad_image"
    NO_FACE = "no_face"
    PROVIDER_ERROR = "provider_error"
    ENGINE_ERROR = "engine_error"
    PENDING = "pending"


RUN_OUTCOMES = frozenset(
    {
        Outcome.BAD_IMAGE,
        Outcome.NO_FACE,
        Outcome.PROVIDER_ERROR,
        Outcome.ENGINE_ERROR,
        Outcome.PENDING,
    }
)
MODEL_OUTCOMES = frozenset(Outcome) - RUN_OUTCOMES


class FinishReason(StrEnum):
    """Why a model stopped, as its engine reports it."""

    STOP = "stop"
    LENGTH = "length"
    REFUSAL = "refusal"
    """The provider marked the answer as a refusal."""
    BLOCKED = "blocked"
    """The provider's filter withheld the answer."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decoding parameters; all of them are part of a request's identity."""

    max_tokens: int = 16
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image as it stands in the shard, its header checked, not decoded.

    Attributes:
        sha256: hex digest of `data`.
        data: the encoded file (JPEG, PNG or WebP).
        format: Pillow's format name, as found in the header.
        width: pixels, before EXIF orientation is applied.
        height: pixels, before EXIF orientation is applied.
    """

    sha256: str
    data: bytes
    format: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, the same for every image: made by `facescan.prompt`, once per run and model.

    Attributes:
        model: the card's name.
        protocol: the protocol's name.
        attributes: what the answer is about; more than one only in joint protocols.
        prompt: the rendered text, exactly as the model's processor is to receive it (special
            tokens that the processor adds itself, such as image placeholders, are not in it).
        labels: the offered answers in the order and wording of the prompt. In the modes `choice`
            and `score` the engine chooses among these texts.
        answer_mode: how the answer is had.
        decoding: for the modes that generate.
        identity: hex digest over everything but the image that can change an answer: model,
            revision, adapter, prompt, labels, mode, decoding and preprocessing, and of a question
            about one attribute its name.
        label_sets: the label set asked, one for each of `attributes`.
        offered: for each of `attributes` the pairs (offered text, its label) in offered order.
        answer_schema: JSON Schema that the answer must satisfy, for engines that can enforce one;
            empty where the protocol is not `structured`.
    """

    model: str
    protocol: str
    attributes: tuple[str, ...]
    prompt: str
    labels: tuple[str, ...]
    answer_mode: AnswerMode
    decoding: Decoding
    identity: str
    label_sets: tuple[str, ...] = ()
    offered: tuple[tuple[tuple[str, str], ...], ...] = ()
    answer_schema: str = ""


def request_id(question_identity: str, image_sha256: str) -> str:
    """The key of a request and its reply: 32 hex digits over the question and the image bytes."""
    text = f"{question_identity}:{image_sha256}".encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Request:
    """One call to a model; requests about one image share its `EncodedImage` and stand together."""

    request_id: str
    image: EncodedImage
    question: Question


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request, never altered afterwards; one row of `replies/*.parquet`.

    Attributes:
        raw_response: the model's text as it came; in `choice` and `score` the chosen label's text;
            None where there was no answer.
        label_logprobs: in `score`, for each offered label the summed natural-log probability of
            its tokens and the end token, not normalised; empty otherwise.
        tokens_in: prompt tokens, image tokens included; None where the engine cannot say.
        latency_s: seconds from the request's hand-over to its reply.
        attempts: how often the model was asked.
        error_kind: set exactly when there is no answer: the run outcome this row ends as.
        error: for people: what went wrong, or why there is a refusal in the place of an answer.
        resolved_model: checkpoint and revision (or the provider's model name) that answered.
    """

    request_id: str
    raw_response: str | None
    finish_reason: FinishReason | None
    engine: str
    resolved_model: str
    created_at: datetime
    latency_s: float
    label_logprobs: tuple[tuple[str, float], ...] = ()
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost_usd: float | None = None
    attempts: int = 1
    error_kind: Outcome | None = None
    error: str | None = None
    provider_request_id: str | None = None


REPLY_SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("raw_response", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("label_logprobs", pa.map_(pa.string(), pa.float64())),
        pa.field("tokens_in", pa.int32()),
        pa.field("tokens_out", pa.int32()),
        pa.field("cost_usd", pa.float64()),
        pa.field("latency_s", pa.float64()),
        pa.field("attempts", pa.int32()),
        pa.field("error_kind", pa.string()),
        pa.field("error", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("resolved_model", pa.string()),
        pa.field("provider_request_id", pa.string()),
        pa.field("created_at", pa.timestamp("us", tz="UTC")),
    ]
)


_PREDICTION_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("dataset", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("attribute", pa.string(), nullable=False),
    pa.field("person", pa.int16(), nullable=False),
    pa.field("model", pa.string(), nullable=False),
    pa.field("protocol", pa.string(), nullable=False),
    pa.field("answer_mode", pa.string(), nullable=False),
    pa.field("image_sha256", pa.string(), nullable=False),
    pa.field("subject_id", pa.string()),
    pa.field("request_id", pa.string(), nullable=False),
    pa.field("outcome", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("probability", pa.float64()),
    pa.field("asked_label_set", pa.string(), nullable=False),
    pa.field("target", pa.string()),
    pa.field("target_label_set", pa.string()),
    pa.field("parser_version", pa.string(), nullable=False),
]
PREDICTION_SCHEMA = pa.schema(_PREDICTION_FIELDS)
"""The fixed columns, which are the key (`dataset` to `protocol`) and what was found. `probability`
is the share of `label` in the probability that the model gave to all offered labels, between 0 and
1; null where there is no label or no log-probability. The shard's `label_*`, `value_*` and
`group_*` columns follow them under their own names."""


_IMAGE_FIELDS: list[tuple[str, pa.DataType]] = [("bytes", pa.binary()), ("path", pa.string())]

_SHARD_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("image_sha256", pa.string(), nullable=False),
    pa.field("image", pa.struct(_IMAGE_FIELDS)),
    pa.field("dataset", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("subject_id", pa.string()),
]
SHARD_SCHEMA = pa.schema(_SHARD_FIELDS)
"""The fixed columns of a shard. One nullable string column `label_<attribute>` per attribute the
set labels follows, then `value_<name>` (float64) and `group_<name>` (string). The label sets are
in the schema metadata: key `facescan.label_set.<attribute>`, value the label set's name."""

LABEL_SET_KEY = "facescan.label_set."
"""Prefix of the shard metadata keys that name the label set of a `label_<attribute>` column."""
