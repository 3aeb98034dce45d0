"""Recipes on the real engine with the embedded model: what it says is its own affair, that nothing is lost is not."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Dropped, Exchange, Group, Pair, Prompt, Record
from decode.engine import Session
from decode.engines.vllm import Vllm
from synth.synthesize import Synthesize

QUESTIONS = ["Tom has 3 apples and buys 4. How many has he?", "A box holds 6 eggs. How many do 2 boxes hold?"]


RECIPES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "codec": (
        {"rounds": 2, "theta": 0, "num_actions": 1, "max_new_tokens": 24, "max_json_tokens": 160},
        {"encode", "rubrics", "decode"},
    ),
    "rationales": ({"n": 3, "max_new_tokens": 48}, {"explain", "explain hot"}),
    "weak_to_strong": ({"n": 3, "max_new_tokens": 48}, {"answer", "sample"}),
}
"""A small choice of each, and what it asks at the least."""


@pytest.fixture
def lent(vllm_session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lend the session that all tests share to jobs, which would start one of their own."""
    monkeypatch.setattr(Vllm, "open", lambda *given, **more: contextlib.nullcontext(vllm_session))


def read(folder: Path, name: str, cls: type[Record]) -> list[Any]:
    path = folder / name
    return list(read_jsonl(path, cls, where=name)) if path.is_file() and path.stat().st_size else []


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_vllm(name: str, lent: None, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    choice, steps = RECIPES[name]
    values = {"task": {"name": "file", "path": str(path)}, "recipe": {"name": name, **choice}, "filters": []}
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    counts = done.manifest["counts"]
    assert counts["read"] == 2 == counts["kept"] + sum(counts["dropped"].values())
    assert len(read(done.folder, "dropped.jsonl", Dropped)) == 2 - counts["kept"]
    exchanges = read(done.folder, "exchanges.jsonl", Exchange)
    assert {item.step for item in exchanges} >= steps
    prompts = {
        item.id: item for name in ("prompts", "instructions") for item in read(done.folder, f"{name}.jsonl", Prompt)
    }
    for pair in read(done.folder, "pairs.jsonl", Pair):
        assert pair.prompt == prompts[pair.prompt_id].messages
        assert pair.chosen != pair.rejected
        assert pair.chosen[0]["content"].strip() and pair.rejected[0]["content"].strip()
    said = {part.text.strip() for item in exchanges for part in item.completions}
    for group in read(done.folder, "groups.jsonl", Group):
        assert {item.text.strip() for item in group.answers if item.role} <= said
    for item in exchanges:  # the engine holds the model to the schema; what is cut off is no document
        for part in item.completions:
            if item.step in {"encode", "rubrics", "decode"} and part.finish_reason == "stop":
                assert isinstance(json.loads(part.text), dict)
