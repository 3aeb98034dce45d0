"""Which rows each stream reads in a step, and where its keys and values lie.

A request has one prompt and one table of blocks for the scheduler. With two prompts of lengths T and U the prompt that the
scheduler sees has max(T, U) tokens, and the streams end together: stream s begins `shift` tokens after the first, so that its
i-th token is the request's (i + shift)-th. Its keys and values lie at slot i of the same blocks, in a cache of its own. All
follows from what the scheduler says for the request itself: how many tokens are computed and how many come now.

Shapes: R requests in a step, N tokens in a step, M of them read by a stream.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from decode.method import LogitsMethod, Method
from decode.methods.decoupled import Decoupled

if TYPE_CHECKING:
    from decode.vllm_plugin.processors import Asked

__all__ = ["Batch", "Narrowed", "Part", "Plan", "find_batch", "list_adapters", "wrap_backend"]


@dataclass
class Part:
    """What one stream reads in a step."""

    rows: Tensor | None = None
    """Of the step's tokens, (M,); None is all."""
    shifts: Tensor | None = None
    """Of those rows, (M,): how many tokens after the request's first the stream's first is."""
    requests: np.ndarray | None = None
    """That have tokens in it, out of R."""
    counts: np.ndarray | None = None
    """Tokens of each of those in this step."""
    starts: np.ndarray | None = None
    """The stream's own index of the first of those tokens."""
    replaced_at: Tensor | None = None
    """Of its rows, those that read another token than the request's."""
    replaced_by: Tensor | None = None
    """Those tokens' ids."""


@dataclass
class Plan:
    """A step."""

    asked: list[Asked | None]
    """Of each request."""
    request_of: Tensor
    """Of each token (N,): 1 + its request where that asks for contrast, else 0."""
    parts: list[Part]
    made_of: Any = None


@dataclass
class Batch:
    """The requests of an engine, and the step that is being computed."""

    method: LogitsMethod
    num_streams: int
    asked: dict[int, Asked | None] = field(default_factory=dict)
    plan: Plan | None = None

    @property
    def two_prompts(self) -> bool:
        """Say whether the streams have prompts of their own."""
        return "two_prompts" in self.method.needs

    def make_plan(self, common: Any) -> Plan:
        """Lay out the step that vLLM describes; once a step, however many groups of layers ask for it."""
        if self.plan is not None and self.plan.made_of is common.query_start_loc_cpu:
            return self.plan
        starts = common.query_start_loc_cpu.numpy()
        counts = starts[1:] - starts[:-1]
        slots = range(len(counts)) if common.req_idx is None else common.req_idx.tolist()
        asked = [self.asked.get(slot) for slot in slots]
        device = common.query_start_loc.device
        codes = np.array([0 if item is None else 1 + at for at, item in enumerate(asked)], dtype=np.int64)
        request_of = np.repeat(codes, counts)
        parts = [Part() for _ in range(self.num_streams)]
        if self.two_prompts:
            computed = common.seq_lens_cpu_upper_bound.numpy()[: len(counts)] - counts
            parts = [_lay_out(stream, asked, starts, counts, computed, device) for stream in range(2)]
            # Before the second prompt begins there is nothing to contrast with, which `prompt_logprobs` come to see.
            alone = np.repeat([item is not None and not item.fault for item in asked], counts)
            alone[parts[1].rows.cpu().numpy() if parts[1].rows is not None else ...] = False
            request_of[alone] = 0
        self.plan = Plan(asked, torch.from_numpy(request_of).to(device), parts, common.query_start_loc_cpu)
        return self.plan


def _lay_out(
    stream: int, asked: list[Asked | None], starts: np.ndarray, counts: np.ndarray, computed: np.ndarray, device: Any
) -> Part:
    """Lay out the first stream, which reads the prompt after its padding, or the second, which reads the other prompt."""
    shifts = np.zeros(len(counts), dtype=np.int64)
    reads = counts > 0
    for at, item in enumerate(asked):
        if item is None or item.fault:
            reads[at] &= stream == 0
        else:
            # Without a second prompt of its own a request is guided away from its last token alone.
            shifts[at] = item.pad if stream == 0 else item.prompt_length - len(item.negative or (0,))
    if stream == 0 and not shifts.any():
        return Part()
    skipped = np.clip(shifts - computed, 0, counts)
    reads &= skipped < counts
    requests = np.nonzero(reads)[0]
    num, first = (counts - skipped)[requests], (starts[:-1] + skipped)[requests]
    own = (computed + skipped - shifts)[requests]
    rows = np.repeat(first - (np.cumsum(num) - num), num) + np.arange(num.sum())
    part = Part(
        rows=torch.from_numpy(rows).to(device),
        shifts=torch.from_numpy(np.repeat(shifts[requests], num)).to(device),
        requests=requests,
        counts=num,
        starts=own,
    )
    if stream == 1:
        at, by = [], []
        for offset, request, start, count in zip(np.cumsum(num) - num, requests, own, num, strict=True):
            item = asked[request]
            ids = (item.negative or ())[start : start + count] if item else ()
            at.extend(range(offset, offset + len(ids)))
            by.extend(ids)
        part.replaced_at = torch.tensor(at, dtype=torch.long, device=device)
        part.replaced_by = torch.tensor(by, dtype=torch.long, device=device)
    return part


def narrow(common: Any, part: Part, block_size: int) -> Any:
    """Describe a stream's part of a step to an attention backend as vLLM describes a step."""
    assert part.requests is not None and part.counts is not None and part.starts is not None
    device = common.query_start_loc.device
    requests = torch.from_numpy(part.requests).to(device)
    counts = torch.from_numpy(part.counts)
    lengths_cpu = torch.from_numpy(part.starts + part.counts).to(common.seq_lens.dtype)
    starts_cpu = torch.zeros(len(counts) + 1, dtype=common.query_start_loc_cpu.dtype)
    starts_cpu[1:] = counts.cumsum(0)
    table = common.block_table_tensor[requests]
    own = torch.from_numpy(
        np.repeat(part.starts - (np.cumsum(part.counts) - part.counts), part.counts) + np.arange(part.counts.sum())
    ).to(device)
    of = torch.from_numpy(np.repeat(np.arange(len(part.counts)), part.counts)).to(device)
    slots = table[of, own // block_size].to(common.slot_mapping.dtype) * block_size + own % block_size
    return replace(
        common,
        query_start_loc=starts_cpu.to(device),
        query_start_loc_cpu=starts_cpu,
        seq_lens=lengths_cpu.to(device),
        seq_lens_cpu_upper_bound=lengths_cpu,
        num_reqs=len(counts),
        num_actual_tokens=int(counts.sum()),
        max_query_len=int(counts.max()),
        max_seq_len=int(lengths_cpu.max()),
        block_table_tensor=table,
        slot_mapping=slots.to(common.slot_mapping.dtype),
        positions=own,
        is_prefilling=None if common.is_prefilling is None else common.is_prefilling[torch.from_numpy(part.requests)],
        req_idx=None if common.req_idx is None else common.req_idx[part.requests],
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )


@dataclass
class Narrowed:
    """A backend's metadata for a part of a step; `model` puts both where the layer looks for them."""

    metadata: Any
    slot_mapping: Tensor | None


@lru_cache
def wrap_backend(backend: Any, stream: int) -> Any:
    """Make a backend whose metadata are those of one stream's part of each step."""
    from vllm.v1.attention.backend import AttentionCGSupport, subclass_attention_backend

    class Builder(backend.get_builder_cls()):
        supports_update_block_table = False

        def __init__(
            self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, *rest: Any, **more: Any
        ) -> None:
            super().__init__(kv_cache_spec, layer_names, vllm_config, *rest, **more)
            self._counterfoil = find_batch(vllm_config)
            self._block_size = kv_cache_spec.block_size

        @classmethod
        def get_cudagraph_support(cls, *_: Any, **__: Any) -> Any:
            return AttentionCGSupport.NEVER

        def use_cascade_attention(self, *_: Any, **__: Any) -> bool:
            return False

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            part = self._counterfoil.make_plan(common_attn_metadata).parts[stream]
            if part.rows is None:
                return super().build(0, common_attn_metadata, fast_build)
            if not len(part.rows):
                return Narrowed(None, None)
            narrowed = narrow(common_attn_metadata, part, self._block_size)
            return Narrowed(super().build(0, narrowed, fast_build), narrowed.slot_mapping)

    return subclass_attention_backend(f"CounterfoilStream{stream}_", backend, Builder)


_BATCHES: weakref.WeakValueDictionary[int, Batch] = weakref.WeakValueDictionary()


def find_batch(vllm_config: Any) -> Batch:
    """Return what the parts of one engine's worker share: it lives as long as one of them does."""
    key = id(vllm_config.compilation_config.static_forward_context)
    found = _BATCHES.get(key)
    if found is None:
        given = getattr(vllm_config.model_config.hf_config, "counterfoil", None)
        if not isinstance(given, dict):
            raise ValueError("counterfoil: hf_overrides has no `counterfoil` with the method in it")
        method = Method.model_validate(given["method"])
        assert isinstance(method, LogitsMethod)
        num_streams = 2 if "two_prompts" in method.needs else max(1, len(list_adapters(method)))
        _BATCHES[key] = found = Batch(method, num_streams)
    return found


def list_adapters(method: Method) -> list[str | None]:
    """Name the folder of each stream's adapter, in the order in which the method combines them; None is the bare model."""
    return method.stream_adapters if isinstance(method, Decoupled) else []
