"""Answers(Job): finished decode runs on the same prompts, scored, with paired intervals against one of them.

A win is a prompt with a higher score than the baseline's; a tie counts half. Of several seeds of one method (eval/parts.py),
and of finished runs of this job that are joined (`runs`), a prompt's score is the mean. Prompts that share a tag
(`group_by`), such as several about one fact, are no independent draws: their mean is then one value, and the intervals are
over groups.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.job import Job, Run
from counterfoil.jsonl import read_jsonl, write_json
from counterfoil.records import Completion, Dropped, Prompt, Score
from decode.generate import read_prompts
from decode.speaker import Role
from eval.grading import check_roles, grade_all
from eval.parts import check_parts, list_parts, name_method, name_part
from eval.scorer import Scorer
from eval.scorers.exact_answer import ExactAnswer
from eval.seeds import check_runs, read_runs
from eval.stats import mean_interval, paired_difference, recovered_gap

__all__ = ["Answers"]

_Row = dict[str, Any]
"""Of one part and one prompt: `part`, `prompt_id`, `group` (what counts together), `score`, `original`."""


class Answers(Job):
    """Score what several methods answered."""

    VERB: ClassVar[str] = "eval"

    prompts: InputPath | None = None
    """JSONL of the prompts, with the references that the scorer needs."""
    parts: tuple[Path, ...] = ()
    """Folders of finished decode runs on them."""
    runs: tuple[Path, ...] = ()
    """Instead of prompts and parts: finished runs of this job, of the same methods with other seeds. Their scores stand; the
    prompts may be others in each, and one that several asked counts once, by its mean."""
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
        """Return the prompts and each part's answers, or the runs' scores."""
        scored = {f"runs[{at}]": folder / "scores.jsonl" for at, folder in enumerate(self.runs)}
        return super().inputs() | scored | list_parts(self.parts)

    def check(self) -> None:
        """Raise InputError for a part or run that is not finished, and what `check_roles` raises."""
        check_runs(self.runs, instead_of="parts", given=self.parts, same=("scorer", "roles", "group_by"))
        theirs = sorted(self.model_fields_set & {"prompts", "scorer", "roles", "group_by"}) if self.runs else []
        if theirs or (self.parts and self.prompts is None):
            given = ", ".join(theirs) or "parts without prompts"
            allowed = "prompts beside parts; beside runs none of what they have scored by"
            raise InputError("prompts, runs", given=given, allowed=allowed, do="Give prompts=FILE.jsonl parts=RUN,RUN.")
        check_parts(self.parts)
        check_roles(self.scorer, self.roles)

    def work(self, run: Run) -> None:
        """Score every answer, or take the runs' scores; compare methods over the prompts that all of a run answered."""
        rows = self._join() if self.runs else self._score(run)
        summary = self._summarise(_average(rows, "score"), _average(rows, "original"))
        num_prompts, num_groups = (len({row[key] for row in rows}) for key in ("prompt_id", "group"))
        write_json(run.folder / "summary.json", summary | {"num_prompts": num_prompts, "num_groups": num_groups})
        run.counts["kept"] = num_prompts
        run.figures |= {f"{name}": row["score"] for name, row in summary["methods"].items()}

    def _join(self) -> list[_Row]:
        """Return the runs' rows. Raises InputError for a run that lacks a method: it would be averaged over others."""
        found = list(read_runs(self.runs, "scores.jsonl"))
        known = [
            {name_method(Path(row["part"])) for at, row in found if at == number} for number in range(len(self.runs))
        ]
        for folder, methods in zip(self.runs, known, strict=True):
            if lacking := set.union(*known) - methods:
                given, do = f"no answers of {', '.join(sorted(lacking))}", "Take runs that have the same methods."
                raise InputError(f"runs: {folder}", given=given, allowed="the same methods in all", do=do)
        return [row for _, row in found]

    def _score(self, run: Run) -> list[_Row]:
        """Return a row for each part and each prompt that all parts answered, and write it.

        A prompt's answers are graded together, those of all parts: a judge may compare them with each other.
        """
        assert self.prompts is not None, "checked"
        prompts: dict[str, Prompt] = {}
        for item in run.sift(read_prompts(self.prompts, column="prompt", where="prompts", negative="may")):
            prompts[item.id] = item
            prompts[Prompt.make(item.messages, reference=item.reference).id] = item
        answered: dict[str, list[Completion]] = defaultdict(list)
        sources: dict[str, list[int]] = defaultdict(list)
        for at, folder in enumerate(self.parts):
            for prompt, completion in _join(folder, prompts, run):
                # Another number for each: the same words of two parts are two answers.
                answered[prompt.id].append(completion.renumber(prompt_id=prompt.id, index=len(answered[prompt.id])))
                sources[prompt.id].append(at)
        found: list[dict[str, list[Score]]] = [defaultdict(list) for _ in self.parts]
        by_id = {item.id: item for item in prompts.values()}
        for key, verdicts in grade_all(run, self.scorer, self.roles, answered, by_id, seed=self.seed):
            for at, verdict in zip(sources[key], verdicts, strict=True):
                found[at][key].append(verdict)
        run.open_output("scores.jsonl")
        rows: list[_Row] = []
        for key in sorted(by_id):
            if missing := [name_part(part) for part, own in zip(self.parts, found, strict=True) if key not in own]:
                run.drop(Dropped(id=key, stage="compare", reason="not in all parts", detail=", ".join(missing)))
                continue
            for part, own in zip(self.parts, found, strict=True):
                said = [float(bool(verdict.detail.get("original"))) for verdict in own[key]]
                row: _Row = {"part": name_part(part), "prompt_id": key, "group": self._group(by_id[key])}
                row |= {"score": fmean(verdict.value for verdict in own[key]), "original": fmean(said)}
                rows.append(row)
                run.write("scores.jsonl", row)
        if not rows:
            raise InputError("parts", given="no prompt that all answered", allowed="runs on `prompts`", do="Check.")
        return rows

    def _group(self, prompt: Prompt) -> str:
        """Return what a prompt's values are averaged under."""
        if self.group_by is None:
            return prompt.id
        if self.group_by not in prompt.tags:
            allowed = f"a tag of all prompts: {', '.join(prompt.tags) or 'they have none'}"
            raise InputError("group_by", given=repr(self.group_by), allowed=allowed, do="Name one of them.")
        return prompt.tags[self.group_by]

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


def _average(rows: Sequence[_Row], figure: str) -> dict[str, list[float]]:
    """Return each method's means over its rows of a group, groups in one order."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[name_method(Path(row["part"]))][row["group"]].append(row[figure])
    groups = sorted({row["group"] for row in rows})
    return {name: [fmean(of[group]) for group in groups] for name, of in found.items()}
