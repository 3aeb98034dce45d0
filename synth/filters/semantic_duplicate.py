"""Drop pairs whose prompt or chosen answer says what an earlier one's said, in other words.

Source: Abbas et al. 2023 (SemDeDup, arXiv 2303.09540): of two texts whose embeddings have a cosine over a threshold one goes.
Differences: (1) the earlier one stays, where the paper keeps the one furthest from its cluster's centre, which a stream does
not know; (2) neighbours come from an index that grows (synth/retrieval.py), where the paper clusters first.
"""

from typing import ClassVar, Literal

from pydantic import Field

from counterfoil.records import Pair
from decode.embedder import Embedder
from decode.embedders.sentence_transformers import SentenceTransformers
from synth.filter import Judge, LocalFilter, Verdict, drop
from synth.retrieval import VectorIndex

__all__ = ["SemanticDuplicate"]


class SemanticDuplicate(LocalFilter):
    """Remembers a vector a pair: some 1 KB for 384 dimensions. What an embedder cuts off, it does not compare."""

    remembers: ClassVar[bool] = True

    of: Literal["prompt", "chosen"] = "chosen"
    """What is compared: the last message of either."""
    similarity: float = Field(default=0.9, gt=0, le=1)
    """Cosine from which one repeats the other."""
    embedder: Embedder = SentenceTransformers()
    """What makes vectors."""

    def open(self) -> Judge:
        """Load the embedder. Raises EngineError without a library."""
        embed = self.embedder.open()
        index = VectorIndex(embed(["any"]).shape[1])
        latest, siblings = "", set[str]()

        def judge(pair: Pair) -> Verdict:
            nonlocal latest
            if pair.prompt_id != latest:  # a prompt's pairs come one after the other
                latest = pair.prompt_id
                siblings.clear()
            side, name = (pair.prompt, pair.prompt_id) if self.of == "prompt" else (pair.chosen, pair.id)
            vector = embed([side[-1]["content"]])
            for hit in index.search(vector, 1 + len(siblings))[0]:
                # Several pairs of one prompt do not repeat it, nor each other's better answer.
                if hit.cosine >= self.similarity and hit.id not in siblings:
                    detail = f"cosine {hit.cosine:.3f} with {hit.id}"
                    return drop(pair, "semantic_duplicate", f"the {self.of} says what an earlier one said", detail)

            def remember() -> None:
                if name not in siblings:
                    siblings.add(name)
                    index.add([name], vector)

            return remember

        return judge
