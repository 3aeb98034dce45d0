"""The engine ray: a Ray of this machine, replicas that are killed, and the embedded model in one.

The double is a scripted engine that names its process in each answer, notes what it was asked, and dies of `die`.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build, find_class
from counterfoil.errors import EngineError
from decode.engine import Engine, Given, Request, Result, Sampling, Session
from decode.engines.hf import Hf
from decode.engines.ray import Ray, RaySession
from decode.engines.scripted import Scripted
from decode.generate import Generate
from synth.synthesize import Synthesize

pytestmark = pytest.mark.slow

RIVER = {"constraints": [{"kind": "include_word", "word": "river"}]}

DOUBLE = """
import os, signal
from pathlib import Path
from counterfoil.errors import EngineError
from decode.engines.scripted import Scripted, ScriptedSession

class Mortal(Scripted):
    INCIDENTAL = Scripted.INCIDENTAL | {"log"}
    log: str = ""
    named: bool = True
    broken: bool = False
    differs: bool = False

    def identify(self, model):
        return str(os.getpid()) if self.differs else super().identify(model)

    def open(self, model, *, adapters=(), methods=()):
        if self.broken:
            raise EngineError("mortal", given="broken", allowed="whole", do="Mend it.")
        replies = (f"{os.getpid()} {{prompt}}",) if self.named else self.replies
        return MortalSession(self.model_copy(update={"replies": replies}), model, [])

class MortalSession(ScriptedSession):
    def _answer(self, item):
        prompt = item.prompt if isinstance(item.prompt, str) else item.prompt[-1]["content"]
        if self._engine.log:
            with open(self._engine.log, "a") as log:
                log.write(prompt.split()[-1] + "\\n")
        if "die" in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._answer(item)
"""


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySession]:
    """Start Ray by a session, under which the others find it; its end is Ray's."""
    import ray

    folder = tmp_path_factory.mktemp("double")
    (folder / "ray_double").mkdir()
    (folder / "ray_double" / "__init__.py").write_text("")
    (folder / "ray_double" / "mortal.py").write_text(DOUBLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        with Ray(engine=Scripted(), replicas=1, cpus=8).open("any") as session:
            assert isinstance(session, RaySession)
            yield session
        assert not ray.is_initialized()


def make(**fields: Any) -> Engine:
    return build(find_class(Engine, "ray_double.mortal"), fields, source="test")


def ask(count: int, *more: str) -> Iterator[Request]:
    for text in [*map(str, range(count)), *more]:
        yield Request(text, f"say {text}", Sampling())


def pids(results: list[Result]) -> set[int]:
    return {int(result.completions[0].text.split()[0]) for result in results if result.failure is None}


def watch(session: Session, *, until: int) -> set[int]:
    """Ask until as many processes have answered, new ones coming up by and by."""
    seen, end = set[int](), time.monotonic() + 120
    while len(seen) < until:
        assert time.monotonic() < end, seen
        seen |= pids(list(session.complete(ask(16))))
    return seen


def test_a_killed_replica_loses_nothing_and_comes_back() -> None:
    """Both have 8 in flight, in half a second each, when one is killed: the other answers, a third one joins it."""
    engine = Ray(engine=make(latency_s=0.5, max_in_flight=8), replicas=2, cpus=0, max_in_flight=8)
    with engine.open("any") as session:
        before = watch(session, until=2)
        killed, results = min(before), list[Result]()
        for result in session.complete(ask(64)):
            results.append(result)
            if len(results) == 16:
                os.kill(killed, signal.SIGKILL)
        assert Counter(result.id for result in results) == {str(number): 1 for number in range(64)}
        assert {result.failure for result in results} == {None}
        assert {result.id: result.completions[0].text.split(" ", 1)[1] for result in results} == {
            str(number): f"say {number}" for number in range(64)
        }
        after = pids(results[40:])
        assert killed not in after and after <= before | watch(session, until=2)


def test_a_request_that_kills_its_replicas_fails_by_name_and_alone(tmp_path: Path) -> None:
    """It is asked three times, and dies; those that lay beside it each time are answered."""
    log = tmp_path / "log.txt"
    engine = Ray(engine=make(latency_s=0.1, max_in_flight=8, log=str(log)), replicas=2, cpus=0, max_in_flight=4)
    with engine.open("any") as session:
        found = {result.id: result.failure for result in session.complete(ask(12, "die", *"abc"))}
    assert found.pop("die") == "its replica died, at each of 3 tries (retries)"
    assert set(found.values()) == {None} and len(found) == 15
    assert log.read_text().split().count("die") == 3


def test_an_engine_that_does_not_open_says_why() -> None:
    with pytest.raises(EngineError, match="mortal: broken") as error:
        Ray(engine=make(broken=True), cpus=0).open("any")
    assert error.value.do == "Mend it."
    with pytest.raises(EngineError, match="has another version of the model"):
        Ray(engine=make(differs=True), cpus=0).open("any")
    with pytest.raises(EngineError, match="no replica is ready") as error:
        Ray(engine=Scripted(), cpus=9, start_timeout_s=1).open("any")
    assert "'CPU': 8.0" in error.value.allowed


def test_what_was_answered_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 rows by one replica, then 40 by another: 20 are asked. Then by the engine without Ray: none is."""
    monkeypatch.setenv("COUNTERFOIL_ANSWERS", str(tmp_path / "answers.sqlite"))
    prompts, logs = tmp_path / "prompts.jsonl", [tmp_path / name for name in ("first", "second", "third")]
    lines = [f'{{"prompt": "row {number}"}}\n' for number in range(40)]
    for count, log in zip((20, 40, 40), logs, strict=True):
        prompts.write_text("".join(lines[:count]))
        inner = make(log=str(log))
        engine = inner if log == logs[2] else Ray(engine=inner, replicas=1, cpus=0)
        done = Generate(prompts=prompts, chat=False, engine=engine).run(tmp_path / f"run {log.name}", quiet=True)
        assert done.manifest["counts"]["kept"] == count
    assert [len(log.read_text().split()) if log.exists() else 0 for log in logs] == [20, 20, 0]


def test_a_synthesis_on_replicas_that_die_is_that_of_one_engine(tmp_path: Path) -> None:
    """Of 60 rows one kills what it is put to: it is dropped by name, and all else is as without Ray, byte for byte."""
    rows = [{"prompt": f"Write about place {at}", "reference": RIVER} for at in range(59)]
    rows.insert(30, {"prompt": "Make it die", "reference": RIVER})
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inner = make(
        replies=("A river runs past it.", "A hill stands over it."), named=False, latency_s=0.02, max_in_flight=8
    )
    plain = Scripted(replies=("A river runs past it.", "A hill stands over it."), fail_when="die")
    runs: list[Path] = []
    for name, engine in (("ray", Ray(engine=inner, replicas=2, cpus=0, max_in_flight=4)), ("plain", plain)):
        task = {"name": "file", "path": str(prompts)}
        values = {"task": task, "engine": engine, "recipe": {"name": "best_of_n", "n": 2}, "filters": []}
        done = build(Synthesize, values, source="test").run(tmp_path / name, quiet=True)
        counts = done.manifest["counts"]
        assert (counts["read"], counts["kept"]) == (60, 59)
        assert counts["dropped"] == {"generate: request failed": 1}
        runs.append(done.folder)
    for name in ("prompts", "exchanges", "scores", "groups", "pairs"):
        one, other = ((folder / f"{name}.jsonl").read_bytes() for folder in runs)
        assert one == other, name
    (dropped,) = (runs[0] / "dropped.jsonl").read_text().splitlines()
    assert "its replica died" in dropped


def test_it_gives_what_the_engine_inside_gives() -> None:
    request = Request("a", "b", Sampling())
    assert Ray(engine=Hf()).gives == Hf.gives and Ray(engine=Scripted()).gives == Scripted.gives
    assert Ray(engine=Scripted()).identify("m") == Scripted().identify("m")
    assert Ray(engine=Scripted()).key(request, "identity") == Scripted().key(request, "identity")


def test_the_real_model_says_the_same_as_without_ray(hf_session: Session) -> None:
    prompts = ["Name a colour.", "What is a river?", "Count to five."]
    turns = [({"role": "user", "content": text},) for text in prompts]
    requests = [Request(text[0]["content"], text, Sampling(max_new_tokens=8)) for text in turns]
    given = Given("given", turns[0], "Blue, as the sea.")
    with Ray(engine=Hf(max_model_len=1024, batch_size=8), replicas=1, cpus=0).open("smollm2") as session:
        found = sorted(session.complete(requests), key=lambda item: item.id)
        (scored,) = session.logprobs([given])
        assert session.num_tokens(turns[0]) == hf_session.num_tokens(turns[0])
    assert found == sorted(hf_session.complete(requests), key=lambda item: item.id)
    (expected,) = hf_session.logprobs([given])
    assert scored.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-4)
