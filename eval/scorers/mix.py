"""Several scorers' values, weighed and summed.

Source: mixtures of rewards as in Wang et al. 2024 (ArmoRM, arXiv 2406.12845), with fixed weights. Differences: (1) optionally
each part's values are first brought to 0..1 among the prompt's answers, where the parts have no common scale.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field

from counterfoil.config import Config
from counterfoil.errors import ConfigError
from counterfoil.records import Completion, Prompt, Score
from decode.steps import Steps
from eval.scorer import Scorer

__all__ = ["Mix", "Part"]


class Part(Config):
    """A scorer and its weight."""

    scorer: Scorer
    """One of the scorers."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """What its values are multiplied with; negative turns it around."""


class Mix(Scorer):
    """Sum of weight times value; every part's own scores are kept as well.

    The detail holds each part's value by its scorer's name (`judge#2` where the second part is a `judge` again).
    """

    parts: tuple[Part, ...] = ()
    """What is mixed; one part or more."""
    rescale: bool = False
    """Bring each part's values to 0..1 among a prompt's answers first; equal ones are then 0.5."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """Whom the parts ask. Raises ConfigError where there is none."""
        if not self.parts:
            given, allowed = "no parts", "one scorer or more, each with a weight"
            raise ConfigError("scorer.parts", given=given, allowed=allowed, do="Name what is mixed.")
        found: dict[str, frozenset[str]] = {}
        for part in self.parts:
            for role, needs in part.scorer.asks().items():
                found[role] = found.get(role, frozenset()) | needs
        return found

    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Grade by one part after the other; sum."""
        sums = [0.0] * len(completions)
        details: list[dict[str, float]] = [{} for _ in completions]
        for number, part in enumerate(self.parts, start=1):
            found = yield from part.scorer.grade(prompt, completions)
            values = [score.value for score in found]
            if self.rescale and values:
                low, high = min(values), max(values)
                values = [(value - low) / (high - low) if high > low else 0.5 for value in values]
            for at, (score, value) in enumerate(zip(found, values, strict=True)):
                sums[at] += part.weight * value
                name = score.scorer if score.scorer not in details[at] else f"{score.scorer}#{number}"
                details[at][name] = value
        scores = [
            Score(completion_id=item.id, scorer="mix", value=value, detail=dict(detail))
            for item, value, detail in zip(completions, sums, details, strict=True)
        ]
        yield scores
        return scores
