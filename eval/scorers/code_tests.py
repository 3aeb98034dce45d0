"""The share of tests that a program passes, run in a confined process (eval/confined.py says what that keeps out).

Source: functional correctness of Chen et al. 2021 (arXiv 2107.03374, section 2.1), by test. Differences: (1) tests count
one by one, each in a process of its own, so that one that hangs fails alone and none sees what another did; (2) of several
blocks of code in an answer the longest is the program.
"""

import os
import re
from typing import ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt, Score
from eval.confined import Ran, find_gaps, run_confined
from eval.scorer import LocalScorer

__all__ = ["CodeTests", "read_code"]

FENCE = re.compile(r"^[ \t]*```[ \t]*([^\s`]*)[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"", "py", "python", "python3"}
PASSED = "passed"


class CodeTests(LocalScorer):
    """Passed tests divided by tests.

    `prompt.reference["tests"]` are statements, such as assertions, that run after the code, in its module. So a program that
    means to cheat can: it may read its own file, or make everything equal to everything.
    """

    threads: ClassVar[int] = max(1, (os.cpu_count() or 2) // 2)  # the time of a test is the clock's: they need room

    time_s: float = Field(default=5.0, gt=0)
    """For each test."""
    memory_mib: int = Field(default=512, ge=64)
    """Of addresses, for each test."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Run the tests. Raises InputError where the reference has none."""
        tests = prompt.reference.get("tests")
        if not isinstance(tests, list | tuple) or not tests or not all(isinstance(test, str) for test in tests):
            given, allowed = repr(tests)[:200], "a list of statements, one or more"
            raise InputError(f"prompt {prompt.id}: reference.tests", given=given, allowed=allowed, do="Add it.")
        code = read_code(completion.text)
        results = [self._run(code, test, completion.id) if code.strip() else "failed: no code" for test in tests]
        detail = {"tests": results, "gaps": list(find_gaps())}
        value = results.count(PASSED) / len(results)
        return Score(completion_id=completion.id, scorer="code_tests", value=value, detail=detail)

    def _run(self, code: str, test: str, key: str) -> str:
        """Run one test; a program that ends early with status 0 has not passed: the mark is printed after the test alone."""
        mark = f"{PASSED}-{key}"
        source = f"{code}\n\n{test}\n__import__('sys').__stdout__.write({mark!r})\n"  # whatever `print` is by then
        ran = run_confined(source, time_s=self.time_s, memory_mib=self.memory_mib)
        return PASSED if ran.status == 0 and mark in ran.output else _explain(ran)


def _explain(ran: Ran) -> str:
    if ran.timed_out:
        return "failed: too long"
    said = next(reversed(ran.output.strip().splitlines()), "") if ran.status != 0 else ""
    return f"failed: {said[:200] or f'it ended with status {ran.status}'}"


def read_code(text: str) -> str:
    """Return the program in an answer: its longest block of Python, or the whole text where it has no block at all."""
    blocks = [body for language, body in FENCE.findall(text) if language.lower() in LANGUAGES]
    return max(blocks, key=len) if blocks else text if "```" not in text else ""
