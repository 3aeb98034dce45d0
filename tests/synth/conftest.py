"""Prompts for a synthesis, and a filter by itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from counterfoil.records import Dropped, Pair
from synth.filter import LocalFilter


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[int], Path]:
    """Return the writer of a file of prompts that ask for a river: how many -> where they lie."""

    def write(count: int) -> Path:
        path = tmp_path / f"prompts{count}.jsonl"
        reference = {"constraints": [{"kind": "include_word", "word": "river"}]}
        rows = [json.dumps({"prompt": f"Write about place {at}", "reference": reference}) for at in range(count)]
        path.write_text("\n".join(rows) + "\n")
        return path

    return write


@pytest.fixture
def alone() -> Callable[[LocalFilter], Callable[[Pair], Dropped | None]]:
    """Return what opens a filter as if there were no other: a pair that it passes is remembered by it."""

    def open_alone(item: LocalFilter) -> Callable[[Pair], Dropped | None]:
        judge = item.open()

        def see(pair: Pair) -> Dropped | None:
            found = judge(pair)
            if found is None or isinstance(found, Dropped):
                return found
            return found()  # it remembers

        return see

    return open_alone
