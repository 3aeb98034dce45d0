"""What every request passes before a server sees it: limits on its size, on how many there are, on how long one takes.

ASGI middleware, so that it stands in front of vLLM's application as of our own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from counterfoil.errors import first_line

__all__ = ["Gate", "RefusedError", "describe_error", "read_message"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class RefusedError(Exception):
    """A request that cannot be answered, and why, for its sender."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Gate:
    """Middleware for POST requests; the others pass. A body that is no JSON object (or multipart) is refused.

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
        if self._active >= self._max_requests:
            said = f"{self._active} requests are being answered or wait, which is the limit. Try later."
            await _answer(send, RefusedError(503, said))
            return
        started = False

        async def note(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        self._active += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(scope, receive)
                await self._app(*_replay(scope, receive, body), note)
        except RefusedError as error:
            await _answer(send, error)
        except TimeoutError:
            # A stream that is cut off gets no more: the server closes its connection without a last chunk.
            if not started:
                said = f"Not answered within {self._timeout_s:g} s. Ask for fewer tokens."
                await _answer(send, RefusedError(504, said))
        finally:
            self._active -= 1

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
        if not body or dict(scope["headers"]).get(b"content-type", b"").startswith(b"multipart/"):
            return body
        given = _read_object(body)
        if self._translate is None:
            return body
        try:
            return json.dumps(self._translate(scope["path"], given)).encode()
        except ValueError as error:
            raise RefusedError(400, first_line(error)) from error


def _read_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object. Raises RefusedError for what is none, and for what only Python takes for JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        given = json.loads(body, parse_constant=refuse)
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RefusedError(400, "The request holds half of a surrogate pair, which is no text.") from None
    except RecursionError:
        raise RefusedError(400, "The request is nested too deeply.") from None
    except ValueError as error:
        raise RefusedError(400, f"The request is no JSON: {error}.") from error
    if not isinstance(given, dict):
        raise RefusedError(400, "The request is no JSON object.")
    return given


def read_message(message: Any) -> dict[str, str]:
    """Take a message whose content is text, or parts that are. Raises RefusedError."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str)) if len(parts) == len(content) else None
    if not isinstance(content, str) or not isinstance(message.get("role"), str):
        raise RefusedError(400, "messages: each needs a role and a content of text.")
    return {"role": message["role"], "content": content}


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


def describe_error(status: int, message: str) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def _answer(send: Send, error: RefusedError) -> None:
    content = describe_error(error.status, error.message)
    headers = [(b"content-type", b"application/json")] + ([(b"retry-after", b"5")] if error.status == 503 else [])
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
