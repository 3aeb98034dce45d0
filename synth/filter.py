"""Filter (family): keep a record, or say why not.

A `LocalFilter` judges by itself; one that remembers earlier records sees them in the order of the prompts, and remembers
those alone that every filter has passed. An `AskingFilter` asks models in the dialogue that made a pair (decode/steps.py),
side by side with others, and so sees that pair alone.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

from counterfoil.config import Choice
from counterfoil.records import Dropped, Group, Pair, Prompt, Record, Triplet
from decode.steps import Steps

__all__ = ["AskingFilter", "Filter", "Judge", "LocalFilter", "Verdict", "drop"]

Verdict = Dropped | Callable[[], None] | None
"""Why a record does not go on; or what is to be done once every filter has passed it, if anything."""
Judge = Callable[[Any], Verdict]


class Filter(Choice):
    """One reason for which a record does not go on."""

    FOLDER: ClassVar[str] = "synth.filters"
    takes: ClassVar[tuple[type[Record], ...]] = (Pair,)
    """What it judges; others go by."""

    @abstractmethod
    def asks(self) -> Mapping[str, frozenset[str]]:
        """Return the roles of the models that it asks, each with what its engine must give."""


class LocalFilter(Filter):
    """One that asks no model that a run names."""

    remembers: ClassVar[bool] = False
    """Whether it compares a record with earlier ones. Such filters come last, in the order of the prompts."""

    @final
    def asks(self) -> Mapping[str, frozenset[str]]:
        """Nobody."""
        return {}

    @abstractmethod
    def open(self) -> Judge:
        """Return the judgement of one of what it takes. What it remembers of earlier ones lives as long as it does."""


class AskingFilter(Filter):
    """One that asks models."""

    @abstractmethod
    def judge_pair(self, prompt: Prompt, pair: Pair) -> Steps[Dropped | None]:
        """Judge a pair made from `prompt`: None keeps it."""


def drop(record: Pair | Group | Triplet | Prompt, stage: str, reason: str, detail: str = "") -> Dropped:
    """Drop a record under its id."""
    return Dropped(id=record.id, stage=stage, reason=reason, detail=detail)
