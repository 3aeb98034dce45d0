"""Real parts that tests share, each started once: an adapter, vLLM in process, a vLLM server. Nothing is downloaded."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from counterfoil.models import find_model
from decode.engine import Session

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # Workers share out the cores, with all that they start: threads that wait for a core of their own would spin.
    number, count = (
        int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")),
        int(os.environ["PYTEST_XDIST_WORKER_COUNT"]),
    )
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[number::count] or cores)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so it is in a shell's background, and interrupts are tested
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOWEST = "test_vllm_methods.py"
SERVER_START_S = 240
"""An idle machine needs some 40 s; a busy one several times that."""


@pytest.fixture(autouse=True)
def own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share no answers between runs: what another test was answered would be found and not asked again."""
    monkeypatch.setenv("COUNTERFOIL_ANSWERS", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest, so that no worker is left alone with it."""
    items.sort(key=lambda item: item.path.name != SLOWEST)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a Llama of two small layers and random weights that speaks the embedded model's tokens."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(find_model("smollm2"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a LoRA adapter of random weights, large enough to change what the embedded model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(find_model("smollm2"))
    settings = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(model, settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_session() -> Iterator[Session]:
    """Start vLLM in this process, once, in float32."""
    from decode.engines.vllm import Vllm

    with Vllm(max_model_len=1024, max_num_seqs=64, kv_cache_gib=0.5).open("smollm2") as session:
        yield session


@pytest.fixture(scope="session")
def hf_session() -> Iterator[Session]:
    """Load the embedded model in transformers, once."""
    from decode.engines.hf import Hf

    with Hf(max_model_len=1024, batch_size=8).open("smollm2") as session:
        yield session


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start vLLM's server with the embedded model, served as `smollm2`; yield its base_url, stop it by process id."""
    with _serve(tmp_path_factory.mktemp("vllm_server") / "log.txt") as base_url:
        yield base_url


@pytest.fixture
def lora_server(tmp_path: Path, adapter: Path) -> Iterator[str]:
    """Start such a server that has the adapter as well, under the name `tuned`."""
    with _serve(tmp_path / "log.txt", "--enable-lora", "--lora-modules", f"tuned={adapter}") as base_url:
        yield base_url


@pytest.fixture
def guided_server(tmp_path: Path) -> Iterator[str]:
    """Start such a server that decodes with classifier-free guidance where a request asks for it."""
    from decode.methods.guided import Guided
    from decode.vllm_plugin.settings import make_flags, make_settings

    with _serve(tmp_path / "log.txt", *make_flags(make_settings(Guided(scale=2.0)))) as base_url:
        yield base_url


@contextmanager
def _serve(log: Path, *more: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(find_model("smollm2"))]
    command += ["--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "16"]
    compact = '{"backend": "xgrammar", "disable_any_whitespace": true}'  # JSON without the white space that never ends
    command += ["--kv-cache-memory-bytes", str(512 * 1024**2), "--structured-outputs-config", compact, *more]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    env = os.environ | {
        "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _stop(process)


def _wait_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + SERVER_START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(address, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.RequestError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start (exit status {process.poll()}):\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its engine process: they are a process group of their own."""
    for sign, wait_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sign)
            process.wait(wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
