"""How many requests a server is sent at a time: more while that helps, fewer when it has too many (AIMD).

Source: Jacobson 1988, "Congestion Avoidance and Control"; Xu, Harfoush & Rhee 2004, "Binary Increase Congestion Control";
Brakmo & Peterson 1995, "TCP Vegas", for what latency says.

A window is measured over rounds of some answers, as many as it is wide, while requests wait for a place in it:

- It doubles with each round, until the first sign that it is too wide. Then it grows by one a round near the width that
  was too much, and the faster the further it is from it, on either side.
- A server says that it has too many by a refusal (429, 503) or by no answer in time (408, 504, a timeout). The window falls
  once for all that were sent before it fell: by a half, or a little where it has been well for a round.
- vLLM's server says nothing: it queues. Its latency grows with the batch too, while that still pays, so latency alone is no
  sign. By Little's law width = rate x latency: where the window is twice as wide as it was at the same rate, latency
  has doubled for nothing, and what was added only waits, nearer to its timeout. The window falls to just under the width that
  had the rate, and no further: the rate is what a batch job wants, and a short queue costs it nothing.

Requests of different lengths make the rate of a round uncertain, so a gain counts from a tenth; a loss of a third is taken
for other work, with which the comparison begins anew.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Window"]

_START = 16  # wide enough for a small server at once, narrow enough for one that refuses
_FALL = 0.85  # what a small fall leaves
_ROUND = 16  # answers that a rate takes at least
_GAIN = 1.1  # a rate that is higher by less is taken for the same
_GAIN_DOUBLED = 1.25  # the same where the width has doubled: a rate that lags behind it passes for a small gain
_LOSS = 0.67  # a rate that is lower by more is of other work, or of another server
_WASTE = 2  # how much wider than the rate needs it is too wide


class Window:
    """Places for requests under way, of one event loop. Its width adapts between 1 and `ceiling`."""

    def __init__(self, ceiling: int, *, adaptive: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._ceiling, self._adaptive, self._clock = ceiling, adaptive, clock
        self.width = min(_START, ceiling) if adaptive else ceiling
        """How many may be under way."""
        self._num_flying = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._doubles = True
        self._fell_at = -1.0
        self._best: tuple[int, float] | None = None  # a width, and the rate that it was enough for
        self._trouble = 0  # the width of the last fall
        self._begin_round()

    @property
    def room(self) -> int:
        """How many may be begun: as many again as the window is wide wait for their turn."""
        return min(self._ceiling, 2 * self.width)

    async def enter(self, *, again: bool = False) -> float:
        """Wait for a place; one that comes `again` goes before others. Return the seconds waited."""
        if self._num_flying < self.width and not self._waiting:
            self._num_flying += 1
            return 0.0
        since, turn = self._clock(), asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # it was given a place on its way out
            raise
        return self._clock() - since

    def leave(self, *, entered: float, answered: bool, crowded: bool) -> None:
        """Give a place back: `entered` when it was taken; `answered` well; `crowded` where the server had too many."""
        self._leave()
        if not self._adaptive:
            return
        if crowded:
            if entered > self._fell_at:
                self._fall(self.width * (0.5 if self._doubles or self._best is None else _FALL))
        elif answered:
            self._num_answered += 1
            self._is_full = self._is_full and self._num_flying >= self.width
            if self._num_answered >= max(self.width, _ROUND) * (1 if self._doubles else 2):
                self._end_round()

    def _leave(self) -> None:
        self._num_flying -= 1
        while self._waiting and self._num_flying < self.width:
            turn = self._waiting.popleft()
            if not turn.done():
                self._num_flying += 1
                turn.set_result(None)

    def _begin_round(self) -> None:
        self._since, self._num_answered, self._is_full = self._clock(), 0, True

    def _end_round(self) -> None:
        seconds = max(self._clock() - self._since, 1e-9)
        if self._is_full:
            self._compare(self._num_answered / seconds)
        self._begin_round()

    def _compare(self, rate: float) -> None:
        gain = _GAIN_DOUBLED if self._doubles else _GAIN
        if self._best is None or not _LOSS * self._best[1] <= rate <= gain * self._best[1]:
            self._best = self.width, rate
        if self.width >= _WASTE * self._best[0]:
            self._fall(_FALL * self._best[0])
        else:
            step = self.width if self._doubles else max(1, abs(self._trouble - self.width) // 4)
            self.width = min(self._ceiling, self.width + step)

    def _fall(self, width: float) -> None:
        self._trouble, self.width = self.width, max(1, min(int(width), self.width - 1))
        self._best, self._doubles, self._fell_at = None, False, self._clock()
        self._begin_round()
