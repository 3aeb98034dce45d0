"""Flaw, Counterfactual and MultiAspect with the real engine: a small model's answers are read, or dropped by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Dropped, Exchange, Group, Pair, Record, Score, Triplet
from decode.engine import Session
from decode.engines.vllm import Vllm
from synth.synthesize import Synthesize

BRIDGE = "The bridge was built in 1932. It is older than the tower, which stands beside it."
FACTS = "Bob is cold. Cold things are rough. Nothing rough is kind."
ROWS: dict[str, list[dict[str, Any]]] = {
    "flaw": [
        {"prompt": "How old is the bridge?", "reference": {"answer": BRIDGE}},
        {"prompt": "How many legs has a spider?", "reference": {"answer": "It has 8 legs."}},
    ],
    "counterfactual": [
        {
            "prompt": f"{FACTS}\n{question}",
            "reference": {"options": ["True", "False", "Unknown"], "answer": answer, "context": FACTS},
        }
        for question, answer in (("Is Bob rough?", "A"), ("Is Bob kind?", "B"))
    ],
    "multi_aspect": [
        {"prompt": "The soup was hot and good.", "reference": {"aspect": "soup", "polarity": "positive"}},
        {"prompt": "The staff were slow and rude.", "reference": {"aspect": "staff", "polarity": "negative"}},
    ],
}
RECIPES: dict[str, dict[str, Any]] = {
    "flaw": {"kinds": ["number", "negation", "relation"], "max_new_tokens": 64, "judge": {"by": "likelihood"}},
    "counterfactual": {"max_options": 1, "max_premises": 3, "max_new_tokens": 200},
    "multi_aspect": {"candidates": 2, "max_new_tokens": 64, "min_certainty": 0},
}
MADE: dict[str, tuple[str, type[Record]]] = {
    "flaw": ("pairs.jsonl", Pair),
    "counterfactual": ("groups.jsonl", Group),
    "multi_aspect": ("triplets.jsonl", Triplet),
}


def read(path: Path, cls: type[Record]) -> list[Any]:
    return list(read_jsonl(path, cls, where=path.name)) if path.exists() and path.stat().st_size else []


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ROWS))
def test_a_small_model_makes_records_or_named_drops(
    name: str, vllm_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Vllm, "open", lambda *_, **__: vllm_session)
    monkeypatch.setattr(type(vllm_session), "close", lambda _: None)
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    values = {"task": {"name": "file", "path": str(path)}, "recipe": {"name": name} | RECIPES[name], "filters": []}
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    counts = done.manifest["counts"]
    assert counts["prompts"] == 2 == counts["kept"] + sum(counts.get("dropped", {}).values())
    file, kind = MADE[name]
    made = read(done.folder / file, kind)
    refused = read(done.folder / "refused.jsonl", Dropped) + read(done.folder / "dropped.jsonl", Dropped)
    assert bool(made) == bool(counts["kept"])
    assert made or refused
    assert all(item.reason for item in refused)
    answered = [item for part in read(done.folder / "exchanges.jsonl", Exchange) for item in part.completions]
    assert all(item.text for item in answered)
    assert not [item for item in refused if item.stage == "generate"], "each request was answered"
    if name == "flaw":
        planted = read(done.folder / "scores.jsonl", Score)
        assert [item.detail["kind"] for item in planted if item.detail["by"] == "rule"] == [
            "number",
            "negation",
            "number",
        ]
