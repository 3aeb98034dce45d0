r"""Whether an answer is the mathematical expression wanted, by the library math-verify: fractions, sets, intervals, LaTeX.

Source: Hugging Face's math-verify, which parses both sides to SymPy and compares them. Differences: (1) the time limits that
it sets by signals, in the main thread alone, are off: an answer that is longer than `max_chars` is cut to its end instead.
"""

from typing import Any

from pydantic import Field

from counterfoil.errors import EngineError, InputError
from counterfoil.records import Completion, Prompt, Score
from eval.scorer import LocalScorer

__all__ = ["MathVerify"]


class MathVerify(LocalScorer):
    """1 where the answer's last expression equals `prompt.reference["answer"]`, else 0."""

    max_chars: int = Field(default=2000, ge=16)
    """Read so much of an answer's end."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Parse and compare. Raises InputError where the reference has no answer, EngineError without the library."""
        wanted = prompt.reference.get("answer")
        if not isinstance(wanted, str | int | float) or isinstance(wanted, bool):
            given, allowed = repr(wanted), "a text or a number"
            raise InputError(f"prompt {prompt.id}: reference.answer", given=given, allowed=allowed, do="Add it.")
        try:
            import math_verify
        except ImportError as error:
            allowed, do = "the package math-verify", "uv pip install 'counterfoil[synth]'"
            raise EngineError("scorer", given=str(error), allowed=allowed, do=do) from error
        parse: Any = math_verify.parse
        gold = parse(_mark(str(wanted)), parsing_timeout=None)
        said = parse(completion.text[-self.max_chars :], parsing_timeout=None)
        right = bool(gold) and bool(said) and bool(math_verify.verify(gold, said, timeout_seconds=None))
        detail = {"final": str(said[-1]) if said else ""}
        return Score(completion_id=completion.id, scorer="math_verify", value=float(right), detail=detail)


def _mark(text: str) -> str:
    """Mark a reference as mathematics, which the library wants to see."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"
