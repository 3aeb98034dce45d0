"""Contrast inside vLLM, run by test_vllm_methods.py in a process of its own: `python contrast_in_vllm.py PART FOLDER`.

Prints a line of JSON after FOUND. FOLDER has `amateur`, `positive` and `negative`.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from counterfoil.models import find_model
from decode.chat import encode_prompt, load_tokenizer
from decode.engine import Given, Request, Result, Sampling
from decode.engines.hf import Hf
from decode.engines.vllm import Vllm
from decode.method import LogitsMethod
from decode.methods.context_aware import ContextAware
from decode.methods.contrastive import Contrastive
from decode.methods.decoupled import Decoupled
from decode.methods.guided import Guided
from decode.vllm_process import prepare_environment

WORDS = [
    "river",
    "stone",
    "bird",
    "cloud",
    "garden",
    "letter",
    "music",
    "winter",
    "bread",
    "glass",
    "wolf",
    "candle",
    "harbour",
    "story",
    "silver",
    "window",
]


def draw_requests(method: LogitsMethod, count: int, *, seed: int = 0, new: tuple[int, ...] = (10,)) -> list[Request]:
    """Draw requests of all lengths, their negative prompts shorter or longer; every fourth is plain where that can be."""
    draw = random.Random(seed)
    both = "two_prompts" in method.needs
    only = getattr(method, "mode", "") == "pos_neg"
    requests: list[Request] = []
    for at in range(count):
        text = f"Tell me about {' and '.join(draw.choices(WORDS, k=draw.randint(1, 20)))}."
        against = " ".join(draw.choices(WORDS, k=draw.randint(1, 40)))
        sampling = Sampling(max_new_tokens=draw.choice(new), logprobs=True)
        plain = at % 4 == 3 and not only
        negative = ({"role": "user", "content": against},) if both and not plain else None
        prompt = ({"role": "user", "content": text},)
        requests.append(Request(str(at), prompt, sampling, method=None if plain else method, negative=negative))
    return requests


def compare(ours: dict[str, Result], theirs: dict[str, Result]) -> dict[str, Any]:
    """Count answers that differ in a token, and find the largest difference of log-probabilities in the others."""
    different, largest = [], 0.0
    for name, result in ours.items():
        assert result.failure is None and theirs[name].failure is None, (result.failure, theirs[name].failure)
        (one,), (other,) = result.completions, theirs[name].completions
        if one.token_ids != other.token_ids:
            different.append([name, one.text, other.text])
            continue
        pairs = zip(one.token_logprobs or (), other.token_logprobs or (), strict=True)
        largest = max(largest, *(abs(a - b) for a, b in pairs))
    return {"answers": len(ours), "different": different, "largest": largest}


def list_padded(folder: Path, requests: list[Request]) -> list[Request]:
    """Ask, without a method, for what vLLM sees of the prompts that are padded to a longer negative's length."""
    tokenizer, found = load_tokenizer(str(folder)), list[Request]()
    for item in requests:
        ids, other = (encode_prompt(tokenizer, text) for text in (item.prompt, item.negative or "x"))
        if len(other) > len(ids):
            found.append(Request(f"padded {item.id}", (*[ids[-1]] * (len(other) - len(ids)), *ids), item.sampling))
    return found


def answer(session: Any, requests: list[Request]) -> dict[str, Result]:
    return {result.id: result for result in session.complete(requests)}


def check_equal(folder: Path) -> dict[str, Any]:
    """Answer as the hf engine does: many requests of all lengths in one batch, plain ones among them, twice over."""
    amateur, positive, negative = (str(folder / name) for name in ("amateur", "positive", "negative"))
    methods: dict[str, tuple[LogitsMethod, int]] = {
        "guided": (Guided(scale=2.0), 52),
        "contrastive": (Contrastive(amateur=amateur), 52),
        "context_aware": (ContextAware(strength=0.8, threshold=0.05), 8),
        "pos_neg": (Decoupled(positive=positive, negative=negative), 12),
        "neg_only": (Decoupled(mode="neg_only", negative=negative), 8),
        "anchored": (Decoupled(mode="anchored", positive=positive, negative=negative, strength=0.7), 12),
    }
    found: dict[str, Any] = {}
    for name, (method, count) in methods.items():
        requests = draw_requests(method, count)
        if name == "guided":  # one that has no negative prompt, and one of another strength
            requests[0] = Request("0", requests[0].prompt, requests[0].sampling, method=method)
            changed = Guided(scale=3.0)
            requests[1] = Request("1", requests[1].prompt, requests[1].sampling, None, changed, requests[1].negative)
        if name == "contrastive":  # strength 0 is the expert
            changed = Contrastive(amateur=amateur, strength=0.0)
            requests[2] = Request("2", requests[2].prompt, requests[2].sampling, method=changed)
        with Vllm(max_model_len=512).open("smollm2", methods=[method]) as session:
            ours = answer(session, requests)
            again = answer(session, requests)  # what can be, comes from the prefix cache
            more = check_sampling(session, requests) if name in ("guided", "contrastive") else {}
            more["scores"] = score(session, requests, ours)
            padded = list_padded(find_model("smollm2"), requests) if name == "guided" else []
            more["padded"] = answer(session, padded)
            if name == "pos_neg":
                plain = Request("p", requests[0].prompt, requests[0].sampling)
                more["refused"] = answer(session, [plain])["p"].failure
        with Hf(batch_size=8, dtype="float32").open("smollm2", methods=[method]) as session:
            theirs = answer(session, requests)
            more["padded"] = compare(more["padded"], answer(session, padded)) if padded else None
            scores = zip(more.pop("scores"), score(session, requests, theirs), strict=True)
            more["scores_apart"] = max(abs(a - b) for a, b in scores)
        found[name] = compare(ours, theirs) | {"again": compare(ours, again)["different"]} | more
    return found


def score(session: Any, requests: list[Request], answers: dict[str, Result]) -> list[float]:
    """Score what was answered to the first requests, under their methods."""
    given = [
        Given(item.id, item.prompt, answers[item.id].completions[0].token_ids or (), None, item.method, item.negative)
        for item in requests[:5]
    ]
    found = {item.id: item for item in session.logprobs(given)}
    assert all(item.failure is None and item.is_greedy for item in found.values()), found
    return [value for item in given for value in found[item.id].token_logprobs]


def check_sampling(session: Any, requests: list[Request]) -> dict[str, Any]:
    """Draw with seeds, stop strings and several samples on top of a method; mix in a method that the session lacks."""
    first = requests[4]
    drawn = Sampling(max_new_tokens=6, temperature=1.0, min_p=0.05, seed=3, n=2)
    twice = [
        [
            part.text
            for part in answer(session, [Request("a", first.prompt, drawn, None, first.method, first.negative)])[
                "a"
            ].completions
        ]
        for _ in range(2)
    ]
    stop = Sampling(max_new_tokens=20, stop=("e",))
    (stopped,) = answer(session, [Request("b", first.prompt, stop, None, first.method, first.negative)])[
        "b"
    ].completions
    other = ContextAware() if isinstance(first.method, Guided) else Guided()
    lacking = answer(session, [Request("c", first.prompt, stop, None, other, first.prompt)])["c"].failure
    return {"twice": twice, "stopped": [stopped.text, stopped.finish_reason], "lacking": lacking}


def check_pressure(parts: Path) -> dict[str, Any]:
    """200 mixed requests through a tiny cache and a tiny budget of tokens, some cancelled on the way; four layers do."""
    prepare_environment()
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler

    from decode.vllm_plugin import register
    from decode.vllm_plugin.settings import make_arguments, make_settings

    preempted = [0]
    plain_preempt = Scheduler._preempt_request

    def preempt(self: Any, *given: Any, **more: Any) -> Any:
        preempted[0] += 1
        return plain_preempt(self, *given, **more)

    Scheduler._preempt_request = preempt
    register()
    method, folder = Guided(scale=2.0), str(parts / "amateur")
    engine: Any = LLMEngine.from_engine_args(
        EngineArgs(
            model=folder, dtype="float32", max_model_len=160, num_gpu_blocks_override=14, kv_cache_memory_bytes=2**28,
            block_size=32, max_num_seqs=16, max_num_batched_tokens=48, enable_chunked_prefill=True,
            enable_prefix_caching=True, disable_log_stats=True, **make_settings(method),
        )
    )  # fmt: skip
    tokenizer, draw = load_tokenizer(folder), random.Random(1)
    requests = draw_requests(method, 200, seed=1, new=(2, 2, 40))
    cancelled = set(draw.sample([item.id for item in requests], 25))
    todo, flying, got = list(requests), set[str](), dict[str, list[int]]()
    steps = 0
    while todo or engine.has_unfinished_requests():
        while todo and len(flying) < 40:
            request = todo.pop(0)
            ids = encode_prompt(tokenizer, request.prompt)
            params = SamplingParams(temperature=0, max_tokens=request.sampling.max_new_tokens)
            prompt: dict[str, Any] = {"prompt_token_ids": ids}
            if request.negative is not None:
                negative = encode_prompt(tokenizer, request.negative)
                prompt, params.extra_args = make_arguments(method, prompt=ids, negative=negative)
            engine.add_request(request.id, prompt, params)
            flying.add(request.id)
        for output in engine.step():
            if output.finished:
                got[output.request_id] = list(output.outputs[0].token_ids)
                flying.discard(output.request_id)
        steps += 1
        for name in sorted(flying & cancelled):
            if draw.random() < 0.05:
                engine.abort_request([name])
                flying.discard(name)
    with Hf(batch_size=16, dtype="float32").open(folder) as session:
        theirs = answer(session, [item for item in requests if item.id in got])
    different = [name for name, ids in got.items() if tuple(ids) != theirs[name].completions[0].token_ids]
    return {"steps": steps, "preempted": preempted[0], "finished": len(got), "different": different}


def check_kinds(parts: Path) -> dict[str, Any]:
    """Small random models: layers in a window and whole ones, whose caches vLLM keeps apart; learned positions."""
    import torch
    import transformers

    tokenizer, method = load_tokenizer(str(parts / "amateur")), Guided(scale=1.7)
    size: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    configs: dict[str, Any] = {
        "gemma3": transformers.Gemma3TextConfig(
            **size, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, head_dim=32,
            num_key_value_heads=2, sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2,
            max_position_embeddings=512,
        ),
        "gpt2": transformers.GPT2Config(**size, n_embd=128, n_layer=3, n_head=4, n_positions=512),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        for value in model.parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=0.25)
        model.save_pretrained(parts / name)
        tokenizer.save_pretrained(parts / name)
        requests = draw_requests(method, 16)
        with Vllm(max_model_len=256, max_num_seqs=16).open(str(parts / name), methods=[method]) as session:
            ours = answer(session, requests)
        with Hf(batch_size=8, dtype="float32").open(str(parts / name), methods=[method]) as session:
            found[name] = compare(ours, answer(session, requests))
    return found


if __name__ == "__main__":
    part = {"equal": check_equal, "pressure": check_pressure, "kinds": check_kinds}[sys.argv[1]]
    sys.stdout.write("FOUND" + json.dumps(part(Path(sys.argv[2]))) + "\n")
