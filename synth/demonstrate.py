"""Demonstrate(Job): questions with a few answered ones before them, for answers in context.

Source: stage I of Yang et al. 2024 (arXiv 2407.13647): the strong model sees demonstrations that the weak model answered.
Differences: (1) demonstrations are turns of a chat; (2) none is of the question itself, and those cut off are left out.
"""

import random
from typing import ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.job import Job, Run
from counterfoil.records import Message, Prompt
from synth.joined import join_answers

__all__ = ["Demonstrate"]


class Demonstrate(Job):
    """Write prompts.jsonl: each question after some others with their answers; the tag `question` has the question's id."""

    VERB: ClassVar[str] = "synth"

    prompts: InputPath
    """JSONL of the questions."""
    answers: InputPath
    """completions.jsonl of a finished decode run on them."""
    count: int = Field(default=4, ge=1)
    """Demonstrations before a question."""
    seed: int = 0
    """Of which questions demonstrate."""

    def work(self, run: Run) -> None:
        """Draw demonstrations once, for all questions: they are then computed once as well."""
        run.facts["seeds"] = {"seed": self.seed}
        run.open_output("dropped.jsonl")
        run.open_output("prompts.jsonl")
        found = join_answers(run, self.prompts, {"answers": self.answers})
        finished = [
            (prompt, answer)
            for prompt, answer in ((prompt, answers["answers"][0]) for prompt, answers in found)
            if answer.finish_reason == "stop" and answer.text.strip()
        ]
        if len(finished) <= self.count:
            given, allowed = f"{len(finished)} finished answers", f"more than {self.count}"
            raise InputError(f"answers: {self.answers}", given=given, allowed=allowed, do="Lower count.")
        drawn = random.Random(self.seed).sample(finished, self.count + 1)
        for prompt, _ in found:
            shown = [pair for pair in drawn if pair[0].id != prompt.id][: self.count]
            turns: list[Message] = []
            for other, answer in shown:
                turns += [*other.messages, Message(role="assistant", content=answer.text.strip())]
            asked = Prompt.make([*turns, *prompt.messages], tags=prompt.tags | {"question": prompt.id})
            run.write("prompts.jsonl", asked)
        run.counts["kept"] = len(found)
