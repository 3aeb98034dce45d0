r"""Synthesize(Job): prompts to contrasts.

    prompts -> (recipe, asking engines) records -> (filters) pairs.jsonl, groups.jsonl, scores.jsonl
                                        \\-> exchanges.jsonl: all that was sent, all that came back
                                            whatever stops on the way -> dropped.jsonl, refused.jsonl

One pass, in the prompts' order: a prompt's dialogue ends, what it made is filtered and written. Answers are kept as they land
(decode/answers.py), so that an interrupted run goes on, and another run that asks the same asks nobody.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import ClassVar

from counterfoil.errors import ConfigError
from counterfoil.job import Job, Run
from counterfoil.records import Dropped, Group, Pair, Prompt, Record, Score
from decode.dialogue import Outcome, Speaker, converse
from decode.engine import Engine, require
from decode.engines.vllm import Vllm
from decode.generate import refuse_none
from eval.scorer import Scorer
from eval.task import Task
from eval.tasks.constraints import Constraints
from synth.filter import Filter
from synth.filters.length_only import LengthOnly
from synth.filters.near_duplicate import NearDuplicate
from synth.recipe import Recipe
from synth.recipes.best_of_n import BestOfN

__all__ = ["Synthesize"]

FILES: dict[type[Record], str] = {Pair: "pairs.jsonl", Group: "groups.jsonl", Score: "scores.jsonl"}
"""Where a recipe's records go."""


class Synthesize(Job):
    """Write preference pairs with an engine."""

    VERB: ClassVar[str] = "synth"

    task: Task = Constraints()
    """Where the prompts come from: its training split."""
    model: str = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    engine: Engine = Vllm()
    """What runs the model."""
    adapter: str | None = None
    """Folder of a PEFT adapter on the model (for `openai_api`: its name on the server)."""
    roles: dict[str, Speaker] = {}
    """Other models of the recipe and the scorer, by role; the main one stands in for those that are not given."""
    recipe: Recipe = BestOfN()
    """How contrasts are made."""
    scorer: Scorer | None = None
    """What tells a good answer from a bad one; None takes the task's own."""
    filters: tuple[Filter, ...] = (NearDuplicate(), LengthOnly())
    """What a pair must pass, in this order."""
    seed: int = 0
    """Of all draws; each prompt derives its own."""

    def check(self) -> None:
        """Compare what the recipe needs with what the engine gives, and the roles with those that there are."""
        require(self.engine, self.recipe.needs, where="engine")
        known = self.recipe.roles | (self.scorer.roles if self.scorer else frozenset())
        for role in self.roles:
            if role not in known:
                allowed = ", ".join(sorted(known)) or "none: this recipe asks the main model alone"
                raise ConfigError(f"roles.{role}", given="a role that nothing asks", allowed=allowed, do="Remove it.")

    def work(self, run: Run) -> None:
        """Hold a dialogue about each prompt; filter and write what comes of it."""
        run.facts["seeds"] = {"seed": self.seed}
        for name in ("prompts.jsonl", "exchanges.jsonl", "dropped.jsonl", "refused.jsonl", *FILES.values()):
            run.open_output(name)
        scorer, judges = self.scorer or self.task.scorer(), [item.open() for item in self.filters]
        main = Speaker(model=self.model, engine=self.engine, adapter=self.adapter)
        outcomes = converse(
            run,
            {"": main} | self.roles,
            self._unique(run),
            lambda prompt: self.recipe.make(prompt, scorer),
            seed=self.seed,
            total=self.task.size("train"),
        )
        counts: Counter[str] = Counter()
        for outcome in outcomes:
            self._write(run, outcome, judges, counts)
        refuse_none(run.counts["prompts"], run.dropped, where="task")
        run.counts |= {"failed": counts["failed"]} if counts["failed"] else {}
        run.counts |= {"completions": counts["completions"], "pairs": counts["Pair"], "kept": counts["kept"]}
        run.tokens |= {"prompt": counts["prompt_tokens"], "generated": counts["tokens"]}
        mean = round(counts["score_millionths"] / 1e6 / max(counts["Score"], 1), 4)
        run.figures |= {"pairs": counts["Pair"], "mean_score": mean}

    def _unique(self, run: Run) -> Iterator[Prompt]:
        """Yield each prompt once, keeping it in prompts.jsonl; the ids seen lie in a temporary table, not in memory."""
        seen = run.store.open_set("prompts")
        run.counts |= {"read": 0, "prompts": 0}
        for item in run.sift(self.task.prompts("train")):
            if not seen(item.id):
                run.drop(Dropped(id=item.id, stage="read", reason="duplicate prompt"))
            else:
                run.counts["prompts"] += 1
                run.write("prompts.jsonl", item)
                yield item

    def _write(
        self, run: Run, outcome: Outcome, judges: list[Callable[[Pair], Dropped | None]], counts: Counter[str]
    ) -> None:
        for exchange in outcome.exchanges:
            run.write("exchanges.jsonl", exchange)
            counts["completions"] += len(exchange.completions)
            counts["tokens"] += sum(item.num_tokens for item in exchange.completions)
            counts["prompt_tokens"] += max((item.num_prompt_tokens for item in exchange.completions), default=0)
        made, why = 0, outcome.dropped
        for record in outcome.records:
            found = next((no for judge in judges if (no := judge(record))), None) if isinstance(record, Pair) else None
            if found is not None:
                why = why or found
                run.write("refused.jsonl", found)
                continue
            run.write(FILES[type(record)], record)
            counts[type(record).__name__] += 1
            counts["score_millionths"] += round(record.value * 1e6) if isinstance(record, Score) else 0
            made += isinstance(record, self.recipe.makes)
        if made:
            counts["kept"] += 1
        else:
            assert why is not None, "a recipe made nothing and gave no reason"
            counts["failed"] += why.stage == "generate"
            run.drop(why.model_copy(update={"id": outcome.prompt.id}))
