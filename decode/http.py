"""A client that retries, and that sends a server no more than it takes: JSON over HTTP, from a background thread.

The key is read from the environment for each try. It stands in no attribute, and every sentence that leaves here has
gone through `HttpClient.redact`.
"""

import asyncio
import email.utils
import itertools
import json
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass
from datetime import UTC
from typing import Any, TypeVar, cast

import httpx

from decode.background import Background
from decode.window import Window

__all__ = ["HttpClient", "HttpError", "Patience", "parse_retry_after"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_MAX_MESSAGE = 200  # characters of a server's message that are kept
_LANE = 16  # requests in flight a pool of connections: httpcore's work for a request grows with its pool's square
_CROWDED = {408, 429, 503, 504}  # what a server says that has too many requests at a time


class HttpError(Exception):
    """Why there is no answer, as a sentence without secrets."""

    def __init__(
        self,
        sentence: str,
        *,
        status: int | None = None,
        again: bool = False,
        crowded: bool = False,
        gone: bool = False,
        wait_s: float = 0.0,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        """The HTTP status, where there was an answer at all."""
        self.again = again
        """Whether another try may help."""
        self.crowded = crowded
        """Whether the server has too many requests at a time."""
        self.gone = gone
        """Whether nobody is there to answer."""
        self.wait_s = wait_s
        """How long the server asks to wait before that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long and how often to ask."""

    timeout_s: float
    """For one try, from connecting to the last byte."""
    retries: int
    """Tries after the first."""
    backoff_s: float
    """The first wait is drawn between 0 and this; the bound doubles with each try (full jitter)."""
    max_backoff_s: float
    """Where the doubling stops."""
    deadline_s: float
    """For all tries and the waits between them; where requests wait for their turn is left out."""


def parse_retry_after(value: str | None) -> float:
    """Read a Retry-After header, in seconds or as a date. What cannot be read, or is past, is 0."""
    if value is None:
        return 0.0
    try:
        wait_s = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
            wait_s = when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return wait_s if 0.0 < wait_s < float("inf") else 0.0


def _find_message(text: str) -> str:
    """Return the message in an error's body: OpenAI's, FastAPI's and plain forms."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = cast(dict[str, Any], found)[key]
    return found if isinstance(found, str) else text


def _find_status(error: Any) -> int | None:
    """Return the status that an error in a body has by its own account."""
    code: Any = cast(dict[str, Any], error).get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None


class HttpClient:
    """Asks one server. Threads may share it; `close` it when done."""

    def __init__(
        self, base_url: str, *, api_key_env: str, patience: Patience, max_in_flight: int, adaptive: bool
    ) -> None:
        self._base_url, self._api_key_env, self._patience = base_url, api_key_env, patience
        self._window = Window(max_in_flight, adaptive=adaptive)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=_LANE)
        ssl_context = httpx.create_ssl_context()
        self._lanes = [  # no timeout of httpx's own: _try bounds each try as a whole
            httpx.AsyncClient(limits=limits, verify=ssl_context, timeout=None)  # noqa: S113  (each request has its own)
            for _ in range(0, max_in_flight, _LANE)
        ]
        self._next_lane = itertools.cycle(self._lanes)
        self._heard_at = 0.0  # when the server last said anything, by the monotonic clock
        self._background = Background("openai_api")

    def redact(self, text: str) -> str:
        """Take the key out of `text`, and control characters; cut it to 200 characters."""
        key = self._read_key()
        for form in {key, urllib.parse.quote(key, safe=""), urllib.parse.quote_plus(key)} - {""}:
            text = text.replace(form, "[key]")
        text = re.sub(r"(?i)\bbearer\s+\S+", "Bearer [key]", text)
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "..."

    def _read_key(self) -> str:
        return os.environ.get(self._api_key_env, "").strip()

    def _make_headers(self) -> dict[str, str]:
        key = self._read_key()
        if not (key.isascii() and key.isprintable()):
            raise HttpError(f"environment variable {self._api_key_env} holds characters that a header cannot have")
        return {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    async def ask(
        self, method: str, path: str, *, body: dict[str, Any] | None = None, patience: Patience | None = None
    ) -> dict[str, Any]:
        """Send `body` to `path` (or to a whole address) and return the JSON object that comes back.

        Raises:
            HttpError: a 4xx status at once; anything that may pass once tries or time have run out. It is `gone` where no try
                found a server, and none of any other request did since this one began.
        """
        patience = patience or self._patience
        url = path if "://" in path else self._base_url + path
        tries = 0
        while True:
            self._background.leave_out(await self._window.enter(again=tries > 0))
            start = self._background.began()
            tries += 1
            left_s = max(0.0, start + patience.deadline_s - time.monotonic())
            try:
                return await self._try(method, url, body, min(patience.timeout_s, left_s))
            except HttpError as failure:
                if not failure.again:
                    raise
                drawn_s = random.uniform(0.0, min(patience.max_backoff_s, patience.backoff_s * 2 ** min(tries - 1, 60)))
                wait_s = max(drawn_s, failure.wait_s + min(drawn_s, patience.backoff_s) if failure.wait_s else 0.0)
                elapsed_s = time.monotonic() - start
                late = elapsed_s + wait_s >= patience.deadline_s
                if late or tries > patience.retries:
                    why = f", the next in {wait_s:.3g} s would pass deadline_s={patience.deadline_s:g}" if late else ""
                    sentence = f"{failure} (tries: {tries} in {elapsed_s:.1f} s{why})"
                    gone = failure.gone and self._heard_at < start
                    raise HttpError(sentence, status=failure.status, gone=gone) from None
            await asyncio.sleep(wait_s)

    async def _try(self, method: str, url: str, body: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        """Try once, and give the place in the window back."""
        entered, answered, crowded = time.monotonic(), False, False
        try:
            answer = await self._send(method, url, body, timeout_s)
            answered = True
        except HttpError as failure:
            crowded = failure.crowded
            raise
        finally:
            self._window.leave(entered=entered, answered=answered, crowded=crowded)
        return answer

    async def _send(self, method: str, url: str, body: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        headers = self._make_headers()
        try:
            async with asyncio.timeout(timeout_s):
                response = await next(self._next_lane).request(method, url, content=content, headers=headers)
        except TimeoutError:
            failure = HttpError(f"no answer within {timeout_s:.3g} s", again=True, crowded=True)
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            failure = HttpError(self.redact(f"cannot be sent: {type(error).__name__}: {error}"))
        except httpx.RequestError as error:
            sentence = self.redact(f"connection failed: {type(error).__name__}: {error}")
            # One that hangs up on a request is there for the others.
            failure = HttpError(sentence, again=True, gone=isinstance(error, httpx.ConnectError))
        else:
            self._heard_at = time.monotonic()
            return self._read(response)
        raise failure  # out here, so that no cause is attached: it would hold the headers

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        status = response.status_code
        if 200 <= status < 300:
            try:
                answer: Any = json.loads(response.content)
            except (ValueError, RecursionError):
                raise HttpError("server sent broken JSON", status=status, again=True) from None
            if not isinstance(answer, dict):
                raise HttpError("server sent JSON that is no object", status=status, again=True)
            found = cast(dict[str, Any], answer)
            if "choices" in found or not found.get("error"):
                return found
            status = _find_status(found["error"]) or status  # a gateway passes a refusal on as a success
        message = self.redact(_find_message(response.content.decode("utf-8", "replace"))) or "no message"
        again = status in {408, 429} or status >= 500
        wait_s = parse_retry_after(response.headers.get("retry-after")) if again else 0.0
        crowded = status in _CROWDED
        raise HttpError(f"status {status}: {message}", status=status, again=again, crowded=crowded, wait_s=wait_s)

    def wait(self, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Run one coroutine in the background thread, and wait for what it returns or raises."""
        return self._background.wait(work)

    def each(
        self,
        items: Iterable[ItemT | None],
        work: Callable[[ItemT], Coroutine[Any, Any, ResultT]],
        *,
        name: Callable[[ItemT], str],
        cancelled: Callable[[ItemT], ResultT],
        glance: bool = False,
    ) -> Generator[ResultT | None]:
        """Yield what `work` returns for each item, as each finishes; see Background.each."""
        return self._background.each(
            items, work, name=name, cancelled=cancelled, room=lambda: self._window.room, glance=glance
        )

    def cancel(self, name: str) -> None:
        """Cancel what runs under `name`; an unknown name is ignored."""
        self._background.cancel(name)

    def close(self) -> None:
        """Cancel what is in flight, close the connections and end the thread. Calling it twice is harmless."""
        self._background.close(self._disconnect)

    async def _disconnect(self) -> None:
        for lane in self._lanes:
            await lane.aclose()
