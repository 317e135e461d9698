"""What reaches a raw model: pictures that were drawn here, and fields of a list."""

import asyncio
import base64
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict

from facescan import images
from serving.raw_guard import Guard
from serving.refusals import Refusal
from tests.conftest import jpeg

FACE = jpeg(1)
URI = f"data:image/jpeg;base64,{base64.b64encode(FACE).decode()}"


class Body(BaseModel):
    """As vLLM's, which takes fields that it does not know."""

    model_config = ConfigDict(extra="allow")

    model: str = "m"
    n: int | None = 1


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    made = Guard(images.Limits(max_pixels=500_000, max_bytes=150_000))
    yield made
    made.close()


def redrawn(guard: Guard, *parts: Any) -> list[Any]:
    messages = [{"role": "user", "content": list(parts)}]
    asyncio.run(guard.redraw(messages))
    content = messages[0]["content"]
    assert isinstance(content, list)
    return content


def picture(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_the_model_gets_the_pixels_and_not_the_file(guard: Guard) -> None:
    part = picture(URI) | {"uuid": "another client's"}
    text = {"type": "text", "text": "Who?"}
    (said, drawn) = redrawn(guard, text, part)
    assert said == text
    assert set(drawn) == {"type", "image_url"}
    head, _, encoded = drawn["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(BytesIO(base64.b64decode(encoded))) as found, Image.open(BytesIO(FACE)) as sent:
        assert (found.size, found.mode) == (sent.size, "RGB")
        assert found.tobytes() == sent.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1/face.jpg",
        "https://example.org/face.jpg",
        "HTTP://192.0.2.1/face.jpg",
        "//192.0.2.1/face.jpg",
        "ftp://example.org/face.jpg",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "/etc/passwd",
        "s3://bucket/face.jpg",
        "data:text/html;base64,PGh0bWw+",
        "data:image/jpeg,notbase64",
        "data:image/jpeg;base64,%%%",
        "data:image/jpeg;base64,é",
        "data:image/jpeg;base64,",
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(),
        "data:image/gif;base64," + base64.b64encode(b"GIF89a" + bytes(40)).decode(),
        f"data:image/jpeg;base64,{base64.b64encode(FACE[:200]).decode()}",
        f"data:image/jpeg;base64,{base64.b64encode(jpeg(1, side=1000)).decode()}",
        "",
        None,
        {"url": URI},
        ["http://192.0.2.1/face.jpg"],
    ],
)
def test_what_is_no_picture_in_the_request_is_refused(guard: Guard, url: Any) -> None:
    with pytest.raises(Refusal) as refused:
        redrawn(guard, picture(url))
    assert refused.value.status == 400
    assert "192.0.2.1" not in refused.value.message


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "http://192.0.2.1/v.mp4"}},
        {"type": "audio_url", "audio_url": {"url": "http://192.0.2.1/a.mp3"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "image_pil", "image_pil": "x"},
        {"type": "file", "file": {"file_id": "x"}},
        {"type": "image_url"},
        {"image_url": {"url": URI}},
        7,
    ],
)
def test_parts_of_another_kind_are_refused(guard: Guard, part: Any) -> None:
    with pytest.raises(Refusal):
        redrawn(guard, part)


def test_pictures_are_counted_over_all_messages(guard: Guard) -> None:
    messages = [{"role": "user", "content": [picture(URI)]} for _ in range(5)]
    with pytest.raises(Refusal, match="at most 4"):
        asyncio.run(guard.redraw(messages))


@pytest.mark.parametrize("content", [None, "text", ["text", {"type": "text", "text": "x"}]])
def test_text_passes(guard: Guard, content: Any) -> None:
    asyncio.run(guard.redraw([{"role": "user", "content": content}]))


@pytest.mark.parametrize(
    "field",
    [
        *("mm_processor_kwargs", "media_io_kwargs", "mm_payload", "prompt_embeds", "documents"),
        *("chat_template", "chat_template_kwargs", "kv_transfer_params", "vllm_xargs", "priority"),
        *("structured_outputs", "return_mm_kwargs", "use_beam_search", "tools", "no_such_field"),
    ],
)
def test_fields_that_are_not_of_the_list_are_refused_by_name(guard: Guard, field: str) -> None:
    with pytest.raises(Refusal, match=field):
        guard.check(Body.model_validate({field: {}}))


def test_what_openai_s_clients_send_passes(guard: Guard) -> None:
    fields = {"messages": [], "max_tokens": 8, "temperature": 0, "stream": True, "n": 4}
    guard.check(Body.model_validate(fields | {"stream_options": {}, "repetition_penalty": 1.0}))
    with pytest.raises(Refusal, match="n is at most 4"):
        guard.check(Body(n=5))
