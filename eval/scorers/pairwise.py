"""A judge's verdicts on an answer against the prompt's others: points for a win in both orders, half of one for none.

Source: pairwise comparison with swapped positions of Zheng et al. 2023 (arXiv 2306.05685, section 3.4), summed to a win rate
as in a round robin (Copeland's rule, a tie counting half). Differences: (1) verdicts that change with the order count as
ties; (2) an answer that meets no other has 0.5, as if it had tied.
"""

from collections.abc import Sequence
from itertools import combinations

from pydantic import Field

from counterfoil.records import Completion, Prompt, Score
from decode.steps import Steps
from eval.judging import PairJudge
from eval.scorer import Scorer

__all__ = ["Pairwise"]


class Pairwise(PairJudge, Scorer):
    """The share of its comparisons that an answer wins, 0 to 1; all comparisons are kept."""

    opponents: int | None = Field(default=None, ge=1)
    """Compare each answer with so many that follow it, in a circle; None with all. Of n answers 2 n opponents questions."""

    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Compare answers with each other, each two in both orders."""
        count = len(completions)
        points, met = [0.0] * count, [0] * count
        results: list[dict[str, int]] = [{"won": 0, "lost": 0, "tied": 0, "inconsistent": 0} for _ in completions]
        drawn = self._draw(count)
        compared = yield from self.compare(prompt, [(completions[one], completions[two]) for one, two in drawn])
        for (one, other), found in zip(drawn, compared, strict=True):
            for side, at in enumerate((one, other)):
                met[at] += 1
                if found.winner is None:
                    points[at] += 0.5
                    results[at]["tied" if found.forward == found.backward else "inconsistent"] += 1
                else:
                    points[at] += found.winner == side
                    results[at]["won" if found.winner == side else "lost"] += 1
        scores = [
            Score(completion_id=item.id, scorer="pairwise", value=own / num if num else 0.5, detail=dict(detail))
            for item, own, num, detail in zip(completions, points, met, results, strict=True)
        ]
        yield scores
        return scores

    def _draw(self, count: int) -> list[tuple[int, int]]:
        if self.opponents is None or self.opponents >= count - 1:
            return list(combinations(range(count), 2))
        pairs = {
            tuple(sorted((at, (at + step) % count))) for at in range(count) for step in range(1, self.opponents + 1)
        }
        return sorted((one, other) for one, other in pairs)
