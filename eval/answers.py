"""Answers(Job): finished decode runs on the same prompts, scored, with paired intervals against one of them.

A win is a prompt with a higher score than the baseline's; a tie counts half. Of several seeds of one method
(eval/parts.py), a prompt's score is the mean. Prompts that share a tag (`group_by`), such as several about one fact, are no
independent draws: their mean is then one value, and the intervals are over groups.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.job import Job, Run
from counterfoil.jsonl import read_jsonl, write_json
from counterfoil.records import Completion, Dropped, Prompt
from decode.generate import read_prompts
from decode.speaker import Role
from eval.grading import check_roles, grade_all
from eval.parts import check_parts, list_parts, name_method
from eval.scorer import Scorer
from eval.scorers.exact_answer import ExactAnswer
from eval.stats import mean_interval, paired_difference, recovered_gap

__all__ = ["Answers"]

_Means = dict[str, float]
"""A value for each prompt, by its id."""


class Answers(Job):
    """Score what several methods answered."""

    VERB: ClassVar[str] = "eval"

    prompts: InputPath
    """JSONL of the prompts, with the references that the scorer needs."""
    parts: tuple[Path, ...] = Field(min_length=1)
    """Folders of finished decode runs on them."""
    scorer: Scorer = ExactAnswer()
    """What judges an answer; one that compares sees a prompt's answers of all parts together."""
    roles: dict[str, Role] = {}
    """Models that the scorer asks, by role; the small one stands in for those that are not given."""
    baseline: str | None = None
    """The method that others are compared with; None is the first part's."""
    group_by: str | None = None
    """Tag of the prompts that belong together: the mean of each group counts once. None takes each prompt by itself."""
    floor: str | None = None
    """The method that others improve on, for the share of the gap to `ceiling` that each recovers; None leaves it out."""
    ceiling: str | None = None
    """The method that others could reach at best."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0
    """Of the resampling."""

    def inputs(self) -> dict[str, Path]:
        """Return the prompts and each part's answers."""
        return super().inputs() | list_parts(self.parts)

    def check(self) -> None:
        """Raise InputError for a part that is not finished, and what `check_roles` raises."""
        check_parts(self.parts)
        check_roles(self.scorer, self.roles)

    def work(self, run: Run) -> None:
        """Score every answer, then compare methods over the prompts that all of them answered."""
        prompts: dict[str, Prompt] = {}
        for item in run.sift(read_prompts(self.prompts, column="prompt", where="prompts", negative="may")):
            prompts[item.id] = item
            prompts[Prompt.make(item.messages, reference=item.reference).id] = item
        scores, details = self._score(run, prompts)
        ids = sorted(set.intersection(*(set(found) for parts in scores.values() for found in parts)))
        if not ids:
            raise InputError("parts", given="no prompt that all answered", allowed="runs on `prompts`", do="Check.")
        run.counts["kept"] = len(ids)
        for key in sorted({item.id for item in prompts.values()} - set(ids)):
            missing = [name for name, parts in scores.items() if any(key not in found for found in parts)]
            run.drop(Dropped(id=key, stage="compare", reason="not in all parts", detail=", ".join(missing)))
        groups = self._group(ids, prompts)
        columns = {name: _average(parts, groups) for name, parts in scores.items()}
        summary = self._summarise(columns, {name: _average(parts, groups) for name, parts in details.items()})
        write_json(run.folder / "summary.json", summary | {"num_prompts": len(ids), "num_groups": len(groups)})
        run.figures |= {f"{name}": row["score"] for name, row in summary["methods"].items()}

    def _score(
        self, run: Run, prompts: Mapping[str, Prompt]
    ) -> tuple[dict[str, list[_Means]], dict[str, list[_Means]]]:
        """Return, for each method, a score of each prompt for each of its parts, and how often it said the original.

        A prompt's answers are graded together, those of all parts: a judge may compare them with each other.
        """
        answered: dict[str, list[Completion]] = defaultdict(list)
        sources: dict[str, list[int]] = defaultdict(list)
        for at, folder in enumerate(self.parts):
            for prompt, completion in _join(folder, prompts, run):
                # Another number for each: the same words of two parts are two answers.
                answered[prompt.id].append(completion.renumber(prompt_id=prompt.id, index=len(answered[prompt.id])))
                sources[prompt.id].append(at)
        own: list[dict[str, list[float]]] = [defaultdict(list) for _ in self.parts]
        also: list[dict[str, list[float]]] = [defaultdict(list) for _ in self.parts]
        by_id = {item.id: item for item in prompts.values()}
        for key, verdicts in grade_all(run, self.scorer, self.roles, answered, by_id, seed=self.seed):
            for at, verdict in zip(sources[key], verdicts, strict=True):
                own[at][key].append(verdict.value)
                also[at][key].append(float(bool(verdict.detail.get("original"))))
        scores: dict[str, list[_Means]] = defaultdict(list)
        details: dict[str, list[_Means]] = defaultdict(list)
        for folder, values, others in zip(self.parts, own, also, strict=True):
            scores[name_method(folder)].append({key: sum(found) / len(found) for key, found in values.items()})
            details[name_method(folder)].append({key: sum(found) / len(found) for key, found in others.items()})
        return scores, details

    def _group(self, ids: list[str], prompts: dict[str, Prompt]) -> list[list[str]]:
        """Return the prompts that count together."""
        if self.group_by is None:
            return [[key] for key in ids]
        groups: dict[str, list[str]] = defaultdict(list)
        for key in ids:
            if self.group_by not in prompts[key].tags:
                allowed = f"a tag of all prompts: {', '.join(prompts[key].tags) or 'they have none'}"
                raise InputError("group_by", given=repr(self.group_by), allowed=allowed, do="Name one of them.")
            groups[prompts[key].tags[self.group_by]].append(key)
        return list(groups.values())

    def _summarise(self, columns: dict[str, list[float]], originals: dict[str, list[float]]) -> dict[str, Any]:
        baseline = self.baseline or next(iter(columns))
        for key, name in {"baseline": baseline, "floor": self.floor, "ceiling": self.ceiling}.items():
            if name is not None and name not in columns:
                raise InputError(key, given=repr(name), allowed=", ".join(columns), do="Name a method.")
        ends = (columns[self.floor], columns[self.ceiling]) if self.floor and self.ceiling else None
        methods: dict[str, Any] = {}
        for name, column in columns.items():
            row = {"score": mean_interval(column, level=self.level, seed=self.seed).round()}
            if any(map(any, originals.values())):
                row["original"] = mean_interval(originals[name], level=self.level, seed=self.seed).round()
            if name != baseline:
                found = paired_difference(columns[baseline], column, level=self.level, seed=self.seed)
                row["difference"] = found.round()
                pairs = zip(columns[baseline], column, strict=True)
                wins = [0.5 if before == after else float(after > before) for before, after in pairs]
                row["win_rate"] = mean_interval(wins, level=self.level, seed=self.seed).round()
            if ends and sum(ends[0]) != sum(ends[1]):
                row["recovered"] = recovered_gap(*ends, column, level=self.level, seed=self.seed).round()
            methods[name] = row
        return {"baseline": baseline, "level": self.level, "methods": methods}


def _join(folder: Path, prompts: Mapping[str, Prompt], run: Run) -> list[tuple[Prompt, Completion]]:
    """Read a run's answers, each with its prompt."""
    found: list[tuple[Prompt, Completion]] = []
    for item in read_jsonl(folder / "completions.jsonl", Completion, where=str(folder)):
        if isinstance(item, Dropped):
            run.drop(item)
        elif item.prompt_id in prompts:
            found.append((prompts[item.prompt_id], item))
        else:
            run.drop(Dropped(id=item.id, stage=folder.name, reason="answer to another prompt"))
    return found


def _average(parts: list[dict[str, float]], groups: list[list[str]]) -> list[float]:
    return [sum(part[key] for part in parts for key in keys) / (len(parts) * len(keys)) for keys in groups]
