"""Source (family): where the prompts of a synthesis come from."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from counterfoil.config import Choice
from counterfoil.records import Dropped, Prompt

__all__ = ["Source"]


class Source(Choice):
    """A stream of prompts in a fixed order."""

    FOLDER: ClassVar[str] = "synth.prompts"

    @abstractmethod
    def read(self) -> Iterator[Prompt | Dropped]:
        """Yield the prompts; what cannot be one comes as Dropped."""

    @abstractmethod
    def size(self) -> int | None:
        """Return how many will come, where that is cheap to know."""
