"""What every request passes before a server sees it: limits on its size, on how many there are, on how long one takes.

ASGI middleware, so that it stands in front of vLLM's application as of our own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["Gate", "RefusedError"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class RefusedError(Exception):
    """A request that cannot be answered, and why, for its sender."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Gate:
    """Middleware for POST requests; the others pass.

    `translate` gets the path and the JSON object of a request and returns the object that the server is to see; a ValueError
    of it becomes a 400.
    """

    def __init__(
        self,
        app: Any,
        *,
        max_body_bytes: int,
        max_requests: int,
        timeout_s: float,
        translate: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._app = app
        self._max_body_bytes, self._max_requests, self._timeout_s = max_body_bytes, max_requests, timeout_s
        self._translate = translate
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it here."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        started = False

        async def note(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            body = await self._read(scope, receive)
            if self._active >= self._max_requests:
                raise RefusedError(
                    503, f"{self._active} requests are being answered or wait, which is the limit. Try later."
                )
            self._active += 1
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._app(*_replay(scope, receive, body), note)
            finally:
                self._active -= 1
        except RefusedError as error:
            await _answer(send, error)
        except TimeoutError:
            if started:  # a stream that is cut off: the connection is closed without its last chunk
                raise
            await _answer(send, RefusedError(504, f"Not answered within {self._timeout_s:g} s. Ask for fewer tokens."))

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Read the whole body, as the server is to see it."""
        parts, size, more = list[bytes](), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "The connection was closed before the request was whole.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self._max_body_bytes:
                raise RefusedError(413, f"The request is larger than {self._max_body_bytes} bytes.")
        body = b"".join(parts)
        if self._translate is None or not scope["path"].startswith("/v1/"):
            return body
        try:
            given = json.loads(body)
        except ValueError as error:
            raise RefusedError(400, f"The request is no JSON: {error}.") from error
        if not isinstance(given, dict):
            raise RefusedError(400, "The request is no JSON object.")
        try:
            return json.dumps(self._translate(scope["path"], given)).encode()
        except ValueError as error:
            raise RefusedError(400, str(error).splitlines()[0]) from error


def _replay(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """Give a server a body that was read already; after it, what the connection says."""
    headers = [(key, value) for key, value in scope["headers"] if key not in (b"content-length", b"transfer-encoding")]
    scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return scope, again


async def _answer(send: Send, error: RefusedError) -> None:
    """Send an error as OpenAI's clients read it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    content = {"error": {"message": error.message, "type": kind, "param": None, "code": error.status}}
    headers = [(b"content-type", b"application/json")] + ([(b"retry-after", b"5")] if error.status == 503 else [])
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
