"""Best against worst of n on-policy samples, with a margin.

Source: the on-policy pairs of Meng et al. 2024 (SimPO, arXiv 2405.14734, section 4), best and worst of n samples by a
scorer. Differences: (1) a margin below which there is no pair; (2) a tie is never a pair; (3) among equally scored
candidates a finished answer is chosen before one that was cut off, and then the two of the most equal length are taken,
so that length does not become the lesson; (4) several pairs a prompt, none sharing a candidate; (5) optionally, the greedy
answer among the candidates.
"""

from collections.abc import Sequence

from pydantic import Field

from counterfoil.records import Answer, Group, Pair, Prompt, Record
from decode.engine import Sampling
from decode.steps import Ask, Refusal, Steps
from eval.scorer import Scorer
from synth.recipe import Candidate, Recipe

__all__ = ["BestOfN"]


class BestOfN(Recipe):
    """Sample n answers, set the best against the worst."""

    n: int = Field(default=8, ge=2)
    """Samples a prompt."""
    temperature: float = Field(default=0.9, gt=0)
    """Of the samples; 0 would make them all alike."""
    min_p: float = Field(default=0.05, ge=0, le=1)
    """Keeps the tail of the distribution out; costs nothing on a CPU, unlike top-p."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Cut an answer off after this many tokens."""
    margin: float = Field(default=0.5, gt=0)
    """Smallest difference of scores that makes a pair."""
    greedy: bool = False
    """Ask for the greedy answer as well and make the first pair with it where the margin is enough: it is what a served
    model says, and its faults, loops above all, are rare among samples."""
    max_pairs: int = Field(default=1, ge=1)
    """Pairs a prompt, at most."""

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Sample, score, pair; every candidate is kept in a group."""
        drawn = Sampling(n=self.n, temperature=self.temperature, min_p=self.min_p, max_new_tokens=self.max_new_tokens)
        samplings = [drawn, Sampling(max_new_tokens=self.max_new_tokens)] if self.greedy else [drawn]
        answers = yield [Ask(prompt.messages, sampling) for sampling in samplings]
        found = [item for answer in answers for item in answer]
        scores = yield from scorer.grade(prompt, found)
        candidates = [Candidate(item, score.value) for item, score in zip(found, scores, strict=True)]
        group = Group.make(
            prompt.messages,
            [
                Answer(text=item.completion.text, score=item.score, is_cut=item.completion.finish_reason == "length")
                for item in candidates
            ],
            reference=prompt.reference,
        )
        pairs = self.contrast(prompt, candidates)
        if not pairs:
            raise _refuse(candidates, records=[*scores, group])
        return [*scores, group, *pairs]

    def contrast(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Pair]:
        """Pair the best with the worst, again and again, while the margin is enough."""
        left = [item for item in candidates if item.completion.text.strip()]
        pairs: list[Pair] = []
        while len(left) >= 2 and len(pairs) < self.max_pairs:
            best, worst = (None if pairs else self._choose_greedy(left)) or _choose(left)
            if best.score - worst.score < self.margin:
                break
            if best.completion.text == worst.completion.text:  # a noisy scorer: the text tells nothing about itself
                left.remove(worst)
                continue
            scores = (best.score, worst.score)
            pairs.append(Pair.make(prompt, best.completion, worst.completion, scores=scores, recipe="best_of_n"))
            left = [item for item in left if item not in (best, worst)]
        return pairs

    def _choose_greedy(self, candidates: Sequence[Candidate]) -> tuple[Candidate, Candidate] | None:
        """Set the greedy answer against the best sample, or else the worst against it; None where neither has the margin."""
        others = [item for item in candidates if item.completion.index < self.n]
        for greedy in (item for item in candidates if item.completion.index >= self.n):
            for pair in (_closest(_highest(others), [greedy]), _closest([greedy], _lowest(others))):
                if pair[0].score - pair[1].score >= self.margin:
                    return pair
        return None


def _refuse(candidates: Sequence[Candidate], *, records: Sequence[Record]) -> Refusal:
    if sum(bool(item.completion.text.strip()) for item in candidates) < 2:
        return Refusal("contrast", "fewer than two answers with text", records=records)
    top = max(item.score for item in candidates)
    reason = "all scored alike" if top == min(item.score for item in candidates) else "margin too small"
    return Refusal("contrast", reason, f"best score {top:.3f}", records=records)


def _highest(candidates: Sequence[Candidate]) -> list[Candidate]:
    high = max(item.score for item in candidates)
    return [item for item in candidates if item.score == high]


def _lowest(candidates: Sequence[Candidate]) -> list[Candidate]:
    low = min(item.score for item in candidates)
    return [item for item in candidates if item.score == low]


def _choose(candidates: Sequence[Candidate]) -> tuple[Candidate, Candidate]:
    return _closest(_highest(candidates), _lowest(candidates))


def _closest(highest: Sequence[Candidate], lowest: Sequence[Candidate]) -> tuple[Candidate, Candidate]:
    """Take a finished best answer before one that was cut off, and of several the two closest in tokens."""
    return min(
        ((best, worst) for best in highest for worst in lowest if best is not worst),
        key=lambda pair: (
            pair[0].completion.finish_reason == "length",
            abs(pair[0].completion.num_tokens - pair[1].completion.num_tokens),
            pair[0].completion.index,
            pair[1].completion.index,
        ),
    )
