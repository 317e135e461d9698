"""A request for attributes, as it comes over HTTP: a form with a file, or JSON with base64."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from email.message import Message

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.refusals import Refusal

_SHORT_BYTES = 256 * 1024
"""A body up to this is taken apart on the event loop, in a millisecond; others on a thread."""

_FIELDS = ("image", "attributes", "protocol", "model")


@dataclass(frozen=True, slots=True)
class Upload:
    """What is asked, none of it checked.

    Attributes:
        image: an encoded file.
        attributes: None: all.
        protocol: None: the model's own.
        model: None: the one that is there.
    """

    image: bytes
    attributes: tuple[str, ...] | None
    protocol: str | None
    model: str | None


class _Json(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    image: str
    attributes: list[str] | str | None = None
    protocol: str | None = None
    model: str | None = None


class _Form(MultiPartParser):
    # A picture is never written to a disk; the front holds bodies to their limit.
    spool_max_size = 1 << 40


async def read(request: Request) -> Upload:
    """Read a request's body.

    Raises:
        Refusal: it is not one of the two forms (400, 415).
    """
    kind, boundary = _content_type(request.headers)
    body = await request.body()
    if kind == "application/json":
        if len(body) <= _SHORT_BYTES:
            return _from_json(body)
        return await asyncio.to_thread(_from_json, body)
    if kind == "multipart/form-data" and boundary:
        if len(body) <= _SHORT_BYTES:
            return await _from_form(request.headers, body)
        # The parser reads from a coroutine, and takes 0.5 s of processor for 20 MB.
        return await asyncio.to_thread(lambda: asyncio.run(_from_form(request.headers, body)))
    raise Refusal(
        415, "unsupported_media_type", "Send multipart/form-data with a file, or application/json."
    )


def _content_type(headers: Headers) -> tuple[str, str | None]:
    message = Message()
    message["content-type"] = headers.get("content-type", "")
    boundary = message.get_param("boundary")
    return message.get_content_type(), boundary if isinstance(boundary, str) else None


def _from_json(body: bytes) -> Upload:
    try:
        asked = _Json.model_validate(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise _bad(error) from None
    _, comma, encoded = asked.image.partition(";base64,")
    if not comma:
        encoded = asked.image
    try:
        image = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            400, "bad_request", "image: not base64, nor a data: URI; URLs are not followed."
        ) from None
    given = asked.attributes
    names = _names([given] if isinstance(given, str) else given)
    return Upload(image, names, asked.protocol, asked.model)


async def _from_form(headers: Headers, body: bytes) -> Upload:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _Form(headers, whole(), max_files=1, max_fields=16).parse()
    except (MultiPartException, ValueError):
        raise Refusal(400, "bad_request", "The form cannot be read.") from None
    image = form.get("image")
    if not isinstance(image, UploadFile) or set(form) - set(_FIELDS):
        raise _bad(None)
    texts = {name: each for name in _FIELDS[2:] if isinstance(each := form.get(name), str)}
    names = [each for each in form.getlist("attributes") if isinstance(each, str)]
    return Upload(
        await image.read(), _names(names or None), texts.get("protocol"), texts.get("model")
    )


def _names(given: list[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    return tuple(name for each in given for part in each.split(",") if (name := part.strip()))


def _bad(error: ValueError | RecursionError | None) -> Refusal:
    """Says which field, never what stood in it."""
    where = ""
    if isinstance(error, ValidationError):
        known = [str(item["loc"][0]) for item in error.errors(include_input=False) if item["loc"]]
        where = "".join(f" Look at {name}." for name in known if name in _FIELDS)
    return Refusal(
        400,
        "bad_request",
        "Expected `image` (a file of a form; base64 in JSON) and perhaps `attributes`, `protocol` "
        f"and `model`, nothing else.{where}",
    )
