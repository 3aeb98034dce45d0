"""Task (family): where prompts and their references come from, and which scorer applies.

Synthesis and training see the split `train` alone, evaluation the split `heldout` alone.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal

from counterfoil.config import Choice
from counterfoil.records import Dropped, Prompt
from eval.scorer import LocalScorer

__all__ = ["Split", "Task"]

Split = Literal["train", "heldout"]


class Task(Choice):
    """A set of prompts with known ways to judge an answer; its two splits share no prompt."""

    FOLDER: ClassVar[str] = "eval.tasks"

    @abstractmethod
    def prompts(self, split: Split) -> Iterator[Prompt | Dropped]:
        """Yield the prompts of a split in a fixed order; the same task yields the same prompts every time."""

    @abstractmethod
    def size(self, split: Split) -> int | None:
        """Return how many prompts a split has, at most, where that is cheap to know."""

    @abstractmethod
    def scorer(self) -> LocalScorer:
        """Return the scorer that the task's references are for."""
