"""What the report of a synthesis costs: to write, to open and to search.

    python benchmarks/report.py write 200 100000     # seconds, CPU seconds, peak memory, bytes of the page
    python benchmarks/report.py open 100000          # in headless Chromium: first paint, first pairs, searches, filters

Pairs are made of 60 to 120 words an answer, four answers a prompt, each with a score, all in the page. `write` begins after
the imports; `open` is driven over Chromium's debugging protocol (package websockets), and the page is as it was written.
"""

import itertools
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # files here are named like packages

PROBE = """
(async () => {
  const root = document.querySelector("[data-browser]");
  const find = (name) => root.querySelector(`[data-role=${name}]`);
  const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));
  while (!root.dataset.ready) await pause(20);
  const found = {"first pairs": performance.now()};
  found["first paint"] = performance.getEntriesByName("first-contentful-paint")[0].startTime;
  let [last, longest] = [performance.now(), 0];
  const beat = setInterval(() => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  }, 5);
  const ask = async (name, box, value) => {
    const before = find("status").textContent;
    const start = performance.now();
    find(box).value = value;
    find(box).dispatchEvent(new Event("input"));
    while (!/page/.test(find("status").textContent) || find("status").textContent === before) await pause(10);
    found[`${name} (${find("status").textContent})`] = performance.now() - start;
  };
  await ask("search, one hit", "search", "needle 4321 ");
  await ask("search, many hits", "search", "riverta");
  await ask("search, no hit", "search", "no such words");
  clearInterval(beat);
  found["longest wait of the page meanwhile"] = longest;
  return JSON.stringify(found);
})()
"""


def make_run(folder: Path, num_pairs: int) -> None:
    """Write what a synthesis would leave."""
    from counterfoil.records import Completion, Exchange, Pair, Prompt, Score

    draw = random.Random(0)
    parts = itertools.product(("ri", "mo", "ta", "le"), ("ver", "un", "lo", "s"), ("", "ta", "in", "o"))
    words = ["".join(part) for part in parts]
    texts = [" ".join(draw.choices(words, k=draw.randint(60, 120))) for _ in range(5_000)]
    folder.mkdir()
    names = ("prompts", "exchanges", "scores", "pairs")
    files = {name: (folder / f"{name}.jsonl").open("w", encoding="utf-8") for name in names}
    for number in range(num_pairs):
        prompt = Prompt.make(
            f"Prompt needle {number} of: {draw.choice(texts)[:120]}", tags={"topic": f"topic {number % 40}"}
        )
        replies = [
            Completion.make(
                prompt_id=prompt.id, index=at, text=f"{at} {draw.choice(texts)} {number}",
                finish_reason="stop", num_prompt_tokens=30, num_tokens=100,
            )
            for at in range(4)
        ]  # fmt: skip
        files["prompts"].write(prompt.model_dump_json() + "\n")
        sent = Exchange(prompt_id=prompt.id, step="answer", sent=prompt.messages, completions=tuple(replies))
        files["exchanges"].write(sent.model_dump_json() + "\n")
        values = sorted((draw.random() for _ in replies), reverse=True)
        for reply, value in zip(replies, values, strict=True):
            files["scores"].write(Score(completion_id=reply.id, scorer="judge", value=value).model_dump_json() + "\n")
        pair = Pair.make(prompt, replies[0], replies[3], scores=(values[0], values[3]), recipe="best_of_n")
        files["pairs"].write(pair.model_dump_json() + "\n")
    for stream in files.values():
        stream.close()
    counts = {"read": num_pairs, "kept": num_pairs, "dropped": {}}
    manifest = {"job": "synthesize", "state": "done", "seconds": 1, "counts": counts, "config": {}, "tokens": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write(folder: Path, pipe: Connection) -> None:
    """Write the report of a run; send seconds, CPU seconds, bytes and peak memory in MB."""
    from eval.report import Report

    started, cpu = time.perf_counter(), time.process_time()
    done = Report(parts=(folder / "run",), max_dialogue_mb=1000).run(folder / "report", quiet=True)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    size = done.path("report.html").stat().st_size
    pipe.send((seconds, cpu, size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measure_writing(folder: Path, num_pairs: int) -> None:
    """Print what writing costs, in a process of its own."""
    make_run(folder / "run", num_pairs)
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    child = spawn.Process(target=write, args=(folder, there))
    child.start()
    seconds, cpu, size, peak_mb = here.recv()
    child.join()
    data = sum(path.stat().st_size for path in (folder / "run").iterdir())
    print(
        f"{num_pairs:>9,} pairs: {seconds:.1f} s, {cpu:.1f} CPU s; {data / 1e6:.1f} MB of files become a page of "
        f"{size / 1e6:.1f} MB; peak memory {peak_mb:.0f} MB",
        flush=True,
    )


@contextmanager
def start_chromium(profile: Path) -> Iterator[str]:
    """Start a headless browser; yield the address of its page's debugger."""
    flags = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync",
             "remote-debugging-port=0", f"user-data-dir={profile}")  # fmt: skip
    command = [shutil.which("chromium") or "chromium", *(f"--{flag}" for flag in flags), "about:blank"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = profile / "DevToolsActivePort"
        while not told.is_file() or not told.read_text().strip():
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{told.read_text().split()[0]}/json") as answer:
            yield next(item["webSocketDebuggerUrl"] for item in json.load(answer) if item["type"] == "page")
    finally:
        child.terminate()
        child.wait(20)


def measure_opening(folder: Path, num_pairs: int) -> None:
    """Print what a person waits for, in milliseconds."""
    from websockets.sync.client import connect

    measure_writing(folder, num_pairs)
    with start_chromium(folder / "profile") as address, connect(address, max_size=None, ping_interval=None) as socket:
        number = itertools.count(1)

        def call(method: str, **given: Any) -> Any:
            own = next(number)
            socket.send(json.dumps({"id": own, "method": method, "params": given}))
            while (reply := json.loads(socket.recv(timeout=600))).get("id") != own:
                pass
            return reply["result"]

        call("Page.enable")
        call("Page.navigate", url=(folder / "report/report.html").as_uri())
        while json.loads(socket.recv(timeout=600)).get("method") != "Page.loadEventFired":
            pass
        found = call("Runtime.evaluate", expression=PROBE, awaitPromise=True)["result"]["value"]
    for name, value in json.loads(found).items():
        print(f"{name}: {value:,.0f} ms")


if __name__ == "__main__":
    measures = {"write": measure_writing, "open": measure_opening}
    if sys.argv[1:2] and sys.argv[1] in measures:
        for size in sys.argv[2:] or ["200", "100000"]:
            with tempfile.TemporaryDirectory() as where:
                measures[sys.argv[1]](Path(where), int(size))
    else:
        sys.exit(__doc__)
