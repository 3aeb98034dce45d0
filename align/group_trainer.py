"""Transformers' Trainer for losses of our own: batches of groups, the reference beside them.

A group is never split over batches: what its answers share is computed once, and a loss sees them together.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from align.examples import Collator, Example
from align.fresh import Sampler
from align.objective import Batch, LossObjective
from align.reference import reference_weights
from align.training import refuse_not_finite

__all__ = ["GroupTrainer"]


class GroupTrainer(Trainer):
    """Minimises a LossObjective over examples."""

    def __init__(
        self, *, objective: LossObjective, examples: Sequence[Example], pad: int, sampler: Sampler | None, **rest: Any
    ) -> None:
        super().__init__(train_dataset=examples, data_collator=Collator(pad), **rest)  # pyright: ignore
        self.model_accepts_loss_kwargs = False  # a loss is a mean over groups, whatever the number of tokens
        self._objective = objective
        self._sampler = sampler
        self._shown: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the objective's loss of a batch. Raises RunError, naming the batch's groups, where it is no number."""
        if self._sampler is not None:
            inner = self.accelerator.unwrap_model(model)
            examples = self._sampler.renew(inner, inputs["groups"], step=self.state.global_step)
            inputs = self._prepare_inputs(self.data_collator(examples))  # pyright: ignore
        groups = inputs["groups"]
        given = {key: inputs[key] for key in ("input_ids", "attention_mask", "labels")}
        scores = model(**given, use_cache=False, fused_lm_head=True)
        reference = inputs.get("reference_N")
        if reference is None and self._objective.needs_reference:
            inner = self.accelerator.unwrap_model(model)
            with torch.no_grad(), reference_weights(inner):
                reference = model(**given, use_cache=False, fused_lm_head=True).log_probs.sum(1)
        batch = Batch(
            log_probs_NT=scores.log_probs,
            mask_NT=scores.label_mask,
            reference_N=reference,
            groups=groups,
            group_N=inputs["group_N"],
            score_N=inputs["score_N"],
            labelled_NT=inputs["labelled_NL"][:, 1:],
            states_NTD=scores.states[:, 1:],
        )
        loss = self._objective.loss(batch)
        refuse_not_finite(
            float(loss.value.detach()), ", ".join(item.id for item in groups), step=self.state.global_step + 1
        )
        for name, value in (loss.metrics | _watch_ratios(batch)).items():
            self._shown[name].append(value.detach().float())
        return loss.value

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._sampler is not None and self.args.should_save:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            self._sampler.save(folder)  # before the trainer's state, whose presence says that a checkpoint is whole
        super()._save_checkpoint(model, trial)  # pyright: ignore

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # pyright: ignore
        if self._sampler is not None:
            self._sampler.load(Path(resume_from_checkpoint))

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        """Log the means of the objective's figures since the last time, over all processes."""
        for name, values in self._shown.items():
            mean = self.accelerator.gather(torch.stack(values).nanmean()[None]).nanmean()  # pyright: ignore
            if bool(mean.isfinite()):
                logs[name] = float(mean)
        self._shown.clear()
        super().log(logs, *rest, **more)


def _watch_ratios(batch: Batch) -> dict[str, Tensor]:
    """Return the mean log-ratio to the reference of the answers to learn and of those to leave; NaN where there is none."""
    if batch.reference_N is None:
        return {}
    ratio_N = batch.log_ratio_N.detach()
    roles = [answer.role for group in batch.groups for answer in group.answers]
    if any(roles):
        sides = {
            side: torch.tensor([role == side for role in roles], device=ratio_N.device)
            for side in ("chosen", "rejected")
        }
    else:
        above_N = batch.score_N - batch.mean_of_groups(batch.score_N)
        sides = {"chosen": above_N > 0, "rejected": above_N < 0}
    return {f"log_ratio/{side}": ratio_N[which].mean() for side, which in sides.items()}
