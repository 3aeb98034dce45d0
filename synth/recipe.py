"""Recipe (family): one way of making a contrast.

A recipe is a dialogue with models (decode/steps.py) that begins with a prompt and ends with records: pairs, groups, scores.
It says `raise Refusal(...)` where there is no contrast to be had.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from counterfoil.config import Choice
from counterfoil.records import Completion, Pair, Prompt, Record
from decode.steps import Steps
from eval.scorer import Scorer

__all__ = ["Candidate", "Recipe"]


class Candidate(NamedTuple):
    """A completion and its score."""

    completion: Completion
    score: float


class Recipe(Choice):
    """What to ask, and what to set against what."""

    FOLDER: ClassVar[str] = "synth.recipes"
    makes: ClassVar[type[Record]] = Pair
    """What it is for: a prompt that led to none of these is dropped."""
    needs: ClassVar[frozenset[str]] = frozenset({"chat", "n", "seed"})
    """What the main model's engine must give."""
    roles: ClassVar[frozenset[str]] = frozenset()
    """Models that it asks beside the main one; the main one stands in for those that a run does not name."""

    @abstractmethod
    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Hold the dialogue; return the records that come of it, all candidates and scores among them."""
