r"""Synthesize(Job): prompts to contrasts.

    prompts -> (recipe, asking engines) records -> (filters) pairs.jsonl, groups.jsonl, scores.jsonl
                                        \\-> exchanges.jsonl: all that was sent, all that came back
                                            whatever stops on the way -> dropped.jsonl, refused.jsonl

One pass, in the prompts' order (intake.py): a prompt's dialogue ends, what it made is filtered and written (output.py), until
no prompt is left or a limit is met (budget.py). Answers are kept as they land (decode/answers.py), so that an interrupted run
goes on, and another run that asks the same asks nobody. An estimate (estimate.py) is a run of a few prompts that stops there.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from counterfoil.config import dump
from counterfoil.errors import ConfigError, RunError
from counterfoil.inputs import AdapterName, ModelName
from counterfoil.job import Job, Run
from counterfoil.records import Dropped, Pair, Prompt, Record
from decode.dialogue import converse
from decode.engine import Engine, require
from decode.engines.vllm import Vllm
from decode.generate import refuse_none
from decode.speaker import Price, Role, Speaker
from decode.steps import Steps
from eval.scorer import Scorer
from eval.task import Task
from eval.tasks.constraints import Constraints
from synth.budget import Budget
from synth.estimate import Estimate, Probe, Probed, spread
from synth.filter import AskingFilter, Filter, Judge, LocalFilter
from synth.filters.length_only import LengthOnly
from synth.filters.near_duplicate import NearDuplicate
from synth.intake import Intake
from synth.output import FILES, Judged, Output
from synth.recipe import Recipe
from synth.recipes.best_of_n import BestOfN

__all__ = ["Synthesize"]


class Synthesize(Job):
    """Write preference pairs with an engine."""

    VERB: ClassVar[str] = "synth"
    LIMITS: ClassVar[frozenset[str]] = frozenset({"target_pairs", "max_tokens_total", "max_seconds"})

    task: Task = Constraints()
    """Where the prompts come from: its training split."""
    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    engine: Engine = Vllm()
    """What runs the model."""
    adapter: AdapterName | None = None
    """Folder of a PEFT adapter on the model (for `openai_api`: its name on the server)."""
    price: Price | None = None
    """What the model costs, for an estimate."""
    roles: dict[str, Role] = {}
    """Other models of the recipe and the scorer, by role; the main one stands in for those, and for fields of those, that are
    not given."""
    recipe: Recipe = BestOfN()
    """How contrasts are made."""
    scorer: Scorer | None = None
    """What tells a good answer from a bad one; None takes the task's own."""
    filters: tuple[Filter, ...] | None = None
    """What must be passed, in this order; None is near_duplicate and length_only where pairs are made, else nothing."""
    seed: int = 0
    """Of all draws; each prompt derives its own."""
    target_pairs: int | None = Field(default=None, ge=1)
    """Stop with exactly so many pairs that passed, or of what else the recipe is for."""
    max_tokens_total: int | None = Field(default=None, ge=1)
    """Stop once so many tokens, sent and generated, went into what is written."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Ask nothing more after so many seconds of work, those before an interruption included."""

    _num_probes: int = PrivateAttr(default=0)
    """Prompts of an estimate; 0 is a run."""

    def check(self) -> None:
        """Compare what is asked with what the engines give, and the roles with those that there are."""
        known: set[str] = set()
        for at, item in enumerate(self._filters):
            if self.recipe.makes not in item.takes:
                given = f"{dump(item)['name']}, which judges {_list(item.takes)}, where {_list([self.recipe.makes])} are made"
                raise ConfigError(f"filters[{at}]", given=given, allowed="a filter of what is made", do="Remove it.")
        for part in (self.recipe, self._scorer, *self._filters):
            for role, needs in part.asks().items():
                own = role in self.roles and self.roles[role].engine is not None
                speakers = self._speakers
                require(
                    speakers.get(role, speakers[""]).engine, needs, where=f"roles.{role}.engine" if own else "engine"
                )
                known.add(role)
        for role in self.roles.keys() - (known - {""}):
            allowed = ", ".join(sorted(known - {""})) or "none: the main model alone is asked"
            raise ConfigError(f"roles.{role}", given="a role that nothing asks", allowed=allowed, do="Remove it.")

    def work(self, run: Run) -> None:
        """Hold a dialogue about each prompt; filter and write what comes of it."""
        if self._num_probes:
            raise Probed(self._probe(run))
        run.facts["seeds"] = {"seed": self.seed}
        budget = Budget(run, pairs=self.target_pairs, tokens=self.max_tokens_total, seconds=self.max_seconds)
        intake = Intake(run, iter(self.task.prompts("train")))
        output = Output(run, self.recipe.makes, self._filters, budget)
        judged = Judged()
        outcomes = converse(
            run,
            self._speakers,
            intake.begin(budget.may_begin),
            self._open(),
            seed=self.seed,
            total=self.task.size("train"),
            deadline=budget.deadline,
        )
        try:
            with closing(outcomes):
                for outcome in outcomes:
                    judged.see(outcome)
                    output.write(outcome)
                    intake.end(outcome.prompt)
                    budget.end_prompt()
                    if budget.reached:
                        break
        finally:
            budget.note()
        intake.drop_rest(budget.reached)
        refuse_none(run.counts["prompts"], run.dropped, where="task")
        judged.conclude()
        output.conclude()
        budget.conclude()

    def estimate(
        self, folder: Path | str | None = None, *, label: str | None = None, num_prompts: int = 32, quiet: bool = False
    ) -> Estimate:
        """Ask about a few prompts in the run's folder, and say what all would take. Raises RunError where it is done."""
        job = self.model_copy()
        job._num_probes = num_prompts
        try:
            done = job.run(folder, label=label, quiet=quiet)
        except Probed as probed:
            return probed.estimate
        raise RunError(
            str(done.folder), given="a finished run", allowed="one to be run", do="See `counterfoil show FOLDER`."
        )

    def _probe(self, run: Run) -> Estimate:
        size = self.task.size("train")
        prompts = spread(self.task.prompts("train"), size, self._num_probes)
        probe, started, num_fresh = Probe(), time.monotonic(), 0
        for outcome in converse(
            run, self._speakers, prompts, self._open(), seed=self.seed, total=self._num_probes, stage="estimate"
        ):
            probe.add(outcome, self.recipe.makes)
            num_fresh += outcome.is_fresh
        if num_fresh:
            opening_s = run.facts["opening_s"]
            times = [(time.monotonic() - started - opening_s) / num_fresh, opening_s]
            run.store.put("estimate", "times", json.dumps(times))
        refuse_none(probe.num_prompts, run.dropped, where="task")
        probe.seconds_each, probe.opening_s = json.loads(run.store.get("estimate", "times") or "[null, 0]")
        return Estimate.make(
            probe,
            size or probe.num_prompts,
            self._speakers,
            pairs=self.target_pairs,
            tokens=self.max_tokens_total,
            seconds=self.max_seconds,
        )

    @property
    def _speakers(self) -> Mapping[str, Speaker]:
        main = Speaker(model=self.model, engine=self.engine, adapter=self.adapter, price=self.price)
        return {"": main} | {role: given.speak_for(main) for role, given in self.roles.items()}

    def _open(self) -> Callable[[Prompt], Steps[Sequence[Record]]]:
        """Open the filters that judge a pair by itself, before anything is asked; return what holds a dialogue."""
        judges = [
            item.open() if isinstance(item, LocalFilter) and not item.remembers else _keep for item in self._filters
        ]
        return partial(self._hold, judges)

    def _hold(self, judges: Sequence[Judge], prompt: Prompt) -> Steps[Sequence[Record]]:
        """Hold a prompt's dialogue: what its recipe makes, less what a filter that remembers nothing refuses."""
        made = yield from self._recipe.make(prompt, self._scorer)
        kept: list[Record] = []
        for record in made:
            found = yield from self._sift(judges, prompt, record)
            kept.append(found or record)
        return kept

    def _sift(self, judges: Sequence[Judge], prompt: Prompt, record: Record) -> Steps[Dropped | None]:
        for item, judge in zip(self._filters, judges, strict=True):
            if not isinstance(record, item.takes):
                continue
            if isinstance(item, AskingFilter) and isinstance(record, Pair):
                found = yield from item.judge_pair(prompt, record)
            else:
                found = judge(record)
            if isinstance(found, Dropped):
                return found
        return None

    @cached_property
    def _recipe(self) -> Recipe:
        return self.recipe.with_seed(self.seed)

    @cached_property
    def _scorer(self) -> Scorer:
        return self.scorer or self.task.scorer()

    @cached_property
    def _filters(self) -> tuple[Filter, ...]:
        if self.filters is not None:
            return self.filters
        return (NearDuplicate(), LengthOnly()) if self.recipe.makes is Pair else ()

    def describe(self) -> dict[str, Any]:
        """Return the resolved config, filters and all."""
        return super().describe() | {"filters": dump(self._filters)}


def _keep(record: Record) -> None:
    """Keep a record: it is judged elsewhere."""


def _list(kinds: Iterable[type[Record]]) -> str:
    return ", ".join(FILES[kind].removesuffix(".jsonl") for kind in kinds)
