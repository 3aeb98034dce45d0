"""Contrast inside vLLM is contrast on transformers, token for token; in processes of their own, as engines share globals."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from counterfoil.models import find_model
from decode.chat import load_tokenizer
from decode.engine import Request, Sampling, Session
from decode.methods.guided import Guided

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an amateur, the embedded model's first four layers, and two adapters of unlike shapes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    source, target = find_model("smollm2"), tmp_path_factory.mktemp("contrast")
    weak: Any = AutoModelForCausalLM.from_pretrained(source, num_hidden_layers=4, dtype=torch.float32)
    weak.save_pretrained(target / "amateur")
    load_tokenizer(str(source)).save_pretrained(target / "amateur")
    for name, rank, modules in (
        ("positive", 4, ["q_proj", "v_proj", "gate_proj", "down_proj"]),
        ("negative", 8, ["q_proj", "o_proj"]),
    ):
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        tuned: Any = get_peft_model(model, LoraConfig(r=rank, target_modules=modules, task_type="CAUSAL_LM"))
        torch.manual_seed(rank)
        for key, value in tuned.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.02)
        tuned.save_pretrained(target / name)
    return target


def run(part: str, folder: Path) -> dict[str, Any]:
    script = Path(__file__).parent / "contrast_in_vllm.py"
    command = [sys.executable, str(script), part, str(folder)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("FOUND"))


def test_answers_are_those_of_transformers(folder: Path) -> None:
    found = run("equal", folder)
    for name, result in found.items():
        assert result["different"] == [] and result["again"] == [], name
        assert result["largest"] < 1e-3 and result["scores_apart"] < 1e-3, name
    assert found["guided"]["answers"] >= 50 and found["contrastive"]["answers"] >= 50
    for name in ("guided", "contrastive"):
        first, second = found[name]["twice"]
        assert first == second and len(set(first)) == 2
        text, reason = found[name]["stopped"]
        assert "e" not in text and reason == "stop"
        assert "another method" in found[name]["lacking"]
    assert "two adapters" in found["pos_neg"]["refused"]
    padded = found["guided"]["padded"]  # what a padded request leaves in the prefix cache is nobody else's
    assert padded["different"] == [] and padded["answers"] >= 5


def test_other_kinds_of_models_answer_as_on_transformers(folder: Path) -> None:
    found = run("kinds", folder)
    assert set(found) == {"gemma3", "gpt2"}
    for name, result in found.items():
        assert result["different"] == [] and result["largest"] < 1e-3, name


def test_nothing_falls_out_of_step_under_pressure(folder: Path) -> None:
    """14 blocks of 32 tokens and 48 tokens a step for 40 requests at a time: chunks, preemptions, cancellations."""
    found = run("pressure", folder)
    assert found["different"] == []
    assert found["preempted"] >= 10
    assert found["finished"] >= 175


def test_a_plain_vllm_server_takes_the_method_in_its_requests(guided_server: str, hf_session: Session) -> None:
    """The plugin loads by its entry point in the server's processes; what cannot be read is refused with a sentence."""
    tokenizer = load_tokenizer(str(find_model("smollm2")))
    text, against = "The river behind the old mill is", "The river behind"
    prompt, negative = tokenizer.encode(text), tokenizer.encode(against)

    def post(**more: Any) -> httpx.Response:
        body = {"model": "smollm2", "prompt": prompt, "max_tokens": 12, "temperature": 0.0, **more}
        return httpx.post(f"{guided_server}/completions", json=body, timeout=60, trust_env=False)

    def read(**more: Any) -> str:
        response = post(**more)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["text"]

    short = Sampling(max_new_tokens=12)
    requests = [
        Request("plain", text, short),
        Request("default", text, short, method=Guided(scale=2.0), negative=against),
        Request("stronger", text, short, method=Guided(scale=4.0), negative=against),
    ]
    wanted = {item.id: item.completions[0].text for item in hf_session.complete(requests)}
    assert len(set(wanted.values())) == 3
    assert read() == wanted["plain"]
    assert read(vllm_xargs={"contrast": 1, "contrast_negative": negative}) == wanted["default"]
    assert read(vllm_xargs={"contrast_scale": 4.0, "contrast_negative": negative}) == wanted["stronger"]
    for bad, said in (
        ({"contrast_scale": -1.0}, "scale"),
        ({"contrast_scale": 1e39}, "scale"),
        ({"contrast_strength": 1.0}, "guided takes contrast, contrast_scale"),
        ({"contrast_negative": "words"}, "token ids"),
        ({"contrast": 2}, "give 1 or 0"),
    ):
        response = post(vllm_xargs=bad)
        assert response.status_code == 400 and said in response.text, response.text
    for unreadable in ([10**6], [5] * 300):  # known only where the model is: no token, and the server goes on
        assert read(vllm_xargs={"contrast_negative": unreadable}) == ""
    for forbids in ({"min_tokens": 3}, {"allowed_token_ids": [100, 200]}, {"bad_words": ["the"], "ignore_eos": True}):
        response = post(vllm_xargs={"contrast_negative": [10**6]}, return_token_ids=True, **forbids)
        assert set(response.json()["choices"][0]["token_ids"]) == {tokenizer.eos_token_id}, response.text
    assert read() == wanted["plain"]
