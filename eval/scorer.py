"""Scorer (family): a completion to a number, higher is better."""

from abc import abstractmethod
from typing import ClassVar

from counterfoil.config import Choice
from counterfoil.records import Completion, Prompt, Score

__all__ = ["Scorer"]


class Scorer(Choice):
    """One way of judging an answer."""

    FOLDER: ClassVar[str] = "eval.scorers"

    @abstractmethod
    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Judge one answer. A scorer that cannot tell (the reference is missing) raises InputError."""
