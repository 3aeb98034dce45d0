"""Drop pairs whose two answers are almost the same text, and pairs that repeat an earlier one."""

from typing import ClassVar

from pydantic import Field
from rapidfuzz import fuzz

from counterfoil.records import Pair, content_id
from synth.filter import Judge, LocalFilter, Verdict, drop

__all__ = ["NearDuplicate"]


class NearDuplicate(LocalFilter):
    """Answers too alike teach noise; repeated pairs teach one thing too often."""

    remembers: ClassVar[bool] = True

    similarity: float = Field(default=0.9, gt=0, le=1)
    """Normalised indel similarity (1 is equal) from which two answers count as the same."""
    across_pairs: bool = True
    """Also drop a pair whose chosen answer was chosen before, to another prompt; and a pair that came before; keeps two
    entries a pair in memory."""

    def open(self) -> Judge:
        """Return the judgement."""
        askers: dict[int, int] = {}
        pairs: set[int] = set()

        def judge(pair: Pair) -> Verdict:
            chosen, rejected = pair.chosen[-1]["content"], pair.rejected[-1]["content"]
            alike = fuzz.ratio(chosen, rejected) / 100
            if alike >= self.similarity:
                return drop(pair, "near_duplicate", "answers almost the same", f"similarity {alike:.2f}")
            if not self.across_pairs:
                return None
            mark = int(content_id(" ".join(chosen.lower().split())), 16)
            asker, name = hash(pair.prompt_id), hash(pair.id)
            # Several pairs of one prompt may share their better answer.
            if askers.get(mark, asker) != asker or name in pairs:
                return drop(pair, "near_duplicate", "chosen answer came before")

            def remember() -> None:
                askers[mark] = asker
                pairs.add(name)

            return remember

        return judge
