"""Replacing a part of a model, its attention or a forward: what prefix sharing and branching stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # adapters.py stands on this, and every engine's choice on that
    from torch import Tensor

__all__ = [
    "ENCODER",
    "install_attention",
    "list_cache_obstacles",
    "list_obstacles",
    "replaced_attention",
    "replaced_forward",
    "varies_with_batch",
]


def list_obstacles(model: Any) -> list[str]:
    """Say why a state of the model is not a function of its prefix's tokens and positions alone; empty where it is one."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    found = [f"layers of type {kind}" for kind in sorted(kinds)]
    if model.config.is_encoder_decoder:
        found.append(ENCODER)
    if not getattr(model, "_supports_attention_backend", False):
        found.append("attention that cannot be replaced")
    if getattr(config, "attn_logit_softcapping", None):
        found.append("soft-capped attention")
    if varies_with_batch(model):
        found.append("positions that depend on the longest row of a batch")
    if any(hasattr(module, "sinks") for module in model.modules()):
        found.append("attention sinks")
    return found


ENCODER = "an encoder"


def varies_with_batch(model: Any) -> bool:
    """Say whether a row's states depend on the rows beside it: rotary frequencies that are those of the longest one."""
    given: Any = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = given.values() if all(isinstance(item, dict) for item in given.values()) else [given]
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def list_cache_obstacles(model: Any) -> list[str]:
    """Say why a model's past is not a cache of keys and values that grows by the token; empty where it is one."""
    kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or [])
    found = [
        f"layers of type {kind}"
        for kind in sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    ]
    if getattr(model, "_is_stateful", False):
        found.append("a state that cannot be gone back in")
    return found + ([ENCODER] if model.config.is_encoder_decoder else [])


def install_attention(name: str, attend: Callable[..., tuple[Tensor, Any]]) -> None:
    """Make transformers find `attend` under `name`; its masks are those of scaled dot-product attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)


@contextmanager
def replaced_attention(backbone: Any, name: str) -> Iterator[None]:
    """Let a model, and the models in it, attend by `name` for a while."""
    config = backbone.config
    parts = {key: getattr(config, key, None) for key in config.sub_configs}
    before = {key: part._attn_implementation for key, part in parts.items() if part is not None}
    before[""] = config._attn_implementation
    backbone.set_attn_implementation(name)
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)


@contextmanager
def replaced_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute `forward` for a while."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
