"""What becomes of a synthesis that is killed at any moment, and how soon one ends that is interrupted.

    python benchmarks/kills.py                     # 20 kills (SIGKILL) at random moments: 640 prompts, 64 in flight, 1 s each
    python benchmarks/kills.py --side-by-side 5    # the same, five runs at a time
    python benchmarks/kills.py --judged --rows 96 --in-flight 16 --latency-s 0.1 --kills 3
    python benchmarks/kills.py interrupt           # seconds from Ctrl-C (SIGINT) to the end

Against a real server in a process of its own, whose answers depend on what it is asked alone. A run is killed once, within
the time of an answer after a number of requests that is drawn evenly, and started again with the same command. It prints how
many requests were sent in all beyond those of a run left alone, and whether every file is, byte for byte, that one's. With
`--judged` a second model compares the answers, in both orders, and filters remember earlier pairs.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

OUTPUTS = ("prompts", "exchanges", "scores", "comparisons", "groups", "pairs", "dropped", "refused")
VERDICTS = ('{"better": "A"}', '{"better": "B"}', '{"better": "B"}', '{"better": "tie"}')
TEXTS = ("A river runs past.", "A hill stands over it.", "The river, again.", "Nobody was there.")


async def serve(latency_s: float) -> None:
    """Answer chats after `latency_s`, for ever if that is negative; print the port. GET /stats counts what was asked."""
    num_asked = 0

    async def answer(path: str, body: bytes) -> dict[str, Any]:
        nonlocal num_asked
        if path.endswith("/models"):
            return {"data": [{"id": "stub"}, {"id": "judge"}]}
        if path.endswith("/stats"):
            return {"asked": num_asked}
        num_asked += 1
        await asyncio.sleep(latency_s if latency_s >= 0 else 1e6)
        asked = json.loads(body)
        start = int(hashlib.sha256(json.dumps([asked["messages"], asked["seed"]]).encode()).hexdigest(), 16)
        said = VERDICTS if "response_format" in asked else TEXTS
        texts = [said[(start >> 8 * at) % len(said)] for at in range(asked["n"])]
        tokens = {"content": [{"token": word, "logprob": -1.0} for word in ["five", "tokens", "in", "an", "answer"]]}
        choices = [
            {"index": at, "finish_reason": "stop", "message": {"content": text}, "logprobs": tokens}
            for at, text in enumerate(texts)
        ]
        return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 5 * len(choices)}}

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                content = json.dumps(await answer(head[0].split()[1], body)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connect, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def open_server(latency_s: float) -> Iterator[str]:
    """Start the server; yield its address."""
    command = [sys.executable, __file__, "serve", "--latency-s", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


def count_asked(base_url: str) -> int:
    """Ask the server how many requests it had."""
    with urllib.request.urlopen(f"{base_url}/stats", timeout=60) as answer:
        return json.load(answer)["asked"]


def write_config(folder: Path, num_rows: int, engine: dict[str, Any], *, judged: bool = False) -> Path:
    """Write prompts, and a config whose rows have every fate: pairs, ties, broken lines, prompts that came before."""
    reference = {"constraints": [{"kind": "include_word", "word": "river"}]}
    rows = [json.dumps({"prompt": f"Write about place {at}.", "reference": reference}) for at in range(num_rows)]
    for at in range(0, num_rows, 50):
        rows[at] += "\n{torn\n" + rows[at]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    config = {
        "task": {"name": "file", "path": str(folder / "prompts.jsonl")},
        "model": "stub",
        "engine": engine,
        "recipe": {"name": "best_of_n", "n": 2},
        "filters": ["length_only"],
    }
    if judged:
        config["scorer"] = {"name": "pairwise", "explain": False}
        config["roles"] = {"judge": {"model": "judge", "engine": engine}}
        config["recipe"]["n"] = 3
        config["filters"] += ["near_duplicate", "fuzzy_duplicate"]
    path = folder / "job.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def start(config: Path, to: Path) -> subprocess.Popen[str]:
    """Start `counterfoil synth`, with no answers shared."""
    command = [sys.executable, "-m", "counterfoil", "synth", str(config), "--to", str(to), "--quiet", "--brief"]
    env = os.environ | {"COUNTERFOIL_ANSWERS": "0"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def count_kept(folder: Path) -> int:
    """Count the answers that a run under way has kept."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder}/state.sqlite?mode=ro", uri=True)) as db:
            return db.execute("SELECT COUNT(*) FROM finished").fetchone()[0]
    except sqlite3.OperationalError:  # it has not come so far
        return 0


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run; it has to end well."""
    _, told = process.communicate()
    assert process.returncode == 0, told


def read_outputs(folder: Path) -> dict[str, bytes]:
    """Read what a run wrote."""
    return {name: path.read_bytes() for name in OUTPUTS if (path := folder / f"{name}.jsonl").is_file()}


@contextmanager
def prepare(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Path, str]]:
    """Start a server for one run, and write its config; yield the config and the server's address."""
    folder.mkdir()
    with open_server(options.latency_s) as base_url:
        engine = {"name": "openai_api", "base_url": base_url, "max_in_flight": options.in_flight}
        yield write_config(folder, options.rows, engine, judged=options.judged), base_url


def kill_once(options: argparse.Namespace, folder: Path, whole: dict[str, bytes], usual: int, number: int) -> int:
    """Kill a run and go on with it; return how many requests it took beyond the usual ones."""
    rng = random.Random(f"{options.seed}/{number}")
    after, wait_s = rng.randrange(usual), rng.uniform(0, options.latency_s)
    with prepare(options, folder) as (config, base_url):
        process = start(config, folder / "run")
        while count_asked(base_url) < after:
            time.sleep(0.01)
        time.sleep(wait_s)
        process.kill()
        process.communicate()
        at_kill = count_asked(base_url)
        finish(start(config, folder / "run"))
        extra = count_asked(base_url) - usual
    same = read_outputs(folder / "run") == whole
    told = f"kill {number + 1}: after {at_kill} requests; {extra} more than usual; files {'identical' if same else 'DIFFER'}"
    print(told, flush=True)
    assert same, told
    assert extra <= options.in_flight * (1 + options.judged), told
    return extra


def measure_kills(options: argparse.Namespace) -> None:
    """Kill, go on, compare."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with prepare(options, folder / "whole") as (config, base_url):
            began = time.monotonic()
            finish(start(config, folder / "whole/run"))
            whole_s, usual = time.monotonic() - began, count_asked(base_url)
        whole = read_outputs(folder / "whole/run")
        assert options.judged or usual == options.rows, usual
        print(f"left alone: {whole_s:.1f} s, {usual} requests, {len(whole['pairs'].splitlines())} pairs", flush=True)
        with ThreadPoolExecutor(options.side_by_side) as pool:
            runs = [
                pool.submit(kill_once, options, folder / str(number), whole, usual, number)
                for number in range(options.kills)
            ]
            extras = [run.result() for run in runs]
        print(f"{options.kills} of {options.kills} identical; asked again: {min(extras)} to {max(extras)} requests")


class Interrupted(NamedTuple):
    """How a run ended."""

    seconds: float
    exit_code: int
    message: str


def interrupt(process: subprocess.Popen[str], is_busy: Callable[[], bool]) -> Interrupted:
    """Interrupt a run as Ctrl-C does, once it is busy."""
    while not is_busy():
        time.sleep(0.05)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    return Interrupted(time.monotonic() - began, process.returncode, told.strip())


def measure_interrupt() -> None:
    """Print how long a run takes to end after Ctrl-C, where answers come slowly and where they never come."""
    scripted = {"name": "scripted", "latency_s": 0.2, "max_in_flight": 64, "replies": TEXTS}
    with tempfile.TemporaryDirectory() as scratch, open_server(-1) as hanging:
        cases = {
            "scripted, 0.2 s an answer": scripted,
            "openai_api, no answers": {"name": "openai_api", "base_url": hanging},
        }
        for number, (name, engine) in enumerate(cases.items()):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            config = write_config(folder, 5000, engine)
            for repeat in range(5):
                to, before = folder / f"run {repeat}", count_asked(hanging)
                process = start(config, to)
                if number == 0:
                    told = interrupt(process, lambda to=to: count_kept(to) > 0)
                else:
                    told = interrupt(process, lambda before=before: count_asked(hanging) > before)
                print(f"{name}: ended {told.seconds:.2f} s after Ctrl-C, exit code {told.exit_code}: {told.message}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["kills", "interrupt", "serve"], default="kills")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency-s", type=float, default=1.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--side-by-side", type=int, default=1)
    parser.add_argument("--judged", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.what == "serve":
        asyncio.run(serve(given.latency_s))
    elif given.what == "kills":
        measure_kills(given)
    else:
        measure_interrupt()
