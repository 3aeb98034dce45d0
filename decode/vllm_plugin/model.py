"""A model that reads its text in several streams, and answers with one row of logits.

Any text model of vLLM's whose layers attend is wrapped as it is. `forward` returns the streams' states side by side, and
behind them which request a row belongs to: whatever rows vLLM picks for `compute_logits`, they carry what is needed there.
Shapes: N tokens of a step, M of all streams together, H the size of a state, V vocabulary.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model

from counterfoil.errors import EngineError
from decode.method import LogitsMethod
from decode.vllm_plugin.batch import Batch, Narrowed, Part, Plan, find_batch, list_adapters, wrap_backend
from decode.vllm_plugin.lora import attach_adapters

__all__ = ["CounterfoilForCausalLM"]

BASE = 128
"""Of the digits in which a row says its request: exact in every floating-point type."""
SECOND = "second."
PROCESSORS = "decode.vllm_plugin.processors"
FLOOR = 1000.0
"""How far below the least plausible token an implausible one is put: never drawn, unless all others are forbidden."""


class CounterfoilForCausalLM(nn.Module):
    """One model in several streams, or two models in one each."""

    first: Any
    second: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        _check(vllm_config)
        self._batch: Batch = find_batch(vllm_config)
        self._adapters = list_adapters(self._batch.method)
        path = vllm_config.model_config.model
        self.first = init_vllm_registered_model(vllm_config, architectures=_read_architectures(path), prefix=prefix)
        layers = _list_attention(vllm_config)
        self._layers: list[tuple[str, ...]] = []
        self.second = None
        self.secondary_weights: list[Any] = []
        if self._batch.method.second_model:
            other = self._batch.method.second_model
            config = _read_config(other)
            self.second = init_vllm_registered_model(vllm_config, hf_config=config, prefix=SECOND[:-1])
            self.secondary_weights = [
                DefaultModelLoader.Source(other, revision=None, prefix=SECOND, fall_back_to_pt=False)
            ]
        for name, layer in layers.items():
            self._layers.append(self._add_twins(vllm_config, name, layer))
        self._width = vllm_config.model_config.get_hidden_size()
        end = vllm_config.model_config.hf_config.eos_token_id
        self._end: int = end[0] if isinstance(end, list) else end or 0

    def _add_twins(self, vllm_config: VllmConfig, name: str, layer: Attention) -> tuple[str, ...]:
        """Give a layer a cache for each further stream; the weights are the same."""
        context, backend = vllm_config.compilation_config.static_forward_context, layer.attn_backend
        twins = [layer, *(copy.copy(layer) for _ in range(1, self._batch.num_streams))]
        names = tuple(name if at == 0 else f"{name}.stream{at}" for at in range(len(twins)))
        for at, (twin, own) in enumerate(zip(twins, names, strict=True)):
            twin.layer_name = own
            twin.attn_backend = wrap_backend(backend, at)
            context[own] = twin
        if len(twins) > 1:
            layer.forward = partial(self._attend, [partial(Attention.forward, twin) for twin in twins])  # type: ignore[method-assign]
        return names

    def _attend(
        self, streams: list[Any], query: Tensor, key: Tensor, value: Tensor, output_shape: Any = None
    ) -> Tensor:
        """Attend in each stream to its own past."""
        parts = [
            item.split(self._counts) if item is not None else [None] * len(self._counts) for item in (query, key, value)
        ]
        found: list[Tensor] = []
        for at, attend in enumerate(streams):
            shape = None if output_shape is None else torch.Size((self._counts[at], *output_shape[1:]))
            if self._counts[at]:
                found.append(attend(parts[0][at], parts[1][at], parts[2][at], output_shape=shape))
        return torch.cat(found)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the first model's embeddings, (N, H)."""
        return self.first.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Read a step's tokens (N,) in all streams. Returns states and requests, (N, streams x H + 2)."""
        assert inputs_embeds is None and intermediate_tensors is None and positions.ndim == 1
        plan = self._batch.plan if get_forward_context().attn_metadata is not None else None
        if self.second is not None:
            states = [self.first(input_ids, positions, None), self.second(input_ids, positions, None)]
        else:
            states = self._read_streams(input_ids, positions, plan)
        return torch.cat([*states, _encode_requests(plan, input_ids, states[0].dtype)], -1)

    def _read_streams(self, input_ids: Tensor, positions: Tensor, plan: Plan | None) -> list[Tensor]:
        parts = plan.parts if plan is not None else [Part()] * self._batch.num_streams
        if plan is not None:
            self._place_metadata()
        read = [_pick(part, input_ids, positions) for part in parts]
        self._counts = [len(ids) for ids, _ in read]
        ids, places = (torch.cat([pair[at] for pair in read]) for at in (0, 1))
        found = self.first(ids, places, None).split(self._counts)
        return [_spread(states, part, len(input_ids)) for states, part in zip(found, parts, strict=True)]

    def _place_metadata(self) -> None:
        """Put each stream's metadata and slots where its layers look for them."""
        context = get_forward_context()
        assert isinstance(context.attn_metadata, dict) and isinstance(context.slot_mapping, dict)
        for name in itertools.chain.from_iterable(self._layers):
            found = context.attn_metadata[name]
            if isinstance(found, Narrowed):
                context.attn_metadata[name] = found.metadata
                if found.slot_mapping is not None:
                    context.slot_mapping[name] = found.slot_mapping

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Score rows that `forward` returned: the first stream's logits, or the contrast where a request asks for it."""
        digits = hidden_states[:, -2:].long()
        states = hidden_states[:, : self._width]
        others = hidden_states[:, self._width : -2]
        codes = digits[:, 0] + BASE * digits[:, 1]
        rows = codes.nonzero()[:, 0]
        if not len(rows):
            return self.first.compute_logits(states)
        if self.second is not None:
            found = [self.first.compute_logits(states), self.second.compute_logits(others[rows])]
        else:
            picked = others[rows].split(self._width, -1)
            logits = self.first.compute_logits(torch.cat([states, *picked]))
            found = [logits] if logits is None else logits.split([len(states), *[len(rows)] * len(picked)])
        logits, *more = found
        if logits is None:  # a rank that gathers no logits
            return None
        return self._combine(logits.float(), [item for item in more if item is not None], rows, codes[rows].tolist())

    def _combine(self, logits: Tensor, more: Sequence[Tensor], rows: Tensor, codes: list[int]) -> Tensor:
        assert self._batch.plan is not None
        found, groups = logits.clone(), dict[LogitsMethod, list[int]]()
        for at, code in enumerate(codes):
            asked = self._batch.plan.asked[code - 1]
            if asked is not None and asked.fault is None:
                groups.setdefault(asked.method, []).append(at)
            else:  # its streams are not what was asked for: the text ends here
                found[rows[at]] = -torch.inf
                found[rows[at], self._end] = 0.0
        for method, members in groups.items():
            at = torch.tensor(members, device=rows.device)
            first = logits[rows[at]]
            scores = method.combine([first, *(item[at].float() for item in more)])
            found[rows[at]] = _put_below(scores, first)
        return found

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the first model's weights, then the second's, which come after them under a prefix."""
        source = iter(weights)
        rest: list[tuple[str, Tensor]] = []

        def take_first() -> Iterator[tuple[str, Tensor]]:
            for name, weight in source:
                if self.second is not None and name.startswith(SECOND):
                    rest.append((name, weight))
                    return
                yield name, weight

        loaded = {f"first.{name}" for name in self.first.load_weights(take_first())}
        if self.second is not None:
            named = ((name.removeprefix(SECOND), weight) for name, weight in itertools.chain(rest, source))
            loaded |= {f"{SECOND}{name}" for name in self.second.load_weights(named)}
        if self._adapters:
            attach_adapters(self.first, self._adapters)
        return loaded


def _pick(part: Part, input_ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    if part.rows is None or part.shifts is None:
        return input_ids, positions
    ids, places = input_ids[part.rows], positions[part.rows] - part.shifts
    if part.replaced_at is not None and part.replaced_by is not None:
        ids[part.replaced_at] = part.replaced_by.to(ids.dtype)
    return ids, places


def _spread(states: Tensor, part: Part, length: int) -> Tensor:
    """Put a stream's states (M, H) at their rows of the step, (N, H)."""
    if part.rows is None:
        return states
    found = states.new_zeros((length, states.shape[-1]))
    found[part.rows] = states
    return found


def _encode_requests(plan: Plan | None, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Say which request each row belongs to, as two digits (N, 2); zeros for a request that asks for no contrast."""
    codes = torch.zeros_like(input_ids, dtype=torch.long)
    if plan is not None:
        codes[: len(plan.request_of)] = plan.request_of
    return torch.stack([codes % BASE, codes // BASE], -1).to(dtype)


def _put_below(scores: Tensor, first: Tensor) -> Tensor:
    """Put ruled-out tokens far below all others, in the first stream's order, instead of at minus infinity.

    Where all others are forbidden after this (a grammar, `min_tokens`), there is still a choice among the rest.
    """
    if scores.shape[-1] < first.shape[-1]:
        scores = nn.functional.pad(scores, (0, first.shape[-1] - scores.shape[-1]), value=-torch.inf)
    out = scores.isneginf()
    least = scores.masked_fill(out, torch.inf).amin(-1, keepdim=True)
    below = least - FLOOR + first - first.amax(-1, keepdim=True)
    return torch.where(out, below, scores)


def _check(vllm_config: VllmConfig) -> None:
    """Raise EngineError for settings under which streams would not be what they should."""
    from vllm.config import CompilationMode

    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    faults = {
        "compilation": vllm_config.compilation_config.mode != CompilationMode.NONE,
        "speculative decoding": vllm_config.speculative_config is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "decode context parallelism": getattr(parallel, "decode_context_parallel_size", 1) > 1,
        "a connector for keys and values": vllm_config.kv_transfer_config is not None,
        "fast prefill": bool(getattr(cache, "kv_sharing_fast_prefill", False)),
    }
    given = vllm_config.model_config.logits_processors or ()
    faults["no logits processor of ours, which reads the requests"] = not any(
        (item if isinstance(item, str) else getattr(item, "__module__", "")).startswith(PROCESSORS) for item in given
    )
    if found := [what for what, there in faults.items() if there]:
        raise EngineError(
            "vllm: counterfoil", given=", ".join(found), allowed="enforce_eager=True and none of these",
            do="Start vLLM with the settings of decode.vllm_plugin.settings.",
        )  # fmt: skip


def _list_attention(vllm_config: VllmConfig) -> dict[str, Attention]:
    """Return the layers that keep a past. Raises EngineError for one that is no plain attention."""
    found: dict[str, Attention] = {}
    for name, layer in vllm_config.compilation_config.static_forward_context.items():
        if not isinstance(layer, AttentionLayerBase):
            continue
        if type(layer) is not Attention or layer.kv_sharing_target_layer_name is not None:
            what = "shared keys and values" if type(layer) is Attention else type(layer).__name__
            raise EngineError(
                "model",
                given=f"{what} ({name})",
                allowed="layers that attend to their own past",
                do="Use another model.",
            )
        found[name] = layer
    return found


def _read_config(path: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path)


def _read_architectures(path: str) -> list[str]:
    """Return what the model's own config names, which `hf_overrides` has replaced by this class."""
    return list(_read_config(path).architectures)
