"""Scorer (family): a prompt's completions to numbers, higher is better.

One that judges by itself is a `LocalScorer`; one that asks models does so in the dialogue of the prompt (decode/steps.py).
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

from counterfoil.config import Choice
from counterfoil.records import Completion, Prompt, Score
from decode.steps import Steps

__all__ = ["LocalScorer", "Scorer"]


class Scorer(Choice):
    """One way of judging answers."""

    FOLDER: ClassVar[str] = "eval.scorers"

    @abstractmethod
    def asks(self) -> Mapping[str, frozenset[str]]:
        """Return the roles of the models that it asks, each with what its engine must give."""

    @abstractmethod
    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Judge a prompt's answers, in their order; the scores are yielded, to be kept, and returned.

        Raises InputError where it cannot tell: the reference is missing. Raises Refusal where a model's verdict is none.
        """


class LocalScorer(Scorer):
    """One that judges each answer by itself, in this process."""

    FOLDER: ClassVar[str] = "eval.scorers"

    @final
    def asks(self) -> Mapping[str, frozenset[str]]:
        """Nobody."""
        return {}

    @abstractmethod
    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Judge one answer. A scorer that cannot tell (the reference is missing) raises InputError."""

    @final
    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Judge a prompt's answers, in their order."""
        scores = [self.score(prompt, item) for item in completions]
        yield scores
        return scores
