"""Drop pairs in which an answer says the prompt again and nothing else."""

from pydantic import Field
from rapidfuzz import fuzz

from counterfoil.records import Dropped, Pair
from synth.filter import Judge, LocalFilter, drop

__all__ = ["CopiesPrompt"]


class CopiesPrompt(LocalFilter):
    """Compares either answer with the last message of the prompt."""

    similarity: float = Field(default=0.9, gt=0, le=1)
    """Normalised indel similarity (1 is equal) from which an answer counts as a copy."""

    def open(self) -> Judge:
        """Return the judgement."""

        def judge(pair: Pair) -> Dropped | None:
            asked = _plain(pair.prompt[-1]["content"])
            for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                # Below the cutoff it is 0, and soon found so.
                alike = fuzz.ratio(asked, _plain(side[-1]["content"]), score_cutoff=100 * self.similarity) / 100
                if alike >= self.similarity:
                    return drop(
                        pair, "copies_prompt", f"the {name} answer copies the prompt", f"similarity {alike:.2f}"
                    )
            return None

        return judge


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
