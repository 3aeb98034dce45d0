"""LoRA adapters added to the weights that they were trained on."""

import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from counterfoil.errors import InputError
from decode.attention import replaced_forward

__all__ = ["list_adapters", "merged_model", "stacked_adapters"]


@contextmanager
def merged_model(folder: Path, adapter: str | None) -> Generator[Path]:
    """Yield a folder of the model with the adapter added to its weights, for as long as the block lasts.

    Without an adapter that is the model's own folder. W + alpha / rank x B A, by PEFT, in the model's own precision.
    """
    if adapter is None:
        yield folder
        return
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="counterfoil-merged-") as target:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(folder).save_pretrained(target)
        for name in ("chat_template.jinja", "generation_config.json"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(target) / name)
        del model
        yield Path(target)


def list_adapters(model: Any) -> list[str]:
    """Name the LoRA adapters that lie in a model's layers."""
    return sorted({name for layer in _lora_layers(model) for name in layer.lora_A})


def _lora_layers(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@contextmanager
def stacked_adapters(model: Any, names: Sequence[str | None]) -> Generator[None]:
    """Compute S adapters side by side for as long as the block lasts: of S x B rows, the s-th B rows use `names[s]`.

    None is the bare model. The base's product is computed once for all rows, the updates as one batched product each way
    (PEFT's own mixed batches run a loop over adapters, with a gather and a scatter each).
    """
    _refuse_others(model)
    with ExitStack() as stack:
        for layer in _lora_layers(model):
            stack.enter_context(replaced_forward(layer, _stack(layer, names)))
        yield


def _refuse_others(model: Any) -> None:
    """Raise InputError for adapters that are more than updates of layers through which every row goes."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        routed = isinstance(module, LoraLayer) and ".experts" in name
        if routed or isinstance(module, AuxiliaryTrainingWrapper):
            what = "LoRA on experts, which see some rows only" if routed else "a module trained whole (modules_to_save)"
            given = f"{what}: {name}"
            raise InputError("adapters", given=given, allowed="plain LoRA on linear layers", do="Train or load others.")


def _refuse_variants(layer: Any) -> None:
    """Raise InputError for what two plain products a layer cannot compute."""
    found = [
        what
        for what, there in {
            "a variant of LoRA such as DoRA": bool(getattr(layer, "lora_variant", None)),
            "a bias in LoRA": any(getattr(layer, "lora_bias", {}).values()),
            "LoRA on embeddings": len(getattr(layer, "lora_embedding_A", {})) > 0,
            "adapters merged into the weights": bool(layer.merged),
        }.items()
        if there
    ]
    if found:
        raise InputError(
            "adapters", given=", ".join(found), allowed="plain LoRA on linear layers", do="Train or load others."
        )


def _stack(layer: Any, names: Sequence[str | None]) -> Any:
    import torch

    _refuse_variants(layer)
    used = [name if name in layer.lora_A else None for name in names]
    if not any(used):
        return layer.get_base_layer().forward
    weight = next(layer.lora_A[name].weight for name in used if name)
    rank = max(layer.lora_A[name].weight.shape[0] for name in used if name)
    down = weight.new_zeros((len(used), weight.shape[1], rank))
    up = weight.new_zeros((len(used), rank, next(layer.lora_B[name].weight.shape[0] for name in used if name)))
    for at, name in enumerate(used):
        if name:
            first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
            down[at, :, : len(first)] = first.T
            up[at, : len(first)] = second.T * layer.scaling[name]
    base = layer.get_base_layer()

    def forward(x: Any, *arguments: Any, **given: Any) -> Any:
        rows = x.to(down.dtype).reshape(len(used), -1, x.shape[-1])
        update = torch.bmm(torch.bmm(rows, down), up).view(*x.shape[:-1], up.shape[-1])
        return base(x, *arguments, **given) + update.to(x.dtype)

    return forward
