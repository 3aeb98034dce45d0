"""sentence_transformers: embedders of that library, in this process, on a CPU or a GPU.

Source: Reimers and Gurevych 2019 (arXiv 1908.10084), by the library of that name. Differences: none known.
"""

from collections.abc import Sequence
from typing import Any

from counterfoil.errors import EngineError, InputError, first_line
from counterfoil.models import find_model
from decode.embedder import Embed, Embedder

__all__ = ["SentenceTransformers"]


class SentenceTransformers(Embedder):
    """The library's own pooling and tokenization, as the model's files say; what is too long is cut off at its limit."""

    def open(self) -> Embed:
        """Load the model."""
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging
        except ImportError as error:
            allowed = "the package sentence-transformers"
            do = "uv pip install 'counterfoil[synth]'"
            raise EngineError("embedder", given=str(error), allowed=allowed, do=do) from error
        folder = find_model(self.model)
        logging.disable_progress_bar()
        try:
            model: Any = SentenceTransformer(str(folder))
        except (OSError, ValueError) as error:
            allowed, do = "a sentence-transformers model", "Check the name."
            raise InputError("embedder.model", given=first_line(error), allowed=allowed, do=do) from error

        def embed(texts: Sequence[str]) -> Any:
            import numpy as np

            found = model.encode(
                [self.prefix + text for text in texts],
                batch_size=self.batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            return np.asarray(found, dtype=np.float32)  # a model in half precision gives that

        return embed
