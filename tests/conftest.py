"""One real vLLM server for the tests that need one; nothing here is ever downloaded."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from counterfoil.models import find_model

os.environ["HF_HUB_OFFLINE"] = "1"

SERVER_START_S = 240
"""An idle machine needs some 40 s; a busy one several times that."""


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start vLLM's server with the embedded model, served as `smollm2`; yield its base_url, stop it by process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm_server") / "log.txt"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(find_model("smollm2"))]
    command += ["--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "16"]
    command += ["--kv-cache-memory-bytes", str(512 * 1024**2)]
    env = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "2", "VLLM_CPU_OMP_THREADS_BIND": "0-1"}
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
