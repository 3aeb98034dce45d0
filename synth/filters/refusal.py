"""Drop pairs in which an answer refuses: a chosen refusal teaches to refuse, a rejected one teaches only not to."""

import re
from typing import Literal

from pydantic import Field, field_validator

from counterfoil.records import Dropped, Pair
from synth.filter import Judge, LocalFilter, drop

__all__ = ["Refusal"]

CANNOT = (
    r"(?:(?:i|we)(?:'m| am|'re| are)? (?:really |simply |currently |just )?"
    r"(?:cannot|can'?t|can not|won'?t|will not|unable|not able|not allowed|not permitted|not comfortable|must decline"
    r"|have to decline|decline|(?:don'?t|do not) feel comfortable"
    r"|(?:don'?t|do not) have (?:access|the ability|(?:any )?personal|real-time|(?:enough |any )?information))\b"
    # What people say who refuse nothing: "I can't wait", "I cannot recommend it enough".
    r"(?! (?:only|wait|believe|help but|stress|emphasi[sz]e|overstate|imagine|make it|thank you|lie\b"
    r"|recommend [^.!?]{0,40}enough)))"
)
REGRET = (
    r"(?:(?:i'?m|i am|we'?re|we are)? ?(?:really |very |so |truly |deeply |terribly )?sorry"
    r"|(?:i |we )?(?:sincerely |must )?apologi[sz]e|my apologies|unfortunately|regrettably|i understand"
    r"|thank you for asking)"
)
ASSISTANT = (
    r"as an? (?:responsible |helpful )?"
    r"(?:ai\b|artificial intelligence|(?:large )?language model|virtual assistant|chatbot|text-based)"
)
LINK = r"[.!,;:]?\s+(?:but |however,? |that )?"
"""Between the regret and what it is for."""
OPENINGS = (
    CANNOT,
    # Regret is a refusal where it is for what follows: in the same sentence or the next, not "I'm sorry to hear that ...".
    rf"{REGRET}[^.!?\n]{{0,80}}{LINK}(?:{ASSISTANT}[^.!?\n]{{0,60}}[, ] ?)?{CANNOT}",
    rf"{REGRET}[^.!?\n]{{0,20}}{LINK}(?:that|this|it)(?:'s| is| would be) (?:not something|against|inappropriate)",
    rf"(?:{REGRET}[^.!?\n]{{0,20}}{LINK})?{ASSISTANT}[^.!?\n]{{0,120}}\b(?:cannot|can'?t|not|don'?t|unable|won'?t)\b",
    r"(?:it|this|that) (?:is|would be) (?:not appropriate|inappropriate|unethical|illegal) for me to",
    r"(?:it|this|that) (?:is|would be) (?:not appropriate|inappropriate) to (?:provide|help|assist|create|generate)",
    r"(?:it|this|that) (?:is|would be|goes) against my (?:\w+ )?(?:programming|guidelines|polic|principles|values)",
)
"""How refusals begin, in English, after what `_plain` takes away."""


class Refusal(LocalFilter):
    """Looks at how an answer begins; one that refuses further on, or in another language, is kept.

    So is regret that refuses nothing. A letter that declines ("I cannot come to the party") reads as a refusal, though.
    """

    sides: Literal["chosen", "either"] = "chosen"
    """Whose refusal counts."""
    openings: tuple[str, ...] = Field(OPENINGS, min_length=1)
    """Regular expressions, in lower case, for the beginning of a refusal."""

    @field_validator("openings")
    @classmethod
    def check_openings(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse what is no regular expression."""
        for item in value:
            try:
                re.compile(item)
            except re.error as error:
                raise ValueError(f"{item!r} is no regular expression: {error}") from error
        return value

    def open(self) -> Judge:
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
    return re.sub(r"^[\W_]+", "", text[:1000].lower().replace("\u2019", "'"))
