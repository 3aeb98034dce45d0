"""Recipe (family): one way of making a contrast."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from counterfoil.config import Choice
from counterfoil.records import Completion, Dropped, Pair, Prompt
from decode.engine import Sampling

__all__ = ["Candidate", "Recipe"]


class Candidate(NamedTuple):
    """A completion and its score."""

    completion: Completion
    score: float


class Recipe(Choice):
    """What to ask of a prompt, and which answers to set against each other."""

    FOLDER: ClassVar[str] = "synth.recipes"
    needs: ClassVar[frozenset[str]]
    """What the engine must give."""

    @abstractmethod
    def samplings(self) -> tuple[Sampling, ...]:
        """Return how candidates are drawn, a request each; they come in this order. The job sets each prompt's seed."""

    @abstractmethod
    def contrast(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Pair] | Dropped:
        """Pair candidates of a prompt, or say why there is no contrast in them."""
