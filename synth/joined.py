"""Questions with what was answered to them, joined by what they are and never by where they stand."""

from collections import defaultdict
from pathlib import Path

from counterfoil.job import Run
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Completion, Dropped, Prompt
from decode.generate import read_prompts

__all__ = ["join_answers"]


def join_answers(run: Run, prompts: Path, answers: Path) -> list[tuple[Prompt, list[Completion]]]:
    """Return each question with its answers, in the questions' order; what has no partner is dropped by name.

    A prompt with a tag `question` stands for the question of that id.
    """
    found: dict[str, list[Completion]] = defaultdict(list)
    for item in run.sift(read_jsonl(answers, Completion, where="answers")):
        found[item.prompt_id].append(item)
    joined: list[tuple[Prompt, list[Completion]]] = []
    seen: set[str] = set()
    for prompt in run.sift(read_prompts(prompts, column="prompt", where="prompts")):
        if prompt.id in seen:
            run.drop(Dropped(id=prompt.id, stage="join", reason="question came before"))
            continue
        seen.add(prompt.id)
        # A decode run knows a prompt by its messages and reference; the file may hold either form of its id.
        own = found.pop(prompt.id, None) or found.pop(Prompt.make(prompt.messages).id, None)
        if own:
            joined.append((prompt, own))
        else:
            run.drop(Dropped(id=prompt.id, stage="join", reason="no answer"))
    for key, left in found.items():
        for item in left:
            run.drop(Dropped(id=item.id, stage="join", reason="answer to another prompt", detail=key))
    return joined
