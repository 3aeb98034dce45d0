"""Whether an answer is the one wanted: SQuAD's exact match on its first line, or its words found there.

Source: Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1: case, punctuation, articles and spacing do not count, so that
`35` matches `3.5`. Differences: punctuation is that of all scripts, letters are compared by what they stand for (NFKC), and a
text of articles alone keeps them.
"""

import re
import string
import unicodedata
from collections.abc import Sequence

from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt, Score
from eval.scorer import LocalScorer

__all__ = ["ExactAnswer", "normalise"]


def normalise(text: str) -> str:
    """Return case-folded words without punctuation, and without articles unless there is nothing else."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(mark for mark in folded if mark not in string.punctuation and unicodedata.category(mark)[0] != "P")
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split()) or " ".join(plain.split())


class ExactAnswer(LocalScorer):
    """1 for the answer in `prompt.reference["answer"]` (a text, or several that count alike), else 0.

    The detail says whether the answer was found at all, and whether `reference["original"]`, where there is one, was.
    """

    within: bool = True
    """The answer's words may stand anywhere in the first line; false wants the line to be the answer."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Compare. Raises InputError where the reference has no answer."""
        wanted = prompt.reference.get("answer")
        answers = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(answers, Sequence) or not answers or not all(isinstance(item, str) for item in answers):
            raise InputError(
                f"prompt {prompt.id}: reference.answer", given=repr(wanted), allowed="a text, or a list of texts",
                do="Add it.",
            )  # fmt: skip
        line = next(iter(completion.text.strip().splitlines()), "")
        value = float(any(self._fits(line, answer) for answer in answers))
        original = prompt.reference.get("original")
        detail = {"original": self._fits(line, original)} if isinstance(original, str) else {}
        return Score(completion_id=completion.id, scorer="exact_answer", value=value, detail=detail)

    def _fits(self, line: str, answer: str) -> bool:
        said, wanted = normalise(line), normalise(answer)
        if not wanted:  # nothing but punctuation, which no text says
            return False
        return f" {wanted} " in f" {said} " if self.within else said == wanted
