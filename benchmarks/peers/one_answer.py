"""A recipe outside counterfoil's own folder: one greedy answer a prompt.

Source: none; it does what the peers beside it do. Differences: none known.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from counterfoil.records import Answer, Group, Prompt, Record
from decode.engine import Sampling
from decode.steps import Ask, Steps
from eval.scorer import Scorer
from synth.recipe import Recipe

__all__ = ["OneAnswer"]


class OneAnswer(Recipe):
    """Asks, and keeps what was answered."""

    makes: ClassVar[type[Record]] = Group

    max_new_tokens: int = Field(default=64, ge=1)
    """Cut an answer off after this many tokens."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The main model."""
        return {"": frozenset({"chat"})}

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Ask once."""
        ((answered,),) = yield [Ask(prompt.messages, Sampling(max_new_tokens=self.max_new_tokens))]
        return [Group.make(prompt.messages, [Answer(text=answered.text)])]
