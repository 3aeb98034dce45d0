"""Scorer (family): a completion to a number, higher is better."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from counterfoil.config import Choice
from counterfoil.records import Completion, Prompt, Score
from decode.steps import Steps

__all__ = ["Scorer"]


class Scorer(Choice):
    """One way of judging an answer."""

    FOLDER: ClassVar[str] = "eval.scorers"
    roles: ClassVar[frozenset[str]] = frozenset()
    """Models that it asks, by the names under which a run gives them."""

    @abstractmethod
    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Judge one answer. A scorer that cannot tell (the reference is missing) raises InputError."""

    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Judge a prompt's answers, in their order, in a dialogue; this one asks no model."""
        yield from ()
        return [self.score(prompt, item) for item in completions]
