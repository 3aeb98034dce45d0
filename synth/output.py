"""What goes out: every record into its file, every prompt kept or dropped by name, and the sums of it."""

import math
from collections import Counter
from collections.abc import Sequence

from counterfoil.job import Run
from counterfoil.records import Comparison, Dropped, Exchange, Group, Pair, Prompt, Record, Score, Triplet
from decode.dialogue import Outcome
from synth.budget import Budget
from synth.filter import Filter, LocalFilter

__all__ = ["Output", "count_tokens"]

FILES: dict[type[Record], str] = {
    Pair: "pairs.jsonl",
    Group: "groups.jsonl",
    Triplet: "triplets.jsonl",
    Prompt: "instructions.jsonl",
    Score: "scores.jsonl",
    Comparison: "comparisons.jsonl",
}
"""Where records go."""
ALWAYS = ("prompts.jsonl", "exchanges.jsonl", "scores.jsonl", "dropped.jsonl", "refused.jsonl")
"""What a run writes even where it stays empty, beside what its recipe is for."""


def count_tokens(exchange: Exchange) -> tuple[int, int]:
    """Count the tokens sent, once for all samples, and those generated."""
    found = exchange.completions
    return max((item.num_prompt_tokens for item in found), default=0), sum(item.num_tokens for item in found)


class Output:
    """The files of a run. Filters that remember judge here, in the prompts' order."""

    def __init__(self, run: Run, makes: type[Record], filters: Sequence[Filter], budget: Budget) -> None:
        self._run, self._makes, self._budget = run, makes, budget
        self._judges = [item.open() for item in filters if isinstance(item, LocalFilter) and item.remembers]
        self._made: Counter[type[Record]] = Counter()
        self._scores: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        run.counts |= {"completions": 0, "pairs": 0, "kept": 0}
        run.tokens |= {"prompt": 0, "generated": 0}
        for name in (*ALWAYS, FILES[makes]):
            run.open_output(name)
        run.progress.counts = lambda: {"kept": run.counts["kept"]} | dict(run.dropped)

    def write(self, outcome: Outcome) -> None:
        """Write what came of a prompt."""
        run = self._run
        for exchange in outcome.exchanges:
            run.write("exchanges.jsonl", exchange)
            sent, generated = count_tokens(exchange)
            run.counts["completions"] += len(exchange.completions)
            run.tokens["prompt"] += sent
            run.tokens["generated"] += generated
            self._budget.num_tokens += sent + generated
        is_kept, why = False, outcome.dropped
        # A filter may ask what the scorer has asked: one verdict, kept once.
        verdicts = {record.id: record for record in outcome.records if isinstance(record, Comparison)}
        for record in [*verdicts.values(), *(item for item in outcome.records if not isinstance(item, Comparison))]:
            refused = record if isinstance(record, Dropped) else self._refuse(record)
            if refused is None:
                self._write(record, outcome.prompt)
                is_kept = is_kept or type(record) is self._makes
            else:
                run.write("refused.jsonl", refused)
                why = why or refused
        if is_kept:
            run.counts["kept"] += 1
            return
        why = why or Dropped(id="", stage="recipe", reason="nothing was made")
        if why.stage == "generate":
            run.counts["failed"] = run.counts.get("failed", 0) + 1
        run.drop(why.model_copy(update={"id": outcome.prompt.id}))

    def _refuse(self, record: Record) -> Dropped | None:
        """Refuse what is not wanted any more, and a pair that is too like an earlier one."""
        if type(record) is self._makes and not self._budget.has_room:
            return Dropped(id=_identify(record), stage="budget", reason=self._budget.reached)
        if isinstance(record, Pair):
            return next((no for judge in self._judges if (no := judge(record))), None)
        return None

    def _write(self, record: Record, begun: Prompt) -> None:
        kind = type(record)
        if isinstance(record, Pair | Group | Triplet):
            record = record.model_copy(update={"source_id": begun.id})
        self._run.write(FILES[kind], record)
        self._made[kind] += 1
        self._budget.num_pairs += kind is self._makes
        if isinstance(record, Score) and math.isfinite(record.value):
            self._scores[record.scorer] += 1
            self._sums[record.scorer] += round(record.value * 1e6)  # whole numbers add up alike in any order

    def conclude(self) -> None:
        """Put the sums into the manifest and the closing table."""
        run = self._run
        run.counts["pairs"] = run.figures["pairs"] = self._made[Pair]
        for kind in (Group, Triplet, Prompt):
            if self._made[kind]:
                run.figures[FILES[kind].removesuffix(".jsonl")] = self._made[kind]
        for scorer, count in self._scores.items():
            run.figures[f"mean {scorer}"] = round(self._sums[scorer] / 1e6 / count, 4)


def _identify(record: Record) -> str:
    return record.id if isinstance(record, Pair | Group | Triplet | Prompt | Comparison) else ""
