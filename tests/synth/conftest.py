"""Prompts for a synthesis."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


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
