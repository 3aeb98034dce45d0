"""What a synthesis would take, by a few of its prompts: requests, tokens, time, money.

They are drawn from the task's rows, and their answers are kept where the run will look for them: it asks for none again.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from counterfoil.progress import show_seconds
from counterfoil.records import Dropped, Prompt, Record
from decode.dialogue import Outcome
from decode.speaker import Price, Speaker
from synth.output import count_tokens

__all__ = ["Estimate", "Probe", "Probed", "spread"]

READ_AT_MOST = 20_000
"""Rows that are looked at for a probe."""


@dataclass
class Use:
    """What is asked of a model."""

    requests: float = 0
    sent: float = 0
    """Tokens."""
    generated: float = 0
    """Tokens."""

    def scale(self, factor: float) -> "Use":
        """Return it so many times."""
        return Use(self.requests * factor, self.sent * factor, self.generated * factor)

    def cost(self, price: Price | None) -> float | None:
        """Return the money that it costs; None where no price is known."""
        return None if price is None else (self.sent * price.prompt + self.generated * price.generated) / 1e6


@dataclass
class Probe:
    """A few prompts, and what they took."""

    num_prompts: int = 0
    num_made: int = 0
    """Pairs, or what else the recipe is for, before filters that compare them with each other."""
    uses: dict[str, Use] = field(default_factory=dict[str, Use])
    """By role; the main model under the empty name."""
    seconds_each: float | None = None
    """A prompt, with these side by side; None where it is not known."""
    opening_s: float = 0.0
    """Before the models were open."""

    def add(self, outcome: Outcome, makes: type[Record]) -> None:
        """Count a prompt."""
        self.num_prompts += 1
        self.num_made += sum(isinstance(record, makes) for record in outcome.records)
        for exchange in outcome.exchanges:
            use = self.uses.setdefault(exchange.role, Use())
            sent, generated = count_tokens(exchange)
            use.requests, use.sent, use.generated = use.requests + 1, use.sent + sent, use.generated + generated


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take."""

    num_probed: int
    num_prompts: int
    stops_at: str
    """The limit that it meets before its prompts end; empty where there is none."""
    num_made: float
    uses: Mapping[str, Use]
    """By role."""
    costs: Mapping[str, float | None]
    """By role; None where no price is given."""
    seconds: float | None

    @classmethod
    def make(
        cls,
        probe: Probe,
        size: int,
        speakers: Mapping[str, Speaker],
        *,
        pairs: int | None = None,
        tokens: int | None = None,
        seconds: float | None = None,
    ) -> "Estimate":
        """Scale a probe to `size` prompts, or to where the first limit is met."""
        taken = sum(use.sent + use.generated for use in probe.uses.values())
        enough = {
            "target_pairs": pairs and probe.num_made and pairs * probe.num_prompts / probe.num_made,
            "max_tokens_total": tokens and taken and tokens * probe.num_prompts / taken,
            "max_seconds": seconds and probe.seconds_each and (seconds - probe.opening_s) / probe.seconds_each,
        }
        stops_at, num_prompts = "", float(size)
        for name, count in enough.items():
            if count and count < num_prompts:
                stops_at, num_prompts = name, max(count, 1.0)
        factor = num_prompts / probe.num_prompts
        uses = {role: use.scale(factor) for role, use in sorted(probe.uses.items())}
        each = probe.seconds_each
        return cls(
            num_probed=probe.num_prompts,
            num_prompts=round(num_prompts),
            stops_at=stops_at,
            num_made=probe.num_made * factor,
            uses=uses,
            costs={role: use.cost(speakers.get(role, speakers[""]).price) for role, use in uses.items()},
            seconds=None if each is None else probe.opening_s + each * num_prompts,
        )

    def show(self) -> None:
        """Print it as a table."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("model", title=f"Estimate, from {self.num_probed} prompts", title_justify="left")
        for name in ("requests", "tokens sent", "tokens generated", "money"):
            table.add_column(name, justify="right")
        for role, use in self.uses.items():
            cost = self.costs[role]
            money = "no price given" if cost is None else f"{cost:,.2f}"
            numbers = (use.requests, use.sent, use.generated)
            table.add_row(escape(role or "main"), *(f"{round(number):,}" for number in numbers), money)
        known = [cost for cost in self.costs.values() if cost is not None]
        if len(self.uses) > 1:
            columns = zip(*((use.requests, use.sent, use.generated) for use in self.uses.values()), strict=True)
            table.add_row(
                "all", *(f"{round(sum(column)):,}" for column in columns), f"{sum(known):,.2f}" if known else ""
            )
        console = Console()
        console.print(table)
        end = f", where {self.stops_at} ends it" if self.stops_at else ""
        time = "not known: all answers were there" if self.seconds is None else f"up to {show_seconds(self.seconds)}"
        console.print(f"prompts: {self.num_prompts:,}{end}\nmade:    about {round(self.num_made):,}\ntime:    {time}")


class Probed(Exception):  # noqa: N818  (no error: it ends a run that was begun for an estimate)
    """Carries an estimate out of a run, which stays unfinished."""

    def __init__(self, estimate: Estimate) -> None:
        super().__init__("estimated")
        self.estimate = estimate


def spread(rows: Iterable[Prompt | Dropped], size: int | None, count: int) -> Iterator[Prompt]:
    """Yield at most `count` prompts, each once, drawn from the first rows; where the size is not known, the first ones."""
    num_rows = min(size or count, READ_AT_MOST)
    drawn = set(random.Random(0).sample(range(num_rows), min(count, num_rows)))
    seen: set[str] = set()
    for number, row in enumerate(islice(rows, num_rows)):
        if number in drawn and isinstance(row, Prompt) and row.id not in seen:
            seen.add(row.id)
            yield row
