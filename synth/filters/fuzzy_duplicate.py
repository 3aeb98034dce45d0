"""Drop pairs whose prompt or chosen answer shares most of its word n-grams with an earlier one's.

Source: MinHash with locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
chapter 3), by the package datasketch. Differences: (1) the bands of the hashes are chosen so that few duplicates near the
line are missed, which costs comparisons; what they find is then compared by all hashes.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from counterfoil.errors import EngineError
from counterfoil.records import Pair
from synth.filter import Judge, LocalFilter, Verdict, drop

__all__ = ["FuzzyDuplicate"]

MISSED_WEIGHT = 0.98
"""Of a missed duplicate, where a needless comparison has the rest: at 0.7 one in 500 is missed whose similarity is 0.75."""


class FuzzyDuplicate(LocalFilter):
    """Compares words as spaces part them: a text in a script without spaces repeats none but itself. Keeps 6 KB a pair."""

    remembers: ClassVar[bool] = True

    of: Literal["prompt", "chosen"] = "chosen"
    """What is compared."""
    similarity: float = Field(default=0.7, gt=0, lt=1)
    """Jaccard similarity of the sets of n-grams, as the hashes estimate it, from which one repeats the other."""
    ngram: int = Field(default=3, ge=1)
    """Words of a shingle."""
    num_hashes: int = Field(default=128, ge=16)
    """More estimate better and cost more: the estimate's standard error is at most 0.5 / sqrt(num_hashes)."""

    def open(self) -> Judge:
        """Return the judgement. Raises EngineError without the library."""
        try:
            from datasketch import LeanMinHash, MinHash, MinHashLSH
        except ImportError as error:
            allowed, do = "the package datasketch", "uv pip install 'counterfoil[synth]'"
            raise EngineError("filters: fuzzy_duplicate", given=str(error), allowed=allowed, do=do) from error
        weights = (1 - MISSED_WEIGHT, MISSED_WEIGHT)
        index: Any = MinHashLSH(threshold=self.similarity, num_perm=self.num_hashes, weights=weights)
        earlier: dict[str, tuple[str, Any]] = {}
        empty: Any = MinHash(num_perm=self.num_hashes)  # copied, so that its permutations are drawn once

        def judge(pair: Pair) -> Verdict:
            side = pair.prompt if self.of == "prompt" else pair.chosen
            words = side[-1]["content"].lower().split()
            shingles = {" ".join(words[at : at + self.ngram]) for at in range(max(len(words) - self.ngram, 0) + 1)}
            drawn = empty.copy()
            drawn.update_batch([item.encode(errors="replace") for item in sorted(shingles)])
            own: Any = LeanMinHash(drawn)
            name = pair.prompt_id if self.of == "prompt" else pair.id
            found = [(key, *earlier[key]) for key in index.query(own)]
            # Several pairs of one prompt do not repeat it, nor each other's better answer.
            alike = [(hashes.jaccard(own), key) for key, asked, hashes in found if asked != pair.prompt_id]
            best, other = max(alike, default=(0.0, ""))
            if best >= self.similarity:
                return drop(
                    pair, "fuzzy_duplicate", f"the {self.of} came before", f"similarity {best:.2f} with {other}"
                )

            def remember() -> None:
                if name not in earlier:
                    earlier[name] = (pair.prompt_id, own)
                    index.insert(name, own, check_duplication=False)

            return remember

        return judge
