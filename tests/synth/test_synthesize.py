"""Synthesize: what comes in goes out as a pair or as a named drop."""

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.errors import ConfigError, InputError, RunError
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Completion, Dropped, Exchange, Group, Pair, Prompt, Record, Score
from decode.engines.scripted import Scripted
from decode.speaker import Price, Role, Speaker
from synth.recipe import Candidate
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
    """Four samples, two good with two bad: two pairs of each prompt with both, the tie apart; one of two texts twice."""
    values = job.model_dump() | {"task": job.task, "engine": job.engine, "filters": []}
    values["recipe"] = {"name": "best_of_n", "n": 4, "margin": 0.5, "max_pairs": 2}
    done = build(Synthesize, values, source="test").run(tmp_path / "same", quiet=True)
    assert done.manifest["counts"]["pairs"] == 5, "the samples alternate two texts"
    assert isinstance(job.engine, Scripted)
    assert job.engine.script is not None
    lines = [json.loads(line) for line in job.engine.script.read_text().splitlines()]
    lines = [row | {"replies": [*row["replies"], *(f"{text}!" for text in row["replies"])]} for row in lines]
    (tmp_path / "four.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    values["engine"] = job.engine.model_copy(update={"script": tmp_path / "four.jsonl"})
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


def make_values(folder: Path, texts: Sequence[str], script: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "task": {"name": "file", "path": write_lines(folder / "prompts.jsonl", [ask_for(text) for text in texts])},
        "engine": {"name": "scripted", "script": write_lines(folder / "script.jsonl", list(script))},
        "recipe": {"name": "best_of_n", "n": 2},
    } | more


def test_a_role_is_as_the_main_one_in_what_it_leaves_out() -> None:
    main = Speaker(model="big", engine=Scripted(latency_s=1), adapter="tuned", price=Price(prompt=1))
    assert Role(price=Price(prompt=3)).speak_for(main) == main.model_copy(update={"price": Price(prompt=3)})
    assert Role(adapter="other").speak_for(main) == Speaker(model="big", engine=main.engine, adapter="other")
    assert Role(model="small").speak_for(main) == Speaker(model="small", engine=main.engine)
    assert Role(engine=Scripted()).speak_for(main) == Speaker(model="big", engine=Scripted())


def test_a_filter_remembers_what_every_filter_has_passed(tmp_path: Path) -> None:
    """The first pair falls to `overlap`; the second, of the same chosen answer, then came before nobody."""
    shared = "one two three four five six seven eight nine ten eleven twelve thirteen"
    script = [
        {"when": "first", "replies": [f"{GOOD} same", f"{BAD}: {shared}"]},
        {"when": "second", "replies": [f"{GOOD} same", f"{BAD} of another kind"]},
    ]
    sets = [write_lines(tmp_path / "evaluation.jsonl", [{"text": shared}])]
    for order in (1, -1):
        filters = ["near_duplicate", {"name": "overlap", "sets": sets}][::order]
        values = make_values(tmp_path, ["first", "second"], script, filters=filters)
        done = build(Synthesize, values, source="test").run(tmp_path / str(order), quiet=True)
        assert [pair.prompt[0]["content"] for pair in read(done.folder, "pairs.jsonl", Pair)] == ["second"]
        assert list(done.manifest["counts"]["dropped"]) == ["overlap: the answer shares words with an evaluation set"]


def test_what_makes_no_pairs_is_filtered_by_what_takes_it(tmp_path: Path) -> None:
    """Groups pass `overlap`; a filter of pairs is refused before anything is asked, and none is there by default."""
    leaked = "one two three four five six seven eight nine ten eleven twelve thirteen"
    script = [{"when": "", "replies": ["It is so. The answer is 4."]}]
    recipe = {"name": "rationales", "n": 2, "min_negatives": 0, "hot_n": 0}
    values = make_values(tmp_path, [leaked, "two and two"], script, recipe=recipe)
    plain = build(Synthesize, values, source="test")
    assert plain.run(tmp_path / "plain", quiet=True).manifest["counts"]["kept"] == 2
    assert plain.run(tmp_path / "plain", quiet=True).manifest["config"]["filters"] == []
    overlap = {"name": "overlap", "sets": [write_lines(tmp_path / "evaluation.jsonl", [{"text": leaked}])]}
    done = build(Synthesize, values | {"filters": [overlap]}, source="test").run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"]["kept"] == 1
    assert done.manifest["counts"]["dropped"] == {"overlap: the prompt shares words with an evaluation set": 1}
    (group,) = read(done.folder, "groups.jsonl", Group)
    assert group.prompt[0]["content"].startswith("two and two")
    for filters in (["near_duplicate"], [overlap, "judge_agrees"]):
        with pytest.raises(ConfigError, match="which judges pairs, where groups are made"):
            build(Synthesize, values | {"filters": filters}, source="test").run(tmp_path / "not", quiet=True)


def test_a_row_that_cannot_be_judged_is_dropped_and_a_scorer_that_can_judge_none_is_a_mistake(tmp_path: Path) -> None:
    """The reference is missing in one row of three; then in all."""
    rows = [{"prompt": f"item {at}", "reference": {} if at == 1 else {"answer": "yes"}} for at in range(3)]
    script = write_lines(tmp_path / "script.jsonl", [{"when": "item", "replies": ["yes", "no, not at all"]}])
    values = {
        "task": {"name": "file", "path": write_lines(tmp_path / "prompts.jsonl", rows)},
        "engine": {"name": "scripted", "script": script},
        "recipe": {"name": "best_of_n", "n": 2},
        "scorer": "exact_answer",
        "filters": [],
    }
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"]["dropped"] == {"score: cannot be judged": 1}
    (dropped,) = read(done.folder, "dropped.jsonl", Dropped)
    assert "reference.answer" in dropped.detail
    write_lines(tmp_path / "prompts.jsonl", [row | {"reference": {}} for row in rows])
    with pytest.raises(InputError, match="3 prompts, none of which it can judge"):
        build(Synthesize, values, source="test").run(tmp_path / "none", quiet=True)


def write_module(folder: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a user's own package of one module, where it is found."""
    package, module = name.split(".")
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("")
    (folder / package / f"{module}.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(folder)


def test_an_answer_whose_score_is_no_number_is_no_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        from counterfoil.records import Score
        from eval.scorer import LocalScorer
        class Odd(LocalScorer):
            def score(self, prompt, completion):
                value = float(completion.text) if completion.text != "none" else float("nan")
                return Score(completion_id=completion.id, scorer="odd", value=value)
    """
    write_module(tmp_path, "odd_scorers.odd", code, monkeypatch)
    script = [{"when": "three", "replies": ["none", "2", "1"]}, {"when": "one", "replies": ["none", "none", "1"]}]
    recipe = {"name": "best_of_n", "n": 3}
    values = make_values(tmp_path, ["three", "one"], script, recipe=recipe, scorer="odd_scorers.odd", filters=[])
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    (pair,) = read(done.folder, "pairs.jsonl", Pair)
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("2", "1")
    assert done.manifest["counts"]["dropped"] == {"contrast: fewer than two answers with a score": 1}
    group = read(done.folder, "groups.jsonl", Group)[0]
    assert {answer.text: answer.score for answer in group.answers} == {"none": None, "2": 2, "1": 1}


def test_a_tie_is_a_pair_where_that_is_asked(tmp_path: Path) -> None:
    """The shorter of two with one score; not where another pair is to be had."""
    script = [{"when": "tie", "replies": [f"{GOOD} five", GOOD]}, {"when": "clear", "replies": [GOOD, BAD]}]
    recipe = {"name": "best_of_n", "n": 2, "ties": "shorter"}
    values = make_values(tmp_path, ["tie", "clear"], script, recipe=recipe, filters=[])
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    tie, clear = read(done.folder, "pairs.jsonl", Pair)
    assert (tie.chosen[0]["content"], tie.score_chosen - tie.score_rejected) == (GOOD, 0)
    assert clear.score_chosen > clear.score_rejected
    dropped = build(Synthesize, values | {"recipe": recipe | {"ties": "drop"}}, source="test")
    assert dropped.run(tmp_path / "drop", quiet=True).manifest["counts"]["pairs"] == 1


def test_the_best_against_each_that_is_worse(tmp_path: Path) -> None:
    """Scores 1, 1, 0.5 and 0 of four samples: two pairs of the best, none of the other good one; and the closing figures."""
    asked = {"constraints": [{"kind": "max_words", "n": 5}, {"kind": "include_word", "word": "river"}]}
    task = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "ask", "reference": asked}])
    replies = [
        "One long river",
        "Another long river",
        "No such thing here",
        "No such thing is to be found anywhere here",
    ]
    script = write_lines(tmp_path / "script.jsonl", [{"when": "ask", "replies": replies}])
    values: dict[str, Any] = {
        "task": {"name": "file", "path": task},
        "engine": {"name": "scripted", "script": script},
        "recipe": {"name": "best_of_n", "n": 4, "max_pairs": 4, "against": "all"},
        "filters": [],
    }
    done = build(Synthesize, values, source="test").run(tmp_path / "all", quiet=True)
    pairs = read(done.folder, "pairs.jsonl", Pair)
    assert [pair.score_rejected for pair in pairs] == [0, 0.5]
    assert len({pair.chosen[0]["content"] for pair in pairs}) == 1
    assert done.figures["mean margin"] == 0.75
    assert done.figures["chosen longer"] == 0
    assert done.figures["cut off"] == 0
    values["recipe"]["against"] = "worst"
    done = build(Synthesize, values, source="test").run(tmp_path / "worst", quiet=True)
    used = [
        side[0]["content"] for pair in read(done.folder, "pairs.jsonl", Pair) for side in (pair.chosen, pair.rejected)
    ]
    assert sorted(used) == sorted(replies)


def test_one_text_in_other_tokens_is_no_tie(tmp_path: Path) -> None:
    """Some engines count one text differently twice; the double counts words, so that spaces at the end do it here."""
    short = candidate_of("Item three", 2)
    assert BestOfN(n=2, ties="shorter").contrast(ASKED, [short, candidate_of("Item three", 3, index=1)]) == []
    (pair,) = BestOfN(n=2, ties="shorter").contrast(ASKED, [short, candidate_of("Item three four", 3, index=1)])
    assert pair.chosen[0]["content"] == "Item three"


ASKED = Prompt.make("ask")


def candidate_of(text: str, num_tokens: int, *, index: int = 0) -> Candidate:
    made = Completion.make(
        prompt_id=ASKED.id, index=index, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=num_tokens
    )
    return Candidate(made, 1.0)


def test_a_scorer_that_is_broken_is_no_row_that_cannot_be_judged(tmp_path: Path) -> None:
    values = make_values(tmp_path, ["one", "two"], [{"when": "", "replies": [GOOD, BAD]}])
    values["scorer"] = {"name": "reward_model", "model": "./nowhere"}
    with pytest.raises(InputError, match="nowhere"):
        build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)


def test_a_filter_of_groups_that_remembers_nothing_is_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        from counterfoil.records import Group
        from synth.filter import LocalFilter, drop
        class NoRiver(LocalFilter):
            takes = (Group,)
            def open(self):
                return lambda group: drop(group, "no_river", "a river") if "river" in str(group.prompt) else None
    """
    write_module(tmp_path, "own_filters.no_river", code, monkeypatch)
    script = [{"when": "", "replies": ["It is so. The answer is 4."]}]
    recipe = {"name": "rationales", "n": 2, "min_negatives": 0, "hot_n": 0}
    values = make_values(tmp_path, ["a river", "a hill"], script, recipe=recipe, filters=["own_filters.no_river"])
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"]["dropped"] == {"no_river: a river": 1}
    assert done.manifest["counts"]["kept"] == 1


def test_the_best_against_each_passes_the_filters_that_are_there_by_default(tmp_path: Path) -> None:
    """Three pairs of one prompt share their chosen answer: none repeats another. To another prompt it does."""
    script = [{"when": "", "replies": [GOOD, BAD, f"{BAD}, too", f"{BAD} of another kind"]}]
    values = make_values(tmp_path, ["first", "second"], script)
    values["recipe"] = {"name": "best_of_n", "n": 4, "greedy": False, "max_pairs": 3, "against": "all"}
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    assert [pair.prompt[0]["content"] for pair in read(done.folder, "pairs.jsonl", Pair)] == ["first"] * 3
    assert done.manifest["counts"]["dropped"] == {"near_duplicate: chosen answer came before": 1}
