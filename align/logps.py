"""Log-probabilities of sequences in training: prefixes shared (decode/prefixes.py), the head on labels (decode/head.py).

A model that both are installed in answers the call of TRL's fused head, so that TRL's losses and metrics stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from counterfoil.errors import InputError
from decode.head import Head, find_head, reads_states, score_labels
from decode.prefixes import can_share, share_prefixes

__all__ = ["Scores", "can_share", "install_head", "share_prefixes"]


@dataclass
class Scores(ModelOutput):
    """What a batch's labels are to a model: each (B, L - 1), 0 where the next token is no label."""

    log_probs: Tensor | None = None
    """Of the label, in nats."""
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None
    states: Tensor | None = None
    """Of the last layer, (B, L, D)."""


def install_head(model: Any) -> None:
    """Give a causal language model of transformers the call `model(..., labels=labels, fused_lm_head=True) -> Scores`.

    `labels` (B, L) is -100 where a token is not scored; each label is scored after the state before it. The call has the
    name and the fields of TRL's own (`trl.trainer.utils.add_fused_lm_head`), which it replaces; any other call goes
    through as before. To be installed before PEFT wraps the model, or on PEFT's base model. Raises InputError
    where the head cannot be taken out of the model.
    """
    plain: Callable[..., Any] = model.forward
    _read_head(model)
    if not reads_states(model):
        raise InputError(
            f"model: {model.config.model_type}",
            given="logits that are not the head's of the last layer's states",
            allowed="a frozen linear head, with its logits scaled or capped at most",
            do="Train with a model of another architecture.",
        )

    def forward(*given: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **rest: Any) -> Any:
        if not fused_lm_head or labels is None:
            return plain(*given, **rest, **({} if labels is None else {"labels": labels}))
        states_BLD = model.base_model(*given, **{**rest, "use_cache": False}).last_hidden_state
        mask = labels[:, 1:] != -100
        # Without gradients it is a reference's pass: its log-probabilities alone are asked for.
        scores = score_labels(
            states_BLD[:, :-1][mask], labels[:, 1:][mask], _read_head(model), extras=torch.is_grad_enabled()
        )
        whole = (torch.zeros(mask.shape, dtype=part.dtype, device=mask.device) for part in scores)
        # A scatter keeps a batch without labels connected to the model, so that its backward pass is one of zeros.
        spread = [zeros.masked_scatter(mask, part) for zeros, part in zip(whole, scores, strict=True)]
        return Scores(*spread, label_mask=mask, states=states_BLD)

    model.forward = forward


def _read_head(model: Any) -> Head:
    head = find_head(model)
    if isinstance(head, str):
        raise InputError(
            f"model: {model.config.model_type}",
            given=head,
            allowed="a frozen linear head, with its logits scaled or capped at most",
            do="Leave the head out of lora.targets.",
        )
    return head
