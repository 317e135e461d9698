"""Calls of an ASGI application, without a server, for the tests of the service."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

KEY = "canary-key-0123456789abcdef"


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        return str(self.json["error"]["type"])


class Client:
    """One request; `leaves` ends it as a client does that goes away."""

    def __init__(self, body: Iterable[bytes] = ()) -> None:
        self.answer = Answer()
        self.taken = 0
        self._body = list(body) or [b""]
        self._left = asyncio.Event()

    def leaves(self) -> None:
        self._left.set()

    async def receive(self) -> dict[str, Any]:
        if self._body:
            part = self._body.pop(0)
            self.taken += len(part)
            return {"type": "http.request", "body": part, "more_body": bool(self._body)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not self.answer.status, "two answers to one request"
            self.answer.status = message["status"]
            self.answer.headers = {
                name.decode(): value.decode() for name, value in message["headers"]
            }
        else:
            self.answer.body += message.get("body", b"")


def scope(
    path: str = "/v1/attributes",
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
    client: str = "127.0.0.1",
) -> dict[str, Any]:
    """Of a request to localhost."""
    given = {"host": "localhost:8000"} | dict(headers or {})
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "client": (client, 1234),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }


def form(image: bytes, **fields: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of a form with a file."""
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="face.jpg"\r\n\r\n'
    body = b"".join(parts) + head + image + b"\r\n--B--\r\n"
    return {"content-type": "multipart/form-data; boundary=B"}, body
