"""The share of a prompt's answers that come to the same.

Source: the vote of Wang et al. 2022 (arXiv 2203.11171). Differences: (1) the share is each answer's own, so that answers
can be set against each other; (2) an answer that comes to nothing, or was cut off, has 0.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from counterfoil.records import Completion, Prompt, Score
from decode.steps import Steps
from eval.scorer import Scorer
from eval.scorers.final_answer import read_final, same_answer

__all__ = ["Ballot", "SelfConsistency", "count_votes"]


class Ballot(NamedTuple):
    """What samples come to."""

    answer: str
    """The most frequent final answer; of equally frequent ones the first; empty where it is none."""
    confidence: float
    """Its share of all samples."""
    votes: list[bool]
    """Whether each sample comes to it."""


def count_votes(finals: Sequence[str]) -> Ballot:
    """Count final answers; equal ones are counted together however they are written."""
    best = Ballot("", 0.0, [False] * len(finals))
    for at, final in enumerate(finals):
        if any(same_answer(final, other) for other in finals[:at]):
            continue
        votes = [same_answer(final, other) if final else not other for other in finals]
        if sum(votes) > sum(best.votes):
            best = Ballot(final, sum(votes) / len(finals), votes)
    return best


class SelfConsistency(Scorer):
    """The vote's share for an answer's final answer, 0 to 1; asks nobody, but needs a prompt's answers together."""

    marked: bool = False
    """Read a final answer after a marker alone."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """Nobody."""
        return {}

    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Count votes."""
        finals = [
            "" if item.finish_reason == "length" else read_final(item.text, marked=self.marked) for item in completions
        ]
        winner = count_votes(finals).answer
        scores: list[Score] = []
        for item, final in zip(completions, finals, strict=True):
            share = sum(same_answer(final, other) for other in finals) / len(finals) if final else 0.0
            detail = {"final": final, "won": bool(final) and same_answer(final, winner)}
            scores.append(Score(completion_id=item.id, scorer="self_consistency", value=share, detail=detail))
        yield scores
        return scores
