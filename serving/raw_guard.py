"""What a client may ask of a raw model; looked at before vLLM sees the request.

- Pictures come in the request, as `data:` URIs, and are decoded as a run decodes them; vLLM gets a
  PNG of the pixels, never the bytes that a client sent, and follows no address.
- Fields are those of a list. vLLM takes many more, of anybody: by some a client could change how
  the server makes prompts or pixels, by others have it work for minutes.
"""

import asyncio
import base64
import binascii
import hashlib
from typing import Any

from pydantic import BaseModel

from facescan import images
from facescan.decoding import DecodePool, memory_for
from facescan.errors import BadImage
from serving.refusals import Refusal

PICTURES = 4
"""In one request."""

_CHOICES = 4
"""In one response (`n`)."""

_TAKEN = frozenset(
    {
        *("model", "messages", "prompt", "stream", "stream_options", "user", "response_format"),
        *("max_tokens", "max_completion_tokens", "min_tokens", "n", "stop", "stop_token_ids"),
        *("temperature", "top_p", "top_k", "min_p", "seed", "logprobs", "top_logprobs"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"),
        *("ignore_eos", "echo", "skip_special_tokens"),
    }
)


class Guard:
    """See the module's docstring.

    Args:
        limits: of a picture.
    """

    def __init__(self, limits: images.Limits) -> None:
        self._limits = limits
        self._decoders = DecodePool(1, memory_bytes=memory_for(limits))

    def close(self) -> None:
        """End the decoding process."""
        self._decoders.close()

    def check(self, body: BaseModel) -> None:
        """Look at the fields of a request.

        Raises:
            Refusal: one is not taken, or has a value that is not (400).
        """
        if others := sorted(body.model_fields_set - _TAKEN):
            raise _refused(f"{', '.join(others)} cannot be set here")
        if (getattr(body, "n", None) or 1) > _CHOICES:
            raise _refused(f"n is at most {_CHOICES}")

    async def redraw(self, messages: list[Any]) -> None:
        """Put pictures that we have drawn in the place of those that came, in these messages.

        Raises:
            Refusal: something in them is not taken (400).
        """
        parts: list[dict[str, Any]] = []
        for message in messages:
            content = message.get("content") if isinstance(message, dict) else ()
            if isinstance(content, list):
                parts += (each for each in content if not isinstance(each, str))
            elif not (content is None or isinstance(content, str)):
                raise _refused("a message's content is text, or a list of parts")
        pictures = [each for each in parts if not _is(each, "text")]
        if len(pictures) > PICTURES or not all(_is(each, "image_url") for each in pictures):
            raise _refused(f"parts are `text`, and at most {PICTURES} `image_url`")
        for part in pictures:
            url = await self._redrawn(part.get("image_url"))
            # Nothing else of it: by `uuid` vLLM would take what another client's picture became.
            part.clear()
            part |= {"type": "image_url", "image_url": {"url": url}}

    async def _redrawn(self, given: Any) -> str:
        url = given.get("url") if isinstance(given, dict) else given
        head, _, encoded = str(url).partition(";base64,")
        if not head.startswith("data:image/"):
            raise _refused("a picture is a `data:` URI with base64; addresses are not followed")
        try:
            data = await asyncio.to_thread(base64.b64decode, encoded, validate=True)
        except (binascii.Error, ValueError):
            raise _refused("a picture's base64 cannot be read") from None
        digest = hashlib.sha256(data).hexdigest()
        (checked,) = await asyncio.wrap_future(self._decoders.check([(data, digest)], self._limits))
        if not isinstance(checked, BadImage):
            (pixels,) = await asyncio.wrap_future(self._decoders.decode([checked]))
            if not isinstance(pixels, BadImage):
                side = max(pixels.shape)
                png = await asyncio.to_thread(images.encode, pixels, "png", 0, side)
                return f"data:image/png;base64,{base64.b64encode(png).decode()}"
            checked = pixels
        raise _refused(f"a picture cannot be used: {checked.reason}")


def _is(part: Any, kind: str) -> bool:
    return isinstance(part, dict) and part.get("type") == kind


def _refused(why: str) -> Refusal:
    return Refusal(400, "bad_request", why)
