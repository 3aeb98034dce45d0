"""The contrast of two rows of logits, and the mask of what is plausible: pure functions, in float32.

Shapes: (..., V) in and out. Sources at each function.
"""

import math

import torch
from torch import Tensor

__all__ = ["contrast", "log_ratio", "plausible", "rule_out"]


def plausible(logits: Tensor, threshold: float, allowed: Tensor | None = None) -> Tensor:
    """Say which tokens are at least `threshold` times as probable as the likeliest; that one always is.

    Where `allowed` is given, the likeliest of those is meant, and no other token is plausible.
    Source: Li et al. 2022 (arXiv 2210.15097), equation 2. A threshold of 0 allows every token.
    """
    if threshold <= 0:
        return torch.ones_like(logits, dtype=torch.bool) if allowed is None else allowed
    logits = logits.float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits >= logits.amax(-1, keepdim=True) + math.log(threshold)


def contrast(
    positive: Tensor, negative: Tensor, *, strength: float, threshold: float = 0.0, allowed: Tensor | None = None
) -> Tensor:
    """Return (1 + a) positive - a negative where the positive finds a token plausible, else minus infinity.

    Source: O'Brien and Lewis 2023 (arXiv 2309.09117), section 2: the softmax is p+ (p+ / p-)^a, normalised. With a
    threshold of 0 and a = scale - 1 it is classifier-free guidance, Sanchez et al. 2023 (arXiv 2306.17806), equation 7.
    """
    positive = positive.float()
    combined = positive if strength == 0 else torch.lerp(negative.float(), positive, 1 + strength)
    return rule_out(combined, positive, threshold, allowed)


def rule_out(scores: Tensor, logits: Tensor, threshold: float, allowed: Tensor | None = None) -> Tensor:
    """Set the scores of tokens that are not plausible by `logits` to minus infinity."""
    if threshold <= 0 and allowed is None:
        return scores
    return scores.masked_fill(~plausible(logits, threshold, allowed), -torch.inf)


def log_ratio(
    expert: Tensor, amateur: Tensor, *, weight: float = 1.0, threshold: float = 0.1, allowed: Tensor | None = None
) -> Tensor:
    """Return log p_expert - weight x log p_amateur where the expert finds a token plausible, else minus infinity.

    Source: Li et al. 2022 (arXiv 2210.15097), equations 1 and 3; `weight` is the coefficient of their released code.
    """
    expert = expert.float()
    score = expert.log_softmax(-1) - weight * amateur.float().log_softmax(-1)
    return rule_out(score, expert, threshold, allowed)
