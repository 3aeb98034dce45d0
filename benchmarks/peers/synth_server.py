"""Servers that benchmarks of synthesis ask: vLLM with the embedded model, or one that answers at once."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["serve"]


def serve_at_once(port: int) -> None:
    """Answer every chat request at once, with the same text."""
    from aiohttp import web

    choice = {"index": 0, "message": {"role": "assistant", "content": "It is so."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}
    reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "smollm2", "usage": usage}
    body = json.dumps(reply | {"choices": [choice]}).encode()
    listed = json.dumps({"object": "list", "data": [{"id": "smollm2", "object": "model", "owned_by": "stub"}]}).encode()

    async def say(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=body, content_type="application/json")

    async def tell(_: web.Request) -> web.Response:
        return web.Response(body=listed, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", say)
    app.router.add_get("/v1/models", tell)
    app.router.add_get("/health", tell)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


@contextmanager
def serve(kind: str, *, cores: Sequence[int] = ()) -> Iterator[str]:
    """Start a server on these cores, or on all; yield its address; stop it by process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, str(port)]
    if kind == "server":
        from counterfoil.models import find_model

        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(find_model("smollm2"))]
        command += ["--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
        command += ["--dtype", "float32"]  # a CPU without bfloat16 of its own takes many times as long with it
        command += ["--max-model-len", "1024", "--max-num-seqs", "64", "--kv-cache-memory-bytes", str(2**30)]
        # The CPU sampler breaks on a seeded prompt that is prefilled in pieces ("CPU Generator does not use offset").
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"]
        command += ["--no-enable-prefix-caching"]  # a later run would find an earlier one's prompts computed
        compact = '{"backend": "xgrammar", "disable_any_whitespace": true}'  # JSON without white space that never ends
        command += ["--structured-outputs-config", compact]
    cores = cores or sorted(os.sched_getaffinity(0))
    env = os.environ | {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }
    command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    sys.exit(f"the server ended with status {process.returncode}")
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    serve_at_once(int(sys.argv[1]))
