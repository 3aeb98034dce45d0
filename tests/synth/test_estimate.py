"""An estimate: what a few prompts took, times all of them; and the run asks for none of those again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterfoil.cli import main
from counterfoil.config import build
from counterfoil.errors import RunError
from counterfoil.records import Dropped, Prompt
from counterfoil.store import Store
from decode.speaker import Price, Speaker
from synth.estimate import Estimate, Probe, Use, spread
from synth.synthesize import Synthesize

Show = pytest.CaptureFixture[str]


@pytest.fixture
def values(write_rows: Callable[[int], Path], tmp_path: Path) -> dict[str, Any]:
    """Describe a job of 200 prompts of 4 words, whose two answers, of 4 and of 5 words, a judge marks: one pair each."""
    script = tmp_path / "script.jsonl"
    script.write_text('{"when": "hill", "replies": ["{\\"mark\\": 1}"]}\n')
    return {
        "task": {"name": "file", "path": str(write_rows(200))},
        "engine": {"name": "scripted", "replies": ["A river runs past", "A hill stands over it"], "latency_s": 0.005},
        "roles": {
            "judge": {
                "engine": {"name": "scripted", "replies": ['{"mark": 5}'], "script": str(script)},
                "price": {"prompt": 1, "generated": 4},
            }
        },
        "scorer": {"name": "judge", "explain": False},
        "recipe": {"name": "best_of_n", "n": 2},
        "filters": [],
    }


def test_tokens_requests_and_pairs_are_those_of_the_run(values: dict[str, Any], tmp_path: Path) -> None:
    """Here every prompt is like every other, so that an estimate from 20 of 200 is exact; a mark is two words."""
    job = build(Synthesize, values, source="test")
    found = job.estimate(tmp_path / "run", num_prompts=20, quiet=True)
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert not (tmp_path / "run" / "pairs.jsonl").exists()
    assert (found.num_probed, found.num_prompts, found.num_made, found.stops_at) == (20, 200, 200, "")
    assert found.uses[""] == Use(requests=200, sent=800, generated=1800)
    assert (found.uses["judge"].requests, found.uses["judge"].generated) == (400, 800)
    assert found.costs[""] is None
    assert found.costs["judge"] == pytest.approx((found.uses["judge"].sent * 1 + 800 * 4) / 1e6)
    assert found.seconds is not None
    assert found.seconds >= 200 * 0.005
    done = job.run(tmp_path / "run", quiet=True)
    assert done.figures["pairs"] == 200
    assert done.manifest["tokens"]["generated"] == 1800 + 800
    assert done.manifest["tokens"]["prompt"] == pytest.approx(800 + found.uses["judge"].sent, rel=0.01)
    with pytest.raises(RunError, match="a finished run"):
        job.estimate(tmp_path / "run", quiet=True)


def test_nothing_is_asked_twice_and_the_time_is_remembered(values: dict[str, Any], tmp_path: Path) -> None:
    """A prompt is three requests; a second estimate from the same prompts asks none."""
    job = build(Synthesize, values, source="test")
    first = job.estimate(tmp_path / "run", num_prompts=20, quiet=True)
    store = Store(tmp_path / "run" / "state.sqlite")
    assert store.count("answer") == 20 * 3
    assert job.estimate(tmp_path / "run", num_prompts=20, quiet=True) == first
    assert store.count("answer") == 20 * 3
    store.close()


def test_a_limit_that_is_met_before_the_prompts_end_is_named() -> None:
    """Ten prompts made 5 pairs of 1000 tokens in 10 s, after 2 s: of 1000 prompts, 50 make 25 pairs."""
    probe = Probe(num_prompts=10, num_made=5, uses={"": Use(10, 400, 600)}, seconds_each=1.0, opening_s=2.0)
    speakers = {"": Speaker(model="m", price=Price(prompt=10, generated=20))}

    def estimate(**limits: Any) -> tuple[str, int, float, float | None]:
        found = Estimate.make(probe, 1000, speakers, **limits)
        return found.stops_at, found.num_prompts, round(found.num_made, 6), found.seconds

    assert estimate() == ("", 1000, 500, 1002)
    assert estimate(pairs=25) == ("target_pairs", 50, 25, 52)
    assert estimate(pairs=600) == ("", 1000, 500, 1002)
    assert estimate(tokens=5000, pairs=100) == ("max_tokens_total", 50, 25, 52)
    assert estimate(seconds=32) == ("max_seconds", 30, 15, 32)
    assert Estimate.make(probe, 1000, speakers).costs[""] == pytest.approx((40_000 * 10 + 60_000 * 20) / 1e6)


def test_a_probe_is_drawn_from_all_rows_each_prompt_once() -> None:
    def rows() -> Iterator[Prompt | Dropped]:
        for at in range(100):
            yield Prompt.make(f"item {at // 2}") if at % 10 else Dropped(id=f"{at}", stage="read", reason="torn")

    found = [int(item.messages[0]["content"].split()[1]) for item in spread(rows(), 100, 40)]
    assert found == sorted(set(found))
    assert 20 < len(found) <= 40
    assert found[-1] > 40
    assert len(list(spread(rows(), None, 10))) < 10


def test_the_command_prints_a_table_and_starts_nothing(values: dict[str, Any], tmp_path: Path, capsys: Show) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["synth", str(path), "--to", str(tmp_path / "run"), "--estimate", "target_pairs=100"]) == 0
    shown = capsys.readouterr().out
    for words in ("Estimate, from 32 prompts", "no price given", "prompts: 100, where target_pairs ends it", "up to"):
        assert words in shown
    assert not (tmp_path / "run" / "manifest.json").exists()
    path.write_text("job: demonstrate\n")
    prompts, answers = values["task"]["path"], str(tmp_path / "job.yaml")
    assert main(["synth", str(path), "--estimate", f"prompts={prompts}", f"answers={answers}"]) == 2
    assert "a job that asks no model" in capsys.readouterr().err
