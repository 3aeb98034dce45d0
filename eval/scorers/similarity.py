"""How near an answer is in meaning to a text: the cosine of their embeddings.

Source: sentence embeddings of Reimers and Gurevych 2019 (arXiv 1908.10084). Differences: none known.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt, Score
from decode.embedder import Embed, Embedder
from decode.embedders.sentence_transformers import SentenceTransformers
from eval.judging import show_request
from eval.scorer import LocalScorer

__all__ = ["Similarity"]


class Similarity(LocalScorer):
    """Cosine, -1 to 1, with `prompt.reference[key]` (of several texts the nearest counts), or with the prompt itself."""

    threads: ClassVar[int] = 1

    embedder: Embedder = SentenceTransformers()
    """What makes vectors."""
    key: str | None = "answer"
    """The reference's text or texts; None compares with what was asked."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Embed and compare. Raises InputError where the reference has no such text."""
        return self.score_all(prompt, [completion])[0]

    def score_all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
        """Embed a prompt's answers together, and compare each."""
        wanted = show_request(prompt) if self.key is None else prompt.reference.get(self.key)
        texts = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(item, str) for item in texts):
            allowed = "a text, or a list of texts"
            where = f"prompt {prompt.id}: reference.{self.key}"
            raise InputError(where, given=repr(wanted), allowed=allowed, do="Add it, or set `key` to null.")
        cosines_WN = self._embed_wanted(tuple(texts)) @ self._embed([item.text for item in completions]).T
        return [
            Score(completion_id=item.id, scorer="similarity", value=float(value))
            for item, value in zip(completions, cosines_WN.max(0), strict=True)
        ]

    @cached_property
    def _embed(self) -> Embed:
        return self.embedder.open()

    @cached_property
    def _embed_wanted(self) -> Callable[[tuple[str, ...]], Any]:
        """Embed what a prompt's answers are compared with, once for all of them."""
        return lru_cache(maxsize=16)(self._embed)
