"""Evaluate(Job): a model, and an adapter on it, on held-out prompts, with intervals.

The base and the adapter answer the same prompts greedily; every difference is paired by prompt. Beside the scores stand
side conditions that tell a better model from one that games the scorer with broken text: the log-probability of plain
prose, and how varied the answers' words are.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.jsonl import write_json
from counterfoil.records import Completion, Dropped, Prompt, Score, content_id
from decode.engine import Engine, Given, Request, Sampling, Session, require
from decode.engines.vllm import Vllm
from decode.generate import ask, draw_seed, refuse_none
from eval.plain_text import PASSAGES
from eval.stats import mean_interval, paired_difference
from eval.task import Task
from eval.tasks.constraints import Constraints

__all__ = ["Evaluate"]

EXAMPLES_RULE = "the held-out prompts with the smallest ids among: newly passed, newly failed, failed both times"


class Evaluate(Job):
    """Score a model on a task's held-out split; with an adapter, before and after."""

    VERB: ClassVar[str] = "eval"

    task: Task = Constraints()
    """Where the prompts and the scorer come from."""
    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    adapter: InputPath | None = None
    """Folder of a PEFT adapter; without one the bare model alone is scored."""
    engine: Engine = Vllm()
    """What runs the model."""
    sampling: Sampling = Sampling(max_new_tokens=128)
    """Greedy by default."""
    plain_text: bool = True
    """Also measure the log-probability of plain prose."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0
    """Of draws, if any, and of the resampling."""

    def check(self) -> None:
        """Compare what is needed with what the engine gives."""
        needs = (
            {"chat"} | ({"adapters"} if self.adapter else set()) | ({"given_logprobs"} if self.plain_text else set())
        )
        require(self.engine, needs, where="engine")

    def work(self, run: Run) -> None:
        """Answer, score, compare."""
        run.facts["seeds"] = {"seed": self.seed}
        run.open_output("dropped.jsonl")
        prompts = list(run.sift(self.task.prompts("heldout")))
        refuse_none(len(prompts), run.dropped, where="task")
        sides: dict[str, str | None] = {"base": None}
        if self.adapter is not None:
            sides["adapter"] = str(self.adapter)
        reads: dict[str, Callable[[Request], tuple[Completion, ...] | Dropped]] = {}
        for name, adapter in sides.items():
            requests = [self._request(prompt, adapter) for prompt in prompts]
            left = self.plain_text and run.store.count(f"prose {name}") < len(PASSAGES)
            reads[name] = ask(
                run,
                self.engine,
                self.model,
                lambda requests=requests: requests,
                total=len(requests),
                stage=name,
                adapter=adapter,
                then=partial(_score_prose, run, name, adapter) if left else None,
            )
        scorer = self.task.scorer()
        answers: list[dict[str, Any]] = []
        for prompt in prompts:
            found = {name: read(self._request(prompt, sides[name])) for name, read in reads.items()}
            row = self._judge(run, prompt, found, scorer.score)
            if row is not None:
                answers.append(row)
                run.write("results.jsonl", {key: value for key, value in row.items() if key != "numbers"})
        run.counts |= {"kept": len(answers), "failed": len(prompts) - len(answers)}
        summary = self._summarise(run, answers, list(sides))
        write_json(run.folder / "summary.json", summary)
        run.figures |= _headline(summary)

    def _request(self, prompt: Prompt, adapter: str | None) -> Request:
        seed = draw_seed(self.seed, prompt.id)
        return Request(prompt.id, prompt.messages, self.sampling.model_copy(update={"seed": seed, "n": 1}), adapter)

    def _judge(
        self, run: Run, prompt: Prompt, answers: Mapping[str, tuple[Completion, ...] | Dropped], score: Any
    ) -> dict[str, Any] | None:
        row: dict[str, Any] = {
            "prompt_id": prompt.id,
            "prompt": prompt.messages[-1]["content"],
            "kinds": prompt.tags.get("kinds", ""),
            "numbers": {},
        }
        for name, answer in answers.items():
            if isinstance(answer, Dropped):
                run.drop(answer)
                return None
            completion: Completion = answer[0]
            verdict: Score = score(prompt, completion)
            passed = verdict.value >= 1.0
            row[name] = {"text": completion.text, "passed": passed, "score": verdict.value, "detail": verdict.detail}
            row["numbers"][name] = {
                "pass rate": float(passed),
                "score": verdict.value,
                "distinct words": _distinct(completion.text),
                "tokens": float(completion.num_tokens),
            }
            run.tokens["generated"] = run.tokens.get("generated", 0) + completion.num_tokens
        return row

    def _summarise(self, run: Run, answers: Sequence[dict[str, Any]], names: list[str]) -> dict[str, Any]:
        units = {"pass rate": "share", "score": "share", "distinct words": "share", "tokens": "tokens"}
        columns: dict[str, dict[str, list[float]]] = {
            metric: {name: [row["numbers"][name][metric] for row in answers] for name in names} for metric in units
        }
        if self.plain_text:
            prose = {name: dict(run.store.items(f"prose {name}")) for name in names}
            common = sorted(set.intersection(*(set(found) for found in prose.values())))
            columns["plain text log-prob"] = {name: [float(prose[name][key]) for key in common] for name in names}
            units["plain text log-prob"] = "nats a token"
        rows = [self._row(metric, units[metric], values) for metric, values in columns.items() if all(values.values())]
        return {
            "num_prompts": len(answers),
            "level": self.level,
            "rows": rows,
            "by_kind": _by_kind(answers, names),
            "examples": _choose_examples(answers),
            "examples_rule": EXAMPLES_RULE,
        }

    def _row(self, metric: str, unit: str, values: dict[str, list[float]]) -> dict[str, Any]:
        row: dict[str, Any] = {"metric": metric, "unit": unit}
        for name, column in values.items():
            row[name] = mean_interval(column, level=self.level, seed=self.seed).round()
        if "adapter" in values:
            found = paired_difference(values["base"], values["adapter"], level=self.level, seed=self.seed)
            row["difference"] = found.round()
        return row


def _score_prose(run: Run, name: str, adapter: str | None, session: Session) -> None:
    """Keep each passage's mean log-probability a token, in nats."""
    given = [Given(content_id(text), "", text, adapter) for text in PASSAGES]
    with run.progress.stage(f"{name}: plain text", total=len(given)) as shown:
        for result in session.logprobs(given):
            if result.failure is not None:
                run.drop(Dropped(id=result.id, stage=f"{name}: plain text", reason=result.failure))
            elif result.token_logprobs:
                mean = sum(result.token_logprobs) / len(result.token_logprobs)
                run.store.put(f"prose {name}", result.id, repr(mean))
            shown.advance()


def _distinct(text: str) -> float:
    words = text.lower().split()
    return len(set(words)) / len(words) if words else 0.0


def _by_kind(answers: Sequence[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Average each constraint kind's own check over the prompts that have it."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in answers:
        for kind in filter(None, row["kinds"].split("+")):
            for name in names:
                found[kind][name].append(float(bool(row[name]["detail"].get(kind, row[name]["passed"]))))
    return [
        {"kind": kind, "num": len(sides[names[0]])} | {name: sum(v) / len(v) for name, v in sides.items()}
        for kind, sides in sorted(found.items())
    ]


def _choose_examples(answers: Sequence[dict[str, Any]]) -> list[str]:
    """Take one prompt of each fate by EXAMPLES_RULE; what a fate lacks, the next smallest ids fill up to three."""
    ordered = sorted(answers, key=lambda row: row["prompt_id"])
    fates = ((False, True), (True, False), (False, False))
    chosen: list[str] = []
    for before, after in fates:
        fits = (
            row
            for row in ordered
            if (row["base"]["passed"], row.get("adapter", row["base"])["passed"]) == (before, after)
        )
        chosen += [row["prompt_id"] for row in [next(fits, None)] if row is not None]
    rest: Iterator[str] = (row["prompt_id"] for row in ordered if row["prompt_id"] not in chosen)
    return (chosen + list(rest))[:3]


def _headline(summary: dict[str, Any]) -> dict[str, Any]:
    by_name = {row["metric"]: row for row in summary["rows"]}
    figures: dict[str, Any] = {}
    for metric, key in (("pass rate", "pass_rate"), ("plain text log-prob", "plain_text")):
        for side in ("base", "adapter", "difference"):
            if metric in by_name and side in by_name[metric]:
                figures[f"{key}_{side}"] = by_name[metric][side]
    return json.loads(json.dumps(figures))
