"""Score against divergence: how far an adapter is from the base model, against what transformers and PEFT say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from counterfoil.errors import InputError
from counterfoil.job import Finished
from decode.chat import encode_prompt, load_tokenizer
from decode.engines.hf import Hf
from eval.frontier import Frontier
from eval.tasks.constraints import Constraints

TASK = Constraints(count=5, difficulty="easy")


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One that changes nothing, and two seeds of one that changes much."""
    return {
        name: make_adapter(tmp_path_factory.mktemp("adapters") / name, scale=scale, seed=seed)
        for seed, (name, scale) in enumerate((("none_1", 0.0), ("far_2_0", 0.1), ("far_2_1", 0.1)))
    }


def measure(folder: Path, model: Path, adapters: dict[str, Path], **changes: Any) -> Finished:
    job = Frontier(
        adapters=tuple(adapters.values()), model=str(model), engine=Hf(), task=TASK, n=2, max_new_tokens=8, **changes
    )
    return job.run(folder, quiet=True)


def sum_log_probs(model: Any, ids: list[int], start: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(logits[at - 1, ids[at]] for at in range(start, len(ids))))


def test_the_divergence_is_that_of_the_models(tmp_path: Path, tiny_model: Path, adapters: dict[str, Path]) -> None:
    done = measure(tmp_path / "run", tiny_model, adapters)
    summary = json.loads(done.path("summary.json").read_text())
    methods = summary["methods"]
    assert [*methods] == ["base", "none", "far_2"]
    assert [*summary["seeds"]] == ["base", *adapters]
    assert methods["none"]["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    assert methods["none"]["score"] == methods["base"]["score"], "the same seeds draw the same answers"
    assert methods["far_2"]["kl"]["mean"] == pytest.approx(
        (summary["seeds"]["far_2_0"]["kl"] + summary["seeds"]["far_2_1"]["kl"]) / 2, abs=1e-4
    )
    assert done.path("frontier.svg").read_text().lstrip().startswith("<?xml")

    tokenizer = load_tokenizer(str(tiny_model))
    asked = {item.id: item for item in TASK.prompts("heldout") if hasattr(item, "messages")}
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapters["far_2_0"]).eval()
    rows = [json.loads(line) for line in done.path("samples.jsonl").read_text().splitlines()]
    for row in (row for row in rows if row["policy"] == "far_2_0"):
        prompt = encode_prompt(tokenizer, asked[row["prompt_id"]].messages)
        ids = [*prompt, *row["token_ids"]]
        expected = sum_log_probs(policy, ids, len(prompt)) - sum_log_probs(base, ids, len(prompt))
        assert row["kl"] == pytest.approx(expected, abs=1e-4)


def test_methods_are_compared_with_one_of_them(tmp_path: Path, tiny_model: Path, adapters: dict[str, Path]) -> None:
    done = measure(tmp_path / "run", tiny_model, adapters, baseline="far_2")
    methods = json.loads(done.path("summary.json").read_text())["methods"]
    assert "difference" not in methods["far_2"]
    gap = methods["none"]["score"]["mean"] - methods["far_2"]["score"]["mean"]
    assert methods["none"]["difference"]["mean"] == pytest.approx(gap, abs=1e-4)
    with pytest.raises(InputError, match="far_2"):
        measure(tmp_path / "bad", tiny_model, adapters, baseline="near")


def test_runs_with_other_seeds_are_one_table(tmp_path: Path, tiny_model: Path, adapters: dict[str, Path]) -> None:
    """Each prompt's mean over both runs: what a longer run would have come to, without drawing anything anew."""
    found = [measure(tmp_path / f"run{seed}", tiny_model, adapters, seed=seed) for seed in (0, 1)]
    alone = [json.loads(done.path("summary.json").read_text()) for done in found]
    runs = tuple(done.folder for done in found)
    for done in found:  # a model may write what Python takes for the end of a line, and JSON does not
        path = done.path("samples.jsonl")
        path.write_text(path.read_text().replace('"text":"', '"text":"\u2028').replace('"text": "', '"text": "\u2028'))
    summary = json.loads(Frontier(runs=runs).run(tmp_path / "both", quiet=True).path("summary.json").read_text())
    assert [*summary["methods"]] == ["base", "none", "far_2"]
    assert [*summary["seeds"]] == ["base_0", "none_0", "far_2_0", "far_2_1", "base_1", "none_1", "far_2_2", "far_2_3"]
    assert summary["num_prompts"] == 5
    for method, row in summary["methods"].items():
        for key in ("score", "kl", "tokens"):
            means = [own["methods"][method][key]["mean"] for own in alone]
            assert row[key]["mean"] == pytest.approx(sum(means) / 2, abs=1e-4)
    gap = summary["methods"]["far_2"]["score"]["mean"] - summary["methods"]["base"]["score"]["mean"]
    assert summary["methods"]["far_2"]["difference"]["mean"] == pytest.approx(gap, abs=1e-4)


def test_runs_that_do_not_go_together_are_refused(tmp_path: Path, tiny_model: Path, adapters: dict[str, Path]) -> None:
    one = {"none_1": adapters["none_1"]}
    runs = (measure(tmp_path / "a", tiny_model, one).folder, tmp_path / "b")
    with pytest.raises(InputError, match="no such file"):
        Frontier(runs=runs).run(tmp_path / "bad", quiet=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "samples.jsonl").touch()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        Frontier(runs=runs).run(tmp_path / "bad", quiet=True)
    (tmp_path / "b" / "samples.jsonl").unlink()
    job = Frontier(adapters=(one["none_1"],), model=str(tiny_model), engine=Hf(), task=TASK, n=1, max_new_tokens=8)
    with pytest.raises(InputError, match="n: 1"):
        Frontier(runs=(runs[0], job.run(tmp_path / "b", quiet=True).folder)).run(tmp_path / "bad", quiet=True)
    for both in ({}, {"runs": runs, "adapters": job.adapters}):
        with pytest.raises(InputError, match="one of them"):
            Frontier(**both).run(tmp_path / "bad", quiet=True)
