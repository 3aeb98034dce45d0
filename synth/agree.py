"""Agree(Job): pseudo-labels of a weak model that the strong model comes to by itself, from answers that are there already.

Source: stage I of Yang et al. 2024 (arXiv 2407.13647), as recipes/weak_to_strong.py has it: here the strong model may have
answered in context (`synth demonstrate`).
"""

from typing import ClassVar

from counterfoil.inputs import InputPath
from counterfoil.job import Job, Run
from counterfoil.records import Dropped
from synth.joined import join_answers
from synth.recipes.weak_to_strong import Keep, agree

__all__ = ["Agree"]


class Agree(Job):
    """Write groups.jsonl: questions with the texts whose final answers agree, to be learnt by `sft`."""

    VERB: ClassVar[str] = "synth"

    prompts: InputPath
    """JSONL of the questions."""
    weak: InputPath
    """completions.jsonl of the weak model on them."""
    strong: InputPath
    """completions.jsonl of the strong model."""
    strong_prompts: InputPath | None = None
    """What it was asked: JSONL of the questions with demonstrations (`synth demonstrate`); None for the bare questions."""
    keep: Keep = "both"
    """Whose texts are learnt; both makes two answers a question (the paper's hybrid)."""
    marked: bool = False
    """Read a final answer after a marker alone."""

    def work(self, run: Run) -> None:
        """Join, read final answers, keep what agrees."""
        run.open_output("dropped.jsonl")
        run.open_output("groups.jsonl")
        given = {"weak": self.weak, "strong": self.strong}
        joined = join_answers(run, self.prompts, given, asked={"strong": self.strong_prompts})
        kept = 0
        for prompt, answers in joined:
            found = agree(prompt, answers["weak"][0], answers["strong"][0], keep=self.keep, marked=self.marked)
            if isinstance(found, Dropped):
                run.drop(found)
            else:
                kept += 1
                run.write("groups.jsonl", found)
        run.counts["kept"] = kept
        run.figures["coverage"] = round(kept / max(run.counts["read"], 1), 4)
