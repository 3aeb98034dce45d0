"""Drop pairs whose scores are closer than a margin: a stricter one than the recipe's, on the same generations."""

from typing import Self

from pydantic import Field, model_validator

from counterfoil.records import Dropped, Pair
from synth.filter import Judge, LocalFilter, drop

__all__ = ["Margin"]


class Margin(LocalFilter):
    """Keeps what the scorer tells apart clearly; a tie, or a pair the wrong way round, is never kept."""

    least: float = Field(default=0.5, gt=0)
    """Smallest difference of the two scores, in the scorer's units."""
    most: float | None = None
    """Largest difference, for pairs that are not too easy; None allows any."""

    @model_validator(mode="after")
    def check_bounds(self) -> Self:
        """Refuse bounds between which there is nothing."""
        if self.most is not None and self.most < self.least:
            raise ValueError("most is less than least: no pair would be kept")
        return self

    def open(self) -> Judge:
        """Return the judgement."""

        def judge(pair: Pair) -> Dropped | None:
            found = pair.score_chosen - pair.score_rejected
            if found < self.least:
                return drop(pair, "margin", "margin too small", f"{found:.3f}")
            if self.most is not None and found > self.most:
                return drop(pair, "margin", "margin too large", f"{found:.3f}")
            return None

        return judge
