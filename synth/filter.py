"""Filter (family): keep a pair, or say why not.

A `LocalFilter` judges by itself; one that remembers earlier pairs sees them in the order of the prompts. An `AskingFilter`
asks models in the dialogue that made the pair (decode/steps.py), side by side with others, and so sees that pair alone.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, final

from counterfoil.config import Choice
from counterfoil.records import Dropped, Pair, Prompt
from decode.steps import Steps

__all__ = ["AskingFilter", "Filter", "LocalFilter", "drop"]


class Filter(Choice):
    """One reason for which a pair does not go on."""

    FOLDER: ClassVar[str] = "synth.filters"

    @abstractmethod
    def asks(self) -> Mapping[str, frozenset[str]]:
        """Return the roles of the models that it asks, each with what its engine must give."""


class LocalFilter(Filter):
    """One that asks no model that a run names."""

    remembers: ClassVar[bool] = False
    """Whether it compares a pair with earlier ones. Such filters come last, in the prompts' order; others save them work."""

    @final
    def asks(self) -> Mapping[str, frozenset[str]]:
        """Nobody."""
        return {}

    @abstractmethod
    def open(self) -> Callable[[Pair], Dropped | None]:
        """Return the judgement: None keeps the pair. What it remembers of earlier pairs lives as long as it does."""


class AskingFilter(Filter):
    """One that asks models."""

    @abstractmethod
    def judge_pair(self, prompt: Prompt, pair: Pair) -> Steps[Dropped | None]:
        """Judge a pair made from `prompt`: None keeps it."""


def drop(pair: Pair, stage: str, reason: str, detail: str = "") -> Dropped:
    """Drop a pair under its id."""
    return Dropped(id=pair.id, stage=stage, reason=reason, detail=detail)
