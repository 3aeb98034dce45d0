"""Methods through the hf engine, with the embedded model: each equals `model.generate` with the same method."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from counterfoil.errors import ConfigError, EngineError
from counterfoil.models import find_model
from counterfoil.records import Message
from decode import context_aware, contrastive, contrastive_search, decoupled, dola, guided
from decode.chat import encode_prompt, load_tokenizer
from decode.engine import Given, Request, Result, Sampling, Session
from decode.engines.hf import Hf
from decode.engines.scripted import Scripted
from decode.generate import Generate
from decode.method import Method
from decode.methods.context_aware import ContextAware
from decode.methods.contrastive import Contrastive
from decode.methods.contrastive_search import ContrastiveSearch
from decode.methods.decoupled import Decoupled
from decode.methods.dola import Dola
from decode.methods.guided import Guided

pytestmark = pytest.mark.slow

QUESTIONS = ("Name a river.", "What is a good name for a grey cat that sleeps all day long?", "Say hello.")
NEW = 12


def chat(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


@pytest.fixture(scope="module")
def model() -> Any:
    """Load the embedded model once more, for plain `generate`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(find_model("smollm2"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def amateur(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a weaker model of the same family: the embedded one's first four layers."""
    from transformers import AutoModelForCausalLM

    source = find_model("smollm2")
    weak: Any = AutoModelForCausalLM.from_pretrained(source, num_hidden_layers=4, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("amateur")
    weak.save_pretrained(folder)
    load_tokenizer(str(source)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Hf(batch_size=3, dtype="float32").open("smollm2") as opened:
        yield opened


def ask(session: Session, method: Method, *, negative: str | None = None, **sampling: Any) -> list[Result]:
    settings = Sampling(**({"max_new_tokens": NEW} | sampling))
    against = None if negative is None else chat(negative)
    requests = [
        Request(str(at), chat(text), settings, method=method, negative=against) for at, text in enumerate(QUESTIONS)
    ]
    return sorted(session.complete(requests), key=lambda item: item.id)


def expect(model: Any, method: Any, *, negative: str | None = None, **settings: Any) -> list[str]:
    """Answer one question at a time, through transformers alone."""
    tokenizer = load_tokenizer(str(find_model("smollm2")))
    found: list[str] = []
    for text in QUESTIONS:
        ids = torch.tensor([encode_prompt(tokenizer, chat(text))])
        if negative is not None:
            settings["negative_input_ids"] = torch.tensor([encode_prompt(tokenizer, chat(negative))])
        out = model.generate(
            input_ids=ids, max_new_tokens=NEW, do_sample=False, custom_generate=method,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **settings,
        )  # fmt: skip
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


def test_each_method_answers_as_generate_does(session: Session, model: Any, amateur: Path) -> None:
    from transformers import AutoModelForCausalLM

    weak = AutoModelForCausalLM.from_pretrained(amateur, dtype=torch.float32).eval()
    for ours, theirs, negative, settings in (
        (ContrastiveSearch(alpha=0.5, k=5), contrastive_search, None, {"alpha": 0.5, "k": 5}),
        (Contrastive(amateur=str(amateur)), contrastive, None, {"amateur": weak}),
        (ContextAware(strength=0.8), context_aware, "Say something.", {"strength": 0.8}),
        (Guided(scale=2.0), guided, "Be rude.", {"scale": 2.0}),
        (Guided(scale=2.0), guided, None, {"scale": 2.0}),
        (Dola(layers=(10, 20)), dola, None, {"layers": (10, 20)}),
    ):
        results = ask(session, ours, negative=negative)
        assert [item.failure for item in results] == [None] * 3
        texts = [item.completions[0].text for item in results]
        assert texts == expect(model, theirs, negative=negative, **settings), type(ours).__name__


def test_two_adapters_answer_as_generate_does(adapter: Path, model: Any) -> None:
    from peft import PeftModel

    with Hf(batch_size=3, dtype="float32").open("smollm2") as opened:
        method = Decoupled(positive=str(adapter), negative=str(adapter), mode="neg_only", strength=0.4)
        texts = [item.completions[0].text for item in ask(opened, method)]
        plain = [item.completions[0].text for item in ask(opened, Dola())]
    tuned: Any = PeftModel.from_pretrained(model, adapter, adapter_name="negative").eval()
    try:
        assert texts == expect(tuned, decoupled, mode="neg_only", strength=0.4)
        assert plain != texts
    finally:
        tuned.unload()


def test_beams_are_those_of_generate(session: Session, model: Any) -> None:
    requests = [
        Request(str(at), chat(text), Sampling(max_new_tokens=NEW, num_beams=3)) for at, text in enumerate(QUESTIONS)
    ]
    found = {item.id: item.completions[0].text for item in session.complete(requests)}
    assert [found[str(at)] for at in range(len(QUESTIONS))] == expect(model, None, num_beams=3)
    stopped = Sampling(max_new_tokens=NEW, num_beams=3, stop=(found["0"][3:6],))
    (cut,) = session.complete([Request("s", chat(QUESTIONS[0]), stopped)])
    assert stopped.stop[0] not in cut.completions[0].text  # or it ends before it, or another text is likelier


def test_draws_stop_strings_and_logprobs_work_on_top(session: Session) -> None:
    """The text of a request hangs on its seed alone; its log-probabilities are of the method's own scores."""
    method = Guided(scale=1.5)
    drawn = {"temperature": 1.0, "seed": 3, "n": 2, "logprobs": True}
    together = ask(session, method, negative="Be rude.", **drawn)
    request = Request("1", chat(QUESTIONS[1]), Sampling(max_new_tokens=NEW, **drawn), None, method, chat("Be rude."))
    (alone,) = session.complete([request])
    assert [item.text for item in alone.completions] == [item.text for item in together[1].completions]
    assert alone.completions[0].text != alone.completions[1].text
    for part in alone.completions:
        assert part.token_logprobs is not None
        assert len(part.token_logprobs) == part.num_tokens
        assert all(value <= 0 for value in part.token_logprobs)
    (found,) = session.complete([Request("s", chat(QUESTIONS[0]), Sampling(stop=("e",)), None, ContrastiveSearch())])
    assert "e" not in found.completions[0].text
    assert found.completions[0].finish_reason == "stop"


def test_given_text_is_scored_under_a_method(session: Session, amateur: Path) -> None:
    """What a method wrote has the log-probabilities that it was written with; of others some are ruled out."""
    methods: list[tuple[Method, str | None]] = [
        (Contrastive(amateur=str(amateur)), None), (Dola(), None), (Guided(scale=2.0), "Be rude."),
        (ContextAware(strength=0.5), "Hello."),
    ]  # fmt: skip
    for method, negative in methods:
        results = ask(session, method, negative=negative, logprobs=True)
        against = None if negative is None else chat(negative)
        given = [
            Given(item.id, chat(QUESTIONS[at]), item.completions[0].token_ids or (), None, method, against)
            for at, item in enumerate(results)
        ]
        scores = {
            item.id: item for item in session.logprobs([*given, Given("e", chat("Hi."), "", None, method, against)])
        }
        for item in results:
            assert scores[item.id].token_logprobs == pytest.approx(item.completions[0].token_logprobs, abs=1e-4)
            assert scores[item.id].is_greedy
        assert scores["e"].token_logprobs == () and scores["e"].failure is None
    (ruled_out,) = session.logprobs([Given("r", chat("Name a river."), "zqx", None, methods[0][0])])
    assert ruled_out.token_logprobs[0] == -math.inf and not ruled_out.is_greedy
    (refused,) = session.logprobs([Given("s", chat("Name a river."), "The", None, ContrastiveSearch())])
    assert refused.failure is not None and "more than their probability" in refused.failure


def test_logprobs_of_a_search_are_those_of_the_tokens_that_it_chose(session: Session) -> None:
    (result,) = session.complete(
        [
            Request(
                "a", chat(QUESTIONS[1]), Sampling(max_new_tokens=NEW, logprobs=True), None, ContrastiveSearch(alpha=0.8)
            )
        ]
    )
    part = result.completions[0]
    (given,) = session.logprobs([Given("g", chat(QUESTIONS[1]), part.text)])
    assert part.token_logprobs is not None
    assert list(part.token_logprobs[: len(given.token_logprobs)]) == pytest.approx(given.token_logprobs, abs=1e-3)


def test_what_cannot_be_done_fails_alone_and_says_why(session: Session, tmp_path: Path) -> None:
    requests = [
        Request("hot", chat("Hi."), Sampling(temperature=1.0), None, ContrastiveSearch()),
        Request("lacks", chat("Hi."), Sampling(), None, ContextAware()),
        Request("useless", chat("Hi."), Sampling(), None, Dola(), chat("Be rude.")),
        Request("alone", chat("Hi."), Sampling(), None, None, chat("Be rude.")),
        Request("good", chat("Hi."), Sampling(max_new_tokens=2)),
    ]
    failures = {item.id: item.failure for item in session.complete(requests)}
    assert failures.pop("good") is None
    for name, word in (("hot", "deterministic"), ("lacks", "context"), ("useless", "no use"), ("alone", "no method")):
        assert word in (failures[name] or ""), name
    (elsewhere,) = Scripted().open("any").complete([Request("a", chat("Hi."), Sampling(), None, Dola())])
    assert "layers" in (elsewhere.failure or "")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Hi."}) + "\n")
    with pytest.raises(EngineError, match="layers"):
        Generate(prompts=prompts, engine=Scripted(), method=Dola()).run(tmp_path / "a", quiet=True)
    with pytest.raises(ConfigError, match="amateur"):
        Generate(prompts=prompts, engine=Hf(), method=Contrastive()).run(tmp_path / "c", quiet=True)
    with pytest.raises(ConfigError, match="temperature"):
        Generate(prompts=prompts, engine=Hf(), method=ContrastiveSearch(), sampling=Sampling(temperature=1.0)).run(
            tmp_path / "b", quiet=True
        )


def test_an_amateur_of_another_vocabulary_is_refused_before_weights(amateur: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(amateur, other)
    path = other / "tokenizer.json"
    text = json.loads(path.read_text())
    text["added_tokens"].append(dict(text["added_tokens"][0], id=49152, content="<|new|>"))
    path.write_text(json.dumps(text))
    (other / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="same vocabulary"):
        Hf().open("smollm2", methods=[Contrastive(amateur=str(other))])


def test_the_job_reads_the_negative_prompt_of_each_row(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Name a river.", "negative": "Say something."}, {"prompt": "Name a river."}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = Generate(prompts=prompts, engine=Hf(), method=ContextAware(), sampling=Sampling(max_new_tokens=4))
    done = job.run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"]["kept"] == 1
    assert done.manifest["counts"]["dropped"] == {"read: no column 'negative'": 1}
