"""Limits of a synthesis: exactly so many pairs, tokens, seconds; what it stops before is dropped by name."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from counterfoil.config import build
from counterfoil.job import Finished
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Dropped
from counterfoil.store import Store
from decode.engine import Request
from decode.engines.scripted import Scripted, ScriptedSession
from synth.synthesize import Synthesize

GOOD, BAD = "A river runs past", "A hill stands over it"
OUTPUTS = ("prompts", "exchanges", "scores", "groups", "pairs", "dropped", "refused")


class Counted(Scripted):
    """The double, with a count of what it is asked, which breaks off after so many."""

    num_asked: ClassVar[int] = 0
    breaks_at: ClassVar[int | None] = None

    def open(self, model: str, *, adapters: Any = (), methods: Any = ()) -> ScriptedSession:
        """Open it."""

        class Session(ScriptedSession):
            def stream(self, items: Any, *, glance: bool = False) -> Any:
                return super().stream(map(note, items), glance=glance)

        def note(item: Any) -> Any:
            if isinstance(item, Request):
                if Counted.num_asked == Counted.breaks_at:
                    raise KeyboardInterrupt
                Counted.num_asked += 1
            return item

        return Session(self, model, [])


@pytest.fixture(autouse=True)
def uncounted() -> None:
    Counted.num_asked, Counted.breaks_at = 0, None


@pytest.fixture
def make(tmp_path: Path, write_rows: Callable[[int], Path]) -> Callable[..., Synthesize]:
    """Return the maker of a job over `rows` prompts, each of 3 words, of whose 4 samples 2 are good and 2 bad."""

    def make(
        rows: int = 40, *, engine: dict[str, Any] | None = None, recipe: dict[str, Any] | None = None, **more: Any
    ) -> Synthesize:
        values = {
            "task": {"name": "file", "path": str(write_rows(rows))},
            "engine": Counted(**({"replies": (GOOD, BAD)} | (engine or {}))),
            "recipe": {"name": "best_of_n", "n": 4} | (recipe or {}),
            "filters": ["length_only"],
        }
        return build(Synthesize, values | more, source="test")

    return make


def read_all(done: Finished) -> dict[str, bytes]:
    return {name: done.path(f"{name}.jsonl").read_bytes() for name in OUTPUTS}


def check_sum(done: Finished) -> dict[str, int]:
    """Check that what came in is kept or dropped, in the manifest and in the file; return what was dropped."""
    counts = done.manifest["counts"]
    dropped = list(read_jsonl(done.path("dropped.jsonl"), Dropped, where="test"))
    assert counts["read"] == counts["kept"] + len(dropped) == counts["kept"] + sum(counts["dropped"].values())
    assert len({item.id for item in dropped}) == len(dropped)
    return counts["dropped"]


def test_exactly_so_many_pairs_where_a_prompt_makes_several(make: Callable[..., Synthesize], tmp_path: Path) -> None:
    """Two pairs a prompt: five are two prompts and a half; 37 of 40 prompts are not begun, or not looked at."""
    engine = {"replies": (GOOD, BAD, f"{GOOD}, too", f"{BAD}, too")}
    done = make(engine=engine, recipe={"max_pairs": 2}, target_pairs=5).run(tmp_path / "run", quiet=True)
    assert done.figures["pairs"] == len(done.path("pairs.jsonl").read_text().splitlines()) == 5
    assert check_sum(done) == {"budget: target_pairs reached": 37}
    (refused,) = read_jsonl(done.path("refused.jsonl"), Dropped, where="test")
    assert (refused.stage, refused.reason) == ("budget", "target_pairs reached")
    assert "target_pairs" not in done.figures


def test_fewer_pairs_than_wanted_are_explained(make: Callable[..., Synthesize], tmp_path: Path) -> None:
    done = make(6, target_pairs=10, engine={"fail_when": "place 3"}).run(tmp_path / "run", quiet=True)
    assert done.figures["target_pairs"] == "5 of 10: no prompt is left"
    assert check_sum(done) == {"generate: request failed": 1}
    done = make(6, target_pairs=10, max_tokens_total=50).run(tmp_path / "tokens", quiet=True)
    assert done.figures["target_pairs"] == "3 of 10: max_tokens_total reached"


def test_the_tokens_decide_where_it_ends(make: Callable[..., Synthesize], tmp_path: Path) -> None:
    """A prompt is 4 words sent and 2 x 4 + 2 x 5 generated, 22: four prompts reach 80, and 36 are left."""
    done = make(max_tokens_total=80).run(tmp_path / "run", quiet=True)
    assert done.manifest["tokens"] == {"prompt": 16, "generated": 72}
    assert check_sum(done) == {"budget: max_tokens_total reached": 36}


@pytest.mark.parametrize("limit", [{"target_pairs": 17}, {"max_tokens_total": 400}])
def test_it_ends_alike_however_it_is_driven(
    limit: dict[str, Any], write_rows: Callable[[int], Path], make: Callable[..., Synthesize], tmp_path: Path
) -> None:
    """Many at a time, one at a time, and broken off thrice: the same bytes. Some rows are no prompts, or came before."""
    path = tmp_path / "mixed.jsonl"
    rows = write_rows(40).read_text().splitlines()
    path.write_text("\n".join(line for row in rows for line in (row, "{torn", row)) + "\n")
    limit |= {"task": {"name": "file", "path": str(path)}}
    whole = make(**limit).run(tmp_path / "whole", quiet=True)
    assert whole.manifest["counts"]["dropped"]["read: broken JSON"] == 40
    wide = make(**limit, engine={"max_in_flight": 16, "latency_s": 0.001}).run(tmp_path / "wide", quiet=True)
    assert read_all(wide) == read_all(whole)
    Counted.num_asked = 0
    for Counted.breaks_at in (4, 9, 15):
        with pytest.raises(KeyboardInterrupt):
            make(**limit).run(tmp_path / "broken", quiet=True)
    Counted.breaks_at = None
    assert read_all(make(**limit).run(tmp_path / "broken", quiet=True)) == read_all(whole)


def test_little_is_asked_in_vain(make: Callable[..., Synthesize], tmp_path: Path) -> None:
    """20 pairs need 20 prompts of 500, which go side by side; no more of them begin than may still be needed."""
    done = make(500, target_pairs=20, engine={"max_in_flight": 64, "latency_s": 0.01}).run(tmp_path / "run", quiet=True)
    assert done.figures["pairs"] == 20
    assert Counted.num_asked == 20
    assert check_sum(done) == {"budget: target_pairs reached": 480}


def test_after_so_many_seconds_nothing_is_waited_for(make: Callable[..., Synthesize], tmp_path: Path) -> None:
    """Answers of 30 s: two in flight are dropped with all others, at once."""
    started = time.monotonic()
    done = make(max_seconds=0.3, engine={"max_in_flight": 2, "latency_s": 30}).run(tmp_path / "run", quiet=True)
    assert time.monotonic() - started < 5
    assert check_sum(done) == {"budget: max_seconds reached": 40}
    assert done.manifest["counts"]["completions"] == 0


def test_seconds_before_an_interruption_count_and_what_was_answered_goes_on(
    make: Callable[..., Synthesize], tmp_path: Path
) -> None:
    Counted.breaks_at = 9
    with pytest.raises(KeyboardInterrupt):
        make(max_seconds=60).run(tmp_path / "run", quiet=True)
    store = Store(tmp_path / "run" / "state.sqlite")
    assert store.count("answer") == 9
    store.put("budget", "seconds", "61")
    store.close()
    done = make(max_seconds=60).run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"]["kept"] == 9
    assert check_sum(done) == {"budget: max_seconds reached": 31}
    assert Counted.num_asked == 9


class Stuck(Scripted):
    """The double, of which one prompt never gets an answer."""

    def open(self, model: str, *, adapters: Any = (), methods: Any = ()) -> ScriptedSession:
        """Open it."""

        class Session(ScriptedSession):
            def stream(self, items: Any, *, glance: bool = False) -> Any:
                return super().stream(map(hold_back, items), glance=glance)

        def hold_back(item: Any) -> Any:
            return None if isinstance(item, Request) and "place 0" in str(item.prompt) else item

        return Session(self, model, [])


def test_what_waits_behind_a_slow_row_is_kept_when_the_time_is_up(
    make: Callable[..., Synthesize], tmp_path: Path
) -> None:
    """All rows have begun, the first gets no answer: the others are written all the same, and it is dropped by name."""
    stuck = Stuck(replies=(GOOD, BAD), max_in_flight=64)
    job = make(20, max_seconds=0.5).model_copy(update={"engine": stuck})
    done = job.run(tmp_path / "run", quiet=True)
    assert check_sum(done) == {"budget: max_seconds reached": 1}
    assert done.manifest["counts"]["kept"] == 19
    wanted = job.model_copy(update={"target_pairs": 30}).run(tmp_path / "wanted", quiet=True)
    assert wanted.figures["target_pairs"] == "19 of 30: max_seconds reached"


def test_seconds_count_although_no_prompt_has_ended(make: Callable[..., Synthesize], tmp_path: Path) -> None:
    Counted.breaks_at = 0
    with pytest.raises(KeyboardInterrupt):
        make(max_seconds=60).run(tmp_path / "run", quiet=True)
    store = Store(tmp_path / "run" / "state.sqlite")
    assert 0 < float(store.get("budget", "seconds") or 0) < 60
    store.close()


def test_what_is_shown_while_it_works(
    write_rows: Callable[[int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts and tokens a second, how many are kept, how many dropped and why: in a file, and as lines."""
    monkeypatch.setattr("counterfoil.progress.FILE_EVERY_S", 0.0)
    monkeypatch.setattr("counterfoil.progress.FIRST_LINE_AFTER_S", 0.0)
    monkeypatch.setattr("counterfoil.progress.LINE_EVERY_S", 0.0)
    values: dict[str, Any] = {
        "task": {"name": "file", "path": str(write_rows(40))},
        "engine": Scripted(replies=(GOOD, BAD), latency_s=0.01, fail_when="place 7"),
        "recipe": {"name": "best_of_n", "n": 2},
        "filters": [],
    }
    done = build(Synthesize, values, source="test").run(tmp_path / "run")
    lines = [json.loads(line) for line in done.path("progress.jsonl").read_text().splitlines()]
    *_, last = (line for line in lines if "prompts/s" in line)
    assert 0 < last["prompts/s"] < 110
    assert last["tokens/s"] > last["prompts/s"]
    assert last["counts"] == {"kept": 38, "generate: request failed": 1}, "before the last one is written"
    assert any(line["left_s"] for line in lines if "prompts/s" in line)
    said = capsys.readouterr()
    assert "prompts/s" in said.out + said.err
    assert "generate: request failed 1" in said.out + said.err
