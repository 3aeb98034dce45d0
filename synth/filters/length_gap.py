"""Drop pairs whose answers differ much in length, whichever side is the longer one.

Length is the strongest shortcut of preference data (Singhal et al. 2023, arXiv 2310.03716). Both sides are looked at.
"""

from typing import Literal

from pydantic import Field

from counterfoil.records import Dropped, Pair
from synth.filter import Judge, LocalFilter, drop

__all__ = ["LengthGap"]


class LengthGap(LocalFilter):
    """Keeps pairs of like length."""

    most: float = Field(default=0.5, ge=0, lt=1)
    """Largest difference in characters, as a share of the longer answer."""
    longer: Literal["either", "chosen", "rejected"] = "either"
    """Whose greater length counts."""

    def open(self) -> Judge:
        """Return the judgement."""

        def judge(pair: Pair) -> Dropped | None:
            chosen, rejected = (len(side[-1]["content"].strip()) for side in (pair.chosen, pair.rejected))
            gap = abs(chosen - rejected) / max(chosen, rejected, 1)
            longer = "chosen" if chosen > rejected else "rejected"
            if gap > self.most and self.longer in ("either", longer):
                return drop(pair, "length_gap", f"the {longer} answer is much longer", f"{chosen} and {rejected}")
            return None

        return judge
