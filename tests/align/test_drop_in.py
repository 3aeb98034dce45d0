"""The head and the shared prefixes in a DPOTrainer of the user's own: its losses and metrics stay as they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from align.logps import install_head, share_prefixes
from decode.chat import load_tokenizer


def train(model_folder: Path, folder: Path, *, shared: bool, **settings: Any) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say something about number {number}, please."}],
            "chosen": [{"role": "assistant", "content": f"Number {number} is fine."}],
            "rejected": [{"role": "assistant", "content": "No idea, " * (1 + number % 3)}],
        }
        for number in range(8)
    ]
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder)
    if shared:
        share_prefixes(model, least_saved=0)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder), num_train_epochs=1, learning_rate=1e-2, logging_steps=1,
            report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, bf16=False,
            **({"per_device_train_batch_size": 4} | settings),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(str(model_folder)),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    if shared:
        install_head(trainer.model.get_base_model())  # pyright: ignore
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


SETTINGS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "ipo": {"loss_type": ["ipo"]},
    "apo_zero and sft": {"loss_type": ["apo_zero", "sft"]},
    "by length": {"loss_type": ["sigmoid_norm"]},
    "cut off at a limit": {"max_length": 44},
    "its own reference before": {"precompute_ref_log_probs": True},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_users_own_trainer_logs_the_same(settings: dict[str, Any], tmp_path: Path, tiny_model: Path) -> None:
    plain = train(tiny_model, tmp_path / "plain", shared=False, **settings)
    shared = train(tiny_model, tmp_path / "shared", shared=True, **settings)
    assert len(plain) == 2
    for one, other in zip(plain, shared, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=1e-4, abs=2e-5), key
