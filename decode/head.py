"""What a language model's head says of labelled positions: log-probabilities without the logits of the whole batch.

The head of a small model costs as much as many of its layers, and its logits are the largest tensor of a training step. Here
it runs on labelled positions only, in tiles, and each tile is thrown away.

Source: the tiled head is that of fused cross-entropy (Wijmans et al. 2024, arXiv 2411.09009; Hsu et al. 2024, arXiv
2410.10989).
Differences: (1) a log-probability is one number a position, so its whole derivative by the state is one row, W[label] - p W;
it is kept from the forward pass instead of computing the tile again in the backward pass, and serves any loss above; (2) the
entropy comes from the same product, since the expected logit is (p W) . h. The head itself is taken to be frozen, as it is
under LoRA.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Head", "TokenScores", "find_head", "reads_states", "score_labels"]

TILE = 2**23
"""Logits that exist at a time: 32 MiB in float32."""


class Head(NamedTuple):
    """A frozen linear head and what the model does to its logits."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    """Logits are multiplied by it (Cohere, Granite)."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap) (Gemma 2)."""


class TokenScores(NamedTuple):
    """Of N labelled positions, each (N,); only `log_probs` carries a gradient."""

    log_probs: Tensor
    """In nats."""
    entropy: Tensor
    """Of the next token's distribution, in nats."""
    mean_logits: Tensor
    """Mean over the vocabulary."""
    is_top1: Tensor
    """Whether no token is more likely than the label."""


def score_labels(hidden_ND: Tensor, labels_N: Tensor, head: Head, *, extras: bool = True) -> TokenScores:
    """Score N labels, each after a state of the model's last layer; in float32 at least.

    Without `extras` only the log-probabilities are computed and the rest is 0.
    """
    if not torch.is_grad_enabled():
        hidden_ND = hidden_ND.detach()  # the function asks the tensor alone whether a derivative is wanted
    found: tuple[Tensor, ...] = _ScoreLabels.apply(hidden_ND, labels_N, head, extras)  # pyright: ignore
    return TokenScores(found[0], found[1], found[2], found[3] != 0)


def find_head(model: Any) -> Head | str:
    """Return a causal language model's head, or why it cannot be taken out of the model."""
    layer = model.get_output_embeddings()
    if _find_type(layer) is not torch.nn.Linear:
        return f"a head of type {type(layer).__name__}"
    if any(part.requires_grad for part in layer.parameters()):
        return "a head that is trained"
    config = model.config.get_text_config()
    named = {name: getattr(config, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")}
    scales = [value for value in named.values() if value is not None]
    divisor = getattr(config, "logits_scaling", None)
    if len(scales) + (divisor is not None) > 1 or (divisor is not None and config.model_type == "hyperclovax"):
        return "logits scaled in a way of its own"
    scale = scales[0] if scales else 1 / divisor if divisor is not None else 1.0
    return Head(layer.weight, layer.bias, float(scale), getattr(config, "final_logit_softcapping", None))


def reads_states(model: Any) -> bool:
    """Say whether a model's logits are its head's of the backbone's states: some have a layer, or a cap, between the two.

    Three tokens go through the model.
    """
    head = find_head(model)
    if isinstance(head, str):
        return False
    weight = _gather(head.weight_VD)
    ids = torch.arange(3, device=weight.device)[None] % len(weight)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected_TV = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            states_TD = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            found_T = score_labels(states_TD, expected_TV.argmax(-1), head, extras=False).log_probs
    except (AttributeError, TypeError):  # no such backbone, or one that is called otherwise
        return False
    finally:
        model.train(training)
    return torch.allclose(found_T, expected_TV.amax(-1), rtol=1e-2, atol=2e-2)


def _find_type(layer: Any) -> type:
    """Return a layer's class; FSDP makes one of its own out of it and itself."""
    if not torch.distributed.is_available():
        return type(layer)
    from torch.distributed.fsdp import FSDPModule

    return type(layer).__bases__[1] if isinstance(layer, FSDPModule) else type(layer)


class _ScoreLabels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, labels_N: Tensor, head: Head, extras: bool) -> tuple[Tensor, ...]:
        weight, bias = (_gather(part) for part in (head.weight_VD, head.bias_V))
        head = head._replace(weight_VD=weight, bias_V=bias)
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        results = [hidden_ND.new_zeros(len(hidden_ND), dtype=dtype) for _ in range(4)]
        slope_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        size = max(1, TILE // len(head.weight_VD))
        for start in range(0, len(hidden_ND), size):
            part = slice(start, start + size)
            slope_PD = None if slope_ND is None else slope_ND[part]
            for whole, value in zip(
                results, _score_tile(hidden_ND[part], labels_N[part], head, slope_PD, extras), strict=False
            ):
                whole[part] = value
        if slope_ND is not None:
            ctx.save_for_backward(slope_ND)
        ctx.mark_non_differentiable(*results[1:])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (slope_ND,) = ctx.saved_tensors
        return slope_ND * upstream[0][:, None].to(slope_ND.dtype), None, None, None


def _gather(part: Any) -> Any:
    """Return a parameter whole where FSDP holds shards of it."""
    return part.full_tensor() if hasattr(part, "full_tensor") else part


def _score_tile(
    hidden_PD: Tensor, labels_P: Tensor, head: Head, slope_PD: Tensor | None, extras: bool
) -> tuple[Tensor, ...]:
    """Score P positions; write the derivatives of their log-probabilities by their states where they are wanted."""
    weight_VD = head.weight_VD
    logits_PV = torch.nn.functional.linear(hidden_PD, weight_VD, head.bias_V)
    logits_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
    if head.scale != 1:
        logits_PV *= head.scale
    if head.softcap is not None:
        logits_PV.div_(head.softcap).tanh_().mul_(head.softcap)
    log_probs_PV = torch.log_softmax(logits_PV, 1)
    found_P = log_probs_PV.gather(1, labels_P[:, None])[:, 0]
    if slope_PD is None and not extras:
        return (found_P,)
    largest_P, mean_P = log_probs_PV.amax(1), logits_PV.mean(1)
    if slope_PD is None or head.softcap is not None:
        entropy_P = -torch.einsum("pv,pv->p", log_probs_PV.exp(), log_probs_PV)
    probs_PV = log_probs_PV.exp_()
    if slope_PD is not None:
        chosen_PD = weight_VD[labels_P]
        if head.softcap is None:
            pulled_PD = probs_PV.to(weight_VD.dtype) @ weight_VD
            # The expected logit is (p W) . h, so the entropy needs no pass over the tile.
            expected_P = (pulled_PD.to(logits_PV.dtype) * hidden_PD).sum(1) * head.scale
            if head.bias_V is not None:
                expected_P = expected_P + probs_PV @ head.bias_V.to(logits_PV.dtype) * head.scale
            norm_P = logits_PV.gather(1, labels_P[:, None])[:, 0] - found_P
            entropy_P = norm_P - expected_P
        else:
            bend_PV = 1 - (logits_PV / head.softcap) ** 2  # of the cap at each logit
            chosen_PD = chosen_PD * bend_PV.gather(1, labels_P[:, None]).to(weight_VD.dtype)
            pulled_PD = (probs_PV * bend_PV).to(weight_VD.dtype) @ weight_VD
        torch.sub(chosen_PD, pulled_PD, out=slope_PD)
        if head.scale != 1:
            slope_PD *= head.scale
    return found_P, entropy_P, mean_P, found_P >= largest_P  # pyright: ignore[reportPossiblyUnboundVariable]
