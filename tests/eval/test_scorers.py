"""Scorers that judge by themselves: values by hand, and what a program that misbehaves comes to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from counterfoil.errors import ConfigError, InputError
from counterfoil.records import Completion, Prompt, Score
from decode.engine import Given, Request, Sampling, Session
from decode.steps import Refusal, Weigh
from eval.scorer import LocalScorer, Scorer
from eval.scorers.chance import Chance
from eval.scorers.code_tests import CodeTests, read_code
from eval.scorers.entailment import Entailment
from eval.scorers.exact_answer import ExactAnswer
from eval.scorers.log_likelihood import LogLikelihood
from eval.scorers.math_verify import MathVerify
from eval.scorers.mix import Mix, Part
from eval.scorers.self_consistency import SelfConsistency
from eval.scorers.similarity import Similarity


class Graded(NamedTuple):
    """Scores that were returned, those that were kept, and what was weighed."""

    scores: list[Score]
    kept: list[Score]
    weighed: list[Weigh]

    @property
    def values(self) -> list[float]:
        """What was returned."""
        return [item.value for item in self.scores]


def answer(prompt: Prompt, text: str, index: int = 0, *, cut: bool = False) -> Completion:
    return Completion.make(
        prompt_id=prompt.id, index=index, text=text, finish_reason="length" if cut else "stop", num_prompt_tokens=1,
        num_tokens=1,
    )  # fmt: skip


def score(scorer: LocalScorer, text: str, **reference: Any) -> float:
    prompt = Prompt.make("Q", reference=reference)
    return scorer.score(prompt, answer(prompt, text)).value


def grade(
    scorer: Scorer, *answers: Completion, prompt: Prompt | None = None, roles: Mapping[str, float] = {}
) -> Graded:
    """Grade answers, each text's log-probability a word being `roles`' of the model that is asked."""
    asked = prompt or Prompt.make("Q")
    steps = scorer.grade(asked, answers)
    given: list[Any] | None = None
    kept: list[Score] = []
    weighed: list[Weigh] = []
    try:
        while True:
            asks = next(steps) if given is None else steps.send(given)
            kept += [item for item in asks if isinstance(item, Score)]
            weighed += [item for item in asks if isinstance(item, Weigh)]
            given = [(weigh(item, roles),) if isinstance(item, Weigh) else () for item in asks]
    except StopIteration as stop:
        assert [item.completion_id for item in stop.value] == [item.id for item in answers]
        assert kept[-len(answers) :] == stop.value
        return Graded(stop.value, kept, weighed)


def weigh(item: Weigh, roles: Mapping[str, float]) -> Completion:
    logprobs = (roles[item.role],) * len(item.text.split())
    return Completion.make(
        prompt_id="p", index=0, text=item.text, finish_reason="stop", num_prompt_tokens=0, num_tokens=len(logprobs),
        token_logprobs=logprobs,
    )  # fmt: skip


PROMPT = Prompt.make("Q")


def answers(*texts: str) -> list[Completion]:
    return [answer(PROMPT, text, at) for at, text in enumerate(texts)]


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


@pytest.mark.parametrize("said", ["\\boxed{9^{9^{9^9}}}", "$(10^{8})!$"])
def test_mathematics_without_end_is_given_up(said: str) -> None:
    """It ends no job, and the next comparison goes well."""
    prompt = Prompt.make("Q", reference={"answer": "0.5"})
    answers = [answer(prompt, text) for text in (said, "It is 0.5")]
    scorer = MathVerify(time_s=0.5)
    assert [(found.value, found.detail.get("given up")) for found in (scorer.score(prompt, item) for item in answers)] == [
        (0.0, True), (1.0, None),
    ]  # fmt: skip


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


def test_words_on_the_screen_are_no_pass() -> None:
    """A program that prints what a pass prints, or ends before the test; one that hides `print` is none the worse for it."""
    assert score(CodeTests(), "print('passed')\nraise SystemExit(1)", tests=["pass"]) == 0
    assert score(CodeTests(), "print('passed')\nimport os\nos._exit(0)", tests=["assert False"]) == 0
    assert score(CodeTests(), "def print(*what):\n    return 7", tests=["assert print() == 7"]) == 1
    assert score(CodeTests(), "x = 1\nif __name__ == '__main__':\n    input()", tests=["assert x == 1"]) == 1


def test_a_program_that_means_to_cheat_can() -> None:
    """What the docstring admits: it makes everything equal to everything."""
    cheat = "class Any:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return Any()"
    assert score(CodeTests(), cheat, tests=["assert f(2) == 4"]) == 1


def test_results_say_what_failed() -> None:
    prompt = Prompt.make("Q", reference={"tests": ["assert f() == 1", "assert f() == 2", "g()"]})
    found = CodeTests().score(prompt, answer(prompt, "def f():\n    return 1"))
    assert found.detail["tests"] == [
        "passed", "failed: AssertionError", "failed: NameError: name 'g' is not defined",
    ]  # fmt: skip


@pytest.mark.parametrize("tests", ["assert True", [], [1], None])
def test_tests_are_statements(tests: Any) -> None:
    with pytest.raises(InputError, match=r"reference\.tests"):
        score(CodeTests(), "x = 1", tests=tests)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("```\na\n```\n```py\nbb = 1\n```", "bb = 1\n"),
        ("```bash\npip install a_long_name\n```\nThen:\n```python\nx = 1\n```", "x = 1\n"),
        ("```Python3 title='a'\nx = 1\n```", "x = 1\n"),
        ("```json\n{}\n```", ""),
        ("```python\nx = 1", ""),
    ],
)
def test_the_longest_block_of_python_is_the_program(text: str, code: str) -> None:
    assert read_code(text) == code


@pytest.mark.slow
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


def test_an_answer_without_a_full_stop_is_read_as_far_as_the_model_can(nli: Path) -> None:
    """Of 3000 words without an end, and a context of 100 windows, the model reads what it holds."""
    scorer = Entailment(model=str(nli), key="context", window=1)
    assert score(scorer, "word " * 3000, context="Ground is here. " * 100) == pytest.approx(0.78699, abs=1e-4)


def test_a_sentence_is_worth_its_best_window(nli: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four sentences in windows of two are two readings a claim: values 0.1, 0.8 and 0.3, 0.2 are 0.8 and 0.3."""
    import torch

    scorer = Entailment(model=str(nli), key="context", window=2)
    tokenizer, model, _ = scorer._loaded
    read: list[Any] = []
    values = iter([0.1, 0.8, 0.3, 0.2] * 2)

    def forward(**batch: Any) -> Any:
        read.extend(tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True))
        rows = [[0.0, value, 1 - value] for value in (next(values) for _ in batch["input_ids"])]
        return type("Output", (), {"logits": torch.tensor(rows).log()})

    monkeypatch.setattr(model, "forward", forward)
    given = {"context": "One. Two. Three. Four."}
    assert score(scorer, "First. Second.", **given) == pytest.approx(0.3)
    assert read == ["one. two. first.", "three. four. first.", "one. two. second.", "three. four. second."]
    mean = scorer.model_copy(update={"reduce": "mean"})
    assert score(mean, "First. Second.", **given) == pytest.approx(0.55)


def test_log_likelihood_by_hand() -> None:
    """Words of -2 nats each: 3 words are -6, by the token -2."""
    three = answers("one two three", "one")
    assert grade(LogLikelihood(), *three, roles={"": -2.0}).values == [-2.0, -2.0]
    found = grade(LogLikelihood(per_token=False), *three, roles={"": -2.0})
    assert found.values == [-6.0, -2.0]
    assert found.scores[0].detail == {"nats": -6.0, "tokens": 3}


def test_log_likelihood_against_another_model_by_hand() -> None:
    """-2 nats a word less -0.5: -1.5 a word, -4.5 for three; every text is weighed by both models, all at once."""
    scorer = LogLikelihood(role="expert", against="amateur", per_token=False)
    found = grade(scorer, *answers("one two three", "one"), roles={"expert": -2.0, "amateur": -0.5})
    assert found.values == [-4.5, -1.5]
    assert [(item.role, item.text) for item in found.weighed] == [
        ("expert", "one two three"), ("expert", "one"), ("amateur", "one two three"), ("amateur", "one"),
    ]  # fmt: skip
    assert scorer.asks().keys() == {"expert", "amateur"}
    with pytest.raises(ValidationError, match="itself"):
        LogLikelihood(role="judge", against="judge")


def test_an_empty_answer_is_as_likely_as_the_least_likely_one() -> None:
    found = grade(LogLikelihood(per_token=False), *answers("one", "", "one two"), roles={"": -1.0})
    assert found.values == [-1.0, -2.0, -2.0]
    assert [item.detail.get("empty") for item in found.scores] == [None, True, None]
    with pytest.raises(Refusal, match="empty answers alone"):
        grade(LogLikelihood(), *answers("", ""), roles={"": -1.0})


def test_self_consistency_by_hand() -> None:
    """Of five samples two come to 7 (written in two ways), one to 8, one to nothing; the one that was cut off has no vote."""
    samples = [
        *answers("The answer is 7.", "so it is 7.0", "The answer is 8", ""),
        answer(PROMPT, "It is 7", 4, cut=True),
    ]
    found = grade(SelfConsistency(), *samples)
    assert found.values == [0.4, 0.4, 0.2, 0.0, 0.0]
    assert [item.detail["won"] for item in found.scores] == [True, True, False, False, False]


def test_the_most_votes_may_be_for_nothing() -> None:
    found = grade(SelfConsistency(marked=True), *answers("7", "8", "The answer is 9"))
    assert found.values == [0.0, 0.0, pytest.approx(1 / 3)]
    assert [item.detail["won"] for item in found.scores] == [False, False, False]


MIXED = Prompt.make("Q", reference={"answer": "7"})


def mix(rescale: bool = False) -> Graded:
    """Exact answers at a weight of 2, likelihood by the token at -0.5."""
    parts = (Part(scorer=ExactAnswer(), weight=2.0), Part(scorer=LogLikelihood(per_token=False), weight=-0.5))
    given = [answer(MIXED, text, at) for at, text in enumerate(("7", "8", "it is 7"))]
    return grade(Mix(parts=parts, rescale=rescale), *given, prompt=MIXED, roles={"": -1.0})


def test_chance_is_drawn_evenly_and_once_an_answer() -> None:
    drawn, again, other = (
        [Chance(seed=seed).score(PROMPT, item).value for item in answers(*map(str, range(2000)))] for seed in (0, 0, 1)
    )
    assert drawn == again != other
    assert sum(drawn) / 2000 == pytest.approx(0.5, abs=0.03)
    assert max(drawn) > 0.99 and min(drawn) < 0.01
    assert sum(one * two for one, two in zip(drawn, other, strict=True)) / 2000 == pytest.approx(0.25, abs=0.03)


def test_a_mix_is_a_weighted_sum() -> None:
    """Exact 1, 0, 1 by 2; nats -1, -1, -3 by -0.5: 2.5, 0.5, 3.5. Each part's scores are kept before the sums."""
    found = mix()
    assert found.values == [2.5, 0.5, 3.5]
    assert found.scores[2].detail == {"exact_answer": 1.0, "log_likelihood": -3.0}
    assert [item.scorer for item in found.kept] == ["exact_answer"] * 3 + ["log_likelihood"] * 3 + ["mix"] * 3


def test_a_mix_may_bring_its_parts_to_one_scale() -> None:
    """Exact stays; nats -1, -1, -3 become 1, 1, 0: 2 - 0.5, 0 - 0.5, 2 - 0."""
    assert mix(rescale=True).values == [1.5, -0.5, 2.0]
    alike = Mix(parts=(Part(scorer=LogLikelihood()),), rescale=True)
    assert grade(alike, *answers("a b", "c"), roles={"": -1.0}).values == [0.5, 0.5], "equal ones are in the middle"


def test_a_mix_names_its_parts() -> None:
    twice = Mix(parts=(Part(scorer=LogLikelihood(role="x")), Part(scorer=LogLikelihood(role="y"))))
    assert twice.asks().keys() == {"x", "y"}
    found = grade(twice, *answers("a"), roles={"x": -1.0, "y": -2.0})
    assert found.scores[0].detail == {"log_likelihood": -1.0, "log_likelihood#2": -2.0}
    with pytest.raises(ConfigError, match="no parts"):
        Mix().asks()


def test_a_reference_is_embedded_once_for_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of a chosen embedder: (1, 0) for texts with an a, else (0.6, 0.8); their cosine is 0.6."""
    import numpy as np

    from decode.embedders.sentence_transformers import SentenceTransformers

    embedded: list[str] = []

    def embed(texts: Any) -> Any:
        embedded.extend(texts)
        return np.array([[1.0, 0.0] if "a" in text else [0.6, 0.8] for text in texts])

    monkeypatch.setattr(SentenceTransformers, "open", lambda self: embed)
    prompt = Prompt.make("Q", reference={"answer": ["a", "b"]})
    scorer = Similarity()
    values = [scorer.score(prompt, answer(prompt, text)).value for text in ("xa", "xb")]
    assert values == pytest.approx([1.0, 1.0])
    assert embedded == ["a", "b", "xa", "xb"]
    single = Prompt.make("a", reference={"answer": "a"})
    assert scorer.score(single, answer(single, "xb")).value == pytest.approx(0.6)
    assert Similarity(key=None).score(single, answer(single, "ya")).value == pytest.approx(1.0)


@pytest.mark.slow
def test_log_likelihood_is_the_models_own(hf_session: Session) -> None:
    """The sum of the tokens' log-probabilities that the engine gave when it wrote the text."""
    prompt = Prompt.make("Name a colour.")
    sampling = Sampling(max_new_tokens=8, logprobs=True)
    (result,) = hf_session.complete([Request("p", prompt.messages, sampling)])
    (said,) = result.completions
    steps = LogLikelihood(per_token=False).grade(prompt, [said])
    (asked,) = next(steps)
    assert isinstance(asked, Weigh)
    (found,) = hf_session.logprobs([Given("w", asked.prompt, asked.text)])
    own = sum(said.token_logprobs or ()) if said.finish_reason == "length" else sum((said.token_logprobs or ())[:-1])
    assert sum(found.token_logprobs) == pytest.approx(own, abs=1e-3)
