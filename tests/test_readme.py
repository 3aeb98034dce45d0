"""The README's script runs as it stands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from counterfoil.models import find_model
from decode.chat import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent


def read_scripts() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_the_script_in_the_readme_runs(tmp_path: Path) -> None:
    """Synthesis, training and evaluation in one process, with real vLLM; the adapter then loads in plain PEFT."""
    script, *_ = read_scripts()
    path = tmp_path / "script.py"
    path.write_text(script)
    env = os.environ | {"COUNTERFOIL_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(
        [sys.executable, str(path)], env=env, capture_output=True, text=True, timeout=580, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'mean':" in done.stdout.splitlines()[-1]
    runs = {path.name.split("-")[0]: path for path in (tmp_path / "runs").iterdir()}
    assert set(runs) == {"synthesize", "train", "evaluate"}
    counts = json.loads((runs["synthesize"] / "manifest.json").read_text())["counts"]
    assert counts["read"] == 12
    assert counts["completions"] == 48

    from peft import AutoPeftModelForCausalLM

    assert AutoPeftModelForCausalLM.from_pretrained(runs["train"] / "adapter") is not None


@pytest.mark.slow
def test_the_training_in_the_readme_runs(tmp_path: Path) -> None:
    row = {"prompt": "Name a colour.", "completions": ["Red.", "A river."], "scores": [1.0, 0.0]}
    (tmp_path / "scored.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "script.py").write_text(read_scripts()[1])
    env = os.environ | {"COUNTERFOIL_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(
        [sys.executable, "script.py"], env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'steps': 1" in done.stdout


@pytest.mark.slow
def test_the_lines_that_decode_run() -> None:
    """They stand where a user has a model and a tokenizer already."""
    from transformers import AutoModelForCausalLM

    folder = find_model("smollm2")
    names: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(folder),
        "tokenizer": load_tokenizer(str(folder)),
    }
    *before, last = read_scripts()[2].strip().splitlines()
    exec("\n".join(before), names)
    found = eval(last, names)
    assert found.shape[1] > names["inputs"]["input_ids"].shape[1]


@pytest.mark.slow
def test_the_lines_for_vllm_run(tmp_path: Path) -> None:
    """As a script, with the embedded model for both."""
    names = re.compile('"(MODEL|AMATEUR)"')
    script = names.sub(lambda _: repr(str(find_model("smollm2"))), read_scripts()[3])
    path = tmp_path / "script.py"
    path.write_text(script.replace("llm.generate(", "print(llm.generate(").rstrip() + "[0].outputs[0].text)\n")
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, str(path)], env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
