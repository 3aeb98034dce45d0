"""Embedder (family): texts to vectors of unit length, whose products are cosines."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.config import Choice, dump
from counterfoil.inputs import ModelName
from counterfoil.models import find_model, fingerprint_model
from counterfoil.records import content_id

__all__ = ["Embed", "Embedder"]

Embed = Callable[[Sequence[str]], Any]
"""Texts to a numpy array of float32, (N, D), each row of length 1."""


class Embedder(Choice):
    """A choice of embedder; light until `open()`."""

    FOLDER: ClassVar[str] = "decode.embedders"
    INCIDENTAL: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    """Fields that change no vector."""

    model: ModelName = "minilm"
    """A name, a folder or a hub id."""
    prefix: str = ""
    """Set before every text, for models that were trained with one (`query: `)."""
    batch_size: int = Field(default=64, ge=1)
    """Texts that are computed together."""

    @abstractmethod
    def open(self) -> Embed:
        """Load the model. Raises EngineError where its library is missing, InputError where there is no such model."""

    def identify(self) -> str:
        """Hash whatever decides about vectors."""
        settings = {key: value for key, value in dump(self).items() if key not in self.INCIDENTAL}
        return content_id(settings, fingerprint_model(find_model(self.model)))
