"""Arithmetic on adapters, against the weights themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from align.combine import Combine
from counterfoil.errors import InputError


def make_adapter(folder: Path, model: Path, *, seed: int, rank: int, targets: str | list[str]) -> Path:
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model)
    tuned: Any = get_peft_model(base, LoraConfig(r=rank, lora_alpha=3, target_modules=targets, task_type="CAUSAL_LM"))
    for name, value in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    tuned.save_pretrained(folder)
    return folder


def merge(model: Path, adapter: Path) -> dict[str, torch.Tensor]:
    base = AutoModelForCausalLM.from_pretrained(model)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()  # pyright: ignore


@pytest.mark.parametrize("weights", [(1.0, -0.5), (0.25, 2.0)])
def test_the_sum_is_that_of_the_weights(weights: tuple[float, float], tmp_path: Path, tiny_model: Path) -> None:
    one = make_adapter(tmp_path / "one", tiny_model, seed=1, rank=2, targets="all-linear")
    other = make_adapter(tmp_path / "other", tiny_model, seed=2, rank=5, targets="all-linear")
    job = Combine(adapters=(one, other), weights=weights, model=str(tiny_model))
    found = merge(tiny_model, job.run(tmp_path / "run", quiet=True).path("adapter"))
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    first, second = merge(tiny_model, one), merge(tiny_model, other)
    for name, value in base.items():
        expected = value + weights[0] * (first[name] - value) + weights[1] * (second[name] - value)
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_taken_away_from_itself_is_the_bare_model(tmp_path: Path, tiny_model: Path) -> None:
    one = make_adapter(tmp_path / "one", tiny_model, seed=1, rank=2, targets=["q_proj"])
    job = Combine(adapters=(one, one), weights=(1, -1), model=str(tiny_model))
    found = merge(tiny_model, job.run(tmp_path / "run", quiet=True).path("adapter"))
    for name, value in AutoModelForCausalLM.from_pretrained(tiny_model).state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_a_weight_for_each_is_wanted(tmp_path: Path, tiny_model: Path) -> None:
    one = make_adapter(tmp_path / "one", tiny_model, seed=1, rank=2, targets=["q_proj"])
    with pytest.raises(InputError, match="2 weights for 1"):
        Combine(adapters=(one,), weights=(1, -1), model=str(tiny_model)).run(tmp_path / "run", quiet=True)
