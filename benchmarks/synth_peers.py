"""What frameworks for synthetic data cost beside a bare client on the same server: wall time to a loaded data set.

    python benchmarks/synth_peers.py server [NAME=PYTHON ...]   # vLLM with the embedded model: 512 requests of 64 tokens
    python benchmarks/synth_peers.py stub [NAME=PYTHON ...]     # a server that answers at once: 2,000 requests

NAME is a file benchmarks/peers/run_NAME.py, PYTHON an interpreter whose environment has that peer; without any, `ours` and
`bare` run alone. Each run is a process of its own with fresh folders; imports are not counted, and are no part of what it
prints. All take turns, the order turned by one each round: 5 rounds after one to warm up; the median and the range of
seconds, and of the ratio to the bare client in the same round. A run without all rows ends the benchmark.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [
    str(HERE / "peers"),
    *(folder for folder in sys.path if folder != str(HERE)),
]  # files are named like packages

from synth_server import serve  # noqa: E402

ROUNDS = 6
SUBJECTS = ("fog", "bread", "the tide", "a violin", "winter", "a bridge", "moss", "an old map", "salt", "a lighthouse")


def time_one(python: str, name: str, address: str, prompts: Path, max_tokens: int) -> float:
    """Run one framework in fresh folders; return its seconds."""
    file = HERE / "peers" / (f"{name}.py" if name in ("bare", "ours") else f"run_{name}.py")
    with tempfile.TemporaryDirectory() as folder:
        # A home of its own: some keep caches there, and an answer from a cache is no answer.
        home = {"HOME": folder, "XDG_CACHE_HOME": f"{folder}/cache", "HF_HOME": f"{folder}/hf", "HF_HUB_OFFLINE": "1"}
        command = [python, str(file), address, str(prompts), folder, str(max_tokens)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | home, cwd=folder, timeout=600, check=False
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if not lines:
        sys.exit(f"{name} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(lines[-1])
    wanted = len(prompts.read_text().splitlines())
    if found["rows"] != wanted:
        sys.exit(f"{name} made {found['rows']} of {wanted} rows")
    return found["seconds"]


def show(name: str, seconds: Sequence[float], bare: Sequence[float], num_rows: int) -> None:
    """Print a line of the table."""
    ratios = [own / other for own, other in zip(seconds, bare, strict=True)]
    median = statistics.median(seconds)
    extra = statistics.median([own - other for own, other in zip(seconds, bare, strict=True)]) / num_rows * 1000
    print(
        f"{name:12s} {median:7.2f} s ({min(seconds):.2f} to {max(seconds):.2f})   of bare {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})   {median / num_rows * 1000:.2f} ms a row, {extra:+.2f} beside bare",
        flush=True,
    )


def main(arguments: Sequence[str]) -> None:
    """Run one comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["server", "stub"])
    parser.add_argument("peers", nargs="*", metavar="NAME=PYTHON")
    given = parser.parse_args(arguments)
    pythons = {"bare": sys.executable, "ours": sys.executable}
    pythons |= dict(item.split("=", 1) for item in given.peers)
    num_rows, max_tokens = (512, 64) if given.which == "server" else (2000, 16)
    names, seconds = list(pythons), {name: [] for name in pythons}
    with tempfile.TemporaryDirectory() as folder, serve(given.which) as address:
        prompts = Path(folder) / "prompts.jsonl"
        asked = [f"Write two sentences, number {at}, about {SUBJECTS[at % len(SUBJECTS)]}." for at in range(num_rows)]
        prompts.write_text("".join(json.dumps({"prompt": item}) + "\n" for item in asked))
        for number in range(ROUNDS):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                took = time_one(pythons[name], name, address, prompts, max_tokens)
                if number:
                    seconds[name].append(took)
    for name, own in seconds.items():
        show(name, own, seconds["bare"], num_rows)


if __name__ == "__main__":
    main(sys.argv[1:])
