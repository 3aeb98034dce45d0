"""Drop pairs with an answer that was cut off: whoever learns it learns to stop in the middle."""

from typing import Literal

from counterfoil.records import Dropped, Pair
from synth.filter import Judge, LocalFilter, drop

__all__ = ["Truncated"]


class Truncated(LocalFilter):
    """Looks at how the model stopped, not at the text."""

    sides: Literal["chosen", "either"] = "chosen"
    """Whose end counts."""

    def open(self) -> Judge:
        """Return the judgement."""

        def judge(pair: Pair) -> Dropped | None:
            found = [side for side in pair.cut if self.sides == "either" or side == "chosen"]
            return drop(pair, "truncated", f"the {found[0]} answer was cut off") if found else None

        return judge
