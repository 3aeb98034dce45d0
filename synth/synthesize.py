r"""Synthesize(Job): prompts to contrasts.

    prompts -> (recipe, asking engines) records -> (filters) pairs.jsonl, groups.jsonl, scores.jsonl
                                        \\-> exchanges.jsonl: all that was sent, all that came back
                                            whatever stops on the way -> dropped.jsonl, refused.jsonl

One pass, in the prompts' order: a prompt's dialogue ends, what it made is filtered and written. Answers are kept as they land
(decode/answers.py), so that an interrupted run goes on, and another run that asks the same asks nobody.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import ClassVar

from counterfoil.errors import ConfigError
from counterfoil.job import Job, Run
from counterfoil.records import Comparison, Dropped, Group, Pair, Prompt, Record, Score, Triplet
from decode.dialogue import Outcome, Speaker, converse
from decode.engine import Engine, require
from decode.engines.vllm import Vllm
from decode.generate import refuse_none
from decode.steps import Steps
from eval.scorer import Scorer
from eval.task import Task
from eval.tasks.constraints import Constraints
from synth.filter import AskingFilter, Filter, LocalFilter
from synth.filters.length_only import LengthOnly
from synth.filters.near_duplicate import NearDuplicate
from synth.recipe import Recipe
from synth.recipes.best_of_n import BestOfN

__all__ = ["Synthesize"]

FILES: dict[type[Record], str] = {
    Pair: "pairs.jsonl",
    Group: "groups.jsonl",
    Triplet: "triplets.jsonl",
    Prompt: "instructions.jsonl",
    Score: "scores.jsonl",
    Comparison: "comparisons.jsonl",
}
"""Where records go."""


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
        """Compare what is asked with what the engines give, and the roles with those that there are."""
        known: set[str] = set()
        for part in (self.recipe, self._scorer, *self.filters):
            for role, needs in part.asks().items():
                given = self.roles.get(role)
                where = f"roles.{role}.engine" if given else "engine"
                require(given.engine if given else self.engine, needs, where=where)
                known.add(role)
        for role in self.roles.keys() - (known - {""}):
            allowed = ", ".join(sorted(known - {""})) or "none: the main model alone is asked"
            raise ConfigError(f"roles.{role}", given="a role that nothing asks", allowed=allowed, do="Remove it.")

    def work(self, run: Run) -> None:
        """Hold a dialogue about each prompt; filter and write what comes of it."""
        run.facts["seeds"] = {"seed": self.seed}
        for name in ("prompts.jsonl", "exchanges.jsonl", "scores.jsonl", "dropped.jsonl", "refused.jsonl"):
            run.open_output(name)
        run.open_output(FILES[self.recipe.makes])
        judges = [item.open() for item in self.filters if isinstance(item, LocalFilter) and item.remembers]
        main = Speaker(model=self.model, engine=self.engine, adapter=self.adapter)
        outcomes = converse(
            run,
            {"": main} | self.roles,
            self._unique(run),
            self._hold,
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
        made = {FILES[kind].removesuffix(".jsonl"): counts[kind.__name__] for kind in (Pair, Group, Triplet, Prompt)}
        run.figures |= {"pairs": counts["Pair"]} | {name: count for name, count in made.items() if count}
        for name, count in counts.items():
            if name.startswith("scores by "):
                scorer = name.removeprefix("scores by ")
                run.figures[f"mean {scorer}"] = round(counts[f"sum of {scorer}"] / 1e6 / count, 4)

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

    def _hold(self, prompt: Prompt) -> Steps[Sequence[Record]]:
        """Hold a prompt's dialogue: what its recipe makes, less what a filter that remembers nothing refuses."""
        made = yield from self.recipe.make(prompt, self._scorer)
        kept: list[Record] = []
        for record in made:
            found = (yield from self._sift(prompt, record)) if isinstance(record, Pair) else None
            kept.append(found or record)
        return kept

    def _sift(self, prompt: Prompt, pair: Pair) -> Steps[Dropped | None]:
        for item in self.filters:
            found = None
            if isinstance(item, AskingFilter):
                found = yield from item.judge_pair(prompt, pair)
            elif isinstance(item, LocalFilter) and not item.remembers:
                found = item.open()(pair)
            if found is not None:
                return found
        return None

    @cached_property
    def _scorer(self) -> Scorer:
        return self.scorer or self.task.scorer()

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
            found = record if isinstance(record, Dropped) else None
            if isinstance(record, Pair):
                found = next((no for judge in judges if (no := judge(record))), None)
            if found is not None:
                why = why or found
                run.write("refused.jsonl", found)
                continue
            run.write(FILES[type(record)], record)
            counts[type(record).__name__] += 1
            if isinstance(record, Score):
                counts[f"scores by {record.scorer}"] += 1
                counts[f"sum of {record.scorer}"] += round(record.value * 1e6)
            made += isinstance(record, self.recipe.makes)
        if made:
            counts["kept"] += 1
        else:
            assert why is not None, "a recipe made nothing and gave no reason"
            counts["failed"] += why.stage == "generate"
            run.drop(why.model_copy(update={"id": outcome.prompt.id}))
