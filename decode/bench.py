"""Computations beside the dialogues, in threads of their own: a slow one holds nobody but who waits for it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

__all__ = ["Bench", "Done"]


class Done(NamedTuple):
    """What came of a computation."""

    tag: Any
    """What it was put with."""
    value: Any
    error: BaseException | None


class Bench:
    """Lanes of threads; in each lane as many are computed at a time as it has threads, in the order of coming."""

    def __init__(self) -> None:
        self._done: SimpleQueue[Done] = SimpleQueue()
        self._lanes: dict[str, SimpleQueue[tuple[Any, Callable[[], Any]]]] = {}
        self._num_threads: dict[str, int] = {}
        self._closed = False
        self.num_open = 0
        """How many are not taken yet."""

    def put(self, tag: Any, call: Callable[[], Any], *, lane: str, threads: int) -> None:
        """Have something computed; the lane's first says how many threads it has."""
        if lane not in self._lanes:
            self._lanes[lane], self._num_threads[lane] = SimpleQueue(), threads
            for number in range(threads):
                # A daemon: what is computed when a run is interrupted is not waited for.
                threading.Thread(target=self._work, args=[lane], name=f"{lane} {number}", daemon=True).start()
        self._lanes[lane].put((tag, call))
        self.num_open += 1

    def _work(self, lane: str) -> None:
        queue = self._lanes[lane]
        while True:
            tag, call = queue.get()
            if self._closed:
                return
            try:
                self._done.put(Done(tag, call(), None))
            except BaseException as error:  # it is raised where its result is taken
                self._done.put(Done(tag, None, error))

    def take(self, *, wait_s: float = 0.0) -> Iterator[Done]:
        """Yield what is done; where nothing is yet, wait a while for the first."""
        with suppress(Empty):
            yield self._count(self._done.get(timeout=wait_s) if wait_s else self._done.get_nowait())
            while True:
                yield self._count(self._done.get_nowait())

    def _count(self, done: Done) -> Done:
        self.num_open -= 1
        return done

    def close(self) -> None:
        """Begin nothing more; the threads end."""
        self._closed = True
        for lane, queue in self._lanes.items():
            for _ in range(self._num_threads[lane]):  # wakes those that wait for something to do
                queue.put((None, str))
