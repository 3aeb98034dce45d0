"""An adapter for each stream of a model: the base's product once for all, each update on its stream's rows.

Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685); the folders are PEFT's. vLLM's own LoRA gives an adapter to a request, not
to a stream of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterfoil.errors import EngineError

__all__ = ["attach_adapters"]


def attach_adapters(model: Any, folders: Sequence[str | None]) -> None:
    """Make each linear layer of a vLLM model compute S streams, stacked along its rows, each with its adapter.

    None is the bare model. Raises EngineError for an adapter that is more than plain LoRA on linear layers.
    """
    from vllm.lora.utils import process_packed_modules_mapping
    from vllm.model_executor.layers.linear import LinearBase

    updates = [_read(folder) if folder else {} for folder in folders]
    packed = process_packed_modules_mapping(model)
    left = {name for update in updates for name in update}
    for name, layer in model.named_modules():
        if not isinstance(layer, LinearBase):
            continue
        if getattr(layer, "tp_size", 1) > 1:
            raise EngineError(
                "tensor_parallel_size", given=str(layer.tp_size), allowed="1 for decoupled", do="Set it to 1."
            )
        parent, _, own = name.rpartition(".")
        parts = [f"{parent}.{part}" if parent else part for part in packed.get(own, [own])]
        if any(part in update for part in parts for update in updates):
            _attach(layer, [[update.get(part) for part in parts] for update in updates])
        left -= set(parts)
    if left:
        raise EngineError(
            "adapter", given=f"LoRA on {', '.join(sorted(left)[:3])}", allowed="linear layers that vLLM has",
            do="Train it on attention and MLP projections.",
        )  # fmt: skip


def _read(folder: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Read an adapter: module -> A (rank, in) and B (out, rank), the latter scaled."""
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    faults = {
        "a kind other than LoRA": config.get("peft_type") != "LORA",
        "DoRA": bool(config.get("use_dora")),
        "biases": config.get("bias", "none") != "none" or bool(config.get("lora_bias")),
        "modules trained whole": bool(config.get("modules_to_save")),
        "a scale of its own for some layers": bool(config.get("alpha_pattern")),
    }
    if found := [what for what, there in faults.items() if there]:
        raise EngineError(
            f"adapter: {folder}", given=", ".join(found), allowed="plain LoRA on linear layers", do="Train another."
        )
    halves: dict[str, dict[str, Tensor]] = {}
    for name, weight in load_file(str(Path(folder) / "adapter_model.safetensors")).items():
        module, _, half = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        halves.setdefault(module, {})[half] = weight
    found_updates: dict[str, tuple[Tensor, Tensor]] = {}
    for module, pair in halves.items():
        if pair.keys() != {"lora_A", "lora_B"}:
            raise EngineError(
                f"adapter: {folder}",
                given=f"{module}: {[*pair]}",
                allowed="lora_A and lora_B",
                do="Train another.",
            )
        rank = len(pair["lora_A"])
        scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        found_updates[module] = (pair["lora_A"], pair["lora_B"] * scale)
    return found_updates


def _attach(layer: Any, updates: list[list[tuple[Tensor, Tensor] | None]]) -> None:
    """Add to a layer whose output is several modules' outputs side by side, for S streams."""
    # A quantized layer has no `weight`.
    kind: Any = {"dtype": layer.params_dtype, "device": next(layer.parameters()).device}
    sizes = list(layer.output_partition_sizes)
    factors: list[tuple[int, Tensor, Tensor]] = []
    for stream, parts in enumerate(updates):
        rank, total = 0, sum(len(pair[0]) for pair in parts if pair)
        if not total:
            continue
        down = torch.zeros((layer.input_size_per_partition, total), **kind)
        up = torch.zeros((total, sum(sizes)), **kind)
        for at, pair in enumerate(parts):
            if pair is not None:
                a, b = pair
                down[:, rank : rank + len(a)] = a.T
                up[rank : rank + len(a), sum(sizes[:at]) : sum(sizes[: at + 1])] = b.T
                rank += len(a)
        factors.append((stream, down, up))
    plain = layer.forward

    def forward(x: Tensor, *arguments: Any, **given: Any) -> Any:
        found = plain(x, *arguments, **given)
        made = found[0] if isinstance(found, tuple) else found
        rows, into = x.view(len(updates), -1, x.shape[-1]), made.view(len(updates), -1, made.shape[-1])
        for stream, down, up in factors:
            into[stream].addmm_(rows[stream] @ down, up)
        return found

    layer.forward = forward
