"""The share of tests that a program passes, run in a confined process (eval/confined.py says what that keeps out).

Source: functional correctness of Chen et al. 2021 (arXiv 2107.03374, section 2.1), by test. Differences: (1) tests count
one by one, each in a process of its own, so that one that hangs fails alone and none sees what another did.
"""

import re
from collections.abc import Sequence

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt, Score
from eval.confined import Ran, has_own_network, run_confined
from eval.scorer import LocalScorer

__all__ = ["CodeTests", "read_code"]

FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
PASSED = "passed-"


class CodeTests(LocalScorer):
    """Passed tests divided by tests.

    `prompt.reference["tests"]` are statements, such as assertions, that run after the code. A program that means to cheat
    can.
    """

    time_s: float = Field(default=5.0, gt=0)
    """For each test."""
    memory_mib: int = Field(default=512, ge=64)
    """Of addresses, for each test."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Run the tests. Raises InputError where the reference has none."""
        tests = prompt.reference.get("tests")
        if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
            allowed = "a list of statements"
            raise InputError(f"prompt {prompt.id}: reference.tests", given=repr(tests), allowed=allowed, do="Add it.")
        code = read_code(completion.text)
        results: list[str] = []
        for test in tests:
            # A program that ends early with status 0 has not passed: the mark is printed after the test alone.
            mark = f"{PASSED}{completion.id}"
            source = f"{code}\n\n{test}\nprint('\\n' + {mark!r})\n"
            ran = run_confined(source, time_s=self.time_s, memory_mib=self.memory_mib) if code else None
            passed = ran is not None and ran.status == 0 and ran.output.rstrip().endswith(mark)
            said = (
                "no code"
                if ran is None
                else "too long"
                if ran.timed_out
                else (ran.output.strip().splitlines() or [""])[-1]
            )
            results.append("passed" if passed else said[:200])
        value = results.count("passed") / len(results)
        detail = {"tests": results, "own_network": has_own_network()}
        return Score(completion_id=completion.id, scorer="code_tests", value=value, detail=detail)


def _explain(ran: Ran | None) -> str:
    if ran is None:
        return "no code"
    return "too long" if ran.timed_out else next(reversed(ran.output.strip().splitlines()), "")[:200]


def read_code(text: str) -> str:
    """Return the program in an answer: its longest fenced block, or the whole text where it has none."""
    blocks = FENCE.findall(text)
    return max(blocks, key=len) if blocks else text if "```" not in text else ""
