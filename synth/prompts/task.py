"""Prompts from the training split of an evaluation task: what is held out never comes here."""

from collections.abc import Iterator

from counterfoil.records import Dropped, Prompt
from eval.task import Task as EvalTask
from eval.tasks.constraints import Constraints
from synth.source import Source

__all__ = ["Task"]


class Task(Source):
    """The training split of a task."""

    task: EvalTask = Constraints()
    """The task."""

    def read(self) -> Iterator[Prompt | Dropped]:
        """Read the training split."""
        return self.task.prompts("train")

    def size(self) -> int | None:
        """Return the task's count, where it has one."""
        return getattr(self.task, "count", None)
