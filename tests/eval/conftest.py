"""Adapters of random weights, as jobs that compare policies take them, and a browser for reports."""

import os
import shutil
import subprocess
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


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Return what opens a page in headless Chromium, and gives its DOM and its log."""
    chromium = shutil.which("chromium")
    if chromium is None and "CI" not in os.environ:  # a developer may do without; CI installs it, and fails below
        pytest.skip("no chromium: apt-get install --no-install-recommends chromium")
    assert chromium is not None, "no chromium: apt-get install --no-install-recommends chromium"
    flags = (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}", "enable-logging=stderr",
        "v=0", "virtual-time-budget=20000", "dump-dom",
    )  # fmt: skip
    command = [chromium, *(f"--{flag}" for flag in flags)]

    def open_page(page: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=240, check=True)

    return open_page
