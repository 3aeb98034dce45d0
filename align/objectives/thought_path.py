"""Thought paths: what an option is argued with moves with whether it is right.

Source: Wang et al. 2025 (arXiv 2409.14495) and the authors' trainer. A question and its counterfactual twin have the same
options and different right ones, c and c'. A path is the mean of the last layer's states over the tokens that argue one
option. With P the options wrong in both, tau a temperature and S' the twin of S,

    mean over S of mean_{j in P} -log sigmoid( ( cos(path_S[j], path_S'[j]) - cos(path_S[c_S], path_S'[c_S]) ) / tau )

plus `nll_weight` times the token-mean negative log-likelihood of both: an option that is wrong in both is argued alike, and
one that is right in one of them is not.
Differences: (1) paths are the record's labelled spans, in characters, in place of a search for section titles in tokens.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity, logsigmoid

from align.objective import Batch, Loss, LossObjective, drop
from counterfoil.records import Answer, Dropped, Group

__all__ = ["ThoughtPath"]


class ThoughtPath(LossObjective):
    """Pull paths of options that are wrong in both twins together, push those of the right ones apart."""

    needs_reference: ClassVar[bool] = False

    tau: float = Field(default=0.1, gt=0)
    """Temperature of the cosines."""
    nll_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy on both rationales."""

    def select(self, group: Group) -> Group | Dropped:
        """Take two answers whose spans argue the same options (their labels) and whose right options (`final`) differ."""
        if len(group.answers) != 2:
            return drop(group, "not two rationales", str(len(group.answers)))
        first, second = (_options(item) for item in group.answers)
        wild = [
            span for item in group.answers for span in item.spans if not 0 <= span.start < span.stop <= len(item.text)
        ]
        if wild:
            return drop(group, "a span outside of its answer", f"{wild[0].start} to {wild[0].stop}")
        right = [item.final for item in group.answers]
        if first.keys() != second.keys():
            return drop(group, "different options", f"{sorted(first)} and {sorted(second)}")
        if len(first) != len(group.answers[0].spans) or len(second) != len(group.answers[1].spans):
            return drop(group, "an option argued twice")
        if not set(right) <= first.keys():
            return drop(group, "a right option without a path", ", ".join(right))
        if right[0] == right[1]:
            return drop(group, "the same right option in both")
        if len(first) < 3:
            return drop(group, "no option that is wrong in both")
        return group

    def loss(self, batch: Batch) -> Loss:
        """Return the mean over groups."""
        nll = (-batch.log_probs_NT.sum(1) / batch.mask_NT.sum(1).clamp_min(1)).mean()
        contrasts: list[Tensor] = []
        for at, group in enumerate(batch.groups):  # each of two rows
            answers = group.answers
            paths = [_pool(batch, 2 * at + row, answer) for row, answer in enumerate(answers)]
            alike = {key: cosine_similarity(paths[0][key], paths[1][key], dim=0) for key in paths[0]}
            shared = [value for key, value in alike.items() if key not in {item.final for item in answers}]
            for answer in answers:
                apart = alike[answer.final]
                contrasts.append(torch.stack([-logsigmoid((value - apart) / self.tau) for value in shared]).mean())
        contrast = torch.stack(contrasts).mean()
        return Loss(contrast + self.nll_weight * nll, {"contrast": contrast.detach(), "nll": nll.detach()})


def _options(answer: Answer) -> dict[str, int]:
    return {span.label: at for at, span in enumerate(answer.spans, 1)}


def _pool(batch: Batch, row: int, answer: Answer) -> dict[str, Tensor]:
    """Return each option's path, (D,)."""
    states_TD, number_T = batch.states_NTD[row], batch.labelled_NT[row]
    return {label: states_TD[number_T == number].mean(0) for label, number in _options(answer).items()}
