"""Adapters in vLLM: per request, merged, and equal to transformers; in a process of its own, as engines share globals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from decode.engine import Request, Sampling, Session
from decode.engines.openai_api import OpenaiApi

SCRIPT = """
import json, sys
from decode.engine import Given, Request, Sampling
from decode.engines.vllm import Vllm

adapter, trained = sys.argv[1:3]
prompts = [({"role": "user", "content": text},) for text in json.loads(sys.argv[3])]
greedy = Sampling(max_new_tokens=8, logprobs=True)


def ask(session, name):
    requests = [Request(f"{at}", prompt, greedy, name) for at, prompt in enumerate(prompts)]
    results = {item.id: item for item in session.complete(requests)}
    return [list(results[str(at)].completions[0].token_ids) if results[str(at)].completions else None
            for at in range(len(prompts))]


found = {}
small = dict(max_model_len=512, max_num_seqs=8, kv_cache_gib=0.25)
with Vllm(**small, merge_adapter=False).open("smollm2", adapters=[adapter, trained]) as session:
    found["mixed"] = [ask(session, None), ask(session, adapter), ask(session, None)]
    found["trained"] = ask(session, trained)
    (scored,) = session.logprobs([Given("g", prompts[0], "A river.", adapter)])
    found["unmerged score"] = scored.failure
with Vllm(**small).open("smollm2", adapters=[adapter]) as session:
    found["merged"] = ask(session, adapter)
    found["merged base"] = ask(session, None)
    (scored,) = session.logprobs([Given("g", prompts[0], "A river.", adapter)])
    found["merged score"] = list(scored.token_logprobs)
print("FOUND" + json.dumps(found))
"""

PROMPTS = ["What is a river?", "Name three colours.", "Say good morning to a neighbour."]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Train an adapter on every linear layer, by default, to say one sentence."""
    from align.objectives.sft import Sft
    from align.train import Train

    data = tmp_path / "data.jsonl"
    turns = [{"prompt": [{"role": "user", "content": text}], "completion": [SENTENCE]} for text in PROMPTS]
    data.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    job = Train(data=data, objective=Sft(), max_steps=12, learning_rate=2e-3, batch_size=3)
    return job.run(tmp_path / "run", quiet=True).path("adapter")


SENTENCE = {"role": "assistant", "content": "Purple lanterns hum."}


@pytest.mark.slow
def test_an_adapter_per_request_and_merged_equal_transformers(
    hf_session: Session, adapter: Path, trained: Path
) -> None:
    """One with large weights on some layers, and one as `align` trains it, on all of them, which says what it was taught."""
    command = [sys.executable, "-c", SCRIPT, str(adapter), str(trained), json.dumps(PROMPTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[5:])
    base, tuned, again = found["mixed"]
    assert base == again != tuned
    assert found["merged"] == tuned
    assert found["merged base"] == [None] * 3, "a merged session refuses requests for the bare model"
    assert "LoRA" in found["unmerged score"]
    assert len(found["merged score"]) > 1
    assert ask(hf_session, str(trained), text=True) == [SENTENCE["content"]] * 3
    for name, expected in ((None, base), (str(adapter), tuned), (str(trained), found["trained"])):
        assert [list(answer or ()) for answer in ask(hf_session, name)] == expected


@pytest.mark.slow
def test_an_adapter_of_a_server_equals_transformers(hf_session: Session, lora_server: str, adapter: Path) -> None:
    with OpenaiApi(base_url=lora_server, timeout_s=120).open("smollm2", adapters=["tuned"]) as session:
        answers = {name: ask(session, name, text=True) for name in (None, "tuned")}
    assert answers[None] != answers["tuned"]
    assert answers[None] == ask(hf_session, None, text=True)
    assert answers["tuned"] == ask(hf_session, str(adapter), text=True)


def ask(session: Session, adapter: str | None, *, text: bool = False) -> list[object]:
    """Answer the prompts greedily, in order: the tokens, or the text."""
    sampling = Sampling(max_new_tokens=8, logprobs=True)
    requests = [
        Request(str(at), ({"role": "user", "content": prompt},), sampling, adapter) for at, prompt in enumerate(PROMPTS)
    ]
    found = {item.id: item.completions[0] for item in session.complete(requests)}
    return [found[str(at)].text if text else found[str(at)].token_ids for at in range(len(PROMPTS))]
