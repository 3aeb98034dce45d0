r"""Whether an answer is the mathematical expression wanted, by the library math-verify: fractions, sets, intervals, LaTeX.

Source: Hugging Face's math-verify, which parses both sides to SymPy and compares them. Differences: (1) it runs in a process
of its own with limits of time and memory (eval/mathematics.py), where the library's are signals in the main thread, which
end no computation within C; (2) of an answer longer than `max_chars` the end is read.
"""

from typing import ClassVar

from pydantic import Field

from counterfoil.errors import EngineError, InputError
from counterfoil.records import Completion, Prompt, Score
from eval.mathematics import compare_expressions, has_library
from eval.scorer import LocalScorer

__all__ = ["MathVerify"]


class MathVerify(LocalScorer):
    """1 where the answer's last expression equals `prompt.reference["answer"]`, else 0."""

    threads: ClassVar[int] = 1

    max_chars: int = Field(default=2000, ge=16)
    """Read so much of an answer's end."""
    time_s: float = Field(default=5.0, gt=0)
    """Seconds of the processor; what takes more to compare is not the answer, and the detail says `given up`."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Parse and compare. Raises InputError where the reference has no answer, EngineError without the library."""
        wanted = prompt.reference.get("answer")
        if not isinstance(wanted, str | int | float) or isinstance(wanted, bool):
            given, allowed = repr(wanted), "a text or a number"
            raise InputError(f"prompt {prompt.id}: reference.answer", given=given, allowed=allowed, do="Add it.")
        if not has_library():
            given, allowed, do = "not installed", "the package math-verify", "uv pip install 'counterfoil[synth]'"
            raise EngineError("scorer: math_verify", given=given, allowed=allowed, do=do)
        found = compare_expressions(_mark(str(wanted)), completion.text[-self.max_chars :], time_s=self.time_s)
        detail = {"final": found.final} | ({"given up": True} if found.given_up else {})
        return Score(completion_id=completion.id, scorer="math_verify", value=float(found.equal), detail=detail)


def _mark(text: str) -> str:
    """Mark a reference as mathematics, which the library wants to see."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"
