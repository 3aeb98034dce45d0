"""Agree(Job): pseudo-labels of a weak model that the strong model comes to by itself.

Source: stage I of Yang et al. 2024 (arXiv 2407.13647) and the authors' code: a question is kept where the weak model's final
answer and that of the strong model in context are the same and not empty; the texts of either, or of both, are then learnt.
Differences: (1) answers are joined by their question's content, where the code compares the order of files.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from counterfoil.job import InputPath, Job, Run
from counterfoil.records import Answer, Completion, Dropped, Group, Prompt
from eval.scorers.final_answer import read_final, same_answer
from synth.joined import join_answers

__all__ = ["Agree"]


class Agree(Job):
    """Write groups.jsonl: questions with the texts whose final answers agree, to be learnt by `sft`."""

    VERB: ClassVar[str] = "synth"

    prompts: InputPath
    """JSONL of the questions."""
    weak: InputPath
    """completions.jsonl of the weak model on them."""
    strong: InputPath
    """completions.jsonl of the strong model."""
    strong_prompts: InputPath | None = None
    """What it was asked: JSONL of the questions with demonstrations (`synth demonstrate`); None for the bare questions."""
    keep: Literal["weak", "strong", "both"] = "both"
    """Whose texts are learnt; both makes two answers a question (the paper's hybrid)."""
    marked: bool = False
    """Read a final answer after a marker alone."""

    def work(self, run: Run) -> None:
        """Join, read final answers, keep what agrees."""
        run.open_output("dropped.jsonl")
        run.open_output("groups.jsonl")
        weak = join_answers(run, self.prompts, self.weak)
        strong = {
            prompt.tags.get("question", prompt.id): answers
            for prompt, answers in join_answers(run, self.strong_prompts or self.prompts, self.strong)
        }
        kept = 0
        for prompt, answers in weak:
            found = self._agree(prompt, answers[0], strong.get(prompt.id, ()))
            if isinstance(found, Dropped):
                run.drop(found)
            else:
                kept += 1
                run.write("groups.jsonl", found)
        run.counts |= {"read": len(weak), "kept": kept}
        run.figures |= {"coverage": round(kept / max(len(weak), 1), 4)}

    def _agree(self, prompt: Prompt, weak: Completion, strong: Sequence[Completion]) -> Group | Dropped:
        def refuse(reason: str, detail: str = "") -> Dropped:
            return Dropped(id=prompt.id, stage="agree", reason=reason, detail=detail[:200])

        if not strong:
            return refuse("no answer in context")
        if "length" in (weak.finish_reason, strong[0].finish_reason):
            return refuse("cut off", "weak" if weak.finish_reason == "length" else "strong")
        finals = [read_final(item.text, marked=self.marked) for item in (weak, strong[0])]
        if not all(finals):
            return refuse("no final answer", "weak" if not finals[0] else "strong")
        if not same_answer(*finals):
            return refuse("answers differ", " and ".join(finals))
        texts = {"weak": [weak.text], "strong": [strong[0].text], "both": [weak.text, strong[0].text]}[self.keep]
        unique = list(dict.fromkeys(text.strip() for text in texts))
        return Group.make(prompt.messages, [Answer(text=text, role="chosen", final=finals[0]) for text in unique])
