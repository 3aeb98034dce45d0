"""What a number in flight that adapts is worth, and what it costs, against a fixed one: wall time and requests in vain.

    python benchmarks/fleet.py refusing   # 16 at a time, 0.1 s each, 429 beyond; with and without Retry-After
    python benchmarks/fleet.py queueing   # 32 at a time, 0.1 s each, the others wait, as vLLM's server lets them
    python benchmarks/fleet.py healthy    # as many as come, 0.1 s each
    python benchmarks/fleet.py instant    # no latency: microseconds a request of the client

The server is tests/decode/stub_server.py, a process of its own. Variants take turns; median and range of the rounds.
"""

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:] = [folder for folder in sys.path if folder != str(HERE)]  # a file here would hide the package `decode`

STUB = HERE.parent / "tests" / "decode" / "stub_server.py"
FIXED: dict[str, Any] = {"adaptive": False, "max_in_flight": 64}
VARIANTS: dict[str, dict[str, Any]] = {"fixed 64": FIXED, "adaptive": {}}


@contextmanager
def serve(*told: str) -> Iterator[str]:
    """Start a stub; yield its address."""
    with subprocess.Popen(
        [sys.executable, str(STUB), *told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        process.stdin.close()


def ask(base_url: str, num: int, **fields: Any) -> dict[str, float]:
    """Ask `num` requests; return wall seconds, CPU seconds, how many got no answer, and what the server counted."""
    from decode.engine import Request, Sampling
    from decode.engines.openai_api import OpenaiApi

    requests = (Request(str(number), "x", Sampling()) for number in range(num))
    with OpenaiApi(base_url=base_url, **fields).open("stub") as session:
        started, cpu = time.perf_counter(), time.process_time()
        results = list(session.complete(requests))
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    assert len(results) == num
    with urllib.request.urlopen(f"{base_url}/stats") as answer:
        counts = json.load(answer)
    unanswered = sum(result.failure is not None for result in results)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "unanswered": unanswered} | counts


def compare(told: Sequence[str], *, num: int, rounds: int) -> None:
    """Print each variant's figures against a fresh server each time."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, fields in VARIANTS.items():
            with serve(*told) as base_url:
                rows[name].append(ask(base_url, num, **fields))
    print(f"{' '.join(told)}, {num} requests, {rounds} rounds")
    for name, found in rows.items():
        shown = [f"{key} {describe([row.get(key, 0) for row in found])}" for key in ("wall_s", "cpu_s")]
        shown += [
            f"{key} {describe([row.get(key, 0) for row in found])}" for key in ("refused", "at most", "unanswered")
        ]
        print(f"  {name:9} " + ", ".join(shown), flush=True)


def describe(values: list[float]) -> str:
    """Write a median and a range."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


if __name__ == "__main__":
    if sys.argv[1:] == ["refusing"]:
        for retry_after in ((), ("--retry-after", "1")):
            compare(["--latency-s", "0.1", "--limit", "16", "--refuse", *retry_after], num=2000, rounds=3)
    elif sys.argv[1:] == ["queueing"]:
        compare(["--latency-s", "0.1", "--limit", "32"], num=4000, rounds=3)
    elif sys.argv[1:] == ["healthy"]:
        compare(["--latency-s", "0.1"], num=4000, rounds=3)
    elif sys.argv[1:] == ["instant"]:
        compare([], num=5000, rounds=5)
    else:
        sys.exit(__doc__)
