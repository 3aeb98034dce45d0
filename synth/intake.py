"""What comes in: rows in their order, each of which goes out once, begun or not."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

from counterfoil.job import Run
from counterfoil.records import Dropped, Prompt

__all__ = ["Intake"]

READ_AHEAD = 65_536
"""Rows that wait for a prompt before them to end, broken ones among them."""


class Intake:
    """Prompts, each once. Rows that are none are dropped in their turn, so that the same rows always make the same files.

    The ids seen lie in a temporary table, not in memory.
    """

    def __init__(self, run: Run, rows: Iterator[Prompt | Dropped]) -> None:
        self._run, self._rows = run, rows
        self._is_new = run.store.open_set("prompts")
        self._ahead: deque[str | Dropped] = deque()
        self._num_begun = 0
        run.counts |= {"read": 0, "prompts": 0}

    def begin(self, may_begin: Callable[[int], bool]) -> Iterator[Prompt | None]:
        """Yield the prompts; None while no other may begin beside so many that have begun and not ended."""
        while True:
            if not may_begin(self._num_begun) or len(self._ahead) >= READ_AHEAD:
                yield None
                continue
            row = self._read()
            if row is None:
                return
            if isinstance(row, Prompt):
                self._ahead.append(row.id)
                self._num_begun += 1
                yield row
            elif self._ahead:
                self._ahead.append(row)
            else:
                self._run.drop(row)

    def end(self, prompt: Prompt) -> None:
        """Count the first of those begun as ended; rows after it that are no prompts go as well."""
        assert self._ahead.popleft() == prompt.id, "outcomes come in the order of the prompts"
        self._num_begun -= 1
        while self._ahead and isinstance(row := self._ahead[0], Dropped):
            self._run.drop(row)
            self._ahead.popleft()

    def drop_rest(self, reason: str) -> None:
        """Drop what is left, prompts at the stage `budget`."""
        for row in chain(self._ahead, iter(self._read, None)):
            if not isinstance(row, Dropped):
                row = Dropped(id=row if isinstance(row, str) else row.id, stage="budget", reason=reason)
            self._run.drop(row)

    def _read(self) -> Prompt | Dropped | None:
        """Read a row, keeping a prompt in prompts.jsonl; None after the last."""
        row = next(self._rows, None)
        if row is None:
            return None
        self._run.counts["read"] += 1
        if isinstance(row, Dropped):
            return row
        if not self._is_new(row.id):
            return Dropped(id=row.id, stage="read", reason="duplicate prompt")
        self._run.counts["prompts"] += 1
        self._run.write("prompts.jsonl", row)
        return row
