"""A score drawn by chance, the same for the same answer: the control of every study of what a scorer is worth.

Source: none; a pair by chance is what best-of-n makes where the scorer knows nothing. Differences: none known.
"""

from random import Random

from counterfoil.records import Completion, Prompt, Score
from eval.scorer import LocalScorer

__all__ = ["Chance"]


class Chance(LocalScorer):
    """A number from 0 to 1 out of the seed and the answer's id, evenly distributed."""

    seed: int = 0
    """Of the draw."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Draw."""
        value = Random(f"{self.seed} {completion.id}").random()
        return Score(completion_id=completion.id, scorer="chance", value=value)
