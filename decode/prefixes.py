"""One forward pass for what the rows of a batch share.

The rows of a preference batch begin alike: chosen and rejected, or K completions, after one prompt, and every prompt after
one system message. A causal model's states at a prefix depend on that prefix alone, so each different prefix needs to be
computed once. `share_prefixes` makes a model do so: the batch becomes the trie of its token sequences, laid out as one
row without padding; a token attends to its own prefix and sees no other branch; the states are then put back where the
caller expects them, so that losses, heads and metrics above stay as they were.

Source: the identity is that of prefix sharing for preference pairs (Wang and Hegde 2024, arXiv 2410.20305).
Differences: (1) a trie over the whole batch instead of one shared prompt a pair, so K completions, repeated prompts and
the system message are shared by the same rule, and a prompt whose last tokens change when the answer is glued on is cut at
what is really common; (2) on a CPU attention runs row by row, each over its own prefix, instead of with one masked square of
all rows; on a GPU it is FlexAttention (Dong et al. 2024, arXiv 2412.05496) over blocks, with two comparisons for a mask.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from counterfoil.errors import InputError
from decode.attention import install_attention, list_obstacles, replaced_attention, replaced_forward

__all__ = ["Tail", "Trie", "can_share", "share_prefixes", "shared_prefixes"]

ATTENTION = "counterfoil_trie"  # the name under which transformers finds `_attend`
LEAST_SAVED = 0.02
"""Below this share of a batch's places (padding counts) the plain form is taken. `benchmarks/align.py sharing`: 0.2 % saved
cost 1 % of a step, 3 % saved gained 2 %."""


@dataclass(frozen=True)
class Tail:
    """What one row adds to the trie: tokens `start` to `stop`, after the tokens `before` of rows above it."""

    start: int
    stop: int
    before: Tensor | slice
    """Where the shared prefix lies, in order; a slice where it lies in one piece."""
    num_before: int


@dataclass(frozen=True)
class Trie:
    """The distinct prefixes of a batch, laid out depth first."""

    source: Tensor
    """Shape (T,): which of the batch's flattened tokens each of the T nodes is."""
    positions: Tensor
    """Shape (T,): distance from the row's first token."""
    target: Tensor
    """Shape (B, L): the node of each token of the batch; 0 at padding."""
    ends: Tensor
    """Shape (T,): nodes from a node to its end are those below it: it is seen by q if it is <= q < its end."""
    tails: tuple[Tail, ...]
    """One for each distinct row, in the order of the nodes."""
    _masks: dict[int | None, Any] = field(default_factory=dict[int | None, Any])

    @classmethod
    def build(cls, input_ids: Tensor, attention_mask: Tensor | None = None) -> "Trie":
        """Lay out a batch of shape (B, L); `attention_mask` (B, L) is 0 at padding, on either side."""
        tokens = input_ids.detach().cpu().numpy()
        mask = np.ones(tokens.shape, bool) if attention_mask is None else attention_mask.detach().cpu().numpy() != 0
        columns = [np.flatnonzero(row) for row in mask]
        rows = [ids[where] for ids, where in zip(tokens, columns, strict=True)]
        target = np.zeros(tokens.shape, np.int64)
        source: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        tails: list[Tail] = []
        ends: list[np.ndarray] = []
        count = 0
        above, nodes_above = rows[0][:0], target[0, :0]
        # In lexical order each row shares its longest prefix with the row just before it.
        for index in sorted(range(len(rows)), key=lambda index: rows[index].tolist()):
            row = rows[index]
            shared = _common(above, row)
            fresh = np.arange(count, count + len(row) - shared)
            nodes = np.concatenate([nodes_above[:shared], fresh])
            ends.append(
                np.stack([nodes_above[shared:], np.full(len(above) - shared, count)])
            )  # nothing more goes below
            target[index, columns[index]] = nodes
            if len(fresh):
                source.append(index * tokens.shape[1] + columns[index][shared:])
                positions.append(np.arange(shared, len(row)))
                tails.append(
                    Tail(count, count + len(fresh), _locate(nodes[:shared], input_ids.device), num_before=shared)
                )
                count += len(fresh)
            above, nodes_above = row, nodes

        ends.append(np.stack([nodes_above, np.full(len(above), count)]))
        closed = np.zeros(count, np.int64)
        at, end = np.concatenate(ends, 1)
        closed[at] = end

        def place(*parts: np.ndarray) -> Tensor:
            return torch.from_numpy(np.concatenate(parts)).to(input_ids.device)

        return cls(place(*source), place(*positions), place(target), place(closed), tuple(tails))

    def sees(self, window: int | None) -> Callable[..., Tensor]:
        """Return FlexAttention's mask: node q sees kv where kv begins q's prefix and, in a window, is near enough."""
        ends, positions = self.ends, self.positions

        def mask(batch: Any, head: Any, q: Tensor, kv: Tensor) -> Tensor:  # noqa: ARG001  (FlexAttention calls it)
            above = (kv <= q) & (q < ends[kv])
            return above if window is None else above & (positions[q] - positions[kv] < window)

        return mask

    def block_mask(self, window: int | None) -> Any:
        """Return the mask in blocks, made once a trie and window: all layers share it."""
        from torch.nn.attention.flex_attention import create_block_mask

        if window not in self._masks:
            size = len(self.source)
            self._masks[window] = create_block_mask(
                self.sees(window), None, None, size, size, device=str(self.source.device)
            )
        return self._masks[window]


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _common(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length


def _locate(nodes: np.ndarray, device: torch.device) -> Tensor | slice:
    if len(nodes) == 0:
        return slice(0, 0)
    if nodes[-1] - nodes[0] == len(nodes) - 1:
        return slice(int(nodes[0]), int(nodes[-1]) + 1)
    return torch.from_numpy(nodes).to(device)


def share_prefixes(model: Any, *, least_saved: float = LEAST_SAVED) -> None:
    """Make a causal language model of transformers compute each distinct prefix of a batch once, from now on.

    A batch of which this would save less than the share `least_saved` is computed as before; 0 shares every batch.

    The backbone's forward is replaced: called with `input_ids` (B, L), a mask of two dimensions, `use_cache=False` and no
    position ids, it returns the same `last_hidden_state` (B, L, H) as before at every token (padding holds the state
    of some other token). Any other call goes through as before. Raises InputError for a model in which a state depends
    on more than its prefix's tokens and positions, or whose attention cannot be replaced.
    """
    obstacles = list_obstacles(model)
    if obstacles:
        raise InputError(
            f"model: {model.config.model_type}",
            given=", ".join(obstacles),
            allowed="a decoder whose layers are attention alone, whole or in a window",
            do="Train with share_prompts=false.",
        )
    backbone = model.base_model
    install_attention(ATTENTION, _attend)
    backbone.set_attn_implementation(ATTENTION)
    backbone.forward = _make_forward(backbone, least_saved)


@contextmanager
def shared_prefixes(model: Any) -> Generator[None]:
    """Let a model share prefixes for a while, as `share_prefixes` does for good; one that cannot computes as before."""
    if list_obstacles(model):
        yield
        return
    backbone = model.base_model
    install_attention(ATTENTION, _attend)
    with replaced_attention(backbone, ATTENTION), replaced_forward(backbone, _make_forward(backbone, LEAST_SAVED)):
        yield


def _make_forward(backbone: Any, least_saved: float) -> Callable[..., Any]:
    """Make a backbone's forward that lays its batch out as a trie, where that saves enough."""
    plain: Callable[..., Any] = backbone.forward

    def forward(input_ids: Tensor | None = None, attention_mask: Any = None, **rest: Any) -> Any:
        busy = ("past_key_values", "position_ids", "inputs_embeds", "output_hidden_states", "output_attentions")
        busy += ("output_router_logits",)  # a row for each place of the batch is wanted, which the trie has not
        flat = attention_mask is None or (isinstance(attention_mask, Tensor) and attention_mask.ndim == 2)
        # A cache of the trie would be of no use to the caller, so one must not be wanted, not even by default.
        alone = rest.get("use_cache") is False and all(rest.get(key) in (None, False) for key in busy)
        if input_ids is None or not flat or not alone:
            return plain(input_ids=input_ids, attention_mask=attention_mask, **rest)
        trie = Trie.build(input_ids, attention_mask)
        rest = {key: value for key, value in rest.items() if key not in busy}  # given, as None
        if len(trie.source) > (1 - least_saved) * input_ids.numel():
            if attention_mask is not None:  # learnt positions would count padding on the left, as the trie does not
                rest["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
            return plain(input_ids=input_ids, attention_mask=attention_mask, **rest)
        result = plain(
            input_ids=input_ids.reshape(-1)[trie.source][None],
            # transformers hands a mask of four dimensions through as it is; ours is in the trie.
            attention_mask=input_ids.new_ones((1, 1, 1, 1), dtype=torch.bool),
            position_ids=trie.positions[None],
            trie=trie,
            **rest,
        )
        result.last_hidden_state = result.last_hidden_state[0][trie.target]
        return result

    return forward


def can_share(model: Any) -> bool:
    """Say whether a state of the model is a function of its prefix's tokens and positions, as sharing needs."""
    return not list_obstacles(model)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trie: Trie | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attend, each row's tail to what is before it and to itself. Shapes (1, heads, T, D), and (1, T, heads, D) out."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if trie is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask,
            scaling=scaling, dropout=dropout, sliding_window=sliding_window, **rest,
        )  # fmt: skip
    # `list_obstacles` asks the config; what a model passes here all the same would be left out of the sum in silence.
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if rest.get(name) is not None]
    if unknown:
        raise InputError(
            f"model: {module.config.model_type}",
            given=f"attention with {', '.join(unknown)}",
            allowed="scaled dot products alone",
            do="Train with share_prompts=false.",
        )
    if query.is_cuda:
        mask = trie.block_mask(sliding_window)
        found: Any = _flex()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=key.size(1) != query.size(1))
        return found.transpose(1, 2), None
    sizes = [tail.stop - tail.start for tail in trie.tails]
    results: list[Tensor] = []
    for tail, own_query, own_key, own_value in zip(
        trie.tails, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True
    ):
        if tail.num_before:
            own_key = torch.cat([key[:, :, tail.before], own_key], 2)
            own_value = torch.cat([value[:, :, tail.before], own_value], 2)
        mask = _mask(tail, sliding_window, query.device)
        results.append(
            scaled_dot_product_attention(
                own_query, own_key, own_value, attn_mask=mask,
                is_causal=mask is None, scale=scaling, dropout_p=dropout, enable_gqa=key.size(1) != query.size(1),
            )
        )  # fmt: skip
    return torch.cat(results, 2).transpose(1, 2), None


def _mask(tail: Tail, window: int | None, device: torch.device) -> Tensor | None:
    """Return what a tail may see, (own, before + own); None where it is the plain triangle."""
    total = tail.num_before + tail.stop - tail.start
    if not tail.num_before and (window is None or total <= window):
        return None
    at = torch.arange(tail.num_before, total, device=device)[:, None]
    seen = torch.arange(total, device=device)[None]
    allowed = seen <= at
    return allowed if window is None else allowed & (seen > at - window)
