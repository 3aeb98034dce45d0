"""An engine in a process of its own, asked from another one: what `engine: ray` has as an actor on each machine."""

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from decode.engine import Content, Engine, Given, GivenLogprobs, Request, Result, Session
from decode.method import Method

__all__ = ["Replica"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, under a name that none had before here, and where its answer is waited for."""

    item: Request | Given
    future: Future[Any]


class Replica:
    """An engine in an actor's process: one thread of it drives the session, Ray's own loop waits for the answers."""

    def __init__(
        self, engine: Engine, model: str, adapters: list[str | None], methods: list[Method], cores: range
    ) -> None:
        self._engine, self._model, self._adapters, self._methods = engine, model, adapters, methods
        self._inbox: SimpleQueue[_Asked | None] = SimpleQueue()
        self._orders: deque[Callable[[Session], None]] = deque()
        self._flying: dict[str, Future[Any]] = {}
        self._numbers = itertools.count()
        self._closes = False
        self._opened: Future[None] = Future()
        self._thread: Thread | None = None
        self._cores = cores

    async def wake(self) -> None:
        """Answer as soon as the process is there."""

    async def open(self) -> str:
        """Open the engine, once; return its identity here, which another version of the model would change."""
        if self._thread is None:
            self._thread = Thread(target=self._drive, daemon=True)
            self._thread.start()
        await asyncio.wrap_future(self._opened)
        return self._engine.identify(self._model)

    async def answer(self, item: Request | Given) -> Result | GivenLogprobs:
        """Answer or score."""
        asked = _Asked(replace(item, id=str(next(self._numbers))), Future())
        self._inbox.put(asked)
        try:
            reply = await asyncio.wrap_future(asked.future)
        except asyncio.CancelledError:
            self._order(lambda session: session.cancel(asked.item.id))
            raise
        if isinstance(reply, Result):
            own = [part.renumber(prompt_id=item.id, index=part.index) for part in reply.completions]
            return replace(reply, id=item.id, completions=tuple(own))
        return replace(reply, id=item.id)

    async def num_tokens(self, prompt: Content) -> int:
        """Count as the engine does."""
        future: Future[int] = Future()

        def count(session: Session) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(session.num_tokens(prompt))
            except Exception as error:
                future.set_exception(error)

        self._order(count)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Give everything back."""
        self._closes = True
        self._inbox.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _order(self, order: Callable[[Session], None]) -> None:
        self._orders.append(order)
        self._inbox.put(None)

    def _drive(self) -> None:
        self._take_cores()
        try:
            session = self._engine.open(self._model, adapters=self._adapters, methods=self._methods)
        except Exception as error:
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        with session:
            try:
                for reply in session.stream(self._feed(), glance=True):
                    while self._orders:
                        self._orders.popleft()(session)
                    if reply is not None and (future := self._flying.pop(reply.id)).set_running_or_notify_cancel():
                        future.set_result(reply)
            except Exception as error:  # an engine that broke answers nobody any more: Ray starts another process
                os.write(2, f"counterfoil: the engine broke: {type(error).__name__}: {error}\n".encode())
                os._exit(1)

    def _take_cores(self) -> None:
        """Keep this thread, and those that it starts, off the cores of other replicas: they would wait for each other."""
        if self._cores and hasattr(os, "sched_setaffinity"):
            there = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {there[number % len(there)] for number in self._cores})

    def _feed(self) -> Iterator[Request | Given | None]:
        """Yield what was asked; sleep where nothing is in flight."""
        while not self._closes:
            try:
                asked = self._inbox.get(block=not self._flying)
            except Empty:
                asked = None
            if asked is None or asked.future.cancelled():
                yield None
            else:
                self._flying[asked.item.id] = asked.future
                yield asked.item
