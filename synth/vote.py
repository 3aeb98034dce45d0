"""Vote(Job): pairs out of a model's own votes and a weak model's answers, which are there already.

Source: stage II of Yang et al. 2024 (arXiv 2407.13647), as recipes/weak_to_strong.py has it.
"""

import random
from typing import ClassVar

from pydantic import Field

from counterfoil.inputs import InputPath
from counterfoil.job import Job, Run
from counterfoil.records import Dropped
from decode.generate import draw_seed
from synth.joined import join_answers
from synth.recipes.weak_to_strong import vote

__all__ = ["Vote"]


class Vote(Job):
    """Write pairs.jsonl, with a weak text on one side of each."""

    VERB: ClassVar[str] = "synth"

    prompts: InputPath
    """JSONL of the questions."""
    weak: InputPath
    """completions.jsonl of the weak model on them."""
    samples: InputPath
    """completions.jsonl of several samples a question of the model to be trained."""
    drop_below: float = Field(default=0.6, gt=0, le=1)
    """Least confidence of a question that is used at all."""
    override_at: float = Field(default=0.8, gt=0, le=1)
    """Least confidence at which the weak answer is overruled."""
    max_pairs: int = Field(default=1, ge=1)
    """Pairs a question, at most."""
    marked: bool = False
    """Read a final answer after a marker alone."""
    seed: int = 0
    """Of which samples are taken."""

    def work(self, run: Run) -> None:
        """Join, vote, pair."""
        run.facts["seeds"] = {"seed": self.seed}
        run.open_output("dropped.jsonl")
        run.open_output("pairs.jsonl")
        counts = {"confirmed": 0, "overruled": 0}
        run.counts["kept"] = 0
        for prompt, answers in join_answers(run, self.prompts, {"weak": self.weak, "samples": self.samples}):
            found = vote(
                prompt, answers["weak"][0], answers["samples"], random.Random(draw_seed(self.seed, prompt.id)),
                drop_below=self.drop_below, override_at=self.override_at, max_pairs=self.max_pairs, marked=self.marked,
            )  # fmt: skip
            if isinstance(found, Dropped):
                run.drop(found)
                continue
            for pair in found.pairs:
                run.write("pairs.jsonl", pair)
            counts["confirmed" if found.confirmed else "overruled"] += len(found.pairs)
            run.counts["kept"] += 1
        run.figures |= counts
