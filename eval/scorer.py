"""Scorer (family): a prompt's completions to numbers, higher is better.

One that judges by itself is a `LocalScorer`; one that asks models does so in the dialogue of the prompt (decode/steps.py).
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, final

from counterfoil.config import Choice
from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt, Score
from decode.steps import Refusal, Steps, Work

__all__ = ["LocalScorer", "Scorer"]


class Scorer(Choice):
    """One way of judging answers."""

    FOLDER: ClassVar[str] = "eval.scorers"

    @abstractmethod
    def asks(self) -> Mapping[str, frozenset[str]]:
        """Return the roles of the models that it asks, each with what its engine must give."""

    @abstractmethod
    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Judge a prompt's answers, in their order; the scores are yielded, to be kept, and returned.

        Raises Refusal where it cannot tell: the reference is missing, a model's verdict is none.
        """


class LocalScorer(Scorer):
    """One that judges each answer by itself, in this process."""

    FOLDER: ClassVar[str] = "eval.scorers"
    threads: ClassVar[int] = 0
    """In how many threads of their own prompts are judged where that takes long, so that other dialogues go on; 0 judges
    at once."""

    @final
    def asks(self) -> Mapping[str, frozenset[str]]:
        """Nobody."""
        return {}

    @abstractmethod
    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Judge one answer. A scorer that cannot tell (the reference is missing) raises InputError at `prompt ID: ...`."""

    def score_all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
        """Judge a prompt's answers, in their order; raises what `score` does."""
        return [self.score(prompt, item) for item in completions]

    @final
    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Judge a prompt's answers, in their order."""
        judge = partial(self.score_all, prompt, completions)
        try:
            if self.threads:
                ((scores,),) = yield [Work(judge, lane=type(self).__name__, threads=self.threads)]
            else:
                scores = judge()
        except InputError as error:
            if not error.where.startswith("prompt "):
                raise  # of the scorer itself: no other row would fare better
            raise Refusal("score", "cannot be judged", str(error)) from error
        yield scores
        return scores
