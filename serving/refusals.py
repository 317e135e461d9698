"""What the service says when it does not answer: a status, a word for programs, a line for people.

A refusal never repeats what a client sent, nor what a decoder or an engine said about it.
"""

import json
from collections.abc import Mapping


class Refusal(Exception):
    """Ends a request with this status.

    Attributes:
        status: of HTTP.
        kind: one word, fit for programs.
        message: for people.
        retry_after_s: when to try again; None where that would not help.
        more: further fields of the error, such as the reason of a bad image.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_after_s: int | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {kind}: {message}")
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s
        self.more = dict(more or {})

    def body(self, request_id: str) -> bytes:
        """JSON in the form that OpenAI's clients read: `{"error": {"message": ...}}`."""
        error = {"type": self.kind, "message": self.message, **self.more}
        return json.dumps({"error": error | {"request_id": request_id}}).encode()

    def headers(self) -> dict[str, str]:
        """Of the response, besides the request's id."""
        headers = {"content-type": "application/json", "cache-control": "no-store"}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers
