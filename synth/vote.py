"""Vote(Job): pairs out of a model's own votes and a weak model's answers.

Source: stage II of Yang et al. 2024 (arXiv 2407.13647) and the authors' code. Of n samples the most frequent final answer
wins, its share of all samples is the confidence (samples that come to nothing count below the line). Below `drop_below` the
question is dropped. Where the weak answer agrees, the weak text is chosen against a sample with another answer; where it
does not, it is rejected against a sample with the winning answer, if the confidence is at least `override_at`: to overrule
the weak label takes more than to confirm it.
Differences: (1) answers are joined by their question's content, where the code compares the order of files.
"""

import random
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from counterfoil.job import InputPath, Job, Run
from counterfoil.records import Completion, Dropped, Pair, Prompt
from decode.generate import draw_seed
from eval.scorers.final_answer import read_final, same_answer
from eval.scorers.self_consistency import count_votes
from synth.joined import join_answers

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
        weak = {prompt.id: answers[0] for prompt, answers in join_answers(run, self.prompts, self.weak)}
        sampled = join_answers(run, self.prompts, self.samples)
        counts = {"confirmed": 0, "overruled": 0}
        run.counts["kept"] = 0
        for prompt, samples in sampled:
            if prompt.id not in weak:
                continue  # dropped above, with its reason
            found = self._pair(prompt, weak[prompt.id], samples, counts)
            if isinstance(found, Dropped):
                run.drop(found)
                continue
            for pair in found:
                run.write("pairs.jsonl", pair)
            run.counts["kept"] += len(found)
        run.counts["read"] = len(sampled)
        run.figures |= counts

    def _pair(
        self, prompt: Prompt, weak: Completion, samples: Sequence[Completion], counts: dict[str, int]
    ) -> list[Pair] | Dropped:
        def refuse(reason: str, detail: str = "") -> Dropped:
            return Dropped(id=prompt.id, stage="vote", reason=reason, detail=detail[:200])

        if weak.finish_reason == "length":
            return refuse("cut off", "weak")
        finals = [
            "" if item.finish_reason == "length" else read_final(item.text, marked=self.marked) for item in samples
        ]  # a sample that was cut off comes to nothing
        ballot = count_votes(finals)
        if not ballot.answer:
            return refuse("most samples come to nothing")
        if ballot.confidence < self.drop_below:
            return refuse("low confidence", f"{ballot.confidence:.2f}")
        rng = random.Random(draw_seed(self.seed, prompt.id))
        confirmed = same_answer(read_final(weak.text, marked=self.marked), ballot.answer)
        if not confirmed and ballot.confidence < self.override_at:
            return refuse("too little confidence to overrule", f"{ballot.confidence:.2f}")
        fits = [
            item
            for item, vote in zip(samples, ballot.votes, strict=True)
            if vote != confirmed and item.finish_reason != "length" and item.text.strip() not in ("", weak.text.strip())
        ]
        if not fits or not weak.text.strip():
            return refuse("all samples agree" if confirmed else "no sample to set against it")
        drawn = rng.sample(fits, min(self.max_pairs, len(fits)))
        counts["confirmed" if confirmed else "overruled"] += len(drawn)
        sides = [(weak, item) if confirmed else (item, weak) for item in drawn]
        scores = (ballot.confidence, 1 - ballot.confidence)
        return [_make_pair(prompt, chosen, rejected, scores) for chosen, rejected in sides]


def _make_pair(prompt: Prompt, chosen: Completion, rejected: Completion, scores: tuple[float, float]) -> Pair:
    sides = [item.model_copy(update={"prompt_id": prompt.id}) for item in (chosen, rejected)]  # however it was known
    return Pair.make(prompt, sides[0], sides[1], scores=scores, recipe="weak_to_strong")
