"""How far a run is: a live bar with a table of counts on a terminal, a line a minute elsewhere, progress.jsonl always."""

import json
import math
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Progress", "Stage", "read_progress", "show_seconds"]

LINE_EVERY_S = 60.0
FIRST_LINE_AFTER_S = 10.0
FILE_EVERY_S = 1.0
TELLING_SHARE = 0.03


def show_seconds(seconds: float) -> str:
    """Write a duration as 42s, 3m05s or 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Stage:
    """One stage of a run: something counted, out of a total that may be unknown."""

    def __init__(self, progress: "Progress", name: str, total: int | None, already: int, *, timed: bool) -> None:
        self._timed = timed
        self._progress, self.name, self.total = progress, name, total
        self.done, self._already, self._skipped, self._resumed = already, already, 0, False
        self._started = time.monotonic()
        self._next_file = self._started
        self._next_line = self._started + FIRST_LINE_AFTER_S
        self._bar = progress.add_bar(self)

    def advance(self, count: int = 1, **facts: Any) -> None:
        """Count `count` more as done; `facts` (a loss, tokens a second) are shown beside the bar."""
        if self._skipped and not self._resumed:
            of = "" if self.total is None else f" of {self.total}"
            self._progress.say(f"{self.name}: goes on at {self.done}{of}")
            self._resumed = True
        self.done += count
        now = time.monotonic()
        self._progress.update_bar(self, self._bar, facts)
        if now >= self._next_file or self.done == self.total:
            self._next_file = now + FILE_EVERY_S
            self._progress.write(self._line(facts))
        if now >= self._next_line:
            self._next_line = now + LINE_EVERY_S
            self._progress.say(self._sentence(facts))

    def skip(self) -> None:
        """Count one as done before: it took no time that could tell of the others."""
        self.done += 1
        self._already += 1
        self._skipped += 1

    def left_s(self) -> float | None:
        """Seconds left at the rate so far in this process; a first few say nothing, where many are in flight."""
        fresh, total = self.done - self._already, self._progress.bound(self.total)
        if not self._timed or total is None or fresh <= 0 or fresh < (total - self._already) * TELLING_SHARE:
            return None
        return (time.monotonic() - self._started) / fresh * max(0, total - self.done)

    def _line(self, facts: dict[str, Any]) -> dict[str, Any]:
        left, counts = self.left_s(), dict(self._progress.counts())
        return {
            "time": round(time.time(), 2),
            "stage": self.name,
            "done": self.done,
            "total": self.total,
            "left_s": None if left is None else round(left, 1),
            **facts,
            **({"counts": counts} if counts else {}),
        }

    def _sentence(self, facts: dict[str, Any]) -> str:
        left = self.left_s()
        words = [f"{self.name}: {self.done}" + ("" if self.total is None else f"/{self.total}")]
        words += [] if left is None else [f"{show_seconds(left)} left"]
        words += [f"{key} {value}" for key, value in facts.items()]
        words += [f"{key} {count}" for key, count in self._progress.counts().items()]
        return ", ".join(words)

    def finish(self) -> None:
        """Say how long the stage took."""
        took = show_seconds(time.monotonic() - self._started)
        self._progress.write(self._line({"finished": True}))
        self._progress.say(f"{self.name}: {self.done} done in {took}")


def read_progress(folder: Path) -> dict[str, Any] | None:
    """Return the last whole line of a run's progress.jsonl; None where there is none."""
    try:
        lines = (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(json.JSONDecodeError):
            return json.loads(line)
    return None


class Progress:
    """The progress of one run; its file is a log that grows over resumes."""

    def __init__(self, path: Path | None, *, label: str, quiet: bool = False, live: bool = True) -> None:
        self._label, self.quiet = label, quiet
        self._file = path.open("a", encoding="utf-8") if path else None
        self._limit = math.inf
        self.counts: Callable[[], Mapping[str, int]] = dict
        """What is counted beside the stage's own, by name: the rows of the live table."""
        self._live: Any = None
        if live and not quiet and sys.stderr.isatty():
            self._live = _make_live(lambda: self.counts())
            self._live.start()

    @contextmanager
    def stage(self, name: str, *, total: int | None, already: int = 0, timed: bool = True) -> Generator[Stage]:
        """Open a stage; `already` of its `total` were done before this process began.

        Where its parts differ too much for the first to tell of the last (`timed` is False), no time left is shown.
        """
        stage = Stage(self, name, total, already, timed=timed)
        if already:
            self.say(f"{name}: goes on at {already}" + (f" of {total}" if total is not None else ""))
        yield stage
        stage.finish()

    def expect(self, limit: float) -> None:
        """Say that the stage is likely to end after so many, before its total."""
        self._limit = limit

    def bound(self, total: int | None) -> float | None:
        """Return how many a stage of that total has to do, as far as is known."""
        limit = min(self._limit, math.inf if total is None else total)
        return None if limit == math.inf else limit

    def say(self, sentence: str) -> None:
        """Print a line, above the live bars if there are any."""
        if self.quiet:
            return
        if self._live is not None:
            self._live.console.print(f"{self._label}  {sentence}", markup=False, highlight=False)
        else:
            sys.stderr.write(f"{self._label}  {sentence}\n")
            sys.stderr.flush()

    def add_bar(self, stage: Stage) -> Any:
        """Show a bar for a stage."""
        if self._live is None:
            return None
        for task in list(self._live.task_ids):
            self._live.remove_task(task)
        return self._live.add_task(f"{self._label} {stage.name}", total=stage.total, completed=stage.done, facts="")

    def update_bar(self, stage: Stage, bar: Any, facts: dict[str, Any]) -> None:
        """Move a stage's bar."""
        if self._live is not None:
            left = stage.left_s()
            words = [] if left is None else [f"{show_seconds(left)} left"]
            words += [f"{key} {value}" for key, value in facts.items()]
            self._live.update(bar, completed=stage.done, facts="  ".join(words))

    def write(self, line: dict[str, Any]) -> None:
        """Append to progress.jsonl."""
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Stop the live bars and close the file."""
        if self._live is not None:
            self._live.stop()
        if self._file is not None:
            self._file.close()


def _make_live(counts: Callable[[], Mapping[str, int]]) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Table
    from rich.text import Text

    class Board(RichProgress):
        def get_renderables(self) -> Any:
            yield from super().get_renderables()
            table = Table.grid(padding=(0, 2))
            table.add_column(justify="right", min_width=8)
            for name, count in counts().items():
                table.add_row(Text(f"{count:,}", style="bold"), Text(name))
            if table.row_count:
                yield table

    return Board(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}", style="dim"),
        console=Console(stderr=True),
        transient=True,
    )
