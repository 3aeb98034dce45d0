"""Coroutines in a background thread with its own event loop, driven from plain code.

`Background.each` turns a coroutine for one item into a plain iterator over many: it reads its items only as fast as
they are answered, yields in order of completion, and cancels what is in flight when it is closed.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from counterfoil.errors import EngineError

__all__ = ["Background"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_GLANCE_S = 0.005  # how long to wait for an answer where there is nothing to ask at present
_SETTLE_S = 5.0  # how long a cancelled coroutine may take to let go of what it holds


class Background:
    """A thread that runs coroutines. Threads may share it; `close` it when done."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()  # a collected iterator may come back in while its thread holds it
        self._running: dict[Future[Any], str] = {}
        self._live: dict[asyncio.Task[Any], float] = {}
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"counterfoil-{name}", daemon=True)
        self._thread.start()

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
        room: Callable[[], int],
        glance: bool = False,
    ) -> Generator[ResultT | None]:
        """Yield what `work` returns for each item, as each finishes; at most `room()` run at once.

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
                while len(mine) >= room() or not done.empty():
                    yield take(_GLANCE_S if glance else None)
            while mine:
                yield take()
        finally:
            self._drop(mine)

    def began(self) -> float:
        """Say when the coroutine that asks was started, by the monotonic clock, pauses left out."""
        return self._live[cast("asyncio.Task[Any]", asyncio.current_task())]

    def leave_out(self, pause_s: float) -> None:
        """Leave a pause of the coroutine that says so out of the time since it began."""
        self._live[cast("asyncio.Task[Any]", asyncio.current_task())] += pause_s

    def cancel(self, name: str) -> None:
        """Cancel what runs under `name`; an unknown name is ignored."""
        with self._lock:
            found = [future for future, running in self._running.items() if running == name]
        for future in found:
            future.cancel()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what is in flight, run `last` and end the thread. Calling it twice is harmless."""
        with self._lock:
            first, self._closed = not self._closed, True
            running = list(self._running)
        if first:
            for future in running:
                future.cancel()
            try:
                asyncio.run_coroutine_threadsafe(self._shut(last), self._loop).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
        self._thread.join()

    def _start(self, name: str, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> Future[ResultT]:
        with self._lock:
            if self._closed:
                do = "Open the engine again."
                raise EngineError(self._name, given="the session is closed", allowed="an open session", do=do)
            future = asyncio.run_coroutine_threadsafe(self._track(work), self._loop)
            self._running[future] = name
        return future

    async def _track(self, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._live[task] = time.monotonic()
        try:
            return await work()
        finally:
            del self._live[task]

    def _drop(self, mine: Mapping[Future[Any], Any]) -> None:
        """Cancel these and wait until they have let go."""
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

    async def _shut(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await self._settle()
        await last()
