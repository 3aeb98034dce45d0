"""Prompts(Job): a task's held-out prompts as a file, for jobs that read prompts: answers to them, pairs for a comparison.

They carry what the task's scorer needs. What comes of them is for measuring: a model that learnt from it has no held-out
prompts left.
"""

from typing import ClassVar

from counterfoil.job import Job, Run
from decode.generate import refuse_none
from eval.task import Task
from eval.tasks.constraints import Constraints

__all__ = ["Prompts"]


class Prompts(Job):
    """Write prompts.jsonl."""

    VERB: ClassVar[str] = "eval"

    task: Task = Constraints()
    """Where the prompts come from: its held-out split."""

    def work(self, run: Run) -> None:
        """Copy them."""
        run.open_output("dropped.jsonl")
        run.open_output("prompts.jsonl")
        num_kept = 0
        for prompt in run.sift(self.task.prompts("heldout")):
            run.write("prompts.jsonl", prompt)
            num_kept += 1
        refuse_none(num_kept, run.dropped, where="task")
        run.counts["kept"] = num_kept
