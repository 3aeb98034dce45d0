"""The window of requests under way, in virtual time: a loop whose clock jumps to the next thing that happens."""

import asyncio
import random
import selectors
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from decode.window import Window


class Jumping(selectors.DefaultSelector):
    """Waits for nothing: the time that it was to wait has passed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Let the time pass and return what is ready."""
        self.now += timeout or 0.0
        return super().select(0)


class Seen(NamedTuple):
    """What a server saw of a run."""

    seconds: float
    refused: int
    widths: list[int]


class Server:
    """Computes `limit` at a time, in `latency_s` each; what is beyond it refuses at once, or lets it wait."""

    def __init__(self, limit: int, *, latency_s: float = 1.0, refuses: bool = False, spread: float = 0.0) -> None:
        self.limit, self.latency_s, self.refuses, self.spread = limit, latency_s, refuses, spread
        self.busy = self.refused = 0
        self.draw = random.Random(0)
        self.changed = asyncio.Condition()

    async def answer(self) -> bool:
        """Say whether it was answered, after the time that it takes."""
        if self.refuses and self.busy >= self.limit:
            self.refused += 1
            await asyncio.sleep(0.01)
            return False
        async with self.changed:
            await self.changed.wait_for(lambda: self.busy < self.limit)
            self.busy += 1
        await asyncio.sleep(self.latency_s * self.draw.uniform(1 - self.spread, 1 + self.spread))
        async with self.changed:
            self.busy -= 1
            self.changed.notify()
        return True


def drive(num: int, window: Window, server: Server, then: Callable[[int], None] = lambda at: None) -> Seen:
    """Ask `num` requests, each until it is answered, as many at a time as there is room for."""
    widths: list[int] = []
    ended = asyncio.Event()

    async def ask(at: int) -> None:
        answered, again = False, False
        while not answered:
            await window.enter(again=again)
            entered = loop.time()
            answered = await server.answer()
            window.leave(entered=entered, answered=answered, crowded=not answered)
            if not answered:
                again = True
                await asyncio.sleep(server.draw.uniform(0, 0.5))
        widths.append(window.width)
        ended.set()
        then(at)

    async def run() -> None:
        tasks = list[asyncio.Task[None]]()
        for at in range(num):
            tasks.append(asyncio.create_task(ask(at)))
            while len(tasks) - len(widths) >= window.room:
                ended.clear()
                await ended.wait()
        await asyncio.gather(*tasks)

    loop = asyncio.get_event_loop()
    since = loop.time()
    loop.run_until_complete(run())
    return Seen(loop.time() - since, server.refused, widths)


@pytest.fixture(autouse=True)
def loop() -> Any:
    selector = Jumping()
    virtual = asyncio.SelectorEventLoop(selector)
    virtual.time = lambda: selector.now  # type: ignore[method-assign]
    asyncio.set_event_loop(virtual)
    yield virtual
    virtual.close()
    asyncio.set_event_loop(None)


def make(loop: asyncio.AbstractEventLoop, ceiling: int = 256, *, adaptive: bool = True) -> Window:
    return Window(ceiling, adaptive=adaptive, clock=loop.time)


@pytest.mark.parametrize("limit", [4, 16, 50])
@pytest.mark.parametrize("spread", [0.0, 0.9])
def test_it_converges_under_a_limit_beyond_which_it_is_refused(
    loop: asyncio.AbstractEventLoop, limit: int, spread: float
) -> None:
    """A fixed 64 has 3,000 answers from a server of 16 with more than 30,000 refusals; this one with 80."""
    seen = drive(3000, make(loop), Server(limit, refuses=True, spread=spread))
    late = seen.widths[1500:]
    assert 0.8 * limit <= sum(late) / len(late) <= 1.1 * limit
    assert max(late) <= limit + 1
    assert seen.refused <= 3000 * 0.08
    assert seen.seconds <= 1.15 * 3000 / limit


@pytest.mark.parametrize("limit", [16, 50, 200])
@pytest.mark.parametrize("spread", [0.0, 0.5, 0.9])
def test_a_queue_grows_no_longer_than_it_pays(loop: asyncio.AbstractEventLoop, limit: int, spread: float) -> None:
    """The server refuses nothing: a fixed 1,024 would have up to 1,008 of them wait. The rate is its own all the same."""
    seen = drive(6000, make(loop, 1024), Server(limit, spread=spread))
    late = seen.widths[3000:]
    assert sum(late) / len(late) <= 4 * limit
    assert seen.seconds <= 1.05 * 6000 / limit + 10  # what doubling to the limit takes


def test_a_healthy_server_is_filled_in_four_latencies(loop: asyncio.AbstractEventLoop) -> None:
    """16, 32, 64, 128, 256: a doubling for each latency of 1 s."""
    window = make(loop)
    seen = drive(16 + 32 + 64 + 128 + 1000, window, Server(10**6))
    assert (window.width, seen.refused) == (256, 0)
    assert seen.seconds <= 4 + 1000 / 256 + 1


def test_it_follows_a_fleet_that_shrinks_and_grows(loop: asyncio.AbstractEventLoop) -> None:
    server, widths = Server(100, refuses=True), dict[int, int]()
    window = make(loop)

    def change(at: int) -> None:
        widths[at] = window.width
        server.limit = 16 if 3000 <= at < 5000 else 100

    seen = drive(12000, window, server, change)
    assert 80 <= widths[2999] <= 101
    assert 12 <= widths[4999] <= 17
    assert 80 <= widths[11999] <= 101
    assert seen.refused <= 12000 * 0.03


def test_it_falls_once_for_all_that_were_sent_before(loop: asyncio.AbstractEventLoop) -> None:
    """Of 16 that are refused together the first halves it, the others say nothing new; one sent later does."""
    window = make(loop)

    async def refuse() -> list[int]:
        for _ in range(16):
            await window.enter()
        entered, widths = loop.time(), list[int]()
        await asyncio.sleep(1)
        for _ in range(16):
            window.leave(entered=entered, answered=False, crowded=True)
            widths.append(window.width)
        await asyncio.sleep(1)
        await window.enter()
        window.leave(entered=loop.time(), answered=False, crowded=True)
        return [*widths, window.width]

    assert loop.run_until_complete(refuse()) == [8] * 16 + [4]


def test_a_fixed_one_stays_and_nothing_falls_below_one(loop: asyncio.AbstractEventLoop) -> None:
    fixed = make(loop, 8, adaptive=False)
    seen = drive(200, fixed, Server(2, refuses=True))
    assert set(seen.widths) == {8} and seen.refused > 200
    assert set(drive(50, make(loop), Server(1, refuses=True)).widths) <= {1, 2, 4, 8}


def test_a_wait_that_is_cancelled_loses_no_place(loop: asyncio.AbstractEventLoop) -> None:
    """One that is cancelled before its turn, and one that is cancelled as it is given one."""
    window = make(loop, 1)

    async def cancel() -> float:
        await window.enter()
        first, second, third = (asyncio.create_task(window.enter()) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        window.leave(entered=0.0, answered=True, crowded=False)
        second.cancel()
        await asyncio.sleep(3)
        assert first.cancelled() and second.cancelled()
        return await third

    assert loop.run_until_complete(cancel()) == 0.0
