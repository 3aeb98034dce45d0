"""What contrast costs inside vLLM: 32 requests with it against vLLM plain with 64, in CPU seconds on one thread, float32.

    python benchmarks/vllm_contrast.py             # contrastive (amateur of 4 of 30 layers), decoupled, guided
    python benchmarks/vllm_contrast.py neg_only    # one of them

Each variant is a process of its own (engines share globals) that answers when its turn comes: 6 rounds, the first warms up,
the minimum of the others counts. Prompts of 64 tokens, 32 new tokens each. With strength 0 (scale 1) the tokens must be the
plain ones: asserted in the same run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 6
REQUESTS = 32
PROMPT, NEW = 64, 32


def make_parts(folder: Path) -> None:
    """Make an amateur and two adapters out of the embedded model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from counterfoil.models import find_model

    source = find_model("smollm2")
    weak: Any = AutoModelForCausalLM.from_pretrained(source, num_hidden_layers=4, dtype=torch.float32)
    weak.save_pretrained(folder / "amateur")
    for name in ("positive", "negative"):
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        tuned: Any = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        for key, value in tuned.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.01)
        tuned.save_pretrained(folder / name)


def work(variant: str, folder: Path) -> None:
    """Start an engine; answer each line of input (number of requests, contrast or not) with seconds and tokens."""
    from decode.vllm_process import prepare_environment

    prepare_environment()
    from vllm import LLM, SamplingParams

    from counterfoil.models import find_model
    from decode.method import LogitsMethod
    from decode.methods.contrastive import Contrastive
    from decode.methods.decoupled import Decoupled
    from decode.methods.guided import Guided
    from decode.vllm_plugin import register
    from decode.vllm_plugin.settings import make_arguments, make_settings

    methods: dict[str, LogitsMethod | None] = {
        "plain": None,
        "contrastive": Contrastive(amateur=str(folder / "amateur"), strength=0.0),
        "neg_only": Decoupled(mode="neg_only", negative=str(folder / "negative"), strength=0.0),
        "pos_neg": Decoupled(positive=str(folder / "positive"), negative=str(folder / "negative")),
        "guided": Guided(scale=1.0),
    }
    method = methods[variant]
    register()
    more = {"enforce_eager": True} if method is None else make_settings(method)
    llm: Any = LLM(
        str(find_model("smollm2")), dtype="float32", max_model_len=256, kv_cache_memory_bytes=2**30, block_size=32,
        max_num_seqs=2 * REQUESTS, enable_prefix_caching=False, disable_log_stats=True, **more,
    )  # fmt: skip
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    for line in sys.stdin:
        prompts, params = [], []
        for at in range(int(line)):
            ids = [1000 + (7919 * (at % REQUESTS) + 31 * place) % 40000 for place in range(PROMPT)]
            one = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
            prompt: dict[str, Any] = {"prompt_token_ids": ids}
            if method is not None:
                negative = ids[1:] + ids[:1] if variant == "guided" else None
                prompt, one.extra_args = make_arguments(method, prompt=ids, negative=negative)
            prompts.append(prompt)
            params.append(one)
        start = time.process_time()
        found = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.process_time() - start
        tokens = [list(item.outputs[0].token_ids) for item in found][:REQUESTS]
        sys.stdout.write(f"DONE{json.dumps([seconds, tokens])}\n")
        sys.stdout.flush()


class Worker:
    """A variant's process."""

    def __init__(self, variant: str, folder: Path) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        env["PYTHONPATH"] = str(Path(__file__).parents[1])
        command = [sys.executable, "-P", __file__, "work", variant, str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        self._read("READY")

    def _read(self, mark: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(mark):
                return line.removeprefix(mark)
        raise RuntimeError("the engine ended")

    def ask(self, count: int) -> tuple[float, list[list[int]]]:
        """Time `count` requests."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        seconds, tokens = json.loads(self._read("DONE"))
        return seconds, tokens

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def main(variants: list[str]) -> None:
    """Compare what is named, or all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_parts(folder)
        plain = Worker("plain", folder)
        for variant in variants or ("contrastive", "neg_only", "pos_neg", "guided"):
            worker = Worker(variant, folder)
            best = {"plain 32": float("inf"), "plain 64": float("inf"), variant: float("inf")}
            for number in range(ROUNDS):
                turns = {
                    "plain 32": plain.ask(REQUESTS),
                    "plain 64": plain.ask(2 * REQUESTS),
                    variant: worker.ask(REQUESTS),
                }
                if variant != "pos_neg":
                    assert turns[variant][1] == turns["plain 32"][1] == turns["plain 64"][1], f"{variant}: other tokens"
                if number:
                    best = {key: min(best[key], seconds) for key, (seconds, _) in turns.items()}
            print(
                f"{variant}, {REQUESTS} requests: {best[variant]:.2f} s, {best[variant] / best['plain 64']:.3f} of plain "
                f"with {2 * REQUESTS}, {best[variant] / best['plain 32']:.3f} of plain with {REQUESTS}",
                flush=True,
            )
            worker.close()
        plain.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
