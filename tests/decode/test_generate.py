"""Generate: prompts in, completions out, each row once; and the way every job asks an engine."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.errors import EngineError, RunError
from counterfoil.job import Finished, Run
from counterfoil.progress import Progress
from counterfoil.records import Completion, Dropped, Message, Prompt
from counterfoil.store import Store
from decode.engine import Engine, Request, Sampling, require
from decode.engines.scripted import Scripted
from decode.generate import Generate, ask, draw_seed, read_prompts


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def generate(prompts: Path, folder: Path, **values: Any) -> Finished:
    values = {"engine": {"name": "scripted", "replies": ["{index}: {prompt}"]}} | values
    return build(Generate, {"prompts": str(prompts), **values}, source="test").run(folder, quiet=True)


def read(done: Finished, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.path(name).read_text().splitlines()]


def test_answers_come_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    """Seed None counts samples from 0: two samples of each of three prompts."""
    path = write_lines(tmp_path / "x.jsonl", *({"prompt": text} for text in ("c", "a", "b")))
    done = generate(path, tmp_path / "run", sampling={"n": 2, "seed": None})
    assert [row["text"] for row in read(done, "completions.jsonl")] == ["0: c", "1: c", "0: a", "1: a", "0: b", "1: b"]
    assert done.manifest["counts"] == {"read": 3, "kept": 3, "dropped": {}}
    assert done.figures == {"answered": 3}
    assert done.manifest["tokens"] == {"generated": 12}


def test_every_row_is_kept_or_dropped(tmp_path: Path) -> None:
    """Six rows: two answers, a repeated prompt, a failure, a broken line, a missing column."""
    rows = [{"prompt": "one"}, {"prompt": "two"}, {"prompt": "one"}, {"prompt": "fail"}, "{torn", {"text": "three"}]
    path = write_lines(tmp_path / "x.jsonl", *rows)
    done = generate(path, tmp_path / "run", engine={"name": "scripted", "fail_when": "fail"})
    counts = done.manifest["counts"]
    assert counts == {
        "read": 6,
        "kept": 2,
        "dropped": {
            "generate: request failed": 1,
            "read: broken JSON": 1,
            "read: duplicate prompt": 1,
            "read: no column 'prompt'": 1,
        },
    }
    dropped = read(done, "dropped.jsonl")
    assert len(dropped) == 4
    assert [row["detail"] for row in dropped if row["stage"] == "generate"] == ["scripted failure"]
    assert len(read(done, "completions.jsonl")) == 2


def test_a_run_in_which_every_request_failed_is_not_done(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", {"prompt": "one"}, {"prompt": "two"})
    with pytest.raises(RunError, match="no request was answered"):
        generate(path, tmp_path / "run", engine={"name": "scripted", "fail_when": "o"})
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_prompts_are_texts_messages_or_records(tmp_path: Path) -> None:
    """A column of another name; a chat in `messages`, which is taken first; a Prompt as another run wrote it."""
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello."}]
    record = Prompt.make("Hi.", reference={"n": 1}, tags={"topic": "x"})
    path = write_lines(
        tmp_path / "x.jsonl", {"q": "Yes?"}, {"q": chat}, {"messages": chat, "q": "no"}, record.model_dump()
    )
    found = list(read_prompts(path, column="q", where="prompts"))
    assert found == [Prompt.make("Yes?"), Prompt.make(chat), Prompt.make(chat), record]  # type: ignore[arg-type]


def test_one_prompts_draw_depends_on_itself_alone(tmp_path: Path) -> None:
    """The order of the rows and the other rows move no answer; the run's seed moves them."""
    engine = {"name": "scripted", "replies": [str(at) for at in range(97)]}
    rows = [{"prompt": f"item {at}"} for at in range(20)]

    def answers(name: str, rows: list[dict[str, str]], seed: int) -> dict[str, str]:
        path = write_lines(tmp_path / f"{name}.jsonl", *rows)
        done = generate(path, tmp_path / name, engine=engine, sampling={"seed": seed})
        return {row["prompt_id"]: row["text"] for row in read(done, "completions.jsonl")}

    first, turned, other = answers("a", rows, 0), answers("b", rows[::-1][:10], 0), answers("c", rows, 1)
    assert turned.items() <= first.items()
    assert sum(first[key] != other[key] for key in first) > 10
    assert len(set(first.values())) > 10, "prompts do not share their noise"


def test_a_seed_is_small_and_repeats() -> None:
    """Seven hexadecimal digits: below 2^28, which every engine takes."""
    assert draw_seed(0, "a") == draw_seed(0, "a")
    found = {draw_seed(seed, prompt) for seed in range(10) for prompt in "abcdefghij"}
    assert len(found) == 100
    assert all(0 <= seed < 2**28 for seed in found)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Open a run by hand."""
    store = Store(tmp_path / "state.sqlite")
    yield Run(tmp_path, store, Progress(None, label="test", quiet=True))
    store.close()


def test_requests_are_read_as_they_are_answered(run: Run) -> None:
    """At most one is read before the answer to the one before it is kept: a source of any size fits in memory."""
    leads: list[int] = []

    def requests() -> Iterator[Request]:
        for at in range(30):
            leads.append(at - run.store.count("answer"))
            yield Request(str(at), f"item {at}", Sampling())

    ask(run, Scripted(), "m", requests, total=None)
    assert run.store.count("answer") == 30
    assert max(leads) <= 1


def test_only_what_has_no_answer_is_asked(run: Run) -> None:
    """Five are answered, then ten are wanted: five more. Then nothing is left, and no engine is opened."""
    requests = [Request(str(at), f"item {at}", Sampling()) for at in range(10)]
    ask(run, Scripted(), "m", lambda: requests[:5], total=5)
    before = dict(run.store.items("answer"))
    ask(run, Scripted(), "m", lambda: requests, total=10)
    assert before.items() <= dict(run.store.items("answer")).items()
    assert run.store.count("answer") == 10
    model = run.facts.pop("model")

    class Shut(Scripted):
        """Equal to the double in all but that it cannot be opened."""

        def open(self, model: str, *, adapters: object = (), methods: object = ()) -> Any:
            """Fail."""
            raise AssertionError("opened")

        def identify(self, model: str) -> str:
            """Return the double's identity."""
            return Scripted().identify(model)

    ask(run, Shut(), "m", lambda: requests, total=10)
    assert run.facts["model"] == model, "the manifest names the model all the same"


def test_a_failure_is_asked_again_and_its_answer_counts(run: Run) -> None:
    requests = [Request(name, f"item {name}", Sampling()) for name in ("good", "bad")]
    failing = Scripted(fail_when="bad")
    read = ask(run, failing, "m", lambda: requests, total=2)
    found = read(requests[1])
    assert found == Dropped(id="bad", stage="generate", reason="request failed", detail="scripted failure")
    run.store.put("answer", failing.key(requests[1], failing.identify("m")), "[]")
    assert read(requests[1]) == ()
    never = read(Request("c", "item c", Sampling()))
    assert isinstance(never, Dropped)
    assert never.detail == "never answered"
    with pytest.raises(RunError, match="scripted failure"):
        ask(run, Scripted(fail_when="item"), "m", lambda: requests, total=2)


def test_a_kept_answer_is_read_back_whole(run: Run) -> None:
    request = Request("a", "item", Sampling(n=2, logprobs=True))
    engine = Scripted()
    found = ask(run, engine, "m", lambda: [request], total=1)(request)
    with engine.open("m") as session:
        (asked,) = session.complete([request])
    assert found == asked.completions


def test_answers_of_two_models_are_not_mixed(run: Run) -> None:
    """Another script, another model, another name: each is asked for itself."""
    request = Request("a", "item", Sampling())
    texts = [
        ask(run, engine, model, lambda: [request], total=1)(request)
        for engine in (Scripted(replies=("x",)), Scripted(replies=("y",)))
        for model in ("m", "n")
    ]
    assert [item[0].text for item in texts if not isinstance(item, Dropped)] == ["x", "x", "y", "y"]
    assert run.store.count("answer") == 4


def test_half_a_surrogate_pair_is_no_text() -> None:
    """A server may send one in JSON; kept as it is, it could not be written to a file."""
    made = Completion.make(
        prompt_id="a", index=0, text="x\ud800", finish_reason="stop", num_prompt_tokens=1, num_tokens=1
    )
    assert made.text == "x?"


def test_what_is_needed_is_asked_of_the_engine_first(tmp_path: Path) -> None:
    """An adapter and a stop string are wants of their own."""

    class Poor(Scripted):
        """Chats, and nothing else."""

        gives = frozenset({"chat"})

    path = write_lines(tmp_path / "x.jsonl", {"prompt": "a"})
    for more, lacking in (({}, "n"), ({"adapter": path}, "adapters, n"), ({"sampling": {"stop": ["x"]}}, "n, stop")):
        job = build(Generate, {"prompts": path, "engine": Poor(), **more}, source="test")
        with pytest.raises(EngineError, match=f"needs {lacking}, which engine"):
            job.run(tmp_path / "run", quiet=True)
    require(Scripted(), {"chat", "n"}, where="engine")
    assert isinstance(job.engine, Engine)
    assert not (tmp_path / "run").exists()


def test_a_row_that_asks_nothing_is_dropped(tmp_path: Path) -> None:
    """One that is answered already would be answered again, and its pair learnt after the known answer; NaN is no JSON."""
    asked, answered = (Message(role=role, content=f"by the {role}") for role in ("user", "assistant"))
    rows: list[dict[str, Any]] = [
        {"messages": [asked, answered]}, {"messages": [asked, answered, asked]}, {"prompt": " \n"},
        {"messages": None, "prompt": "hi"}, {"messages": []}, {"prompt": "x", "reference": {"answer": math.nan}},
    ]  # fmt: skip
    path = write_lines(tmp_path / "x.jsonl", *rows)
    found = list(read_prompts(path, column="prompt", where="prompts", asked=True))
    told = [item.reason if isinstance(item, Dropped) else item.messages[-1]["content"] for item in found]
    assert told == ["answered already", "by the user", "empty prompt", "hi", "empty prompt", "not a prompt"]
    (first, *_) = read_prompts(path, column="prompt", where="corpus")
    assert first == Prompt.make([asked, answered]), "a text to index is no question"
    bare = write_lines(tmp_path / "bare.jsonl", {"prompt": "x", "negative": ""})
    assert list(read_prompts(bare, column="prompt", where="prompts", negative="must", asked=True)) == [
        Prompt.make("x", negative="")
    ], "what a prompt is contrasted with may say nothing"
