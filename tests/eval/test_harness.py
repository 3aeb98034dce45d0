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
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
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
    with pytest.raises(ConfigError, match="more than their probability"):
        run("counterfoil", folder, tasks=["counterfoil_choose"], config="contrastive_search", **small)


def test_what_cannot_be_run_is_refused_before_weights() -> None:
    for given, said in (
        ({"config": "answer", "cut": "x"}, "cut"),
        ({"config": "context_aware", "engine": "hf"}, "cut=..."),
        ({"config": "answer", "engine": "scripted"}, "local-completions"),
        ({"config": "contrastive", "engine": "hf"}, "amateur"),
        ({"config": "answer", "modle": "x"}, "modle"),
        ({}, "--model_args config="),
        ({"config": "context_aware", "engine": "hf", "cut": "("}, "a regular expression"),
    ):
        with pytest.raises(ConfigError, match=said):
            CounterfoilLM(**given)


def ask(kind: str, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0)


@pytest.fixture(scope="module")
def small(tiny_model: Path) -> CounterfoilLM:
    """Open a model that reads 62 tokens at a time."""
    return CounterfoilLM(config="answer", engine="hf", model=str(tiny_model), **{"engine.max_model_len": 64})


def test_what_a_window_does_not_hold_is_refused_or_counted(
    small: CounterfoilLM, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit that leaves no prompt, a continuation too long; contexts that are cut, here as there, are counted."""
    write = {"until": [], "max_gen_toks": 62}
    with pytest.raises(ConfigError, match=r"engine.max_model_len: 64: max_gen_toks=62(.|\n)*Raise it by 1,"):
        small.generate_until([ask("generate_until", "What is it?", write)])
    with pytest.raises(ConfigError, match="a continuation of 63 tokens"):
        small.loglikelihood([ask("loglikelihood", "The river is", " word" * 63)])
    assert not caplog.records
    asked = [ask("loglikelihood", "The river is", " word" * 62), ask("loglikelihood", "The river", " is")]
    found = small.loglikelihood(asked)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 contexts are cut at the left: engine.max_model_len is 64"
    ]
    theirs = HFLM(pretrained=str(tiny_model), dtype="float32", max_length=62, device="cpu", batch_size=1)
    expected = theirs.loglikelihood(asked)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-2)
    drawn = {"until": [], "max_gen_toks": 3, "temperature": 1.0}
    assert small.generate_until([ask("generate_until", "", drawn)]) != [""], "from the first token on"


def test_positions_of_the_model_limit_its_windows(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    config: Any = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=24)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours = CounterfoilLM(config="answer", engine="hf", model=str(tmp_path))
    theirs = HFLM(pretrained=str(tmp_path), dtype="float32", max_length=22, device="cpu", batch_size=1)
    texts = [ask("loglikelihood_rolling", "The river is long and so is the day. " * 9)]
    assert ours.max_length == 22
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=1e-2)


def test_repeats_of_a_sampled_request_differ_and_come_again(small: CounterfoilLM) -> None:
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asked = [ask("generate_until", context, settings) for context in ("A cat", "A cat", "A dog")]
    first = small.generate_until(asked)
    assert len(set(first)) == 3 and small.generate_until(asked) == first
    other = small.generate_until([ask("generate_until", "A cat", settings | {"seed": 5})])
    assert other[0] not in first
    assert small.generate_until(asked[1:])[0] == first[0], "the first of its context, whatever came before it"


def test_what_tasks_and_arguments_get_wrong_has_a_sentence(small: CounterfoilLM, tiny_model: Path) -> None:
    for settings in ({"temperature": -1}, {"temperature": "x"}, {"top_p": 0}, {"max_gen_toks": 0}, {"until": [1]}):
        with pytest.raises(ConfigError, match="gen_kwargs"):
            small.generate_until([ask("generate_until", "hello", {"max_gen_toks": 4} | settings)])
    template, small.tokenizer.chat_template = small.tokenizer.chat_template, None
    with pytest.raises(ConfigError, match="--apply_chat_template"):
        small.apply_chat_template([{"role": "user", "content": "Hi."}])
    small.tokenizer.chat_template = template
    search = CounterfoilLM(config="contrastive_search", engine="hf", model=str(tiny_model))
    with pytest.raises(ConfigError, match="more than their probability"):
        search.loglikelihood([ask("loglikelihood", "A", " b")])


def test_white_space_that_lm_eval_moves_is_in_neither_prompt(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CounterfoilLM(config="context_aware", engine="hf", model=str(tiny_model), cut="^Passage:.*?\n")
    given: list[Any] = []
    real = model._session.logprobs
    monkeypatch.setattr(model._session, "logprobs", lambda items: real(given.extend(items) or given))
    model.loglikelihood([ask("loglikelihood", "Passage: Bob came.\nWho came? Answer: ", "Bob")])
    (item,) = given
    texts = [model.tokenizer.decode(part) for part in (item.prompt, item.negative, item.text)]
    assert texts == ["Passage: Bob came.\nWho came? Answer:", "Who came? Answer:", " Bob"]


def test_lm_evals_cache_gets_each_score_as_it_comes(small: CounterfoilLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under what was asked; the windows of a longer text stay out of it."""
    kept: dict[Any, Any] = {}
    monkeypatch.setattr(
        small.cache_hook, "add_partial", lambda kind, asked, found: kept.update({(kind, *asked): found})
    )
    text = "The river is long. " * 20
    small.loglikelihood_rolling([ask("loglikelihood_rolling", text)])
    assert list(kept) == [("loglikelihood_rolling", text)]
    real = small._session.logprobs

    def break_after_one(given: Any) -> Any:
        yield next(iter(real(given)))
        raise KeyboardInterrupt

    monkeypatch.setattr(small._session, "logprobs", break_after_one)
    with pytest.raises(KeyboardInterrupt):
        small.loglikelihood([ask("loglikelihood", "A", " b"), ask("loglikelihood", "A", " c")])
    assert ("loglikelihood", "A", " b") in kept and len(kept) == 2


def test_lm_evals_defaults_are_no_setting_of_the_users(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = {"config": "answer", "engine": "hf", "model": str(tiny_model)}
    CounterfoilLM(**small, batch_size=1, device="cuda:0")
    assert not caplog.records
    CounterfoilLM(**small, batch_size="4", device="cuda:0")
    assert "are the engine's" in caplog.text


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
