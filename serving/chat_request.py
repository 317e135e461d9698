"""(question, image) -> the body of a chat completion, as OpenAI's API and those like it take it."""

import base64
import json
from typing import Any

from facescan import images
from facescan.decoding import Pixels
from facescan.types import Question
from serving import estimate
from serving.tokens import HostedOptions, ImageSettings


def picture(pixels: Pixels, settings: ImageSettings) -> tuple[str, tuple[int, int]]:
    """The data URI that is sent of a picture, and its (width, height)."""
    data = images.encode(pixels, settings.format, settings.quality, settings.max_side)
    longest = max(pixels.shape[:2])
    scale = min(1.0, settings.max_side / longest)
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return f"data:image/{settings.format};base64,{base64.b64encode(data).decode()}", (width, height)


def body(options: HostedOptions, model: str, question: Question, uri: str) -> dict[str, Any]:
    """What is sent; `extra` of the card's options comes last and wins."""
    image: dict[str, str] = {"url": uri}
    if options.image.detail is not None:
        image["detail"] = options.image.detail
    content = [
        {"type": "text", "text": question.prompt},
        {"type": "image_url", "image_url": image},
    ]
    sent: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        options.max_tokens_field: estimate.tokens_out_at_most(options, question),
    }
    if options.temperature:
        sent["temperature"] = question.decoding.temperature
    if question.answer_schema:
        sent["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": json.loads(question.answer_schema),
            },
        }
    return sent | options.extra
