"""The thread that feeds an engine: requests come from many connections, the engine takes batches.

Whatever waits when a batch is done makes the next one. Each request has a mailbox in the event loop of its connection: texts
as they grow, then the result.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from decode.engine import Request, Result, Sampling
from decode.engines.hf import HfSession

__all__ = ["Ticket", "Worker"]


@dataclass
class Ticket:
    """A request on its way, and where what becomes of it is put."""

    request: Request
    loop: asyncio.AbstractEventLoop
    stream: bool = False
    mailbox: asyncio.Queue[Result | tuple[int, str]] = field(default_factory=asyncio.Queue)
    """(index of the sample, text so far) while it grows, then the Result."""
    gone: bool = False
    """Its sender has left."""
    crash: str | None = None
    """What went wrong in the engine, where its Result is a failure through no fault of the request."""

    def put(self, item: Result | tuple[int, str]) -> None:
        """Deliver from the worker's thread; a connection whose loop is closed gets nothing."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.mailbox.put_nowait, item)


class Worker:
    """Owns a session; call `submit` from any thread."""

    def __init__(self, session: HfSession, *, batch_size: int) -> None:
        self._session, self._most = session, 4 * batch_size
        self._waiting: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._tickets: dict[str, Ticket] = {}
        self._thread = threading.Thread(target=self._run, name="counterfoil-worker", daemon=True)
        self.failure: str | None = None
        """Why the engine answers nothing any more."""

    def start(self) -> None:
        """Begin."""
        self._session.watch = self._show
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Queue a request."""
        self._waiting.put(ticket)

    def withdraw(self, ticket: Ticket) -> None:
        """Stop a request whose sender has left."""
        ticket.gone = True
        if ticket.request.id in self._tickets:
            self._session.cancel(ticket.request.id)

    def close(self) -> None:
        """Give up what is under way, and end."""
        self._waiting.put(None)
        for ticket in list(self._tickets.values()):
            self.withdraw(ticket)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < self._most and not self._waiting.empty():
                batch.append(self._waiting.get())
            self._tickets = {ticket.request.id: ticket for ticket in batch if ticket is not None and not ticket.gone}
            tickets = [ticket for ticket in self._tickets.values() if not ticket.gone]
            if self._answer(tickets) is not None:
                # One request may have ended all: what is left is tried one by one, and the engine by a request of ours.
                for ticket in list(self._tickets.values()):
                    ticket.crash = self._answer([ticket])
                self.failure = self._probe()
                for name, ticket in self._tickets.items():
                    ticket.put(Result(name, failure=ticket.crash))
            self._tickets = {}
            if None in batch:
                return

    def _answer(self, tickets: list[Ticket]) -> str | None:
        """Deliver the answers of a batch. Returns what ended it before its time, or None."""
        try:
            for result in self._session.complete([ticket.request for ticket in tickets]):
                self._tickets.pop(result.id).put(result)
        except Exception as error:  # of whatever is below: the thread must live
            return f"{type(error).__name__}: {error}"
        return None

    def _probe(self) -> str | None:
        """Ask the engine for one token. Returns why there is none, or None."""
        try:
            (result,) = self._session.complete([Request("probe", (0,), Sampling(max_new_tokens=1))])
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return result.failure

    def _show(self, name: str, index: int, ids: Sequence[int], decode: Any) -> None:
        """Pass on a text as it grows."""
        ticket = self._tickets.get(name)
        if ticket is not None and ticket.stream:
            ticket.put((index, decode(ids)))
