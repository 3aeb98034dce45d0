"""Scorers that judge by themselves: values by hand, and what a program that misbehaves comes to."""

from pathlib import Path
from typing import Any

import pytest

from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt
from eval.confined import has_own_network, run_confined
from eval.scorer import LocalScorer
from eval.scorers.code_tests import CodeTests, read_code
from eval.scorers.entailment import Entailment
from eval.scorers.math_verify import MathVerify
from eval.scorers.similarity import Similarity


def score(scorer: LocalScorer, text: str, **reference: Any) -> float:
    prompt = Prompt.make("Q", reference=reference)
    answer = Completion.make(
        prompt_id=prompt.id, index=0, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=1
    )
    return scorer.score(prompt, answer).value


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [
        ("So it is $\\frac{1}{2}$.", "0.5", 1),
        ("The answer is \\boxed{x^2 - 1}", "(x-1)(x+1)", 1),
        ("The answer is 12", 12, 1),
        ("The answer is 13", "12", 0),
        ("I do not know", "12", 0),
        ("", "12", 0),
    ],
)
def test_mathematics_is_compared_as_such(said: str, wanted: Any, value: float) -> None:
    assert score(MathVerify(), said, answer=wanted) == value


def test_what_a_reference_lacks_is_said() -> None:
    for scorer, key in ((MathVerify(), "answer"), (CodeTests(), "tests"), (Similarity(), "answer")):
        with pytest.raises(InputError, match=f"reference.{key}"):
            score(scorer, "x")


def test_tests_count_one_by_one() -> None:
    code = "Here:\n```python\ndef f(x):\n    return 10 // x\n```\nDone."
    tests = ["assert f(2) == 5", "assert f(3) == 4", "f(0)", "while True: pass"]
    assert score(CodeTests(time_s=1.0), code, tests=tests) == 0.25
    assert score(CodeTests(), "no code in ``` here", tests=["assert True"]) == 0
    assert score(CodeTests(), "import sys\nsys.exit(0)", tests=["assert False"]) == 0, "an early end is no pass"


def test_the_longest_block_is_the_program() -> None:
    assert read_code("```\na\n```\n```py\nbb = 1\n```") == "bb = 1\n"
    assert read_code("x = 1") == "x = 1"


def test_a_program_has_limits() -> None:
    """Time, memory, output, an environment and a network of its own, no stray children; the folder is gone afterwards."""
    assert run_confined("while True: pass", time_s=1, memory_mib=256).timed_out
    assert run_confined("import time; time.sleep(60)", time_s=1, memory_mib=256).timed_out
    assert "MemoryError" in run_confined("x = bytearray(10**9)", time_s=5, memory_mib=256).output
    ran = run_confined("while True: print('x' * 1000)", time_s=5, memory_mib=256)
    assert ran.status != 0 and len(ran.output) <= 100_000
    ran = run_confined("import os; print(os.getcwd()); print(sorted(os.environ))", time_s=5, memory_mib=256)
    where, names = ran.output.splitlines()
    assert not Path(where).exists()
    assert "PATH" in names and "HOME" not in names
    child = "import os, time\nif os.fork() == 0:\n    time.sleep(30)\nprint('parent')"
    assert run_confined(child, time_s=5, memory_mib=256).output == "parent\n"


@pytest.mark.skipif(not has_own_network(), reason="this kernel gives an unprivileged user no network of their own")
def test_a_program_has_no_network() -> None:
    source = "import socket\ns = socket.socket()\ns.settimeout(1)\ns.connect(('127.0.0.1', 80))"
    assert "unreachable" in run_confined(source, time_s=5, memory_mib=256).output


def test_nearness_in_meaning() -> None:
    near = score(Similarity(), "The cat sat down.", answer="A cat was sitting.")
    far = score(Similarity(), "Stocks fell sharply.", answer="A cat was sitting.")
    assert near > 0.6 > 0.2 > far
    both = score(Similarity(), "The cat sat down.", answer=["Stocks fell sharply.", "A cat was sitting."])
    assert both == pytest.approx(near, abs=1e-5)


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a classifier whose last layer says `entailment` (label 1) whatever it reads: its weights are chosen."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    from counterfoil.models import find_model

    folder = tmp_path_factory.mktemp("nli")
    tokenizer = AutoTokenizer.from_pretrained(find_model("minilm"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        id2label=dict(enumerate(("contradiction", "entailment", "neutral"))),
        label2id={"contradiction": 0, "entailment": 1, "neutral": 2},
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 2.0, 0.0]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_entailment_reads_the_label_that_is_named_so(nli: Path) -> None:
    """e^2 / (e^2 + 2) = 0.787 for every sentence; without a sentence 0."""
    scorer = Entailment(model=str(nli), key="context")
    assert score(scorer, "One. Two!\nThree", context="Ground. " * 12) == pytest.approx(0.78699, abs=1e-4)
    assert score(scorer, "  ", context="Ground.") == 0


def test_a_classifier_without_that_label_is_refused(nli: Path, tmp_path: Path) -> None:
    import json
    import shutil

    other = tmp_path / "other"
    shutil.copytree(nli, other)
    config = json.loads((other / "config.json").read_text())
    config["id2label"] = {"0": "bad", "1": "good", "2": "odd"}
    config["label2id"] = {"bad": 0, "good": 1, "odd": 2}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="labels bad, good, odd"):
        score(Entailment(model=str(other), key="context"), "One.", context="Ground.")
