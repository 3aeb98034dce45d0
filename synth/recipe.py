"""Recipe (family): one way of making a contrast.

A recipe is a dialogue with models (decode/steps.py) that begins with a prompt and ends with records: pairs, groups, scores.
It says `raise Refusal(...)` where there is no contrast to be had.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from random import Random
from typing import ClassVar, NamedTuple, Self

from pydantic import PrivateAttr

from counterfoil.config import Choice
from counterfoil.records import Answer, Completion, Group, Pair, Prompt, Record, content_id
from decode.steps import Steps
from eval.scorer import Scorer

__all__ = ["Candidate", "Recipe", "gather"]


class Candidate(NamedTuple):
    """A completion and its score."""

    completion: Completion
    score: float


class Recipe(Choice):
    """What to ask, and what to set against what."""

    FOLDER: ClassVar[str] = "synth.recipes"
    makes: ClassVar[type[Record]] = Pair
    """What it is for: a prompt that led to none of these is dropped."""

    _seed: int = PrivateAttr(default=0)

    def with_seed(self, seed: int) -> Self:
        """Return it with the run's seed."""
        found = self.model_copy()
        found._seed = seed
        return found

    def draw(self, *of: object) -> Random:
        """Return the generator for what it draws by itself: of the run's seed, and of what is drawn for."""
        return Random(content_id(self._seed, *of))

    @abstractmethod
    def asks(self) -> Mapping[str, frozenset[str]]:
        """Return the roles of the models that it asks, each with what its engine must give.

        The empty name is the main model, whose answers are learnt; it stands in for those that a run does not name.
        """

    @abstractmethod
    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Hold the dialogue, yielding what is kept on the way (candidates, scores); return what it was for."""


def gather(prompt: Prompt, candidates: Sequence[Candidate]) -> Group:
    """Return all candidates with their scores, where these are numbers, for objectives that learn from more than a pair."""
    answers = [
        Answer(
            text=item.completion.text,
            score=item.score if math.isfinite(item.score) else None,
            is_cut=item.completion.finish_reason == "length",
        )
        for item in candidates
    ]
    return Group.make(prompt.messages, answers, reference=prompt.reference)
