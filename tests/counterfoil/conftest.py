"""A synthesis that runs in a second without a model, and the command line in a process of its own."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the test's own folder, so that no run lands in the clone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("COUNTERFOIL_RUNS", raising=False)


@pytest.fixture
def synth_yaml(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of synth/NAME.yaml: `num` prompts with a scripted engine.

    A good answer repeats the prompt (4 words, at most 5 are asked for); a bad one has 12 words more. A prompt has the
    two in turn, so that each gives one pair.
    """

    def write(num: int = 4, *, name: str = "small", **engine: Any) -> Path:
        (tmp_path / "synth").mkdir(exist_ok=True)
        prompts = tmp_path / f"prompts{num}.jsonl"
        reference = {"constraints": [{"kind": "max_words", "n": 5}]}
        rows = [{"prompt": f"Item {at} and no{at}", "reference": reference} for at in range(num)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        replies = ["{prompt}", "Quite a few more words than five about one thing or another: {prompt}"]
        config = {
            "task": {"name": "file", "path": str(prompts)},
            "engine": {"name": "scripted", "replies": replies} | engine,
            "recipe": {"name": "best_of_n", "n": 2, "margin": 0.5},
        }
        path = tmp_path / "synth" / f"{name}.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        return path

    return write


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a starter of `counterfoil WORDS` in a process of its own; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def begin(*words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-m", "counterfoil", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (env or {}),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        running.append(child)
        return child

    yield begin
    for child in running:
        child.kill()
        child.communicate()


@pytest.fixture
def count_answers() -> Callable[[Path], int]:
    """Return a reader of how many answers a run's state holds, from outside and while it runs."""

    def count(folder: Path) -> int:
        path = folder / "state.sqlite"
        if not path.is_file():
            return 0
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return db.execute("SELECT COUNT(*) FROM finished WHERE stage = 'answer'").fetchone()[0]
        except sqlite3.OperationalError:  # the table is not made yet
            return 0
        finally:
            db.close()

    return count


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Return a waiter until something holds, 20 s at most."""

    def wait(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end, "it did not come about in 20 s"
            time.sleep(0.02)

    return wait
