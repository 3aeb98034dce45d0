"""The engine openai_api against a server that takes only so many requests at a time: tests/decode/stub_server.py."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from decode.engine import Request, Sampling
from decode.engines.openai_api import OpenaiApi

STUB = Path(__file__).with_name("stub_server.py")


@contextmanager
def serve(*told: str) -> Iterator[str]:
    command = [sys.executable, str(STUB), *told]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        process.stdin.close()


def ask(base_url: str, count: int, **fields: Any) -> dict[str, int]:
    """Ask, assert that each is answered, return what the server counted."""
    with OpenaiApi(base_url=base_url, **fields).open("stub") as session:
        results = list(session.complete(Request(str(number), "x", Sampling()) for number in range(count)))
    assert sorted(int(result.id) for result in results) == list(range(count))
    assert {result.failure for result in results} == {None}
    return httpx.get(f"{base_url}/stats", trust_env=False).json()


@pytest.mark.parametrize("retry_after", [(), ("--retry-after", "1")], ids=["no header", "Retry-After"])
def test_a_server_that_refuses_is_asked_what_it_takes(retry_after: tuple[str, ...]) -> None:
    """Of 8 at a time: 8 of the first 16 are refused, then about one for each cycle of a few dozen answers."""
    with serve("--limit", "8", "--refuse", "--latency-s", "0.1", *retry_after) as base_url:
        seen = ask(base_url, 300)
    assert seen["at most"] == 8
    assert seen["asked"] == 300 + seen["refused"]
    assert seen["refused"] <= 45


def test_a_healthy_server_is_filled() -> None:
    """16 at first, more after as many answers, at most the ceiling; tests/decode/test_window.py says how soon."""
    with serve("--latency-s", "0.3") as base_url:
        seen = ask(base_url, 120, max_in_flight=32)
    assert seen["asked"] == 120 and 16 < seen["at most"] <= 32


def test_a_fixed_number_is_kept() -> None:
    with serve("--latency-s", "0.3") as base_url:
        assert ask(base_url, 60, max_in_flight=24, adaptive=False) == {"asked": 60, "at most": 24}


def test_the_wait_for_a_turn_does_not_count_against_the_deadline() -> None:
    """One at a time, 1 s each: the last of 5 waits for 4 s, has a deadline of 3 s, and is answered."""
    with serve("--latency-s", "1") as base_url, OpenaiApi(base_url=base_url, deadline_s=3).open("stub") as session:
        session._client._window.width = 1
        session._client._window._adaptive = False
        results = list(session.complete(Request(str(number), "x", Sampling()) for number in range(5)))
    assert [result.failure for result in results] == [None] * 5


def test_how_many_at_a_time_changes_no_key() -> None:
    assert OpenaiApi(adaptive=False, max_in_flight=3).identify("m") == OpenaiApi().identify("m")
