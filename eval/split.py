"""Split(Job): questions with known answers into what a weak teacher learns from, what a strong student is asked, and a test.

    weak.jsonl       groups with the known texts: the weak model's training data
    questions.jsonl  prompts without any answer: all that a student may see
    ceiling.jsonl    groups with the known texts of those questions: for the ceiling's training alone
    gold.jsonl       the same questions as prompts with `reference.answer`: for counting how right pseudo-labels are
    test.jsonl       prompts with `reference.answer`, in neither of the others

The three parts share no question, however often a question comes in the data.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.job import Job, Run
from counterfoil.jsonl import read_lines
from counterfoil.records import Answer, Dropped, Group, Prompt, content_id

__all__ = ["Split"]


class Split(Job):
    """Draw three disjoint parts of a data set."""

    VERB: ClassVar[str] = "eval"

    data: InputPath
    """JSONL, or a JSON list, of rows."""
    question: str = "{question}"
    """What is asked: columns in braces."""
    answer: str = "{answer}"
    """The final answer: columns in braces."""
    solution: str = "The answer is {answer}."
    """The text that a model learns to write: columns in braces. A row's final answer has to be read from it."""
    weak: int = Field(default=500, ge=1)
    """Questions for the weak model."""
    strong: int = Field(default=500, ge=1)
    """Questions for the student, without answers."""
    test: int = Field(default=500, ge=1)
    """Questions of the test."""
    seed: int = 0
    """Of the draw."""

    def work(self, run: Run) -> None:
        """Read, drop what cannot be used, draw, write."""
        run.facts["seeds"] = {"seed": self.seed}
        run.open_output("dropped.jsonl")
        rows: dict[str, tuple[str, str, str]] = {}
        for row in _read_rows(self.data):
            run.counts["read"] = run.counts.get("read", 0) + 1
            found = row if isinstance(row, Dropped) else self._fill(row)
            if isinstance(found, Dropped):
                run.drop(found)
            elif found[0] in rows:
                run.drop(Dropped(id=content_id(found), stage="split", reason="question came before"))
            else:
                rows[found[0]] = found
        wanted = self.weak + self.strong + self.test
        if len(rows) < wanted:
            given, allowed = f"{len(rows)} usable questions", f"at least {wanted} (weak + strong + test)"
            raise InputError(f"data: {self.data}", given=given, allowed=allowed, do="Ask for fewer.")
        drawn = random.Random(self.seed).sample(sorted(rows.values()), wanted)
        weak, strong, test = drawn[: self.weak], drawn[self.weak : self.weak + self.strong], drawn[-self.test :]
        for question, answer, solution in weak:
            run.write("weak.jsonl", _group(question, answer, solution))
        for question, answer, solution in strong:
            run.write("questions.jsonl", Prompt.make(question))
            run.write("ceiling.jsonl", _group(question, answer, solution))
            run.write("gold.jsonl", Prompt.make(question, reference={"answer": answer}))
        for question, answer, _ in test:
            run.write("test.jsonl", Prompt.make(question, reference={"answer": answer}))
        run.counts["kept"] = wanted

    def _fill(self, row: dict[str, Any]) -> tuple[str, str, str] | Dropped:
        from eval.scorers.final_answer import read_final, same_answer

        row_id = content_id(row)
        try:
            question, answer, solution = (
                _Plain().format(text, **row).strip() for text in (self.question, self.answer, self.solution)
            )
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            detail = f"{error}; columns: {', '.join(sorted(map(str, row)))}"
            return Dropped(id=row_id, stage="split", reason="missing column", detail=detail[:200])
        answer = read_final(answer, marked=True) or answer  # where a column holds the solution with its answer
        if not question or not answer:
            return Dropped(id=row_id, stage="split", reason="empty question or answer")
        if not same_answer(read_final(solution), answer):
            detail = f"{read_final(solution)!r} read, {answer!r} given"
            return Dropped(id=row_id, stage="split", reason="the solution comes to another answer", detail=detail[:200])
        return question, answer, solution


class _Plain(Formatter):
    """Fills in columns by name and item; shows 51.0 as 51, and a list as its items with commas between."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        if "._" in field_name or "__" in field_name:  # columns alone, nothing of the objects that hold them
            raise KeyError(field_name)
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, float) and value.is_integer() and not format_spec:
            return str(int(value))
        if isinstance(value, list) and not format_spec:
            return ", ".join(self.format_field(item, "") for item in value)
        return super().format_field(value, format_spec)


def _read_rows(path: Path) -> Iterator[dict[str, Any] | Dropped]:
    if path.suffix != ".json":
        yield from read_lines(path, where="data")
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"data: {path}", given=str(error), allowed="JSON", do="Check the file.") from error
    if not isinstance(rows, list):
        raise InputError(
            f"data: {path}", given=type(rows).__name__, allowed="a list of rows", do="Give JSONL, or a list."
        )
    for row in rows:
        good = isinstance(row, dict)
        yield row if good else Dropped(id=content_id(row), stage="read", reason="not a mapping")


def _group(question: str, answer: str, solution: str) -> Group:
    return Group.make(Prompt.make(question).messages, [Answer(text=solution, role="chosen", final=answer)])
