"""Objective (family): what a training minimises. The trainer asks it what it needs and never the other way round."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from counterfoil.config import Choice

__all__ = ["Objective"]


class Objective(Choice):
    """One loss; its fields are its hyperparameters."""

    FOLDER: ClassVar[str] = "align.objectives"
    data: ClassVar[Literal["pairs"]] = "pairs"
    """What it learns from."""
    needs_reference: ClassVar[bool]
    """Whether the frozen model's log-probabilities enter the loss."""

    @abstractmethod
    def trainer_settings(self) -> dict[str, Any]:
        """Return the settings of TRL's trainer that this objective stands for."""
