"""Codec: which instructions part the strong model from the target, by hand."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.job import Finished
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Comparison, Completion, Dropped, Exchange, Group, Pair, Prompt, Record, Score
from synth.synthesize import Synthesize

STRONG, TARGET = "Strong says", "Target says"
Rule = tuple[str, Sequence[str]]


def fixed(when: str, reply: Any) -> Rule:
    """Return a line of a script: to what holds `when` the same is said every time."""
    return when, [reply if isinstance(reply, str) else json.dumps(reply)]


def marks(first: tuple[int, int], swapped: tuple[int, int]) -> list[Rule]:
    """Return the judge's marks of A and B where the strong answer is A, and where it is B."""
    return [
        fixed(f"answer A>\n{who}", {"answer_a": a, "answer_b": b})
        for who, (a, b) in ((STRONG, first), (TARGET, swapped))
    ]


CLEAR = marks((9, 2), (2, 9))
BAND = marks((6, 5), (5, 6))


def kind(name: str, plain: Sequence[str] = (), actions: Sequence[str] = ("Add a limit.", "Ask why.")) -> list[Rule]:
    """Return what the strong model says of the seed `seed NAME` on the way to `do NAME`, or to other instructions."""
    return [
        fixed(f"seed {name}", {"use_case": f"kind {name}", "skills": ["plain words", "good order"]}),
        fixed(
            f"answers in text?\n\nUse case: kind {name}",
            {"improvements": [{"rubric": "r", "action": action} for action in actions]},
        ),
        fixed(f"give them.\n\nUse case: kind {name}", {"instructions": list(plain) or [f"do {name}"]}),
    ]


def answers(*names: str) -> list[Rule]:
    return [fixed(f"do {name}", f"{STRONG} it of {name}.") for name in names]


def synthesize(
    folder: Path, rules: Sequence[Rule], seeds: Sequence[str], *, target: str = f"{TARGET} so.", **recipe: Any
) -> Finished:
    """Run the recipe: the strong model speaks by a script, the target always says the same."""
    folder.mkdir(exist_ok=True)
    script, prompts = folder / "script.jsonl", folder / "seeds.jsonl"
    script.write_text("".join(json.dumps({"when": when, "replies": replies}) + "\n" for when, replies in rules))
    prompts.write_text("".join(json.dumps({"prompt": seed, "reference": {"gold": "42"}}) + "\n" for seed in seeds))
    values = {
        "task": {"name": "file", "path": str(prompts)},
        "engine": {"name": "scripted", "replies": [target]},
        "roles": {"strong": {"model": "large", "engine": {"name": "scripted", "script": str(script)}}},
        "recipe": {"name": "codec", "num_actions": 2, **recipe},
        "filters": [],
    }
    return build(Synthesize, values, source="test").run(folder / "run", quiet=True)


def read(done: Finished, name: str, cls: type[Record]) -> list[Any]:
    path = done.folder / name
    return list(read_jsonl(path, cls, where=name)) if path.is_file() and path.stat().st_size else []


def sides(done: Finished) -> list[tuple[str, str, str]]:
    """Return of each pair what is asked, the better and the worse answer."""
    return [
        (pair.prompt[0]["content"], pair.chosen[0]["content"], pair.rejected[0]["content"])
        for pair in read(done, "pairs.jsonl", Pair)
    ]


def reasons(done: Finished) -> list[tuple[str, str]]:
    return [(item.stage, item.reason) for item in read(done, "refused.jsonl", Dropped)]


def test_a_clear_gap_in_both_orders_is_a_pair_of_the_new_instruction(tmp_path: Path) -> None:
    """Marks 9 and 9 against 2 and 2: means 9 and 2. The seed's own text and its reference are no part of it."""
    done = synthesize(tmp_path, [*CLEAR, *kind("alpha"), *answers("alpha")], ["seed alpha"])
    assert sides(done) == [("do alpha", f"{STRONG} it of alpha.", f"{TARGET} so.")]
    (pair,) = read(done, "pairs.jsonl", Pair)
    (instruction,) = read(done, "instructions.jsonl", Prompt)
    (seed,) = read(done, "prompts.jsonl", Prompt)
    assert (pair.prompt_id, pair.prompt, pair.recipe) == (instruction.id, instruction.messages, "codec")
    assert (pair.score_chosen, pair.score_rejected) == (9, 2)
    assert instruction.tags == {"seed": seed.id, "use_case": "kind alpha", "round": "1"}
    (group,) = read(done, "groups.jsonl", Group)
    assert [(item.role, item.text, item.score) for item in group.answers] == [
        ("chosen", f"{STRONG} it of alpha.", 9.0),
        ("rejected", f"{TARGET} so.", 2.0),
    ]
    assert group.prompt == instruction.messages
    assert pair.source_id == group.source_id == seed.id
    (verdict,) = read(done, "comparisons.jsonl", Comparison)
    assert (verdict.forward, verdict.backward, verdict.winner) == ("first", "first", 0)
    scores = {item.completion_id: item for item in read(done, "scores.jsonl", Score)}
    assert (scores[pair.chosen_id].detail, scores[pair.rejected_id].value) == ({"marks": [9, 9]}, 2.0)
    exchanges = read(done, "exchanges.jsonl", Exchange)
    assert [item.step for item in exchanges] == [
        "encode", "rubrics", "decode", "answer", "answer", "mark", "mark",
    ]  # fmt: skip
    assert not [item for item in exchanges if "42" in str(item.sent) or "seed" in str(item.sent)][1:]
    for item, key in ((exchanges[3], pair.chosen_id), (exchanges[4], pair.rejected_id)):
        (answer,) = item.completions  # under the seed's id there, under the instruction's here
        assert Completion.make(
            prompt_id=instruction.id, index=answer.index, text=answer.text,
            finish_reason="stop", num_prompt_tokens=0, num_tokens=0,
        ).id == key  # fmt: skip


def test_where_the_target_is_better_its_answer_is_the_chosen_one(tmp_path: Path) -> None:
    done = synthesize(tmp_path, [*marks((2, 9), (9, 2)), *kind("alpha"), *answers("alpha")], ["seed alpha"])
    assert sides(done) == [("do alpha", f"{TARGET} so.", f"{STRONG} it of alpha.")]
    (verdict,) = read(done, "comparisons.jsonl", Comparison)
    assert (verdict.forward, verdict.backward, verdict.winner) == ("second", "second", 1)


@pytest.mark.parametrize(
    ("given", "reason", "detail"),
    [
        (marks((9, 1), (9, 1)), "gap within theta", "+0.0"),  # it likes what it sees first
        (marks((10, 1), (6, 5)), "verdict changes with the order", "+4.0"),  # means 7.5 and 3.5
        (marks((8, 5), (5, 8)), "gap within theta", "+3.0"),  # strictly larger is asked for
        (marks((5, 8), (8, 5)), "gap within theta", "-3.0"),
    ],
)
def test_what_both_orders_do_not_say_is_no_pair(given: list[Rule], reason: str, detail: str, tmp_path: Path) -> None:
    done = synthesize(tmp_path, [*given, *kind("alpha"), *answers("alpha")], ["seed alpha"], rounds=1)
    (instruction,) = read(done, "instructions.jsonl", Prompt)
    (refused,) = read(done, "refused.jsonl", Dropped)
    assert (refused.id, refused.stage, refused.reason, refused.detail) == (instruction.id, "contrast", reason, detail)
    (dropped,) = read(done, "dropped.jsonl", Dropped)
    (seed,) = read(done, "prompts.jsonl", Prompt)
    assert (dropped.id, dropped.reason) == (seed.id, reason)
    assert not sides(done)
    assert not read(done, "groups.jsonl", Group)
    assert len(read(done, "scores.jsonl", Score)) == 2, "marks are kept whatever comes of them"


def test_half_a_mark_more_than_theta_is_a_pair(tmp_path: Path) -> None:
    """Means 8 and 4.5."""
    done = synthesize(tmp_path, [*marks((8, 5), (4, 8)), *kind("alpha"), *answers("alpha")], ["seed alpha"])
    (pair,) = read(done, "pairs.jsonl", Pair)
    assert (pair.score_chosen, pair.score_rejected) == (8.0, 4.5)


def rewriting(old: str, new: str) -> Rule:
    return fixed(f"instruction>\n{old}\n", {"instruction": new})


def test_an_instruction_in_the_band_is_rewritten_until_it_is_out_of_it(tmp_path: Path) -> None:
    """Two rounds in the band, the third out of it: an action of the two is drawn each time."""
    rules = [
        *kind("alpha"), fixed("Easy", {"answer_a": 5, "answer_b": 5}), *CLEAR,
        rewriting("do alpha", "do beta"), rewriting("do beta", "do gamma"),
        fixed("do gamma", f"{STRONG} it."), fixed("do alpha", "Easy one"), fixed("do beta", "Easy two"),
    ]  # fmt: skip
    done = synthesize(tmp_path, rules, ["seed alpha"])
    assert sides(done) == [("do gamma", f"{STRONG} it.", f"{TARGET} so.")]
    instructions = read(done, "instructions.jsonl", Prompt)
    assert [(item.messages[0]["content"], item.tags["round"]) for item in instructions] == [
        ("do alpha", "1"), ("do beta", "2"), ("do gamma", "3"),
    ]  # fmt: skip
    refused = read(done, "refused.jsonl", Dropped)
    assert [item.id for item in refused] == [item.id for item in instructions[:2]]
    assert not read(done, "dropped.jsonl", Dropped)
    sent = [item.sent[0]["content"] for item in read(done, "exchanges.jsonl", Exchange) if item.step == "rewrite"]
    assert len(sent) == 2
    assert all(("Add a limit." in text) != ("Ask why." in text) for text in sent)


def test_rounds_end(tmp_path: Path) -> None:
    """Three rounds are the plain instruction and two rewritings; the last of them names the seed's drop."""
    names = ["alpha", "beta", "gamma", "delta"]
    chain = [rewriting(f"do {old}", f"do {new}") for old, new in pairwise(names)]
    rules = [*BAND, *kind("alpha"), *chain, *answers(*names)]
    done = synthesize(tmp_path, rules, ["seed alpha"], rounds=3)
    assert [item.messages[0]["content"] for item in read(done, "instructions.jsonl", Prompt)] == [
        "do alpha", "do beta", "do gamma",
    ]  # fmt: skip
    assert reasons(done) == [("contrast", "gap within theta")] * 3
    assert done.manifest["counts"]["dropped"] == {"contrast: gap within theta": 1}


def test_an_instruction_that_came_before_is_not_asked_again(tmp_path: Path) -> None:
    """Of four plain ones the second is the first in other letters, the third the seed; the fourth becomes the first."""
    rules = [
        fixed("Easy", {"answer_a": 5, "answer_b": 5}), *CLEAR, rewriting("do beta", "do alpha"),
        *kind("alpha", ["do alpha", "DO  alpha", "seed alpha", "do beta"]),
        fixed("do beta", "Easy"), *answers("alpha"),
    ]  # fmt: skip
    done = synthesize(tmp_path, rules, ["seed alpha"], num_instructions=4, rounds=2)
    assert [asked for asked, *_ in sides(done)] == ["do alpha"]
    assert reasons(done) == [
        ("decode", "instruction came before"),
        ("decode", "instruction came before"),
        ("contrast", "gap within theta"),
        ("rewrite", "instruction came before"),
    ]
    assert done.manifest["counts"]["dropped"] == {}, "the seed led to a pair"


@pytest.mark.parametrize(("target", "reason"), [(" \n", "empty answer"), (f"{STRONG} it of alpha. ", "answers alike")])
def test_an_empty_or_an_equal_answer_is_no_contrast_and_asks_no_judge(target: str, reason: str, tmp_path: Path) -> None:
    rules = [*CLEAR, *kind("alpha"), *answers("alpha")]
    done = synthesize(tmp_path, rules, ["seed alpha"], target=target, rounds=1)
    assert reasons(done) == [("contrast", reason)]
    assert not [item for item in read(done, "exchanges.jsonl", Exchange) if item.step == "mark"]


def test_what_cannot_be_read_is_asked_again_then_dropped_with_its_text(tmp_path: Path) -> None:
    """A use case is no JSON, a mark is out of range; both are asked three times. Another seed is not held up."""
    rules = [
        fixed("seed beta", "no JSON"),
        fixed("answer A>\nOdd", {"answer_a": 11, "answer_b": 1}), fixed("answer B>\nOdd", {"answer_a": 1, "answer_b": 5}),
        *CLEAR, *kind("alpha"), *kind("gamma"), *answers("alpha"), fixed("do gamma", "Odd one"),
    ]  # fmt: skip
    done = synthesize(tmp_path, rules, ["seed alpha", "seed beta", "seed gamma"], rounds=1)
    assert [asked for asked, *_ in sides(done)] == ["do alpha"]
    dropped = {(item.stage, item.reason): item.detail for item in read(done, "dropped.jsonl", Dropped)}
    assert dropped == {
        ("encode", "not as the schema asks"): "no JSON",
        ("mark", "not as the schema asks"): json.dumps({"answer_a": 11, "answer_b": 1}),
    }
    steps = [item.step for item in read(done, "exchanges.jsonl", Exchange)]
    assert (steps.count("encode"), steps.count("mark")) == (1 + 3 + 1, 2 + 4)
    counts = done.manifest["counts"]
    assert counts["read"] == 3 == counts["kept"] + sum(counts["dropped"].values())


def test_equal_metadata_ask_for_the_same_rubrics(tmp_path: Path) -> None:
    rules = [
        fixed("seed", {"use_case": "kind alpha", "skills": ["a"]}), *CLEAR, *kind("alpha"), *answers("alpha"),
    ]  # fmt: skip
    done = synthesize(tmp_path, rules, ["seed one", "seed two"])
    sent = [item.sent for item in read(done, "exchanges.jsonl", Exchange) if item.step == "rubrics"]
    assert len(sent) == 2
    assert sent[0] == sent[1]


def test_the_same_seeds_make_the_same_bytes(tmp_path: Path) -> None:
    names = ["alpha", "beta", "gamma", "delta"]
    rules = [
        *BAND, *(rule for name in names for rule in kind(name)),
        *(rewriting(f"do {name}", f"do more {name}") for name in names), *answers(*names, "more"),
    ]  # fmt: skip
    runs = [synthesize(tmp_path / at, rules, [f"seed {name}" for name in names]) for at in ("one", "two")]
    for name in ("instructions.jsonl", "exchanges.jsonl", "scores.jsonl", "comparisons.jsonl", "refused.jsonl"):
        assert runs[0].path(name).read_bytes() == runs[1].path(name).read_bytes()
    sent = [item.sent[0]["content"] for item in read(runs[0], "exchanges.jsonl", Exchange) if item.step == "rewrite"]
    assert {"Add a limit." in text for text in sent} == {True, False}, "actions are drawn by chance"


def test_one_model_in_both_roles_says_two_things(tmp_path: Path) -> None:
    """The same draw would be one answer twice; of 97 replies two draws of eight seeds seldom agree."""
    names = [f"n{at}" for at in range(8)]
    rules = [*BAND, *(rule for name in names for rule in kind(name)), ("do ", [f"{STRONG} {at}" for at in range(97)])]
    script, seeds = tmp_path / "script.jsonl", tmp_path / "seeds.jsonl"
    script.write_text("".join(json.dumps({"when": when, "replies": replies}) + "\n" for when, replies in rules))
    seeds.write_text("".join(json.dumps({"prompt": f"seed {name}"}) + "\n" for name in names))
    values = {
        "task": {"name": "file", "path": str(seeds)},
        "engine": {"name": "scripted", "script": str(script)},
        "recipe": {"name": "codec", "num_actions": 2, "rounds": 1},
    }
    done = build(Synthesize, values, source="test").run(tmp_path / "run", quiet=True)
    said = [item.completions[0].text for item in read(done, "exchanges.jsonl", Exchange) if item.step == "answer"]
    assert sum(one != two for one, two in zip(said[::2], said[1::2], strict=True)) >= 6
