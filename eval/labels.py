"""Labels(Job): how many questions got a pseudo-label, and how many of those are right. For reporting: no trainer reads it.

Coverage is the share of questions that have a label, precision the share of those whose label is the known answer, each with
an interval. A label is what the first answer to learn (of a group), or the chosen one (of a pair), comes to.
"""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.job import Job, Run
from counterfoil.jsonl import read_lines, write_json
from counterfoil.records import Dropped, Prompt
from decode.generate import read_prompts
from eval.parts import name_part
from eval.scorers.final_answer import read_final, same_answer
from eval.stats import mean_interval

__all__ = ["Labels"]


class Labels(Job):
    """Compare pseudo-labels with known answers."""

    VERB: ClassVar[str] = "eval"

    labels: tuple[Path, ...] = Field(min_length=1)
    """JSONL of groups or pairs, each named by its folder in what is reported."""
    gold: InputPath
    """JSONL of the same questions as prompts with `reference.answer`."""
    marked: bool = False
    """Read a final answer after a marker alone, as the job that made the labels did."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0
    """Of the resampling."""

    def inputs(self) -> dict[str, Path]:
        """Return the known answers and each file of labels."""
        found = {f"labels[{at}] {name_part(path.parent)}": path for at, path in enumerate(self.labels)}
        return super().inputs() | found

    def check(self) -> None:
        """Raise InputError where two files would bear one name."""
        names = [name_part(path.parent) for path in self.labels]
        if len(set(names)) < len(names):
            raise InputError("labels", given=", ".join(names), allowed="a folder each", do="Rename a folder.")

    def work(self, run: Run) -> None:
        """Join by the question, compare."""
        run.open_output("dropped.jsonl")
        gold = {
            Prompt.make(prompt.messages).id: str(prompt.reference.get("answer", ""))
            for prompt in run.sift(read_prompts(self.gold, column="prompt", where="gold"))
        }
        run.counts |= {"read": 0, "kept": 0}  # of labels
        for path in self.labels:
            right = self._judge(run, path, gold)
            covered = [float(key in right) for key in gold]
            found = {"coverage": covered, "precision": list(right.values())}
            run.counts["kept"] += len(right)
            run.figures[name_part(path.parent)] = {
                name: mean_interval(values, level=self.level, seed=self.seed).round() for name, values in found.items()
            }
        write_json(run.folder / "summary.json", {"num_questions": len(gold), "level": self.level} | run.figures)

    def _judge(self, run: Run, path: Path, gold: dict[str, str]) -> dict[str, float]:
        """Return, of each question with a label, whether it is right."""
        right: dict[str, float] = {}
        for row in run.sift(read_lines(path, where="labels")):
            question, text = _read_label(row)
            if question in gold and text:
                right.setdefault(question, float(same_answer(read_final(text, marked=self.marked), gold[question])))
            else:
                run.drop(Dropped(id=question, stage="labels", reason="no such question" if text else "no label"))
        if not right:
            given = f"no label of the {len(gold)} questions"
            raise InputError(
                f"labels: {path}", given=given, allowed="labels of the questions in gold", do="Check both files."
            )
        return right


def _read_label(row: dict[str, Any]) -> tuple[str, str]:
    """Return the question's id and the text that is its label; empty where there is none."""
    try:
        question = Prompt.make(row["prompt"]).id
        if "answers" in row:
            return question, next((item["text"] for item in row["answers"] if item["role"] == "chosen"), "")
        side = row["chosen"]
        return question, side if isinstance(side, str) else side[-1]["content"]
    except (KeyError, TypeError, ValueError, IndexError):
        return "", ""
