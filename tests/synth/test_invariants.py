"""What holds of every synthesis, whatever engines say: each rule is broken by a pair maker in circulation.

Two answers are never one, none is empty, a tie is no pair, an answer belongs to its prompt, what a judge preferred is
chosen, and rows in = rows out + named drops. `check` reads them off a run's files; planted faults show that it sees.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterfoil.config import build
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Comparison, Dropped, Exchange, Group, Pair, Prompt, Record, Score
from synth.synthesize import Synthesize

REPLIES = (
    "{prompt}: a river", "{prompt}: a hill", "{prompt}: a river and a river and a river, for ever", "{prompt}", "", " \n",
    "a river", "\x00\x1b[31m<script>{}[]", '{"mark": 3}', "null",
)  # fmt: skip
VERDICTS = (
    '{"mark": 1}', '{"mark": 5}', '{"mark": null}', '{"mark": 99}', "no JSON", "", '{"better": "A"}', '{"better": "B"}',
    '{"better": "tie"}', '{"better": null}',
)  # fmt: skip


def read(folder: Path, name: str, cls: type[Record]) -> list[Any]:
    path = folder / f"{name}.jsonl"
    rows = list(read_jsonl(path, cls, where=name)) if path.exists() and path.stat().st_size else []
    assert all(type(row) is cls for row in rows)
    return rows


def check(folder: Path, num_rows: int) -> list[Pair]:
    """Assert what holds of every run, from its files alone; return its pairs."""
    prompts = {item.id: item for item in read(folder, "prompts", Prompt)}
    answers = {
        item.id: item
        for exchange in read(folder, "exchanges", Exchange)
        for item in exchange.completions
        if item.prompt_id == exchange.prompt_id
        and (exchange.step != "answer" or exchange.sent == prompts[item.prompt_id].messages)
    }
    scores = {item.completion_id: item.value for item in read(folder, "scores", Score)}
    pairs: list[Pair] = read(folder, "pairs", Pair)
    for pair in pairs:
        chosen, rejected = pair.chosen[0]["content"], pair.rejected[0]["content"]
        assert chosen != rejected
        assert chosen.strip()
        assert rejected.strip()
        assert pair.score_chosen > pair.score_rejected
        assert (scores[pair.chosen_id], scores[pair.rejected_id]) == (pair.score_chosen, pair.score_rejected)
        assert pair.prompt == prompts[pair.prompt_id].messages
        for key, text in ((pair.chosen_id, chosen), (pair.rejected_id, rejected)):
            assert (answers[key].prompt_id, answers[key].text) == (pair.prompt_id, text)
    dropped = read(folder, "dropped", Dropped)
    assert all(item.stage and item.reason for item in dropped)
    assert num_rows == len({pair.prompt_id for pair in pairs}) + len(dropped)
    kept = {pair.prompt_id for pair in pairs}
    assert not kept & {item.id for item in dropped if item.reason != "duplicate prompt"}
    assert set(prompts) == kept | {item.id for item in dropped if item.stage != "read"}
    return pairs


def write_job(folder: Path, rows: Sequence[str], rules: Sequence[dict[str, Any]], **more: Any) -> Synthesize:
    reference = {"constraints": [{"kind": "include_word", "word": "river"}]}
    lines = [row if row == "{torn" else json.dumps({"prompt": row, "reference": reference}) for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "script.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    engine = {"name": "scripted", "replies": REPLIES, "max_in_flight": 4, "fail_when": "fails"}
    values = {
        "task": {"name": "file", "path": str(folder / "prompts.jsonl")},
        "engine": engine | ({"script": str(folder / "script.jsonl")} if rules else {}),
        "recipe": {"name": "best_of_n", "n": 2, "margin": 0.01},
        "filters": [],
    }
    return build(Synthesize, values | more, source="test")


ROWS = st.lists(
    st.sampled_from([*(f"place {at}." for at in range(12)), "it fails", "{torn", "", "two\nlines"]),
    min_size=1,
    max_size=30,
)
RULES = st.lists(
    st.builds(
        lambda at, replies: {"when": f"place {at}.", "replies": replies},
        st.integers(0, 11),
        st.lists(st.sampled_from(REPLIES), min_size=1, max_size=5),
    ),
    max_size=8,
)
RECIPES = st.fixed_dictionaries(
    {
        "name": st.just("best_of_n"), "n": st.integers(2, 5), "margin": st.sampled_from([0.01, 0.5, 1.0]),
        "greedy": st.booleans(), "max_pairs": st.integers(1, 3), "max_new_tokens": st.sampled_from([3, 50]),
        "max_length_gap": st.sampled_from([0.3, 1.0]),
    }
)  # fmt: skip
SCORERS = st.sampled_from(["verifiable", {"name": "judge", "explain": False}, {"name": "pairwise", "explain": False}])
FILTERS = st.lists(
    st.sampled_from(
        [
            *({"name": name} for name in ("near_duplicate", "length_only", "truncated", "refusal", "copies_prompt")),
            *({"name": name} for name in ("fuzzy_duplicate", "length_gap", "language")),
            {"name": "margin", "least": 0.3},
        ]
    ),
    unique_by=lambda item: item["name"],
)


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=ROWS, rules=RULES, recipe=RECIPES, scorer=SCORERS, filters=FILTERS,
    verdicts=st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=6), seed=st.integers(0, 9),
    target=st.none() | st.integers(1, 5),
)  # fmt: skip
def test_whatever_engines_say(
    rows: list[str],
    rules: list[dict[str, Any]],
    recipe: dict[str, Any],
    scorer: Any,
    filters: list[dict[str, Any]],
    verdicts: list[str],
    seed: int,
    target: int | None,
) -> None:
    if all(row in {"{torn", ""} for row in rows):
        rows = [*rows, "place 0."]
    if all(row in {"{torn", "", "it fails"} for row in rows):  # a run in which every request fails is given up
        rows = [*rows, "place 1."]
    roles = {} if scorer == "verifiable" else {"judge": {"engine": {"name": "scripted", "replies": verdicts}}}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        job = write_job(
            folder,
            rows,
            rules,
            recipe=recipe,
            scorer=scorer,
            filters=filters,
            roles=roles,
            seed=seed,
            target_pairs=target,
        )
        done = job.run(folder / "run", quiet=True)
        pairs = check(done.folder, len(rows))
        assert done.manifest["counts"]["read"] == len(rows)
        assert len(pairs) == done.figures["pairs"]
        assert target is None or len(pairs) == target or ("target_pairs" in done.figures and len(pairs) < target)


OTHERS: dict[str, dict[str, Any]] = {
    "flaw": {
        "kinds": ["number", "negation", "relation"], "good": "own", "n": 2, "least_score": 0.0, "judge": {"explain": False},
    },
    "weak_to_strong": {"n": 5, "drop_below": 0.3, "override_at": 0.3},
    "codec": {"num_actions": 1, "rounds": 2, "theta": 1.0},
}  # fmt: skip
SAID = st.sampled_from([
    "It is 4, and it is not 5. The answer is 4.", "The answer is 5.", "The answer is 4", "There are 12 rivers.", "", " \n",
    "null", '{"better": "A"}', '{"better": "tie"}', '{"sentence": 1, "rewritten": "It is 7, and it is not 5."}',
    '{"sentence": 99, "rewritten": ""}', '{"use_case": "summaries", "skills": ["counting"]}', '{"instructions": []}',
    '{"instructions": ["Count the rivers."]}', '{"improvements": [{"rubric": "harder", "action": "Ask for two."}]}',
    '{"instruction": "Count all rivers."}', '{"answer_a": 9, "answer_b": 1}', '{"answer_a": 1, "answer_b": 9}',
    '{"answer_a": 5, "answer_b": 5}',
])  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=ROWS.filter(lambda rows: any(row.startswith("place") for row in rows)), filters=FILTERS, seed=st.integers(0, 9),
    said=st.lists(SAID, min_size=1, max_size=12), other=st.lists(SAID, min_size=1, max_size=6),
)  # fmt: skip
def test_other_makers_of_pairs_hold_to_it_too(
    name: str, rows: list[str], filters: list[dict[str, Any]], said: list[str], other: list[str], seed: int
) -> None:
    """Two models that say anything, schemas and all: what is a pair, and where rows go."""
    role = {"flaw": "judge", "weak_to_strong": "weak", "codec": "strong"}[name]
    engine = {"name": "scripted", "max_in_flight": 4, "fail_when": "fails"}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        job = write_job(
            folder,
            rows,
            [],
            engine=engine | {"replies": said},
            recipe={"name": name} | OTHERS[name],
            filters=filters,
            roles={role: {"engine": engine | {"replies": other}}},
            seed=seed,
        )
        done = job.run(folder / "run", quiet=True)
        pairs: list[Pair] = read(done.folder, "pairs", Pair)
        for pair in pairs:
            chosen, rejected = pair.chosen[0]["content"], pair.rejected[0]["content"]
            assert chosen != rejected
            assert chosen.strip()
            assert rejected.strip()
            assert pair.score_chosen > pair.score_rejected
        asked = {item.id: item for item in read(done.folder, "prompts", Prompt)}
        exchanges: list[Exchange] = read(done.folder, "exchanges", Exchange)
        written = {item.id: item.text for exchange in exchanges for item in exchange.completions}
        for pair in pairs:
            if name != "codec":  # whose pairs answer instructions that it made
                assert pair.prompt == asked[pair.prompt_id].messages
            sides = {pair.chosen_id: pair.chosen, pair.rejected_id: pair.rejected}
            for key, messages in list(sides.items())[: 1 if name == "flaw" else 2]:  # no model wrote the planted one
                assert written[key].strip() == messages[0]["content"].strip()
        prompts = set(asked)
        kept = {pair.source_id for pair in pairs}
        dropped = read(done.folder, "dropped", Dropped)
        assert kept <= prompts
        assert len(rows) == len(kept) + len(dropped) == done.manifest["counts"]["read"]
        assert prompts == kept | {item.id for item in dropped if item.stage != "read"}
        made = {item.prompt_id for item in read(done.folder, "exchanges", Exchange)}
        assert made <= prompts
        for exchange in read(done.folder, "exchanges", Exchange):
            assert {item.prompt_id for item in exchange.completions} == {exchange.prompt_id}


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=ROWS.filter(lambda rows: any(row.startswith("place") for row in rows)), seed=st.integers(0, 9),
    said=st.lists(SAID, min_size=1, max_size=12), least=st.sampled_from([0, 1]),
)  # fmt: skip
def test_makers_of_groups_lose_no_row_either(rows: list[str], said: list[str], least: int, seed: int) -> None:
    """Rationales that vote: a row comes to a group whose positives all say what was voted for, or is dropped by name."""
    recipe = {"name": "rationales", "n": 4, "hot_n": 1, "min_share": 0.3, "min_negatives": least}
    engine = {"name": "scripted", "max_in_flight": 4, "fail_when": "fails", "replies": said}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        done = write_job(folder, rows, [], engine=engine, recipe=recipe, seed=seed).run(folder / "run", quiet=True)
        prompts = {item.id: item for item in read(done.folder, "prompts", Prompt)}
        groups: list[Group] = read(done.folder, "groups", Group)
        dropped = read(done.folder, "dropped", Dropped)
        kept = {item.source_id for item in groups}
        assert len(rows) == len(kept) + len(dropped) == done.manifest["counts"]["read"]
        assert set(prompts) == kept | {item.id for item in dropped if item.stage != "read"}
        for group in groups:
            asked = prompts[str(group.source_id)].messages[-1]["content"]
            assert str(group.prompt[-1]["content"]).startswith(asked)  # pyright: ignore[reportArgumentType]
            sides = {role: [item for item in group.answers if item.role == role] for role in ("chosen", "rejected")}
            assert sides["chosen"]
            assert len(sides["rejected"]) >= least
            assert len({item.final for item in sides["chosen"]}) == 1
            assert all(item.text.strip() for side in sides.values() for item in side)
            assert not {item.text for item in sides["chosen"]} & {item.text for item in sides["rejected"]}


def test_an_engine_that_fails_speaks_garbage_and_is_cut_off(tmp_path: Path) -> None:
    """Of 400 prompts 5 % fail, 5 % get garbage and 5 % answers without an end; the others make pairs."""
    rows = [f"place {at}. {({0: 'fails', 1: 'garbage', 2: 'endless'}).get(at % 20, '')}" for at in range(400)]
    rules = [
        {"when": "garbage", "replies": ["\x00\x1b[31m<script>{}[]", "", "null"]},
        {"when": "endless", "replies": ["{prompt} river " * 50, "{prompt} hill " * 50]},
        {"when": "place", "replies": ["{prompt}: a river", "{prompt}: a hill"]},
    ]
    done = write_job(tmp_path, rows, rules, filters=["truncated"]).run(tmp_path / "run", quiet=True)
    pairs = check(done.folder, 400)
    assert len(pairs) == 340
    assert done.manifest["counts"]["failed"] == 20
    assert all(f"{pair.prompt[0]['content']}: a " in pair.chosen[0]["content"] for pair in pairs)
    assert sum(done.manifest["counts"]["dropped"].values()) == 60


def plant(pairs: list[dict[str, Any]], fault: str) -> list[dict[str, Any]]:
    """Do to the first of some pairs what pair makers in circulation do."""
    first, second, *rest = (dict(pair) for pair in pairs)
    if fault == "a tie: one answer on both sides":
        first["rejected"] = first["chosen"]
    elif fault == "an empty answer":
        first["rejected"] = [{"role": "assistant", "content": " "}]
    elif fault == "answers under the wrong prompt":
        first["chosen"], second["chosen"] = second["chosen"], first["chosen"]
    elif fault == "answers joined by position":
        first["prompt_id"], second["prompt_id"] = second["prompt_id"], first["prompt_id"]
    elif fault == "a preference that is turned around":
        for one, other in (("chosen", "rejected"), ("chosen_id", "rejected_id")):
            first[one], first[other] = first[other], first[one]
    elif fault == "a score that was not given":
        first["score_chosen"] = 5.0
    else:
        assert fault == "a row that is lost"
        return [second, *rest]
    return [first, second, *rest]


@pytest.mark.parametrize(
    "fault",
    [
        "a tie: one answer on both sides", "an empty answer", "answers under the wrong prompt", "answers joined by position",
        "a preference that is turned around", "a score that was not given", "a row that is lost",
    ],
)  # fmt: skip
def test_a_planted_fault_is_seen(fault: str, tmp_path: Path) -> None:
    rules = [{"when": "place", "replies": ["{prompt} a river", "{prompt} a hill"]}]
    done = write_job(tmp_path, [f"place {at}." for at in range(4)], rules).run(tmp_path / "run", quiet=True)
    assert len(check(done.folder, 4)) == 4
    path = done.path("pairs.jsonl")
    planted = plant([json.loads(line) for line in path.read_text().splitlines()], fault)
    path.write_text("".join(json.dumps(pair) + "\n" for pair in planted))
    with pytest.raises((AssertionError, KeyError)):
        check(done.folder, 4)


def judge(tmp_path: Path, rules: list[dict[str, Any]], *, otherwise: str = "no JSON") -> dict[str, Any]:
    """Describe a judge of two answers in both orders, who says what the rules say."""
    script = tmp_path / "judge.jsonl"
    script.write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    engine = {"name": "scripted", "replies": [otherwise], "script": str(script)}
    return {
        "scorer": {"name": "pairwise", "explain": False},
        "roles": {"judge": {"engine": engine}},
    }


def test_what_the_judge_preferred_is_chosen_however_it_was_shown(tmp_path: Path) -> None:
    """A judge who likes rivers says A or B, as they stand."""
    rules = [{"when": "place", "replies": ["river at {prompt}", "hill at {prompt}"]}]
    likes = [
        {"when": "answer A>\nriver", "replies": ['{"better": "A"}']},
        {"when": "answer B>\nriver", "replies": ['{"better": "B"}']},
    ]
    rows = [f"place {at}." for at in range(20)]
    done = write_job(tmp_path, rows, rules, **judge(tmp_path, likes)).run(tmp_path / "run", quiet=True)
    pairs = check(done.folder, 20)
    assert len(pairs) == 20
    assert all(pair.chosen[0]["content"].startswith("river") for pair in pairs)
    assert {item.forward for item in read(done.folder, "comparisons", Comparison)} == {"first", "second"}


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        ('{"better": "A"}', "contrast: all scored alike"), ('{"better": "tie"}', "contrast: all scored alike"),
        ('{"better": null}', "compare: not as the schema asks"), ("", "compare: not as the schema asks"),
    ],
)  # fmt: skip
def test_a_judge_who_prefers_a_place_or_nothing_makes_no_pair(verdict: str, reason: str, tmp_path: Path) -> None:
    rows = [f"place {at}." for at in range(5)]
    rules = [{"when": "place", "replies": ["river at {prompt}", "hill at {prompt}"]}]
    told = judge(tmp_path, [{"when": "answer A>", "replies": [verdict]}])
    done = write_job(tmp_path, rows, rules, **told).run(tmp_path / "run", quiet=True)
    assert check(done.folder, 5) == []
    assert done.manifest["counts"]["dropped"] == {reason: 5}
