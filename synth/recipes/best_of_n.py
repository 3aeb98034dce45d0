"""Best against worst of n on-policy samples, with a margin.

Source: the on-policy pairs of Meng et al. 2024 (SimPO, arXiv 2405.14734, section 4), best and worst of n samples by a
scorer. Differences: (1) a margin below which there is no pair; (2) a tie is no pair unless asked; (3) among equally scored
candidates a finished answer is chosen before one that was cut off, and then the two of the most equal length are taken,
so that length does not become the lesson; (4) several pairs a prompt, none sharing a text; (5) optionally, the greedy
answer among the candidates; (6) optionally, several models' samples together, and pairs of like length alone; (7) optionally,
where there is no other pair, the shorter of two that are equally good against the longer; (8) optionally, the best against
each that is worse.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from counterfoil.records import Pair, Prompt, Record
from decode.engine import Sampling
from decode.steps import Ask, Refusal, Steps
from eval.scorer import Scorer
from synth.recipe import Candidate, Recipe, gather

__all__ = ["BestOfN"]


class BestOfN(Recipe):
    """Sample n answers, set the best against the worst."""

    n: int = Field(default=8, ge=1)
    """Samples a prompt and policy; 1 where several policies, or samples and the greedy answer, are set against each other."""
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
    against: Literal["worst", "all"] = "worst"
    """`worst` pairs the best with the worst, then the next two, no text in two pairs; `all` sets the best against each answer
    that is the margin below it, the worst first."""
    max_length_gap: float = Field(default=1.0, ge=0, le=1)
    """Largest difference of a pair's lengths in tokens, as a share of the longer one; 1 allows all."""
    ties: Literal["drop", "shorter"] = "drop"
    """What becomes of a prompt whose answers are nowhere the margin apart: it is dropped; or, of two with the same score, the
    best that two have, the shorter is chosen."""
    policies: tuple[str, ...] = Field(default=("",), min_length=1)
    """Roles of the models that answer; the empty name is the main one."""

    @model_validator(mode="after")
    def check_candidates(self) -> Self:
        """Refuse a single candidate: there is nothing to set it against."""
        if (self.n + self.greedy) * len(self.policies) < 2:
            raise ValueError("n=1 of one policy makes no pair: draw more, add a policy, or greedy=true")
        return self

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The policies."""
        return dict.fromkeys(self.policies, frozenset({"chat", "n", "seed"}))

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Sample, score, pair; every candidate is kept in a group."""
        drawn = Sampling(n=self.n, temperature=self.temperature, min_p=self.min_p, max_new_tokens=self.max_new_tokens)
        samplings = [drawn, Sampling(max_new_tokens=self.max_new_tokens)] if self.greedy else [drawn]
        answers = yield [Ask(prompt.messages, sampling, role=role) for sampling in samplings for role in self.policies]
        found = [item for answer in answers for item in answer]
        scores = yield from scorer.grade(prompt, found)
        candidates = [Candidate(item, score.value) for item, score in zip(found, scores, strict=True)]
        yield [gather(prompt, candidates)]
        pairs = self.contrast(prompt, candidates)
        if not pairs:
            raise self._refuse(candidates)
        return pairs

    def contrast(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Pair]:
        """Pair the best with the worst, again and again, while the margin is enough, or the best with all that are worse."""
        left = [item for item in candidates if item.completion.text.strip() and math.isfinite(item.score)]
        num_drawn = self.n * len(self.policies)
        greedy = [item for item in left if item.completion.index >= num_drawn]
        drawn = [item for item in left if item.completion.index < num_drawn]
        pairs: list[Pair] = []
        better = worse = left
        while len(pairs) < self.max_pairs:
            first = None if pairs else self._choose(drawn, greedy) or self._choose(greedy, drawn)
            found = first or self._choose(better, worse)
            if found is None:
                break
            pairs.append(_pair(prompt, *found))
            used = {item.completion.text for item in (found[1:] if self.against == "all" else found)}
            better, worse = ([item for item in side if item.completion.text not in used] for side in (better, worse))
            better = found[:1] if self.against == "all" else better
        tied = self._choose_tied(left) if self.ties == "shorter" and not pairs else None
        return pairs if tied is None else [_pair(prompt, *tied)]

    def _refuse(self, candidates: Sequence[Candidate]) -> Refusal:
        if sum(bool(item.completion.text.strip()) for item in candidates) < 2:
            return Refusal("contrast", "fewer than two answers with text")
        scores = [item.score for item in candidates if math.isfinite(item.score)]
        if len(scores) < 2:
            return Refusal("contrast", "fewer than two answers with a score")
        top, low = max(scores), min(scores)
        reason = "all scored alike" if top == low else "margin too small"
        if top - low >= self.margin:
            reason = "no two of like length" if self.max_length_gap < 1 else "no two texts"
        return Refusal("contrast", reason, f"best score {top:.3f}")

    def _choose(self, better: Sequence[Candidate], worse: Sequence[Candidate]) -> tuple[Candidate, Candidate] | None:
        """Take the two furthest apart; of several a finished best answer, and then the two closest in tokens."""
        fits = [
            (best, worst)
            for best in better
            for worst in worse
            if best.score - worst.score >= self.margin
            and best.completion.text != worst.completion.text  # a noisy scorer: a text tells nothing about itself
            and _length_gap(best, worst) <= self.max_length_gap
        ]
        return min(fits, key=_rank, default=None)

    def _choose_tied(self, left: Sequence[Candidate]) -> tuple[Candidate, Candidate] | None:
        """Take two with one score, the shorter one and finished first; of several the best, and then the furthest apart."""
        fits = [
            (short, long)
            for short in left
            for long in left
            if short.score == long.score
            and short.completion.text != long.completion.text  # one text may be other tokens twice
            and short.completion.num_tokens < long.completion.num_tokens
            and short.completion.finish_reason != "length"
            and _length_gap(short, long) <= self.max_length_gap
        ]
        return min(
            fits,
            key=lambda pair: (-pair[0].score, -_length_gap(*pair), *(item.completion.index for item in pair)),
            default=None,
        )


def _pair(prompt: Prompt, best: Candidate, worst: Candidate) -> Pair:
    scores = (best.score, worst.score)
    return Pair.make(prompt, best.completion, worst.completion, scores=scores, recipe="best_of_n")


def _rank(pair: tuple[Candidate, Candidate]) -> tuple[float | int, ...]:
    best, worst = pair
    return (
        worst.score - best.score,
        best.completion.finish_reason == "length",
        abs(best.completion.num_tokens - worst.completion.num_tokens),
        best.completion.index,
        worst.completion.index,
    )


def _length_gap(one: Candidate, other: Candidate) -> float:
    lengths = (one.completion.num_tokens, other.completion.num_tokens)
    return (max(lengths) - min(lengths)) / max(lengths) if max(lengths) else 0.0
