"""Computations in threads beside the dialogues (decode/bench.py): who waits for them, and what they raise."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from counterfoil.job import Run
from counterfoil.progress import Progress
from counterfoil.records import Answer, Group, Prompt, Record
from counterfoil.store import Store
from decode.dialogue import Outcome, converse
from decode.engine import Sampling
from decode.engines.scripted import Scripted
from decode.speaker import Speaker
from decode.steps import Ask, Refusal, Steps, Work


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    folder.mkdir(exist_ok=True)
    with contextlib.closing(Store(folder / "state.sqlite")) as store:
        yield Run(folder, store, Progress(None, label="test", quiet=True))


def prompts(count: int) -> list[Prompt]:
    return [Prompt.make(f"item {at}") for at in range(count)]


def hold(folder: Path, count: int, steps: Any, *, main: Scripted) -> list[Outcome]:
    with open_run(folder) as run:
        return list(converse(run, {"": Speaker(model="m", engine=main)}, iter(prompts(count)), steps, seed=0))


def texts(outcome: Outcome) -> list[str]:
    (group,) = outcome.records
    assert isinstance(group, Group)
    return [answer.text for answer in group.answers]


def test_a_slow_computation_holds_nobody_else(tmp_path: Path) -> None:
    """One of 40 takes as long as all others together, in a lane of two threads; the others are done meanwhile, in order."""
    done: list[str] = []

    def compute(text: str) -> str:
        time.sleep(0.5 if text == "item 0" else 0.005)
        done.append(text)
        return f"computed {text}"

    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        text = prompt.messages[0]["content"]
        ((found,), (answer,)) = yield [
            Work(partial(compute, text), "test", threads=2),
            Ask(prompt.messages, Sampling()),
        ]
        return [Group.make("x", [Answer(text=f"{found} {answer.text}")])]

    found = hold(tmp_path, 40, steps, main=Scripted(replies=("said",)))
    assert [texts(item) for item in found] == [[f"computed item {at} said"] for at in range(40)]
    assert done.index("item 0") > 20
    assert all(len(item.exchanges) == 1 for item in found)


def test_what_a_computation_raises_is_raised_where_it_was_asked(tmp_path: Path) -> None:
    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        try:
            yield [Work(lambda: 1 // 0, "test")]
        except ZeroDivisionError:
            raise Refusal("test", "divided by nothing") from None
        return []

    found = hold(tmp_path, 2, steps, main=Scripted())
    assert [item.dropped and item.dropped.reason for item in found] == ["divided by nothing"] * 2

    def careless(prompt: Prompt) -> Steps[Sequence[Record]]:
        yield [Work(lambda: 1 // 0, "test")]
        return []

    with pytest.raises(ZeroDivisionError):
        hold(tmp_path, 1, careless, main=Scripted())


def test_what_is_only_to_be_computed_when_the_time_is_up_is_computed(tmp_path: Path) -> None:
    """All answers are there, kept or not: judging them asks nobody. What still waits for an answer is dropped."""

    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        (answer,) = yield [Ask(prompt.messages, Sampling())]
        ((found,),) = yield [Work(lambda: time.sleep(0.02) or answer[0].text, "test")]
        return [Group.make("x", [Answer(text=found)])]

    engine = Scripted(replies=("said",))
    speakers = {"": Speaker(model="m", engine=engine)}
    with open_run(tmp_path / "run") as run:
        whole = list(converse(run, speakers, iter(prompts(5)), steps, seed=0))
    with open_run(tmp_path / "run") as run:
        late = list(converse(run, speakers, iter(prompts(7)), steps, seed=0, deadline=time.monotonic() - 1))
    assert [texts(item) for item in late[:5]] == [texts(item) for item in whole]
    assert [item.dropped and item.dropped.reason for item in late[5:]] == ["max_seconds reached"] * 2


def test_threads_of_a_lane_work_side_by_side_where_no_model_is_busy(tmp_path: Path) -> None:
    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        yield [Work(lambda: time.sleep(0.04), "test", threads=8)]
        return []

    started = time.monotonic()
    assert len(hold(tmp_path, 40, steps, main=Scripted())) == 40
    assert time.monotonic() - started < 1.2, "one after the other they would take 1.6 s"


def test_a_computation_that_wants_to_end_the_program_ends_it(tmp_path: Path) -> None:
    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        yield [Work(sys.exit, "test")]
        return []

    with pytest.raises(SystemExit):
        hold(tmp_path, 1, steps, main=Scripted())
