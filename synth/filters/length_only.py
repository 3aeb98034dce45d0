"""Drop pairs in which one answer is the beginning of the other: all that differs is the length."""

from pydantic import Field
from rapidfuzz import fuzz

from counterfoil.records import Dropped, Pair
from synth.filter import Judge, LocalFilter, drop

__all__ = ["LengthOnly"]


class LengthOnly(LocalFilter):
    """Keeps length itself from being the lesson."""

    similarity: float = Field(default=0.95, gt=0, le=1)
    """Normalised indel similarity of the shorter answer to as much of the longer one."""

    def open(self) -> Judge:
        """Return the judgement."""

        def judge(pair: Pair) -> Dropped | None:
            chosen, rejected = pair.chosen[-1]["content"].strip(), pair.rejected[-1]["content"].strip()
            short, long = sorted((chosen, rejected), key=len)
            alike = fuzz.ratio(short, long[: len(short)]) / 100
            if alike >= self.similarity:
                return drop(pair, "length_only", "one answer begins the other", f"similarity {alike:.2f}")
            return None

        return judge
