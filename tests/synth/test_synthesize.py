"""Synthesize: what comes in goes out as a pair or as a named drop."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.errors import RunError
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Completion, Dropped, Exchange, Pair, Prompt, Record, Score
from synth.recipes.best_of_n import BestOfN
from synth.synthesize import Synthesize

GOOD = "Item three four"
BAD = "Quite a few more words than five about one thing or another"


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def ask_for(text: str) -> dict[str, Any]:
    return {"prompt": text, "reference": {"constraints": [{"kind": "max_words", "n": 5}]}}


def read(folder: Path, name: str, cls: type[Record]) -> list[Any]:
    """Read an output; no line of it may be anything else."""
    if (folder / name).stat().st_size == 0:
        return []
    rows = list(read_jsonl(folder / name, cls, where=name))
    assert all(type(row) is cls for row in rows)
    return rows


def read_completions(folder: Path) -> list[Completion]:
    return [item for exchange in read(folder, "exchanges.jsonl", Exchange) for item in exchange.completions]


@pytest.fixture
def job(tmp_path: Path) -> Synthesize:
    """Return a synthesis in which every fate occurs.

    Nine rows: two good pairs; one whose answers are alike, one whose bad answer begins with the good one, one whose good
    answer came before, one tie, one failure, one broken row, one repeated prompt.
    """
    rows = ["pair one", "pair two", "alike", "begins", "again", "tie", "fails"]
    script = [
        {"when": "pair one", "replies": [f"{GOOD} one", BAD]},
        {"when": "pair two", "replies": [f"{GOOD} two", BAD]},
        {"when": "alike", "replies": ["One two three four five", "One two three four five, six"]},
        {"when": "begins", "replies": [f"{GOOD} five six", f"{GOOD} five six seven and a lot of other words, too"]},
        {"when": "again", "replies": [f"{GOOD} one", f"Otherwise: {BAD}"]},
        {"when": "tie", "replies": [f"{GOOD} three", f"{GOOD} 4"]},
    ]
    prompts = [*map(ask_for, rows), "{torn", ask_for("tie")]
    return build(
        Synthesize,
        {
            "task": {"name": "file", "path": write_lines(tmp_path / "prompts.jsonl", prompts)},
            "engine": {
                "name": "scripted",
                "script": write_lines(tmp_path / "script.jsonl", script),
                "fail_when": "fails",
            },
            "recipe": {"name": "best_of_n", "n": 2, "margin": 0.5},
        },
        source="test",
    )


def test_what_comes_in_goes_out_as_a_pair_or_a_named_drop(job: Synthesize, tmp_path: Path) -> None:
    """Nine rows are two pairs and seven drops; in the manifest, in the files and in sum."""
    done = job.run(tmp_path / "run", quiet=True)
    counts = done.manifest["counts"]
    assert counts["dropped"] == {
        "contrast: all scored alike": 1,
        "generate: request failed": 1,
        "length_only: one answer begins the other": 2,
        "near_duplicate: chosen answer came before": 1,
        "read: broken JSON": 1,
        "read: duplicate prompt": 1,
    }
    assert {key: value for key, value in counts.items() if key != "dropped"} == {
        "read": 9, "prompts": 7, "failed": 1, "completions": 12, "pairs": 2, "kept": 2,
    }  # fmt: skip
    assert counts["read"] == counts["pairs"] + sum(counts["dropped"].values())
    dropped = read(done.folder, "dropped.jsonl", Dropped)
    assert dict(Counter(f"{item.stage}: {item.reason}" for item in dropped)) == counts["dropped"]
    pairs = read(done.folder, "pairs.jsonl", Pair)
    assert [pair.chosen[0]["content"] for pair in pairs] == [f"{GOOD} one", f"{GOOD} two"]
    assert [pair.rejected[0]["content"] for pair in pairs] == [BAD, BAD]


def test_records_are_joined_by_their_ids(job: Synthesize, tmp_path: Path) -> None:
    """Every candidate is kept with its score; tokens are the double's words: 7 prompts less the failed one."""
    done = job.run(tmp_path / "run", quiet=True)
    prompts = {item.id: item for item in read(done.folder, "prompts.jsonl", Prompt)}
    completions = {item.id: item for item in read_completions(done.folder)}
    scores = {item.completion_id: item.value for item in read(done.folder, "scores.jsonl", Score)}
    assert (len(prompts), len(completions)) == (7, 12)
    assert set(scores) == set(completions)
    assert {item.prompt_id for item in completions.values()} < set(prompts)
    for pair in read(done.folder, "pairs.jsonl", Pair):
        assert pair.prompt == prompts[pair.prompt_id].messages
        assert pair.chosen[0]["content"] == completions[pair.chosen_id].text
        assert (scores[pair.chosen_id], scores[pair.rejected_id]) == (pair.score_chosen, pair.score_rejected) == (1, 0)
    assert done.manifest["tokens"]["generated"] == sum(item.num_tokens for item in completions.values())
    assert done.figures["mean verifiable"] == round(sum(scores.values()) / 12, 4)


def test_more_pairs_a_prompt_and_no_filters(job: Synthesize, tmp_path: Path) -> None:
    """Four samples alternate two good with two bad: two pairs of each prompt with both, the tie apart."""
    values = job.model_dump() | {"task": job.task, "engine": job.engine, "filters": []}
    values["recipe"] = {"name": "best_of_n", "n": 4, "margin": 0.5, "max_pairs": 2}
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"]["pairs"] == 5 * 2
    used = Counter(
        side for pair in read(done.folder, "pairs.jsonl", Pair) for side in (pair.chosen_id, pair.rejected_id)
    )
    assert set(used.values()) == {1}


def test_the_greedy_answer_is_one_more_candidate(job: Synthesize, tmp_path: Path) -> None:
    done = job.model_copy(update={"recipe": BestOfN(n=2, greedy=True)}).run(tmp_path / "run", quiet=True)
    by_prompt: dict[str, list[int]] = {}
    for item in read_completions(done.folder):
        by_prompt.setdefault(item.prompt_id, []).append(item.index)
    assert len(by_prompt) == 6
    assert all(found == [0, 1, 2] for found in by_prompt.values())
    assert done.manifest["counts"]["dropped"]["generate: request failed"] == 1


def test_the_same_job_writes_the_same_bytes_and_a_seed_is_a_choice(tmp_path: Path) -> None:
    """Fifty prompts of the task; a seed moves the double's replies."""

    def run(name: str, seed: int) -> bytes:
        values = {
            "task": {"name": "constraints", "count": 50},
            "engine": {"name": "scripted", "replies": [GOOD, BAD, "three small words", "{prompt}"]},
            "recipe": {"name": "best_of_n", "n": 2, "margin": 0.3},
            "seed": seed,
        }
        done = build(Synthesize, values, source="test").run(tmp_path / name, quiet=True)
        assert done.manifest["counts"]["read"] == 50
        return (done.folder / "exchanges.jsonl").read_bytes()

    assert run("a", 0) == run("b", 0)
    assert run("c", 1) != run("a", 0)


def test_another_margin_is_another_run(job: Synthesize, tmp_path: Path) -> None:
    job.run(tmp_path / "run", quiet=True)
    values = job.model_dump() | {"task": job.task, "engine": job.engine, "filters": []}
    values["recipe"] = {"name": "best_of_n", "n": 2, "margin": 0.1}
    with pytest.raises(RunError, match="differs in: recipe, filters"):
        build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)


def test_no_reference_reaches_the_engine(tmp_path: Path) -> None:
    """The double repeats what it is shown: the last message, and nothing of the reference."""
    path = write_lines(tmp_path / "prompts.jsonl", [ask_for("Say it now please")])
    values = {
        "task": {"name": "file", "path": path},
        "engine": {"name": "scripted", "replies": ["{prompt}"]},
        "recipe": {"name": "best_of_n", "n": 2},
    }
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    assert {item.text for item in read_completions(done.folder)} == {"Say it now please"}
    assert read(done.folder, "pairs.jsonl", Pair) == []
