"""Questions with what was answered to them, joined by what they are and never by where they stand."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from counterfoil.job import Run
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Completion, Dropped, Prompt
from decode.generate import read_prompts

__all__ = ["Joined", "join_answers"]


class Joined(NamedTuple):
    """A question that all have answered."""

    prompt: Prompt
    answers: dict[str, list[Completion]]
    """By who answered."""


def join_answers(
    run: Run, prompts: Path, answers: Mapping[str, Path], *, asked: Mapping[str, Path | None] | None = None
) -> list[Joined]:
    """Return each question with all its answers, in the questions' order; one that somebody did not answer is dropped, once.

    `answers` are files of completions by a name; where these were asked something longer, `asked` has that file by the same
    name, whose rows say by the tag `question` which question they stand for. What was answered to none of the questions is
    dropped as well. The run has then read what it returns and what it dropped.
    """
    found = {name: _read_answers(run, path) for name, path in answers.items()}
    for name, path in (asked or {}).items():
        if path is not None:
            found[name] = _stand_for(run, path, found[name])
    joined: list[Joined] = []
    seen: set[str] = set()
    for prompt in read_prompts(prompts, column="prompt", where="prompts"):
        if isinstance(prompt, Dropped):
            run.drop(prompt)
            continue
        if prompt.id in seen:
            run.drop(Dropped(id=prompt.id, stage="join", reason="question came before"))
            continue
        seen.add(prompt.id)
        own = {name: _take(prompt, given) for name, given in found.items()}
        if missing := [name for name, given in own.items() if not given]:
            reason = "no answer" if len(own) == 1 else f"no answer of {' and '.join(missing)}"
            run.drop(Dropped(id=prompt.id, stage="join", reason=reason))
        else:
            joined.append(Joined(prompt, own))
    for given in found.values():
        for key, left in given.items():
            for item in left:
                run.drop(Dropped(id=item.id, stage="join", reason="answer to another prompt", detail=key))
    run.counts["read"] = len(joined) + run.dropped.total()
    return joined


def _read_answers(run: Run, path: Path) -> dict[str, list[Completion]]:
    found: dict[str, list[Completion]] = defaultdict(list)
    for item in read_jsonl(path, Completion, where="answers"):
        if isinstance(item, Dropped):
            run.drop(item)
        else:
            found[item.prompt_id].append(item)
    return found


def _stand_for(run: Run, path: Path, given: dict[str, list[Completion]]) -> dict[str, list[Completion]]:
    """Return answers to what was asked as answers to the questions that this stands for."""
    found: dict[str, list[Completion]] = defaultdict(list)
    for prompt in read_prompts(path, column="prompt", where="prompts"):
        if isinstance(prompt, Dropped):
            run.drop(prompt)
        else:
            found[prompt.tags.get("question", prompt.id)] += _take(prompt, given)
    for key, left in given.items():
        found[key] += left
    return found


def _take(prompt: Prompt, given: dict[str, list[Completion]]) -> list[Completion]:
    """Take the answers to a prompt, which a decode run knows by messages and reference, or by messages alone."""
    return given.pop(prompt.id, None) or given.pop(Prompt.make(prompt.messages).id, None) or []
