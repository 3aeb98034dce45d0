"""How much a synthesis may come to: pairs, tokens, seconds. What it stops before is dropped by name, never by silence.

Where it stops is decided by what was written, in the prompts' order, and so by the answers alone: a run that was interrupted
stops where it would have. A prompt begins only where those under way are not expected to reach the limit, so that little is
asked in vain.
"""

import math
import time

from counterfoil.job import Run

__all__ = ["Budget"]

FIRST = 32
"""Prompts that may be under way before any has shown how many tokens one takes."""


class Budget:
    """What was made of what may be made."""

    def __init__(self, run: Run, *, pairs: int | None, tokens: int | None, seconds: float | None) -> None:
        self._run, self._pairs, self._tokens = run, pairs or math.inf, tokens or math.inf
        self.num_pairs = self.num_tokens = self.num_prompts = 0
        self._timed, self._since, self._noted = seconds is not None, time.monotonic(), 0.0
        self._before_s = float(run.store.get("budget", "seconds") or 0)
        self.deadline = math.inf if seconds is None else self._since + seconds - self._before_s
        """When nothing more is asked, by time.monotonic."""

    @property
    def has_room(self) -> bool:
        """Whether another pair is wanted."""
        return self.num_pairs < self._pairs

    @property
    def reached(self) -> str:
        """The limit that ends the run, in words; empty where none is reached."""
        if not self.has_room:
            return "target_pairs reached"
        return "max_tokens_total reached" if self.num_tokens >= self._tokens else ""

    def may_begin(self, num_begun: int) -> bool:
        """Say whether a prompt may begin beside so many others; the first always may."""
        self.note(every_s=1)
        return num_begun == 0 or num_begun < self._count_left()

    def _count_left(self) -> float:
        """Return how many more prompts will meet a limit, at the rate so far."""
        pairs_left = (self._pairs - self.num_pairs) * (self.num_prompts + 1) / (self.num_pairs + 1)
        tokens_left = self._tokens - self.num_tokens
        if self.num_tokens:
            tokens_left *= self.num_prompts / self.num_tokens
        elif self._tokens < math.inf:
            tokens_left = FIRST
        return min(pairs_left, tokens_left)

    def end_prompt(self) -> None:
        """Count a prompt as done with, and keep the seconds, so that a kill does not give them back."""
        self.num_prompts += 1
        self._run.progress.expect(self.num_prompts + self._count_left())
        self.note(every_s=1)

    def note(self, *, every_s: float = 0) -> None:
        """Keep the seconds."""
        seconds = time.monotonic() - self._since
        if self._timed and seconds >= self._noted + every_s:
            self._noted = seconds
            self._run.store.put("budget", "seconds", str(self._before_s + seconds))

    def conclude(self) -> None:
        """Say where the run stopped, and why there are fewer pairs than were wanted."""
        why = ""
        for key, count in self._run.dropped.items():
            stage, _, reason = key.partition(": ")
            if stage == "budget":
                why = reason
                self._run.progress.say(f"{reason}: {count} prompts were not begun, or not waited for")
        if self.has_room and self._pairs < math.inf:
            self._run.figures["target_pairs"] = f"{self.num_pairs} of {self._pairs}: {why or 'no prompt is left'}"
