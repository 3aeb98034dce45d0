"""Scaled dot-product attention that does not repeat keys and values for the heads that share them.

transformers repeats them at every step where there is a mask (padding, candidates), which costs more than the attention.
"""

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from decode.attention import install_attention

__all__ = ["GROUPED"]

GROUPED = "counterfoil_grouped"
"""The name under which transformers finds it."""


def attend(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend without repeating keys and values for each group of heads, which transformers does under a mask."""
    causal = attention_mask is None and query.shape[2] > 1
    grouped = key.shape[1] != query.shape[1]
    result = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=causal,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=grouped,
    )
    return result.transpose(1, 2), None


install_attention(GROUPED, attend)
