"""A key-value cache for trying k next tokens of each row in one forward pass.

The k candidates of a row are k positions of one pass: each sees the row's past and itself, none another. The cache is one
buffer a layer: k scratch columns in front, the past behind them, so that neither the mask nor the buffer is built anew for
a step. When a candidate is chosen its column is copied to the end of the past. Attention does not mind the order of the
columns: positions are in the keys.

Shapes: B rows, k candidates, T tokens of the past, H key-value heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["CHUNK", "BranchCache"]

CHUNK = 256
"""Columns by which a buffer grows, and by which a window's past is let grow before what left the window is dropped."""


class _Track:
    """What the layers of one kind have in common: how much past they hold, and what a candidate may see of it."""

    def __init__(self, width: int, window: int | None) -> None:
        self.width, self.window = width, window
        self.length = 0
        self.capacity = 0
        self.mask = torch.empty(0)  # (B, 1, k, k + capacity), True where a candidate may look

    def start(self, attention_mask: Tensor, room: int) -> None:
        """Begin with a prompt of shape (B, T); room is for the tokens to come."""
        rows, self.length = attention_mask.shape
        self.capacity = self.length + room
        self.mask = torch.zeros((rows, 1, self.width, self.width + self.capacity), dtype=torch.bool)
        self.mask = self.mask.to(attention_mask.device)
        self.mask[..., : self.width] = torch.eye(self.width, dtype=torch.bool, device=attention_mask.device)
        self.mask[..., self.width : self.width + self.length] = attention_mask[:, None, None].bool()
        if self.window is not None:
            self.mask[..., self.width : self.width + max(0, self.length - self.window + 1)] = False

    def seen(self) -> Tensor:
        """Return the mask of a pass over candidates, (B, 1, k, k + T)."""
        return self.mask[..., : self.width + self.length]

    def advance(self) -> int:
        """Make room for a chosen token; return by how many columns the past is to be moved to the front."""
        dropped = 0
        if self.window is not None and self.length >= self.window - 1 + CHUNK:
            dropped = self.length - (self.window - 1)
            kept = slice(self.width + dropped, self.width + self.length)
            self.mask[..., self.width : self.width + self.window - 1] = self.mask[..., kept].clone()
            self.length -= dropped
        if self.length == self.capacity:
            more = self.mask.new_zeros((*self.mask.shape[:-1], CHUNK))
            self.mask, self.capacity = torch.cat([self.mask, more], -1), self.capacity + CHUNK
        self.mask[..., self.width + self.length] = True
        if self.window is not None and self.length + 1 >= self.window:
            self.mask[..., self.width + self.length + 1 - self.window] = False
        self.length += 1
        return dropped


class _Layer(CacheLayerMixin):
    """The keys and values of one layer, (B, H, k + capacity, D)."""

    def __init__(self, track: _Track) -> None:
        super().__init__()
        self.track = track
        self.is_sliding = track.window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take a prompt's keys and values."""
        columns = self.track.width + self.track.capacity
        self.keys = key_states.new_empty((*key_states.shape[:2], columns, key_states.shape[-1]))
        self.values = value_states.new_empty((*value_states.shape[:2], columns, value_states.shape[-1]))
        past = slice(self.track.width, self.track.width + key_states.shape[2])
        self.keys[:, :, past], self.values[:, :, past] = key_states, value_states
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store a prompt, or candidates; return all that the pass may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        width, stop = self.track.width, self.track.width + self.track.length
        assert self.keys is not None and self.values is not None
        self.keys[:, :, :width], self.values[:, :, :width] = key_states, value_states
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def keep(self, rows: Tensor, chosen: Tensor, dropped: int) -> None:
        """Copy each row's chosen column to the end of the past; the track has advanced already."""
        width, last = self.track.width, self.track.width + self.track.length - 1
        columns = self.track.width + self.track.capacity
        for name in ("keys", "values"):
            buffer: Tensor = getattr(self, name)
            if buffer.shape[2] < columns:
                grown = buffer.new_empty((*buffer.shape[:2], columns, buffer.shape[3]))
                grown[:, :, : buffer.shape[2]] = buffer
                setattr(self, name, grown)
                buffer = grown
            if dropped:
                kept = self.track.length - 1
                buffer[:, :, width : width + kept] = buffer[:, :, width + dropped : width + dropped + kept].clone()
            buffer[:, :, last] = buffer[rows, :, chosen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns a mask has, and where they begin."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the past's tokens."""
        return self.track.length if self.is_initialized else 0

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1


class BranchCache(Cache):
    """The cache of a model whose layers all attend, whole or in a window."""

    def __init__(self, config: Any, *, width: int) -> None:
        text = config.get_text_config(decoder=True)
        kinds: list[str] = list(getattr(text, "layer_types", None) or [])
        window: int | None = getattr(text, "sliding_window", None)
        if not kinds:
            kinds = ["full_attention" if window is None else "sliding_attention"] * text.num_hidden_layers
        self.tracks = {
            kind: _Track(width, window if kind == "sliding_attention" else None) for kind in sorted(set(kinds))
        }
        self._layers = [_Layer(self.tracks[kind]) for kind in kinds]
        super().__init__(layers=list(self._layers))

    def start(self, attention_mask: Tensor, *, room: int) -> None:
        """Get ready for a prompt with this mask (B, T) and for `room` tokens after it; more of them make it grow."""
        for track in self.tracks.values():
            track.start(attention_mask, room)

    def mask(self) -> Tensor | dict[str, Tensor]:
        """Return what candidates may see: the one mask, or one for each kind of layer."""
        masks = {kind: track.seen() for kind, track in self.tracks.items()}
        return next(iter(masks.values())) if len(masks) == 1 else masks

    def keep(self, chosen: Tensor) -> None:
        """Make each row's candidate `chosen` (B,) the last token of its past."""
        rows = torch.arange(len(chosen), device=chosen.device)
        dropped = {id(track): track.advance() for track in self.tracks.values()}
        for layer in self._layers:
            layer.keep(rows, chosen, dropped[id(layer.track)])
