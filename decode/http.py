"""A client that retries: JSON over HTTP, from a background thread with its own event loop.

`HttpClient.each` turns a coroutine for one item into a plain iterator over many: it reads its items only as fast as
they are answered, yields in order of completion, and cancels what is in flight when it is closed.

The key is read from the environment for each try. It stands in no attribute, and every sentence that leaves here has
gone through `HttpClient.redact`.
"""

import asyncio
import email.utils
import itertools
import json
import os
import queue
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC
from typing import Any, NoReturn, TypeVar, cast

import httpx

from counterfoil.errors import EngineError

__all__ = ["HttpClient", "HttpError", "Patience", "parse_retry_after"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_MAX_MESSAGE = 200  # characters of a server's message that are kept
_LANE = 16  # requests in flight a pool of connections: httpcore's work for a request grows with its pool's square
_GLANCE_S = 0.005  # how long to wait for an answer where there is nothing to ask at present
_SETTLE_S = 5.0  # how long a cancelled request may take to let go of its connection


class HttpError(Exception):
    """Why there is no answer, as a sentence without secrets."""

    def __init__(self, sentence: str, *, status: int | None = None, again: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.status = status
        """The HTTP status, where there was an answer at all."""
        self.again = again
        """Whether another try may help."""
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
    """For all tries and waits together."""


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


class HttpClient:
    """Asks one server. Threads may share it; `close` it when done."""

    def __init__(self, base_url: str, *, api_key_env: str, patience: Patience, max_in_flight: int) -> None:
        self._base_url, self._api_key_env = base_url, api_key_env
        self._patience, self._max_in_flight = patience, max_in_flight
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=_LANE)
        ssl_context = httpx.create_ssl_context()
        self._lanes = [  # no timeout of httpx's own: _try bounds each try as a whole
            httpx.AsyncClient(limits=limits, verify=ssl_context, timeout=None)  # noqa: S113  (each request has its own)
            for _ in range(0, max_in_flight, _LANE)
        ]
        self._next_lane = itertools.cycle(self._lanes)
        self._lock = threading.RLock()  # a collected iterator may come back in while its thread holds it
        self._running: dict[Future[Any], str] = {}
        self._live: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="counterfoil-http", daemon=True)
        self._thread.start()

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
            HttpError: a 4xx status at once; anything that may pass once tries or time have run out.
        """
        patience = patience or self._patience
        url = path if "://" in path else self._base_url + path
        start = time.monotonic()
        tries = 0
        while True:
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
                    raise HttpError(sentence, status=failure.status) from None
            await asyncio.sleep(wait_s)

    async def _try(self, method: str, url: str, body: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        headers = self._make_headers()
        try:
            async with asyncio.timeout(timeout_s):
                response = await next(self._next_lane).request(method, url, content=content, headers=headers)
        except TimeoutError:
            failure = HttpError(f"no answer within {timeout_s:.3g} s", again=True)
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            failure = HttpError(self.redact(f"cannot be sent: {type(error).__name__}: {error}"))
        except httpx.RequestError as error:
            failure = HttpError(self.redact(f"connection failed: {type(error).__name__}: {error}"), again=True)
        else:
            return self._read(response)
        raise failure  # out here, so that no cause is attached: it would hold the headers

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        status = response.status_code
        if not 200 <= status < 300:
            message = self.redact(_find_message(response.content.decode("utf-8", "replace"))) or "no message"
            again = status in {408, 429} or status >= 500
            wait_s = parse_retry_after(response.headers.get("retry-after")) if again else 0.0
            raise HttpError(f"status {status}: {message}", status=status, again=again, wait_s=wait_s)
        try:
            answer: Any = json.loads(response.content)
        except (ValueError, RecursionError):
            raise HttpError("server sent broken JSON", status=status, again=True) from None
        if not isinstance(answer, dict):
            raise HttpError("server sent JSON that is no object", status=status, again=True)
        return cast(dict[str, Any], answer)

    def wait(self, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Run one coroutine in the background thread, and wait for what it returns or raises."""
        future = self._start("", work)
        try:
            return future.result()
        finally:
            future.cancel()
            with self._lock:
                self._running.pop(future, None)

    def each(
        self,
        items: Iterable[ItemT | None],
        work: Callable[[ItemT], Coroutine[Any, Any, ResultT]],
        *,
        name: Callable[[ItemT], str],
        cancelled: Callable[[ItemT], ResultT],
        glance: bool = False,
    ) -> Generator[ResultT | None]:
        """Yield what `work` returns for each item, as each finishes; at most `max_in_flight` run at once.

        `cancel(name(item))` makes an item's result `cancelled(item)`. Closing the iterator cancels the rest. For an item
        that is None it waits a moment and yields what finished, or None; with `glance` also where it is full.
        """
        done: queue.SimpleQueue[Future[ResultT]] = queue.SimpleQueue()
        mine: dict[Future[ResultT], ItemT] = {}

        def take(timeout_s: float | None = None) -> ResultT | None:
            try:
                future = done.get(timeout=timeout_s)
            except queue.Empty:
                return None
            ended = mine.pop(future)
            with self._lock:
                self._running.pop(future, None)
            return cancelled(ended) if future.cancelled() else future.result()

        try:
            for item in items:
                if item is None:
                    yield take(_GLANCE_S)
                    continue
                future = self._start(name(item), lambda item=item: work(item))
                mine[future] = item
                future.add_done_callback(done.put)
                while len(mine) >= self._max_in_flight or not done.empty():
                    yield take(_GLANCE_S if glance else None)
            while mine:
                yield take()
        finally:
            self._drop(mine)

    def cancel(self, name: str) -> None:
        """Cancel what runs under `name`; an unknown name is ignored."""
        with self._lock:
            found = [future for future, running in self._running.items() if running == name]
        for future in found:
            future.cancel()

    def close(self) -> None:
        """Cancel what is in flight, close the connections and end the thread. Calling it twice is harmless."""
        with self._lock:
            first, self._closed = not self._closed, True
            running = list(self._running)
        if first:
            for future in running:
                future.cancel()
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if first:
            self._loop.close()

    def _start(self, name: str, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> Future[ResultT]:
        with self._lock:
            if self._closed:
                self._refuse()
            future = asyncio.run_coroutine_threadsafe(self._track(work), self._loop)
            self._running[future] = name
        return future

    def _refuse(self) -> NoReturn:
        raise EngineError(
            "openai_api", given="the session is closed", allowed="an open session", do="Open the engine again."
        )

    async def _track(self, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._live.add(task)
        try:
            return await work()
        finally:
            self._live.discard(task)

    def _drop(self, mine: Mapping[Future[Any], Any]) -> None:
        """Cancel these and wait until their connections are gone."""
        for future in mine:
            future.cancel()
        with self._lock:
            for future in mine:
                self._running.pop(future, None)
            if self._closed or not mine or threading.current_thread() is self._thread:
                return  # on our own thread (a collected iterator) waiting would be for ever
            settled = asyncio.run_coroutine_threadsafe(self._settle(), self._loop)
        settled.result()

    async def _settle(self) -> None:
        own = asyncio.current_task()
        ending = {task for task in self._live if task is not own and task.cancelling()}
        if ending:
            await asyncio.wait(ending, timeout=_SETTLE_S)

    async def _shut(self) -> None:
        await self._settle()
        for lane in self._lanes:
            await lane.aclose()
