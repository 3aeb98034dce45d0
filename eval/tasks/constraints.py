"""Short requests on everyday topics, each with one or two constraints that code can check.

The splits share neither topics nor combinations of kinds: a combination (the set of the kinds of one prompt, a single
kind included) belongs to one split by a hash of its names, whatever the seed. Every kind occurs in both splits.
"""

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from counterfoil.errors import InputError
from counterfoil.records import Prompt, content_id
from eval.constraints.kind import Topic
from eval.constraints.kinds import EASY, KINDS, list_combinations
from eval.constraints.topics import HELDOUT_TOPICS, TRAIN_TOPICS
from eval.scorers.verifiable import Verifiable
from eval.task import Split, Task

__all__ = ["Constraints", "assign_split"]

Names = tuple[str, ...]

TRAIN_PERCENT = 60
SALT = "split 84"  # the first to give train 60 %, within two points, of single kinds, of pairs, and of the easy of each
MAX_TRIES = 1000  # draws without a new prompt before giving up

TEMPLATES = (
    "Write about {topic}.",
    "Tell me about {topic}.",
    "Give a beginner some advice about {topic}.",
    "Explain {topic} to a child.",
    "Say what is good about {topic}.",
    "Say what is difficult about {topic}.",
    "Share a useful tip about {topic}.",
    "Write a message to a friend about {topic}.",
    "What would you tell a visitor about {topic}?",
    "Write a tiny story about {topic}.",
    "Why do people care about {topic}?",
    "Write a notice for a village newsletter about {topic}.",
    "What is a common mistake with {topic}?",
    "Describe {topic} to somebody who has no idea of it.",
    "Write a line for a diary about {topic}.",
    "Persuade somebody to think more about {topic}.",
)
BREVITY = ("Keep it short.", "Be brief.", "A short answer is enough.")


def assign_split(names: Sequence[str]) -> Split:
    """Say which split a combination of kinds belongs to: by content, so for good."""
    return "train" if int(content_id(SALT, sorted(names)), 16) % 100 < TRAIN_PERCENT else "heldout"


class Constraints(Task):
    """Draws prompts: a template, a topic, a combination of kinds, their parameters and wordings."""

    count: int = Field(default=200, ge=1)
    """Prompts in each split; a smaller count yields the first prompts of a larger one."""
    seed: int = 0
    """Of the draws; which topics and combinations a split has does not depend on it."""
    min_constraints: int = Field(default=1, ge=1, le=2)
    """Constraints that a prompt has at the least."""
    max_constraints: int = Field(default=2, ge=1, le=2)
    """Constraints that a prompt has at the most."""

    difficulty: Literal["easy", "all"] = "all"
    """`easy` draws only the kinds that a very small model meets now and then."""

    @model_validator(mode="after")
    def check_range(self) -> Self:
        """Refuse a range without a number in it."""
        if self.min_constraints > self.max_constraints:
            raise ValueError(f"min_constraints {self.min_constraints} is above max_constraints {self.max_constraints}")
        return self

    def prompts(self, split: Split) -> Iterator[Prompt]:
        """Yield `count` prompts of a split. Raises InputError where so many different ones cannot be drawn."""
        sizes = range(self.min_constraints, self.max_constraints + 1)
        combinations = _by_size(sizes, split, within=EASY if self.difficulty == "easy" else frozenset(KINDS))
        rng = Random(f"constraints/{split}/{self.seed}/{self.min_constraints}/{self.max_constraints}")
        seen: set[str] = set()
        failed = 0
        while len(seen) < self.count:
            prompt = _draw(rng, combinations, split=split)
            if prompt.id not in seen:
                seen.add(prompt.id)
                failed = 0
                yield prompt
                continue
            failed += 1
            if failed >= MAX_TRIES:
                raise InputError(
                    f"task constraints: {split}",
                    given=f"count {self.count}, of which {len(seen)} could be drawn",
                    allowed=f"about {len(seen)} at most",
                    do="Lower count, or widen min_constraints and max_constraints.",
                )

    def size(self, split: Split) -> int:
        """Return `count`, for either split."""
        return self.count

    def scorer(self) -> Verifiable:
        """Return the scorer that checks the constraints."""
        return Verifiable()


def _by_size(sizes: Iterable[int], split: Split, *, within: frozenset[str]) -> list[list[list[Names]]]:
    """List, for each size, a list for each kind: the split's combinations of that size that have it."""
    found: list[list[list[Names]]] = []
    for size in sizes:
        by_kind: dict[str, list[Names]] = {}
        for names in (names for names in list_combinations(size) if within.issuperset(names)):
            for name in names if assign_split(names) == split else ():
                by_kind.setdefault(name, []).append(names)
        found.append([names for _, names in sorted(by_kind.items())])
    return found


def _draw(rng: Random, combinations: list[list[list[Names]]], *, split: Split) -> Prompt:
    """Draw one prompt: a size, then a kind, then a combination, so that no kind is rare for want of partners."""
    topic: Topic = rng.choice(TRAIN_TOPICS if split == "train" else HELDOUT_TOPICS)
    names = rng.choice(rng.choice(rng.choice(combinations)))
    parts = [rng.choice(TEMPLATES).format(topic=topic.name)]
    if not any("length" in KINDS[name].groups for name in names):
        parts.append(rng.choice(BREVITY))
    constraints: list[dict[str, Any]] = []
    for name in rng.sample(names, len(names)):
        params = KINDS[name].sample(rng, topic)
        parts.append(KINDS[name].phrase(params, variant=rng.randrange(len(KINDS[name].wordings))))
        constraints.append({"kind": name, **params})
    return Prompt.make(
        rng.choice((" ", "\n")).join(parts),
        reference={"constraints": constraints},
        tags={"split": split, "topic": topic.name, "kinds": "+".join(names)},
    )
