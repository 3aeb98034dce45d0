"""Drop pairs in which an answer refuses: a chosen refusal teaches to refuse, a rejected one teaches only not to."""

import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from counterfoil.records import Dropped, Pair
from synth.filter import LocalFilter, drop

__all__ = ["Refusal"]

OPENINGS = (
    r"(i'?m|i am) (really |very |so |truly )?sorry",
    r"(i )?(sincerely )?apologi[sz]e",
    r"(unfortunately,? )?i (cannot|can'?t|can not|won'?t|will not|am unable|'?m unable|am not able|'?m not able)",
    r"(unfortunately,? )?(i'?m|i am) (unable|not able|not allowed|not permitted)",
    r"as an? (ai|artificial intelligence|language model|large language model|virtual assistant|text-based)",
    r"(it|this) (is|would be) (not appropriate|inappropriate|against my)",
    r"i do(n'?t| not) (have the ability|have access|have personal)",
    r"sorry,? (but )?i",
)
"""How refusals begin, in English, after what `_plain` takes away."""


class Refusal(LocalFilter):
    """Looks at how an answer begins."""

    sides: Literal["chosen", "either"] = "chosen"
    """Whose refusal counts."""
    openings: tuple[str, ...] = Field(OPENINGS, min_length=1)
    """Regular expressions, in lower case, for the beginning of a refusal."""

    def open(self) -> Callable[[Pair], Dropped | None]:
        """Return the judgement."""
        pattern = re.compile("|".join(f"(?:{item})" for item in self.openings))

        def judge(pair: Pair) -> Dropped | None:
            sides = {"chosen": pair.chosen, "rejected": pair.rejected}
            for name, side in sides.items() if self.sides == "either" else [("chosen", pair.chosen)]:
                said = _plain(side[-1]["content"])
                if pattern.match(said):
                    return drop(pair, "refusal", f"the {name} answer refuses", said[:80])
            return None

        return judge


def _plain(text: str) -> str:
    return re.sub(r"^[\W_]+", "", text.lower().replace("\u2019", "'"))
