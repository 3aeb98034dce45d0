"""From a corpus to triplets with the real engine and the real embedder."""

import contextlib
import json
from pathlib import Path

import pytest

from counterfoil.records import Exchange, Group
from decode.engine import Session
from decode.engines.vllm import Vllm
from eval.tasks.file import File
from synth.index import Index
from synth.recipes.retrieval import Retrieval
from synth.retrieval import Pool
from synth.synthesize import Synthesize

PROBLEMS = {
    "Ann has 3 apples and buys 4 more. How many apples has she now?": "addition",
    "Tom has 5 pears and finds 2 more. How many pears has he now?": "addition",
    "Ann has 9 apples and eats 4 of them. How many apples are left?": "subtraction",
    "Tom has 5 pears and loses 2 of them. How many pears are left?": "subtraction",
}


@pytest.mark.slow
def test_described_embedded_indexed_contrasted(
    vllm_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every problem has its description and is found by it; positives and negatives are as their answers say."""
    monkeypatch.setattr(Vllm, "open", lambda *given, **more: contextlib.nullcontext(vllm_session))
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"prompt": text, "reference": {"answer": answer}} for text, answer in PROBLEMS.items()]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = Index(corpus=corpus, describe_as="instruction", max_new_tokens=24).run(tmp_path / "run", quiet=True)
    exchanges = [Exchange.model_validate_json(line) for line in done.path("exchanges.jsonl").read_text().splitlines()]
    said = {item.prompt_id: item.completions[0].text.strip() for item in exchanges}
    pool = Pool(done.path("index"))
    assert {key: pool.entry(key).description for key in pool.ids()} == said
    assert (len(said), pool.vectors.num_dims) == (4, 384)
    recipe = Retrieval(index=done.path("index"), min_cosine=-1, max_cosine=1)
    made = Synthesize(task=File(path=corpus), recipe=recipe, filters=()).run(tmp_path / "made", quiet=True)
    triplets = [json.loads(line) for line in made.path("triplets.jsonl").read_text().splitlines()]
    assert len(triplets) == 4
    for row in triplets:
        assert PROBLEMS[row["anchor"]] == PROBLEMS[row["positive"]] != PROBLEMS[row["negative"]]
    for line in made.path("groups.jsonl").read_text().splitlines():
        group = Group.model_validate_json(line)
        assert sum(item.score or 0 for item in group.answers) == pytest.approx(1, abs=1e-5)
        assert [item.role for item in group.answers] == ["chosen", "rejected", "rejected"]
