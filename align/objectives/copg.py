"""Contrastive policy gradient.

Source: Flet-Berliac et al. 2024 (arXiv 2406.19185). With g = log pi(y|x) - log ref(y|x), summed over tokens, a reward R and
the regularised reward R_c = R - c g, equation 7 maximises, over pairs of completions y, y' of one prompt, of whatever origin,

    (R_{beta/2}(y) - R_{beta/2}(y')) g(y) + (R_{beta/2}(y') - R_{beta/2}(y)) g(y')   =   d D - (beta / 2) D^2

with d = R(y) - R(y'), D = g(y) - g(y'): a parabola in D whose top is at d / beta, which is what the paper's optimum
ref exp(R / beta) has for every pair. For K completions it is summed over the pairs and divided by K - 1; its gradient is then
that of RLOO (Ahmadian et al. 2024, arXiv 2402.14740, equation 8) with R_beta for the reward, and holds off policy as well.
Cohere's Command A report (arXiv 2504.00698) gives the square, (d - beta D)^2: the same, times -1 / (2 beta), but for a
constant. Scores of +1/4 and -1/4 make it IPO (Azar et al. 2023, arXiv 2310.12036, equation 17) with tau = beta, as published:
with log-probabilities summed over tokens, where TRL's `ipo` averages them.
Differences: the sum over pairs is divided by K once more, so that the gradient is a mean over completions, whatever K is.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from align.objective import Batch, Loss, LossObjective, drop
from counterfoil.records import Answer, Dropped, Group

__all__ = ["Copg", "copg_loss"]


class Copg(LossObjective):
    """Move the log-ratio between two completions towards the difference of their scores over beta."""

    needs_reference: ClassVar[bool] = True
    takes_fresh: ClassVar[bool] = True

    beta: float = Field(default=0.1, gt=0)
    """Price of a nat of distance from the reference, in units of the score (the paper's beta)."""
    preferences: bool = False
    """Forget the scores but for their order, +1/4 and -1/4 for the best and the worst answer: IPO."""

    @model_validator(mode="after")
    def check_draws(self) -> Self:
        """Refuse fresh answers that have nothing to be compared with."""
        if self.fresh is not None and not self.fresh.role and self.fresh.n < 2:
            raise ValueError("one fresh answer has none to be compared with: fresh.n has to be 2 or more")
        return self

    def find_unfit(self, answer: Answer) -> str:
        """Leave out what has neither a score nor a role, and what is empty, unless it was drawn: its end is then a choice."""
        empty = "" if answer.token_ids else super().find_unfit(answer)
        return empty or ("" if answer.score is not None or answer.role else "no score")

    def select(self, group: Group) -> Group | Dropped:
        """Take the answers that have scores; where none has, a chosen one has 1, a rejected one 0.

        A text that comes twice is one of the data's answers and counts once, by its mean score; of draws (`token_ids`) each
        counts.
        """
        own: dict[str | int, list[Answer]] = {}
        for at, item in enumerate(group.answers):
            if not self.find_unfit(item):
                own.setdefault(item.text if item.token_ids is None else at, []).append(item)
        answers = [_merge(items) for items in own.values()]
        if len({item.prompt for item in answers}) > 1:
            return drop(group, "answers to different prompts")
        if all(item.score is None and item.role for item in answers):
            answers = [item.model_copy(update={"score": float(item.role == "chosen")}) for item in answers]
        elif any(item.score is None for item in answers):
            return drop(group, "scores of some answers alone")
        scored = sorted((item for item in answers if item.score is not None), key=lambda item: item.score or 0.0)
        if len(scored) < 2:
            return drop(group, "fewer than two different answers with scores")
        if self.preferences:
            if scored[0].score == scored[-1].score:
                return drop(group, "all scored alike")
            scored = [
                scored[0].model_copy(update={"score": -0.25, "role": "rejected"}),
                scored[-1].model_copy(update={"score": 0.25, "role": "chosen"}),
            ]
        return group.model_copy(update={"answers": tuple(scored)})

    def loss(self, batch: Batch) -> Loss:
        """Return the mean over groups."""
        ratio_N = batch.log_ratio_N
        value = copg_loss(ratio_N, batch.score_N, batch.group_N, beta=self.beta).mean()
        gap_N = self.beta * (ratio_N - batch.mean_of_groups(ratio_N))
        error_N = batch.score_N - batch.mean_of_groups(batch.score_N) - gap_N
        # Where the loss stands cannot be seen from it (its least value depends on the scores); this goes to 0.
        return Loss(value, {"score_error": error_N.detach().pow(2).mean().sqrt(), "score": batch.score_N.mean()})


def _merge(same: Sequence[Answer]) -> Answer:
    scores = [item.score for item in same if item.score is not None]
    return same[-1].model_copy(update={"score": sum(scores) / len(scores)}) if scores else same[-1]


def copg_loss(log_ratio_N: Tensor, score_N: Tensor, group_N: Tensor, *, beta: float) -> Tensor:
    """Return the loss to minimise of each group, (G,), over all pairs of completions of a group.

    Shapes: N completions; `log_ratio_N` is log pi - log ref, summed over tokens, `group_N` (integers from 0 to G - 1) says of
    which prompt each is. A group of one completion has no pair: its loss is 0.
    """
    num_groups = int(group_N.max()) + 1
    score_N = score_N.to(log_ratio_N.dtype)

    def sum_groups(value_N: Tensor) -> Tensor:
        return value_N.new_zeros(num_groups).index_add(0, group_N, value_N)

    count_G = sum_groups(torch.ones_like(log_ratio_N))
    # Centred first: sums over pairs of products are K times sums of products of what is left of the mean.
    ratio_N = log_ratio_N - (sum_groups(log_ratio_N) / count_G)[group_N]
    centred_N = score_N - (sum_groups(score_N) / count_G)[group_N]
    pairs_G = count_G * sum_groups(centred_N * ratio_N - beta / 2 * ratio_N**2)
    return -pairs_G / (count_G * (count_G - 1).clamp_min(1))
