"""A synthesis that is killed, or interrupted: benchmarks/kills.py, with a real server and real signals."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kills.py"

pytestmark = pytest.mark.slow


@pytest.fixture
def kills() -> Iterator[Any]:
    """Import the benchmark."""
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WHOLE = "--side-by-side 5"
JUDGED = "--judged --rows 96 --in-flight 16 --latency-s 0.1 --kills 4 --side-by-side 2"


@pytest.mark.parametrize(("options", "number"), [(WHOLE, 20), (JUDGED, 4)], ids=["20 of 640 prompts", "judged"])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(options: str, number: int) -> None:
    """Kills at random moments; the benchmark asserts that files are alike, and how little is asked again."""
    done = subprocess.run([sys.executable, str(SCRIPT), *options.split()], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{number} of {number} identical" in done.stdout


def test_an_interrupt_ends_at_once_what_waits_for_a_server_that_hangs(kills: Any, tmp_path: Path) -> None:
    """It says how to go on."""
    with kills.open_server(-1) as base_url:
        config = kills.write_config(tmp_path, 100, {"name": "openai_api", "base_url": base_url})
        told = kills.interrupt(kills.start(config, tmp_path / "run"), lambda: kills.count_asked(base_url) > 0)
    assert told.exit_code == 130
    assert told.seconds < 5
    assert "run the same command again to go on" in told.message
    assert not (tmp_path / "run" / "pairs.jsonl").exists()
