"""lm-evaluation-harness: figures equal those of its own `hf` model, and methods decode and score on its tasks."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from counterfoil.errors import ConfigError
from counterfoil.models import find_model
from eval.harness import CounterfoilLM, main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]

QUESTIONS = [
    ("Paris is the capital of", ["France", "Spain", "Norway"], 0),
    ("The opposite of hot is", ["green", "cold", "loud"], 1),
    ("A baby dog is called a", ["puppy", "kitten", "calf"], 0),
    ("Snow is", ["black", "warm", "white"], 2),
]
TASKS = {
    "counterfoil_write": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "counterfoil_choose": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "counterfoil_read": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three tasks and their data."""
    target = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": text, "choices": choices, "answer": right, "text": f"{text} {choices[right]}. " * 12}
        for text, choices, right in QUESTIONS
    ]
    (target / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        whole = task | {
            "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(target / "rows.jsonl")}},
            "test_split": "test", "metadata": {"version": 1},
        }  # fmt: skip
        (target / f"{name}.yaml").write_text(json.dumps(whole))
    return target


def run(kind: str, folder: Path, /, *, tasks: Any = tuple(TASKS), **arguments: Any) -> dict[str, Any]:
    """Return each task's results and its samples' responses."""
    found: Any = lm_eval.simple_evaluate(
        kind, arguments, list(tasks), task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )  # fmt: skip
    figures = {task: {k: v for k, v in found["results"][task].items() if isinstance(v, float)} for task in tasks}
    said = {task: [sample["resps"] for sample in found["samples"][task]] for task in tasks}
    return {"figures": figures, "said": said}


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_figures_are_those_of_their_own_model(folder: Path, engine: str) -> None:
    """Windows too: the texts are longer than the 66 tokens that a row may have."""
    pytest.importorskip("vllm") if engine == "vllm" else None
    ours = run("counterfoil", folder, config="answer", engine=engine, **{"engine.max_model_len": 66})
    theirs = run("hf", folder, pretrained=str(find_model("smollm2")), dtype="float32", max_length=64, device="cpu")
    assert ours["said"]["counterfoil_write"] == theirs["said"]["counterfoil_write"]
    for task, figures in theirs["figures"].items():
        assert figures == pytest.approx(ours["figures"][task], rel=1e-4), task
    for mine, other in zip(ours["said"]["counterfoil_choose"], theirs["said"]["counterfoil_choose"], strict=True):
        for ((score, greedy),), ((expected, also),) in zip(mine, other, strict=True):
            assert score == pytest.approx(expected, abs=1e-3) and greedy == also


def test_methods_decode_and_score(folder: Path, tiny_model: Path) -> None:
    small: dict[str, Any] = {"model": str(tiny_model), "engine": "hf", "sampling.temperature": 0}
    plain = run("counterfoil", folder, config="answer", **small)
    searched = run("counterfoil", folder, tasks=["counterfoil_write"], config="contrastive_search", **small)
    assert searched["said"]["counterfoil_write"] != plain["said"]["counterfoil_write"]
    some = ["counterfoil_choose", "counterfoil_read"]
    strong = {**small, "method.amateur": str(tiny_model), "method.strength": 1}
    same = run("counterfoil", folder, tasks=some, config="contrastive", **strong, **{"method.threshold": 0})
    for task in some:  # its own amateur
        assert same["figures"][task] == pytest.approx(plain["figures"][task], rel=1e-4)
    strong["model"] = "smollm2"
    masked = run("counterfoil", folder, tasks=["counterfoil_choose"], config="contrastive", **strong)
    assert min(score for row in masked["said"]["counterfoil_choose"] for ((score, _),) in row) <= -100
    free = run("counterfoil", folder, config="guided", **small, **{"method.scale": 1})
    assert free["said"]["counterfoil_write"] == plain["said"]["counterfoil_write"]
    cut = run(
        "counterfoil", folder, tasks=["counterfoil_choose"], config="context_aware", cut=r".*\s(?=\w+ \w+$)", **small
    )
    assert cut["said"]["counterfoil_choose"] != plain["said"]["counterfoil_choose"]
    with pytest.raises(RuntimeError, match="more than their probability"):
        run("counterfoil", folder, tasks=["counterfoil_choose"], config="contrastive_search", **small)


def test_what_cannot_be_run_is_refused_before_weights() -> None:
    for given, said in (
        ({"config": "answer", "cut": "x"}, "cut"),
        ({"config": "context_aware", "engine": "hf"}, "cut=..."),
        ({"config": "answer", "engine": "scripted"}, "local-completions"),
        ({"config": "contrastive", "engine": "hf"}, "amateur"),
        ({"config": "answer", "modle": "x"}, "modle"),
    ):
        with pytest.raises(ConfigError, match=said):
            CounterfoilLM(**given)


def test_the_command_line_knows_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lm_eval looks for entry points it finds it there; else `python -m eval.harness` is its command line."""
    (found,) = entry_points(group="lm_eval.models", name="counterfoil")
    assert found.load() is CounterfoilLM
    command = [
        sys.executable, "-m", "eval.harness", "run", "--model", "counterfoil", "--tasks", "counterfoil_write",
        "--include_path", str(folder), "--model_args", "config=contrastive_search,method.alpha=0.4,engine.batch_size=4",
    ]  # fmt: skip
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "counterfoil_write" in done.stdout and "exact_match" in done.stdout
    command[command.index("--model_args") + 1] = "config=contrastive_search,method.alfa=0.4"
    monkeypatch.setattr(sys, "argv", ["lm_eval"])
    with pytest.raises(SystemExit, match="alfa"):
        main(command[3:])
