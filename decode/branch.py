"""Trying k next tokens of each row: as k positions of one pass over one cache, or as k rows over k copies of it.

Shapes: B rows, k candidates, T tokens of the past, H the size of a state, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from decode.attention import replaced_attention
from decode.branch_cache import CHUNK, BranchCache
from decode.grouped_attention import GROUPED
from decode.streams import score_states

__all__ = ["OneRow", "Replicated", "open_branch"]


@contextmanager
def open_branch(
    model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], *, k: int, room: int, form: str
) -> Iterator["OneRow | Replicated"]:
    """Read a prompt (B, T) and get ready to try k tokens after it, `room` times, in one of the two forms."""
    room = min(room, CHUNK)  # more is made room for on the way
    if form == "replicated":
        yield Replicated(model, input_ids, model_kwargs, k=k, room=room)
        return
    with replaced_attention(model.base_model, GROUPED):
        yield OneRow(model, input_ids, model_kwargs, k=k, room=room)


class _Branch:
    """The past of a batch, and a way to try tokens after it."""

    logits: Tensor
    """Of the next token, (B, V)."""

    def __init__(self, states: Tensor, mask: Tensor, *, room: int) -> None:
        self._num_past = states.shape[1]
        self._past = states.new_zeros((len(states), self._num_past + room, states.shape[2]), dtype=torch.float32)
        self._past[:, : self._num_past] = normalize(states.float(), dim=-1)
        self._padding = None if bool(mask.all()) else ~mask
        self._rows = torch.arange(len(states), device=states.device)
        self._tried = states

    def _compare(self, states: Tensor) -> Tensor:
        """Return the largest cosine of each candidate's state (B, k, H) to any before it, (B, k)."""
        self._tried = normalize(states.float(), dim=-1)
        cosines = self._tried @ self._past[:, : self._num_past].transpose(1, 2)
        if self._padding is not None:  # it lies in the prompt
            cosines[..., : self._padding.shape[1]].masked_fill_(self._padding[:, None], -torch.inf)
        return cosines.amax(-1)

    def _remember(self, chosen: Tensor) -> None:
        if self._num_past == self._past.shape[1]:
            self._past = torch.cat([self._past, torch.zeros_like(self._past[:, :CHUNK])], 1)
        self._past[:, self._num_past] = self._tried[self._rows, chosen]
        self._num_past += 1


class OneRow(_Branch):
    """Candidates as k positions of one pass, over one cache."""

    def __init__(self, model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], *, k: int, room: int) -> None:
        self._model, self._backbone = model, model.base_model
        given = model_kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if given is None else given
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self._next = positions[:, -1:] + 1
        self._cache = BranchCache(model.config, width=k)
        self._cache.start(mask, room=room)
        states = self._backbone(
            input_ids=input_ids,
            attention_mask=given,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        super().__init__(states, mask.bool(), room=room)
        self._states = states
        self.logits = score_states(model, states[:, -1:])[:, -1]

    def try_tokens(self, candidates: Tensor) -> Tensor:
        """Read each of the candidates (B, k); return the largest cosine of its state to any before it, (B, k)."""
        self._states = self._backbone(
            input_ids=candidates,
            attention_mask=self._cache.mask(),
            position_ids=self._next.expand_as(candidates),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return self._compare(self._states)

    def keep(self, chosen: Tensor) -> Tensor:
        """Make each row's candidate `chosen` (B,) its last token; return the logits of the next one, (B, V)."""
        self._remember(chosen)
        self._cache.keep(chosen)
        self._next = self._next + 1
        return score_states(self._model, self._states[self._rows, chosen][:, None])[:, -1]


class Replicated(_Branch):
    """Candidates as k rows, each over a copy of its row's cache: for models in which a position is more than a number."""

    def __init__(self, model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], *, k: int, room: int) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        self._model, self._k = model, k
        self._encodes = bool(model.config.is_encoder_decoder)
        given = model_kwargs.get("decoder_attention_mask" if self._encodes else "attention_mask")
        self._mask = torch.ones_like(input_ids) if given is None else given
        fixed = ("encoder_outputs", "attention_mask") if self._encodes else ()
        self._fixed = {key: model_kwargs[key] for key in fixed if key in model_kwargs}
        config = model.config.get_text_config(decoder=True)
        self._cache: Any = DynamicCache(config=config)
        if self._encodes:
            self._cache = EncoderDecoderCache(self._cache, DynamicCache(config=config))
        states, logits = self._forward(input_ids, self._mask, self._fixed)
        super().__init__(states, self._mask.bool(), room=room)
        self.logits = logits[:, -1]

    def try_tokens(self, candidates: Tensor) -> Tensor:
        """Read each of the candidates (B, k); return the largest cosine of its state to any before it, (B, k)."""
        self._cache.batch_repeat_interleave(self._k)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], -1)
        fixed = {key: _repeat(value, self._k) for key, value in self._fixed.items()}
        states, self._tried_logits = self._forward(
            candidates.reshape(-1, 1), self._mask.repeat_interleave(self._k, 0), fixed
        )
        return self._compare(states.view(*candidates.shape, -1))

    def keep(self, chosen: Tensor) -> Tensor:
        """Make each row's candidate `chosen` (B,) its last token; return the logits of the next one, (B, V)."""
        self._remember(chosen)
        rows = self._rows * self._k + chosen
        self._cache.batch_select_indices(rows)
        return self._tried_logits[rows, -1]

    def _forward(self, tokens: Tensor, mask: Tensor, fixed: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if self._encodes:
            result = self._model(
                decoder_input_ids=tokens, decoder_attention_mask=mask, past_key_values=self._cache, use_cache=True,
                output_hidden_states=True, **fixed,
            )  # fmt: skip
            return result.decoder_hidden_states[-1], result.logits
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        result = self._model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=self._cache, use_cache=True,
            output_hidden_states=True,
        )  # fmt: skip
        return result.hidden_states[-1], result.logits


def _repeat(value: Any, times: int) -> Any:
    """Repeat the rows of a tensor, or of each tensor in a model's output."""
    if isinstance(value, Tensor):
        return value.repeat_interleave(times, 0)
    return type(value)(**{key: _repeat(item, times) for key, item in value.items() if isinstance(item, Tensor)})
