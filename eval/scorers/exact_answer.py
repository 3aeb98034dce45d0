"""Whether an answer is the one wanted: SQuAD's exact match on its first line, or its words found there.

Source: Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1: case, punctuation, articles and spacing do not count.
"""

import re
import string
from collections.abc import Sequence

from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt, Score
from eval.scorer import Scorer

__all__ = ["ExactAnswer", "normalise"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return lower-case words without punctuation and articles."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


class ExactAnswer(Scorer):
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
        return f" {wanted} " in f" {said} " if self.within and wanted else said == wanted
