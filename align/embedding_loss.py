"""EmbeddingLoss (family): what the training of an embedder minimises, over rows of anchor, positive and perhaps negative.

Two kinds, as in `align.objective`. A loss that sentence-transformers has is that library's module, and a member names its
settings. A loss of our own is a function of what the model says of a batch; what it keeps between steps (a queue, a
temperature a row) is tensors, which are saved with every checkpoint.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import Field

from align.objective import Loss
from counterfoil.config import Choice
from counterfoil.records import Triplet

if TYPE_CHECKING:  # a config names a loss before anything heavy is loaded
    from torch import Tensor

__all__ = ["Embedded", "EmbeddingLoss", "OwnLoss", "State", "Vectors"]

State = dict[str, "Tensor"]
"""What a loss keeps between steps, by name; each tensor is changed in place."""


class Vectors(NamedTuple):
    """A batch's texts: vectors of D numbers and of length 1, in float32."""

    anchor_BD: Tensor
    candidates_CD: Tensor
    """The B positives in the anchors' order and, where rows have negatives, the B negatives after them."""

    @property
    def cosine_BC(self) -> Tensor:  # noqa: N802  (its shape)
        """Anchor i belongs to candidate i; every other candidate is a negative."""
        return self.anchor_BD @ self.candidates_CD.T


class Embedded(NamedTuple):
    """What a model says of B rows."""

    now: Vectors
    """By the model that is trained; these carry gradients."""
    slow: Vectors
    """By its slow copy, without dropout and without gradients; the same as `now` where the loss has no copy."""
    rows: Sequence[Triplet]
    row_B: Tensor
    """Which of the rows of the data each is, from 0."""


class EmbeddingLoss(Choice):
    """One loss; its fields are its hyperparameters."""

    FOLDER: ClassVar[str] = "align.embedding"

    @abstractmethod
    def build(self, model: Any, rows: Sequence[Triplet], *, batch_size: int) -> Any:
        """Return the module that sentence-transformers' trainer calls with features and row numbers.

        Raises ConfigError where a setting does not go with the model or the size of a batch.
        """


class OwnLoss(EmbeddingLoss):
    """A loss of our own."""

    temperature: float = Field(default=0.05, gt=0)
    """Cosines are divided by it (tau); 0.05 is the library's scale of 20."""

    def build(self, model: Any, rows: Sequence[Triplet], *, batch_size: int) -> Any:
        """Return the module around this loss."""
        from align.embed_trainer import OwnModule

        return OwnModule(model, self, rows, batch_size=batch_size)

    def start(self, rows: Sequence[Triplet], *, width: int, batch_size: int) -> State:
        """Return what is kept between steps, as it is before the first; `width` is that of the model's vectors."""
        return {}

    def copy_momentum(self) -> float | None:
        """Return the share of itself that the slow copy keeps in a step; 1 is the model before training, None no copy."""
        return None

    @abstractmethod
    def loss(self, batch: Embedded, state: State) -> Loss:
        """Return the loss of a batch, and move the state on."""
