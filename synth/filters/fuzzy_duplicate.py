"""Drop pairs whose prompt or chosen answer shares most of its word n-grams with an earlier one's.

Source: MinHash with locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
chapter 3), by the package datasketch. Differences: none known.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from counterfoil.errors import EngineError
from counterfoil.records import Dropped, Pair
from synth.filter import LocalFilter, drop

__all__ = ["FuzzyDuplicate"]


class FuzzyDuplicate(LocalFilter):
    """Remembers some 2 KB a pair."""

    remembers: ClassVar[bool] = True

    of: Literal["prompt", "chosen"] = "chosen"
    """What is compared."""
    similarity: float = Field(default=0.7, gt=0, lt=1)
    """Jaccard similarity of the sets of n-grams, as the hashes estimate it, from which one repeats the other."""
    ngram: int = Field(default=3, ge=1)
    """Words of a shingle."""
    num_hashes: int = Field(default=128, ge=16)
    """More estimate better and cost more."""

    def open(self) -> Callable[[Pair], Dropped | None]:
        """Return the judgement. Raises EngineError without the library."""
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            allowed, do = "the package datasketch", "uv pip install 'counterfoil[synth]'"
            raise EngineError("filters: fuzzy_duplicate", given=str(error), allowed=allowed, do=do) from error
        index: Any = MinHashLSH(threshold=self.similarity, num_perm=self.num_hashes)
        earlier: dict[str, Any] = {}

        def judge(pair: Pair) -> Dropped | None:
            side = pair.prompt if self.of == "prompt" else pair.chosen
            words = side[-1]["content"].lower().split()
            shingles = {" ".join(words[at : at + self.ngram]) for at in range(max(len(words) - self.ngram, 0) + 1)}
            own: Any = MinHash(num_perm=self.num_hashes)
            own.update_batch([item.encode(errors="replace") for item in sorted(shingles)])
            alike = [(earlier[key].jaccard(own), key) for key in index.query(own)]
            best, other = max(alike, default=(0.0, ""))
            if best >= self.similarity:
                return drop(
                    pair, "fuzzy_duplicate", f"the {self.of} came before", f"similarity {best:.2f} with {other}"
                )
            if pair.id not in earlier:
                earlier[pair.id] = own
                index.insert(pair.id, own)
            return None

        return judge
