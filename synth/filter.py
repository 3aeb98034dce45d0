"""Filter (family): keep a pair, or say why not."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from counterfoil.config import Choice
from counterfoil.records import Dropped, Pair

__all__ = ["Filter", "drop"]


class Filter(Choice):
    """One reason for which a pair does not go on."""

    FOLDER: ClassVar[str] = "synth.filters"

    @abstractmethod
    def open(self) -> Callable[[Pair], Dropped | None]:
        """Return the judgement: None keeps the pair. What it remembers of earlier pairs lives as long as it does."""


def drop(pair: Pair, stage: str, reason: str, detail: str = "") -> Dropped:
    """Drop a pair under its id."""
    return Dropped(id=pair.id, stage=stage, reason=reason, detail=detail)
