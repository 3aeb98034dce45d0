"""Adapters of random weights, as jobs that compare policies take them."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make_adapter(tiny_model: Path) -> Callable[..., Path]:
    """Return what writes an adapter on the tiny model into a folder: one of `scale` 0 changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def make(folder: Path, *, scale: float, seed: int) -> Path:
        torch.manual_seed(seed)
        settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), settings)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=scale)
        model.save_pretrained(folder)
        return folder

    return make
