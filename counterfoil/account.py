"""What a synthesis came to, counted from the files that it left: pairs, judges' verdicts, requests, what stopped.

Each tally takes records one at a time and keeps numbers alone, so that a run of any size is counted in little memory.

Source: consistency and bias by order as Zheng et al. 2023 count them (arXiv 2306.05685, table 2); intervals of shares by
Wilson 1927. Differences: (1) a tie in one order only is counted apart; (2) a tie in both is consistent.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from counterfoil.errors import InputError
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Comparison, Dropped, Exchange, Message, Pair, Record, Score, content_id

__all__ = ["Account", "PairTally", "Share", "StepTally", "VerdictTally", "read_account", "read_records"]

Z = 1.959964
"""Of a 95 % interval."""

RecordT = TypeVar("RecordT", bound=Record)


class Share(NamedTuple):
    """So many of so many."""

    num: int
    total: int

    @property
    def value(self) -> float:
        """The share, 0 to 1; not a number of none."""
        return self.num / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of its 95 % interval."""
        if not self.total:
            return (0.0, 1.0)
        spread = Z * Z / self.total
        middle = (self.value + spread / 2) / (1 + spread)
        half = math.sqrt(self.value * (1 - self.value) * spread + spread * spread / 4) / (1 + spread)
        return (max(0.0, middle - half), min(1.0, middle + half))


@dataclass
class PairTally:
    """The numbers of pairs, a place a pair, and what the pairs share."""

    score_chosen: "array[float]" = field(default_factory=lambda: array("d"))
    score_rejected: "array[float]" = field(default_factory=lambda: array("d"))
    words_chosen: "array[int]" = field(default_factory=lambda: array("l"))
    words_rejected: "array[int]" = field(default_factory=lambda: array("l"))
    cut: Counter[str] = field(default_factory=Counter[str])
    """By side, the answers that stop before their end."""
    prompts: set[str] = field(default_factory=set[str])
    """Ids of the prompts that are asked."""
    _chosen: set[int] = field(default_factory=set[int])
    _rejected: set[int] = field(default_factory=set[int])

    def add(self, pair: Pair) -> None:
        """Count a pair."""
        self.score_chosen.append(pair.score_chosen)
        self.score_rejected.append(pair.score_rejected)
        self.words_chosen.append(count_words(pair.chosen))
        self.words_rejected.append(count_words(pair.rejected))
        self.cut.update(pair.cut)
        self.prompts.add(pair.prompt_id)
        self._chosen.add(_mark(pair.chosen))
        self._rejected.add(_mark(pair.rejected))

    def __len__(self) -> int:
        return len(self.score_chosen)

    @property
    def margins(self) -> list[float]:
        """The chosen answer's score less the rejected one's."""
        return [high - low for high, low in zip(self.score_chosen, self.score_rejected, strict=True)]

    @property
    def ties(self) -> int:
        """Pairs of equal scores."""
        return sum(margin == 0 for margin in self.margins)

    @property
    def inverted(self) -> int:
        """Pairs whose rejected answer has the higher score."""
        return sum(margin < 0 for margin in self.margins)

    @property
    def longer_chosen(self) -> Share:
        """Of the pairs whose answers differ in their number of words, those whose chosen one is the longer."""
        gaps = [one - other for one, other in zip(self.words_chosen, self.words_rejected, strict=True)]
        return Share(sum(gap > 0 for gap in gaps), sum(gap != 0 for gap in gaps))

    @property
    def repeated_chosen(self) -> int:
        """Pairs whose chosen answer, but for case and spaces, an earlier one has."""
        return len(self) - len(self._chosen)

    @property
    def on_both_sides(self) -> int:
        """Texts that are chosen in one pair and rejected in another."""
        return len(self._chosen & self._rejected)


@dataclass
class VerdictTally:
    """What one judge said, two answers at a time and in both orders."""

    total: int = 0
    consistent: int = 0
    """The same verdict in both orders."""
    ties: int = 0
    """Of the consistent ones, those that say tie."""
    toward_first: int = 0
    """The answer that was shown first is preferred, whichever it is."""
    toward_second: int = 0
    half_ties: int = 0
    """A tie in one order, a winner in the other."""
    uneven: int = 0
    """Consistent winners over an answer of another length, in characters."""
    longer: int = 0
    """Of these, those whose winner is the longer answer."""

    def add(self, found: Comparison) -> None:
        """Count a comparison."""
        self.total += 1
        if found.forward == found.backward:
            self.consistent += 1
            self.ties += found.forward == "tie"
        elif "tie" in (found.forward, found.backward):
            self.half_ties += 1
        elif found.forward == "first":
            self.toward_first += 1
        else:
            self.toward_second += 1
        if found.winner is not None and found.chars[0] != found.chars[1]:
            self.uneven += 1
            self.longer += found.chars[found.winner] == max(found.chars)

    @property
    def shares(self) -> dict[str, Share]:
        """By what they are of: all comparisons, those that the order decided, those of unequal lengths."""
        return {
            "same verdict in both orders": Share(self.consistent, self.total),
            "a tie in both orders": Share(self.ties, self.total),
            "a tie in one order only": Share(self.half_ties, self.total),
            "whichever was shown first": Share(self.toward_first, self.total),
            "whichever was shown second": Share(self.toward_second, self.total),
            "first, of those that the order decided": Share(self.toward_first, self.toward_first + self.toward_second),
            "the longer one, of winners in both orders": Share(self.longer, self.uneven),
        }


@dataclass
class StepTally:
    """What one kind of request asked of one model."""

    asked: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    cut: int = 0
    """Answers that stop at their limit of tokens."""

    def add(self, exchange: Exchange) -> None:
        """Count a request; its prompt is read once for all of its answers."""
        self.asked += 1
        self.answers += len(exchange.completions)
        self.prompt_tokens += max((item.num_prompt_tokens for item in exchange.completions), default=0)
        self.tokens += sum(item.num_tokens for item in exchange.completions)
        self.cut += sum(item.finish_reason == "length" for item in exchange.completions)


@dataclass
class Account:
    """All of it."""

    pairs: PairTally = field(default_factory=PairTally)
    scores: "dict[str, array[float]]" = field(default_factory=dict[str, "array[float]"])
    """Of all answers, by scorer."""
    verdicts: dict[str, VerdictTally] = field(default_factory=dict[str, VerdictTally])
    """By the judge's role."""
    steps: dict[tuple[str, str], StepTally] = field(default_factory=dict[tuple[str, str], StepTally])
    """By step and role."""
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Prompts that led to nothing, by stage and reason."""
    refused: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Pairs that a filter refused, by stage and reason."""
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict[tuple[str, str], list[str]])
    """By stage and reason, a few details."""
    unreadable: Counter[str] = field(default_factory=Counter[str])
    """Lines that are no record, by file."""

    def read(self, path: Path, cls: type[RecordT]) -> Iterator[RecordT]:
        """Yield a file's records, and count the lines that are none; a file that is missing or empty has none."""
        for row in read_records(path, cls):
            if isinstance(row, Dropped) and cls is not Dropped:
                self.unreadable[path.name] += 1
            else:
                yield row  # pyright: ignore[reportReturnType]

    def add_verdict(self, found: Comparison) -> None:
        """Count a judge's comparison."""
        self.verdicts.setdefault(found.judge, VerdictTally()).add(found)

    def add_score(self, score: Score) -> None:
        """Count an answer's score."""
        self.scores.setdefault(score.scorer, array("d")).append(score.value)

    def add_exchange(self, exchange: Exchange) -> None:
        """Count a request."""
        self.steps.setdefault((exchange.step, exchange.role), StepTally()).add(exchange)

    def add_stops(self, folder: Path, *, num_examples: int = 3) -> None:
        """Count what did not go on, and keep a few details of each reason."""
        for name, into in (("dropped.jsonl", self.dropped), ("refused.jsonl", self.refused)):
            for found in self.read(folder / name, Dropped):
                key = (found.stage, found.reason)
                into[key] += 1
                told = self.examples.setdefault(key, [])
                if found.detail and len(told) < num_examples and found.detail not in told:
                    told.append(found.detail)


def read_records(path: Path, cls: type[RecordT]) -> Iterator[RecordT | Dropped]:
    """Yield a file's records as `read_jsonl` does; a file that is missing or empty has none."""
    try:
        yield from read_jsonl(path, cls, where="account")
    except InputError:
        return


def read_account(folder: Path) -> Account:
    """Count all that a synthesis left in its folder."""
    found = Account()
    for pair in found.read(folder / "pairs.jsonl", Pair):
        found.pairs.add(pair)
    for score in found.read(folder / "scores.jsonl", Score):
        found.add_score(score)
    for comparison in found.read(folder / "comparisons.jsonl", Comparison):
        found.add_verdict(comparison)
    for exchange in found.read(folder / "exchanges.jsonl", Exchange):
        found.add_exchange(exchange)
    found.add_stops(folder)
    return found


def count_words(messages: tuple[Message, ...]) -> int:
    """Count the words of some turns."""
    return sum(len(message["content"].split()) for message in messages)


def _mark(messages: tuple[Message, ...]) -> int:
    return int(content_id([" ".join(message["content"].lower().split()) for message in messages]), 16)
