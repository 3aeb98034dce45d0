"""What goes out: every record into its file, every prompt kept or dropped by name, and the sums of it."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from counterfoil.errors import InputError
from counterfoil.job import Run
from counterfoil.records import Comparison, Dropped, Exchange, Group, Pair, Prompt, Record, Score, Triplet
from decode.dialogue import Outcome
from synth.budget import Budget
from synth.filter import Filter, LocalFilter

__all__ = ["FILES", "Judged", "Output", "count_tokens"]

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


UNJUDGED = 64
"""Prompts that the scorer cannot judge, with none that it can, before a run is given up."""


class Output:
    """The files of a run. Filters that remember judge here, in the prompts' order."""

    def __init__(self, run: Run, makes: type[Record], filters: Sequence[Filter], budget: Budget) -> None:
        self._run, self._makes, self._budget = run, makes, budget
        late = [item for item in filters if isinstance(item, LocalFilter) and item.remembers]
        self._judges = [(item.takes, item.open()) for item in late]
        self._made: Counter[type[Record]] = Counter()
        self._scores: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._shape = {"mean margin": 0.0, "chosen longer": 0.0, "cut off": 0.0}
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
        if outcome.is_failed:
            run.counts["failed"] = run.counts.get("failed", 0) + 1
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
        run.drop(why.model_copy(update={"id": outcome.prompt.id}))

    def _refuse(self, record: Record) -> Dropped | None:
        """Refuse what is not wanted any more, and what a filter refuses; what all have passed is remembered by them."""
        if type(record) is self._makes and not self._budget.has_room:
            return Dropped(id=_identify(record), stage="budget", reason=self._budget.reached)
        passed: list[Callable[[], None]] = []
        for takes, judge in self._judges:
            found = judge(record) if isinstance(record, takes) else None
            if isinstance(found, Dropped):
                return found
            passed += [found] if found is not None else []
        for remember in passed:
            remember()
        return None

    def _write(self, record: Record, begun: Prompt) -> None:
        kind = type(record)
        if isinstance(record, Pair | Group | Triplet):
            record = record.model_copy(update={"source_id": begun.id})
        self._run.write(FILES[kind], record)
        self._made[kind] += 1
        self._budget.num_pairs += kind is self._makes
        if isinstance(record, Pair):
            sides = [len(side[-1]["content"].strip()) for side in (record.chosen, record.rejected)]
            self._shape["mean margin"] += record.score_chosen - record.score_rejected
            self._shape["chosen longer"] += sides[0] > sides[1]
            self._shape["cut off"] += bool(record.cut)
        if isinstance(record, Score) and math.isfinite(record.value):
            self._scores[record.scorer] += 1
            self._sums[record.scorer] += round(record.value * 1e6)  # whole numbers add up alike in any order

    def conclude(self) -> None:
        """Put the sums into the manifest and the closing table: of pairs the mean margin, and shares of two kinds of them."""
        run = self._run
        run.counts["pairs"] = run.figures["pairs"] = self._made[Pair]
        if self._made[Pair]:
            for name, total in self._shape.items():
                run.figures[name] = round(total / self._made[Pair], 4)
        for kind in (Group, Triplet, Prompt):
            if self._made[kind]:
                run.figures[FILES[kind].removesuffix(".jsonl")] = self._made[kind]
        for scorer, count in self._scores.items():
            run.figures[f"mean {scorer}"] = round(self._sums[scorer] / 1e6 / count, 4)


class Judged:
    """Whether the scorer can judge at all: a row that it cannot is dropped, but a scorer that can judge none is a mistake."""

    def __init__(self) -> None:
        self._num_judged = self._num_not = 0
        self._why = ""

    def see(self, outcome: Outcome) -> None:
        """Count a prompt. Raises InputError where none of the first UNJUDGED could be judged."""
        dropped = outcome.dropped
        if dropped is not None and (dropped.stage, dropped.reason) == ("score", "cannot be judged"):
            self._num_not += 1
            self._why = dropped.detail
            if self._num_not >= UNJUDGED:
                self.conclude()
        elif any(isinstance(record, Score) for record in outcome.records):
            self._num_judged += 1

    def conclude(self) -> None:
        """Raise InputError where none of several could be judged."""
        if self._num_not and not self._num_judged:
            given = f"{self._num_not} prompts, none of which it can judge; the last: {self._why}"
            raise InputError(
                "scorer", given=given, allowed="one for these prompts", do="Choose another, or mend the rows."
            )


def _identify(record: Record) -> str:
    return record.id if isinstance(record, Pair | Group | Triplet | Prompt | Comparison) else ""
