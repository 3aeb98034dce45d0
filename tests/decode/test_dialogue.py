"""Dialogues side by side: order, overlap, failure, resume, and that nothing is asked twice."""

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from counterfoil.errors import RunError
from counterfoil.job import Run
from counterfoil.progress import Progress
from counterfoil.records import Answer, Completion, Dropped, Group, Message, Prompt, Record
from counterfoil.store import Store
from decode import dialogue
from decode.answers import Answers
from decode.dialogue import Outcome, converse
from decode.engine import Given, Request, Sampling
from decode.engines.scripted import Scripted, ScriptedSession
from decode.speaker import Speaker
from decode.steps import Ask, Refusal, Steps, Weigh, ask_for

DRAW = Sampling(n=2, temperature=1.0)


class Noted(Scripted):
    """The double, with a note of what it was asked, and of when."""

    log: Path

    def open(self, model: str, *, adapters: Sequence[str | None] = (), methods: Any = ()) -> ScriptedSession:
        """Open it."""
        engine = self

        class Session(ScriptedSession):
            def stream(self, items: Any, *, glance: bool = False) -> Any:
                return super().stream(map(self.note, items), glance=glance)

            def note(self, item: Request | Given | None) -> Request | Given | None:
                if item is not None:
                    with engine.log.open("a") as stream:
                        stream.write(json.dumps([item.id, time.monotonic()]) + "\n")
                return item

        return Session(self, model, [])

    def identify(self, model: str) -> str:
        """Identify it as the double that it is."""
        return Scripted(replies=self.replies).identify(model)


def read_asked(log: Path) -> list[str]:
    return [json.loads(line)[0] for line in log.read_text().splitlines()] if log.exists() else []


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    folder.mkdir(exist_ok=True)
    with contextlib.closing(Store(folder / "state.sqlite")) as store:
        yield Run(folder, store, Progress(None, label="test", quiet=True))


def prompts(count: int) -> list[Prompt]:
    return [Prompt.make(f"item {at}") for at in range(count)]


def say(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def two_rounds(prompt: Prompt) -> Steps[Sequence[Record]]:
    """Ask for two drafts; ask about each of them at once."""
    (drafts,) = yield [Ask(prompt.messages, DRAW)]
    verdicts = yield [Ask(say(f"Judge: {draft.text}"), Sampling(), "judge", "judge") for draft in drafts]
    return [Group.make(prompt.messages, [Answer(text=verdict[0].text) for verdict in verdicts])]


def hold(folder: Path, count: int, steps: Any = two_rounds, *, seed: int = 0, **engines: Scripted) -> list[Outcome]:
    speakers = {role.removeprefix("main"): Speaker(model="m", engine=engine) for role, engine in engines.items()}
    with open_run(folder) as run:
        return list(converse(run, speakers, iter(prompts(count)), steps, seed=seed))


def texts(outcome: Outcome) -> list[str]:
    (group,) = outcome.records
    assert isinstance(group, Group)
    return [answer.text for answer in group.answers]


def test_outcomes_come_in_order_with_all_that_was_said(tmp_path: Path) -> None:
    """The double repeats the prompt; a verdict repeats what is judged."""
    found = hold(tmp_path, 50, main=Scripted(replies=("{prompt}, {index}",)))
    assert [item.prompt.id for item in found] == [item.id for item in prompts(50)]
    for at, item in enumerate(found):
        assert texts(item) == [f"Judge: item {at}, 0, 0", f"Judge: item {at}, 1, 0"]
        assert [(part.step, part.role) for part in item.exchanges] == [
            ("answer", ""),
            ("judge", "judge"),
            ("judge", "judge"),
        ]
        assert [part.index for one in item.exchanges for part in one.completions] == [0, 1, 2, 3]
        assert {part.prompt_id for one in item.exchanges for part in one.completions} == {item.prompt.id}
        assert item.exchanges[1].sent == say(f"Judge: item {at}, 0")


def test_two_models_work_at_the_same_time(tmp_path: Path) -> None:
    """64 drafts of 0.2 s, 8 at a time, are 1.6 s; 128 verdicts of 0.1 s as well: one after the other would be 3.2 s."""
    started = time.monotonic()
    hold(
        tmp_path, 64,
        main=Scripted(latency_s=0.2, max_in_flight=8), judge=Scripted(latency_s=0.1, max_in_flight=8),
    )  # fmt: skip
    assert time.monotonic() - started < 2.7


def test_the_slowest_holds_nobody(tmp_path: Path) -> None:
    """The first prompt alone asks a slow model: all others are done while it waits, and then come after it."""
    ended: list[int] = []

    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        at = int(prompt.messages[0]["content"].split()[1])
        yield [Ask(prompt.messages, Sampling(), role="slow" if at == 0 else "")]
        ended.append(at)
        return [Group.make("x", [Answer(text=str(at))])]

    found = hold(tmp_path, 40, steps, main=Scripted(latency_s=0.001, max_in_flight=4), slow=Scripted(latency_s=0.5))
    assert ended == [*range(1, 40), 0]
    assert [texts(item) for item in found] == [[str(at)] for at in range(40)]


def test_prompts_are_read_as_they_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an endless source no more are open than may be; taking ten outcomes and closing cancels the rest."""
    monkeypatch.setattr(dialogue, "OPEN_DIALOGUES", 16)
    begun = 0

    def endless() -> Iterator[Prompt]:
        nonlocal begun
        while True:
            begun += 1
            yield Prompt.make(f"item {begun}")

    with open_run(tmp_path) as run:
        speakers = {"": Speaker(model="m", engine=Scripted(max_in_flight=8))}
        outcomes = converse(run, speakers, endless(), two_rounds, seed=0)
        assert len(list(islice(outcomes, 10))) == 10
        outcomes.close()
    assert begun <= 10 + 2 * 16


def test_none_among_the_prompts_holds_the_next_back(tmp_path: Path) -> None:
    """Never more than three under way: a fourth begins when an outcome was taken."""
    under_way, most = 0, 0

    def held() -> Iterator[Prompt | None]:
        nonlocal under_way, most
        for prompt in prompts(20):
            while under_way == 3:
                yield None
            under_way += 1
            most = max(most, under_way)
            yield prompt

    with open_run(tmp_path) as run:
        speakers = {"": Speaker(model="m", engine=Scripted(max_in_flight=8, latency_s=0.002))}
        found: list[Outcome] = []
        for outcome in converse(run, speakers, held(), two_rounds, seed=0):
            found.append(outcome)
            under_way -= 1
    assert [item.prompt.id for item in found] == [item.id for item in prompts(20)]
    assert most == 3


def test_from_the_deadline_on_nothing_is_asked(tmp_path: Path) -> None:
    """Ten were answered before: they go on. The others are dropped, those in flight too, and nobody waits 30 s for them."""
    log = tmp_path / "log"
    hold(tmp_path / "run", 10, main=Noted(log=log))
    with open_run(tmp_path / "run") as run:
        speakers = {"": Speaker(model="m", engine=Noted(log=log, latency_s=30, max_in_flight=4))}
        deadline = time.monotonic() + 0.2
        found = list(converse(run, speakers, iter(prompts(50)), two_rounds, seed=0, deadline=deadline))
    assert time.monotonic() < deadline + 5
    assert [item.prompt.id for item in found] == [item.id for item in prompts(50)]
    assert [item.dropped is None for item in found] == [True] * 10 + [False] * 40
    assert {(item.dropped.stage, item.dropped.reason) for item in found if item.dropped} == {
        ("budget", "max_seconds reached")
    }
    assert len(read_asked(log)) == 30 + 4


def test_a_failed_request_ends_its_dialogue_alone(tmp_path: Path) -> None:
    found = hold(tmp_path, 20, main=Scripted(fail_when="item 7"))
    assert [at for at, item in enumerate(found) if item.dropped] == [7]
    dropped = Dropped(id=found[7].prompt.id, stage="generate", reason="request failed", detail="scripted failure")
    assert found[7].dropped == dropped
    assert not found[7].records


def test_a_recipe_may_live_with_a_failure(tmp_path: Path) -> None:
    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        try:
            yield [Ask(prompt.messages, Sampling())]
        except Refusal as refusal:
            return [Group.make("x", [Answer(text=refusal.detail)])]
        yield [Group.make("x", [Answer(text="kept")])]
        raise Refusal("steps", "not what was wanted")

    found = hold(tmp_path, 3, steps, main=Scripted(fail_when="item 1"))
    assert [texts(item) for item in found] == [["kept"], ["scripted failure"], ["kept"]]
    assert [item.dropped and item.dropped.reason for item in found] == [
        "not what was wanted", None, "not what was wanted",
    ]  # fmt: skip


def test_a_run_in_which_all_requests_fail_is_given_up_early(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(RunError, match="scripted failure"):
        hold(tmp_path / "run", 5000, main=Noted(fail_when="item", log=log))
    assert len(read_asked(log)) <= 2 * dialogue.ALL_FAIL
    with pytest.raises(RunError, match="scripted failure"):
        hold(tmp_path / "few", 3, main=Scripted(fail_when="item"))


def test_what_was_answered_before_an_interrupt_is_not_asked_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    engine = Noted(log=log, max_in_flight=4, latency_s=0.002)
    with open_run(tmp_path / "run") as run:
        begun = converse(run, {"": Speaker(model="m", engine=engine)}, iter(prompts(30)), two_rounds, seed=0)
        assert len(list(islice(begun, 9))) == 9
        begun.close()
    before = len(read_asked(log))
    assert before < 60
    found = hold(tmp_path / "run", 30, main=engine)
    assert len(found) == 30
    assert len(read_asked(log)) <= 30 * 3 + 4, "at most what was in flight is asked twice"
    assert hold(tmp_path / "run", 30, main=engine) == [item._replace(is_fresh=False) for item in found]
    assert hold(tmp_path / "whole", 30, main=engine) == [item._replace(is_fresh=True) for item in found]


def test_another_run_finds_what_it_would_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of what is sent is asked anew: 10 prompts are 30 requests, greedy verdicts of the same drafts are found."""
    monkeypatch.setenv("COUNTERFOIL_ANSWERS", str(tmp_path / "answers.sqlite"))
    log = tmp_path / "log"

    def count(name: str, *, seed: int = 0, model: str = "m", adapter: str | None = None, **engine: Any) -> int:
        before = len(read_asked(log))
        speaker = Speaker(model=model, adapter=adapter, engine=Noted(log=log, replies=("{prompt}.",), **engine))
        with open_run(tmp_path / name) as run:
            assert len(list(converse(run, {"": speaker}, iter(prompts(10)), two_rounds, seed=seed))) == 10
        return len(read_asked(log)) - before

    assert count("first") == 30
    assert count("second") == 0
    assert count("faster", max_in_flight=8, latency_s=0.001) == 0
    assert count("seed", seed=1) == 10
    assert count("model", model="n") == 30
    assert count("adapter", adapter="tuned") == 30
    assert count("again", adapter="tuned") == 0
    monkeypatch.setenv("COUNTERFOIL_ANSWERS", "0")
    assert count("alone") == 30


def test_a_text_is_weighed_under_a_model(tmp_path: Path) -> None:
    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        ((weighed,),) = yield [Weigh(prompt.messages, "three small words")]
        return [Group.make("x", [Answer(text=str(weighed.token_logprobs))])]

    found = hold(tmp_path, 2, steps, main=Scripted(logprob_nats=-2.0))
    assert [texts(item) for item in found] == [["(-2.0, -2.0, -2.0)"]] * 2
    assert hold(tmp_path, 2, steps, main=Scripted(logprob_nats=-2.0))[0].exchanges == found[0].exchanges


class Verdict(BaseModel):
    """A judge's."""

    grade: int = Field(ge=1, le=5)


def test_what_is_no_answer_by_the_schema_is_asked_again_then_refused(tmp_path: Path) -> None:
    """Greedily the double says its first reply; a retry is drawn, and its seed decides. The raw text is kept."""

    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        (verdict,) = yield from ask_for(Verdict, [prompt.messages], Sampling(), step="judge", retries=3)
        return [Group.make("x", [Answer(text=str(verdict.grade))])]

    found = hold(tmp_path, 60, steps, main=Scripted(replies=("no JSON", '{"grade": 9}', '{"grade": 4}', "{")))
    fine = [item for item in found if not item.dropped]
    assert {text for item in fine for text in texts(item)} == {"4"}
    assert {len(item.exchanges) for item in fine} == {2, 3, 4}
    refused = [item for item in found if item.dropped]
    assert 0 < len(refused) < 40, "three draws out of four replies miss it 27 times in 64"
    for item in refused:
        assert item.dropped is not None
        assert (item.dropped.stage, item.dropped.reason) == ("judge", "not as the schema asks")
        assert item.dropped.detail == item.exchanges[-1].completions[0].text
        assert len(item.exchanges) == 4


def test_what_is_impossible_is_kept_as_a_number(tmp_path: Path) -> None:
    """A method may forbid a token; minus infinity is no JSON, and would be found as nothing when the run goes on."""

    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        ((weighed,),) = yield [Weigh(prompt.messages, "two words")]
        return [Group.make(prompt.messages, [Answer(text="x", score=sum(weighed.token_logprobs or ()))])]

    for _ in range(2):
        (found,) = hold(tmp_path, 1, steps, main=Scripted(logprob_nats=-math.inf))
        (group,) = found.records
        assert isinstance(group, Group)
        assert group.answers[0].score == -20_000
    assert not found.is_fresh
    found.exchanges[0].model_validate_json(found.exchanges[0].model_dump_json())


def test_a_shared_file_that_fails_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a copy: what is answered is in the run's own folder."""
    path = tmp_path / "answers.sqlite"
    monkeypatch.setenv("COUNTERFOIL_ANSWERS", str(path))
    kept = Store(path)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE finished")
    monkeypatch.setattr("decode.answers._open_shared", lambda _: kept)
    found = hold(tmp_path / "run", 3, main=Scripted())
    kept.close()
    assert [item.is_fresh for item in found] == [True] * 3


def test_two_that_ask_the_same_at_a_time_get_one_answer(tmp_path: Path) -> None:
    """What came second is not what a later run would find; the double answers each request otherwise."""

    class Counting(Scripted):
        def open(self, model: str, *, adapters: Any = (), methods: Any = ()) -> ScriptedSession:
            numbers = count()

            class Session(ScriptedSession):
                def _answer(self, item: Any) -> Any:
                    found = super()._answer(item)
                    parts = [part.model_copy(update={"text": f"reply {next(numbers)}"}) for part in found.completions]
                    return replace(found, completions=tuple(parts))

            return Session(self, model, [])

    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        (answer,) = yield [Ask(say("the same for all"), Sampling())]
        return [Group.make("x", [Answer(text=answer[0].text)])]

    first = hold(tmp_path, 5, steps, main=Counting())
    assert {text for item in first for text in texts(item)} == {"reply 0"}
    assert [texts(item) for item in hold(tmp_path, 5, steps, main=Counting())] == [texts(item) for item in first]


def test_a_kept_answer_that_cannot_be_read_is_asked_for_again(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        answers = Answers(run.store)
        run.store.put("answer", "key", '[{"text": "t", "token_logprobs": [null]}]')
        assert answers.find("key", prompt_id="p") is None
        assert not answers.has("key")
        item = Completion.make(
            prompt_id="p", index=0, text="t", finish_reason="stop", num_prompt_tokens=1, num_tokens=1
        )
        assert answers.keep("key", [item])
        assert answers.find("key", prompt_id="p") == (item,)
        assert not answers.keep("key", [item])
