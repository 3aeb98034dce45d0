"""Recipes on the real engine with the embedded model: what it says is its own affair, that nothing is lost is not."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Comparison, Dropped, Exchange, Group, Pair, Prompt, Record, Score
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


SCORERS: dict[str, Any] = {
    "verifiable": None,
    "log_likelihood": "log_likelihood",
    "judge": {"name": "judge", "explain": False},
    "judge by likelihood": {"name": "judge", "by": "likelihood"},
    "pairwise": {"name": "pairwise", "by": "likelihood"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORERS)
def test_pairs_on_vllm_are_of_its_answers_and_as_the_scorer_says(name: str, lent: None, tmp_path: Path) -> None:
    """Code and likelihoods tell answers apart; of a judge as small as this it only counts that a pair is as it said."""
    recipe = {"name": "best_of_n", "n": 4, "max_new_tokens": 32, "margin": 1e-6}
    values = {"task": {"name": "constraints", "count": 6, "difficulty": "easy"}, "recipe": recipe, "filters": []}
    values |= {"scorer": SCORERS[name]} if SCORERS[name] else {}
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    counts = done.manifest["counts"]
    assert counts["read"] == 6 == counts["kept"] + sum(counts["dropped"].values())
    assert not [reason for reason in counts["dropped"] if reason.startswith("generate")], "all was answered"
    pairs: list[Pair] = read(done.folder, "pairs.jsonl", Pair)
    assert pairs or name not in ("verifiable", "log_likelihood")
    exchanges: list[Exchange] = read(done.folder, "exchanges.jsonl", Exchange)
    answers = {part.id: part.text for item in exchanges if item.step == "answer" for part in item.completions}
    scores = {item.completion_id: item.value for item in read(done.folder, "scores.jsonl", Score)}
    compared: list[Comparison] = read(done.folder, "comparisons.jsonl", Comparison)
    assert bool(compared) == (name == "pairwise")
    for pair in pairs:
        for key, said in ((pair.chosen_id, pair.chosen), (pair.rejected_id, pair.rejected)):
            assert answers[key].strip() == said[0]["content"].strip()
        assert scores[pair.chosen_id] == pair.score_chosen > pair.score_rejected == scores[pair.rejected_id]
    if name == "judge":
        marks = [json.loads(part.text) for item in exchanges if item.role == "judge" for part in item.completions]
        assert marks
        assert all(1 <= item["mark"] <= 5 for item in marks)
