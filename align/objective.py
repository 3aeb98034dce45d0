"""Objective (family): what a training minimises. The trainer asks it what it needs and never the other way round.

Two kinds. A loss that TRL has is trained by TRL's own trainer, and the objective names its settings. A loss of our own is a
function of what the model says of a batch of groups, and the objective is that function.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from counterfoil.config import Choice, Config
from counterfoil.records import Answer, Dropped, Group
from eval.scorer import LocalScorer
from eval.scorers.verifiable import Verifiable

if TYPE_CHECKING:  # a config names an objective before anything heavy is loaded
    from torch import Tensor

__all__ = ["Batch", "Fresh", "Loss", "LossObjective", "Objective", "TrlObjective", "drop", "select_pair", "split_pairs"]


class Objective(Choice):
    """One loss; its fields are its hyperparameters."""

    FOLDER: ClassVar[str] = "align.objectives"
    needs_reference: ClassVar[bool] = False
    """Whether the frozen model's log-probabilities enter the loss."""

    def split(self, group: Group) -> list[Group]:
        """Return the groups that it takes a group for: one by default, for a loss on pairs each pair of its sides."""
        return [group]

    @abstractmethod
    def select(self, group: Group) -> Group | Dropped:
        """Return what this objective learns from a group, or why it cannot."""

    def find_unfit(self, answer: Answer) -> str:
        """Say why an answer teaches this objective nothing, whatever stands beside it; empty where it may."""
        return "" if answer.text.strip() else "empty"

    def parts(self) -> dict[str, Objective]:
        """Return the trainings this objective is made of, each with an adapter of its own, by the adapter's folder."""
        return {"adapter": self}


class TrlObjective(Objective):
    """A loss of TRL's."""

    trainer: ClassVar[Literal["dpo", "sft", "reward"]]
    """Which of its trainers has it."""

    @abstractmethod
    def trainer_settings(self) -> dict[str, Any]:
        """Return the settings of that trainer which this objective stands for."""


class Batch(NamedTuple):
    """What a model says of G groups: N answers with at most T tokens each."""

    log_probs_NT: Tensor
    """Of each answer's tokens, in nats; 0 where there is none."""
    mask_NT: Tensor
    """Where there is a token."""
    reference_N: Tensor | None
    """The reference's log-probability of each answer, summed over its tokens."""
    groups: Sequence[Group]
    group_N: Tensor
    """Which of the groups each answer is of."""
    score_N: Tensor
    """Its score; 0 where it has none."""
    labelled_NT: Tensor
    """Whether a token lies in one of its answer's spans, at least in part: the span's number from 1, else 0."""
    states_NTD: Tensor
    """The last layer's state at each token of the answer."""

    @property
    def log_ratio_N(self) -> Tensor:  # noqa: N802  (its shape)
        """Log pi - log ref of each answer, summed over its tokens."""
        assert self.reference_N is not None
        return self.log_probs_NT.sum(1) - self.reference_N

    def mean_of_groups(self, value_N: Tensor) -> Tensor:
        """Return, for each answer, the mean of a value over the answers of its group."""
        total_G = value_N.new_zeros(len(self.groups)).index_add(0, self.group_N, value_N)
        count_G = value_N.new_zeros(len(self.groups)).index_add(0, self.group_N, value_N.new_ones(len(value_N)))
        return (total_G / count_G)[self.group_N]


class Loss(NamedTuple):
    """What is minimised, and what is shown of it."""

    value: Tensor
    """Mean over the groups of the batch, a scalar."""
    metrics: dict[str, Tensor]
    """Scalars, logged under their names."""


class Fresh(Config):
    """When and how fresh answers are drawn."""

    every: int = Field(default=50, ge=1)
    """Steps between copies of the policy; 1 is on policy."""
    lag: int = Field(default=0, ge=0)
    """How many copies ago: with every=50 and lag=5 the policy of 250 to 300 steps before answers."""
    n: int = Field(default=4, ge=1)
    """Answers a prompt."""
    temperature: float = Field(default=1.0, ge=0.01)
    """Of the draws; contrastive policy gradient equals RLOO at 1."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Cut an answer off after this many tokens."""
    scorer: LocalScorer = Verifiable()
    """What judges them, by the group's reference."""
    role: Literal["rejected", ""] = ""
    """Empty puts them in place of the group's answers; rejected adds them as answers to leave, beside those that there
    are."""


class LossObjective(Objective):
    """A loss of our own."""

    takes_fresh: ClassVar[bool] = False
    """Whether answers that nobody marked teach it anything."""

    fresh: Fresh | None = None
    """Draw fresh answers while training; None learns from those of the data alone."""

    @model_validator(mode="after")
    def check_fresh(self) -> Self:
        """Refuse fresh answers where they would be drawn for nothing."""
        if self.fresh is not None and not self.takes_fresh:
            raise ValueError("fresh answers have no spans, which this objective learns from")
        return self

    def refuses(self, found: Dropped) -> bool:
        """Say whether fresh answers that `select` drops are a mistake, not merely nothing to learn this time."""
        return found.reason != "all scored alike"

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Return the loss of a batch."""


def drop(group: Group, reason: str, detail: str = "") -> Dropped:
    """Say why a group teaches an objective nothing."""
    return Dropped(id=group.id, stage="objective", reason=reason, detail=detail[:200])


def split_pairs(group: Group) -> list[Group]:
    """Return a group for each chosen with each rejected answer; one that has not several of either stays as it is."""
    chosen = [item for item in group.answers if item.role == "chosen"]
    rejected = [item for item in group.answers if item.role == "rejected"]
    if len(chosen) * len(rejected) < 2:
        return [group]
    return [
        group.model_copy(update={"id": f"{group.id}/{number}", "answers": (one, other)})
        for number, (one, other) in enumerate(itertools.product(chosen, rejected), 1)
    ]


def select_pair(group: Group) -> Group | Dropped:
    """Return a group's first chosen and first rejected answer; where none has a role, its best and its worst by score."""
    chosen = [item for item in group.answers if item.role == "chosen"]
    rejected = [item for item in group.answers if item.role == "rejected"]
    scored = [item for item in group.answers if item.score is not None]
    if not (chosen or rejected) and len(scored) > 1:
        ranked: list[Answer] = sorted(scored, key=_score, reverse=True)
        if _score(ranked[0]) == _score(ranked[-1]):
            return drop(group, "all scored alike")
        chosen, rejected = ranked[:1], ranked[-1:]
    if not (chosen and rejected):
        return drop(group, "no pair", "a chosen and a rejected answer are needed, or two scores")
    pair = [chosen[0].model_copy(update={"role": "chosen"}), rejected[0].model_copy(update={"role": "rejected"})]
    if any(not item.text.strip() for item in pair):
        return drop(group, "empty side", "chosen" if not pair[0].text.strip() else "rejected")
    if pair[0].prompt != pair[1].prompt:
        return drop(group, "answers to different prompts")
    if pair[0].text == pair[1].text:
        return drop(group, "chosen equals rejected")
    return group.model_copy(update={"answers": tuple(pair)})


def _score(answer: Answer) -> float:
    return answer.score if answer.score is not None else 0.0
