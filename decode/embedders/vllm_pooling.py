"""vllm_pooling: embedders through vLLM's pooling, in this process, for models of any size that it serves so.

Source: vLLM's pooling models (`runner="pooling"`), with the pooling that the model's files name. Differences: none known.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import EngineError, InputError, first_line
from counterfoil.models import find_model
from decode.embedder import Embed, Embedder
from decode.vllm_process import adopt_engine, prepare_environment

__all__ = ["VllmPooling"]


class VllmPooling(Embedder):
    """vLLM's scheduler makes the batches, of `batch_size` texts at most; what is too long is cut off at `max_tokens`."""

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset({"batch_size", "memory_gib"})

    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a text that are read; None is the model's own limit."""
    memory_gib: float = Field(default=1.0, gt=0)
    """Working memory of the engine on a CPU."""

    def open(self) -> Embed:
        """Start the engine."""
        folder = find_model(self.model)
        on_gpu = prepare_environment()
        try:
            from vllm import LLM
        except ImportError as error:
            allowed, do = "vLLM", "Install counterfoil[cpu] or counterfoil[gpu]."
            raise EngineError("embedder", given=str(error), allowed=allowed, do=do) from error
        try:
            engine: Any = LLM(
                str(folder),
                runner="pooling",
                dtype="auto" if on_gpu else "float32",
                enforce_eager=True,
                max_model_len=self.max_tokens,
                max_num_seqs=self.batch_size,
                kv_cache_memory_bytes=int(self.memory_gib * 1024**3),
                disable_log_stats=True,
            )
        except (OSError, ValueError) as error:
            allowed, do = "an embedding model that vLLM serves", "Take another model, or sentence_transformers."
            raise InputError("embedder.model", given=first_line(error), allowed=allowed, do=do) from error

        adopt_engine(engine.llm_engine)
        cut = {"truncate_prompt_tokens": -1}  # at the model's own limit

        def embed(texts: Sequence[str]) -> Any:
            import numpy as np

            if not texts:  # vLLM refuses to be asked for nothing
                return np.empty((0, 0), dtype=np.float32)
            outputs = engine.embed([self.prefix + text for text in texts], use_tqdm=False, tokenization_kwargs=cut)
            found = np.asarray([item.outputs.embedding for item in outputs], dtype=np.float32)
            return found / np.linalg.norm(found, axis=1, keepdims=True)

        return embed
