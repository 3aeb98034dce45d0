"""WeakToStrong: agreement and confidence pairs in one dialogue; the rules themselves are in test_weak_to_strong.py."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.job import Finished
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Dropped, Exchange, Group, Pair, Prompt, Record, Score
from synth.agree import Agree
from synth.synthesize import Synthesize
from synth.vote import Vote

RIGHT = [f"way {at}: 4" for at in range(8)]
"""Eight of ten samples: a confidence of 0.8 with two others."""
SCRIPT = {
    # The strong model's replies: the greedy one is the first, ten samples are all of them, in some order.
    "confirmed": [*RIGHT, "5", "6"],
    "overruled": [*RIGHT, "5", "6"],
    "unsure": [*RIGHT[:6], "5", "6", "7", "8"],
    "torn": ["4", "4", "5", "5", "6", "6", "7", "7", "8", "8"],
    "sure": [f"way {at}: 4" for at in range(10)],
    "silent": ["4", *[" "] * 9],
    "failing": ["4"],
}
WEAK = {"confirmed": "weak 4", "overruled": "weak 5", "unsure": "weak 5", "torn": "weak 4", "sure": "weak 4"}


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def synthesize(folder: Path, **recipe: Any) -> Finished:
    """Run the recipe on a question for each fate."""
    folder.mkdir(exist_ok=True)
    names = list(SCRIPT)
    strong = [{"when": f"the {name} ", "replies": replies} for name, replies in SCRIPT.items()]
    weak = [{"when": f"the {name} ", "replies": [reply]} for name, reply in WEAK.items()]
    values = {
        "task": {
            "name": "file",
            "path": write(
                folder / "prompts.jsonl",
                [{"prompt": f"Of the {name} one?", "reference": {"answer": "gold"}} for name in names],
            ),
        },
        "engine": {"name": "scripted", "script": write(folder / "strong.jsonl", strong), "fail_when": "failing"},
        "roles": {
            "weak": {
                "model": "small",
                "engine": {"name": "scripted", "script": write(folder / "weak.jsonl", weak), "replies": ["no idea"]},
            }
        },
        "recipe": {"name": "weak_to_strong", **recipe},
        "filters": [],
    }
    return build(Synthesize, values, source="test").run(folder / "run", quiet=True)


def read(done: Finished, name: str, cls: type[Record]) -> list[Any]:
    path = done.folder / name
    return list(read_jsonl(path, cls, where=name)) if path.is_file() and path.stat().st_size else []


def sides(pair: Pair) -> tuple[str, str]:
    return pair.chosen[0]["content"], pair.rejected[0]["content"]


def test_every_question_is_a_pair_or_a_named_drop(tmp_path: Path) -> None:
    """By confidence: 0.8 confirmed, 0.8 overruled, 0.6 too little to overrule, 0.2, 1.0 without another answer, silence."""
    done = synthesize(tmp_path)
    confirmed, overruled = read(done, "pairs.jsonl", Pair)
    assert sides(confirmed)[0] == "weak 4"
    assert sides(confirmed)[1] in {"5", "6"}
    assert sides(overruled)[0] in RIGHT
    assert sides(overruled)[1] == "weak 5"
    assert (confirmed.score_chosen, confirmed.recipe) == (0.8, "weak_to_strong")
    counts = done.manifest["counts"]
    assert counts["dropped"] == {
        "vote: too little confidence to overrule": 1, "vote: low confidence": 1, "vote: all samples agree": 1,
        "vote: most samples come to nothing": 1, "generate: request failed": 1,
    }  # fmt: skip
    assert counts["read"] == len(SCRIPT) == counts["kept"] + sum(counts["dropped"].values())


def test_what_agrees_is_learnt_and_why_the_rest_does_not_is_kept(tmp_path: Path) -> None:
    """A question may agree and make no pair: its group is there all the same. Groups hold nothing but what is learnt."""
    done = synthesize(tmp_path)
    groups = {item.prompt[0]["content"].split()[2]: item for item in read(done, "groups.jsonl", Group)}
    assert groups.keys() == {"confirmed", "torn", "sure"}
    assert [(item.text, item.role, item.final) for item in groups["sure"].answers] == [
        ("weak 4", "chosen", "4"), ("way 0: 4", "chosen", "4"),
    ]  # fmt: skip
    names = {item.id: item.messages[0]["content"].split()[2] for item in read(done, "prompts.jsonl", Prompt)}
    refused = {names[item.id]: (item.stage, item.reason) for item in read(done, "refused.jsonl", Dropped)}
    assert refused == dict.fromkeys(("overruled", "unsure", "silent"), ("agree", "answers differ"))


def test_records_are_joined_by_their_ids(tmp_path: Path) -> None:
    done = synthesize(tmp_path, max_pairs=2)
    prompts = {item.id: item for item in read(done, "prompts.jsonl", Prompt)}
    exchanges = read(done, "exchanges.jsonl", Exchange)
    said = {part.id: part for item in exchanges for part in item.completions}
    pairs = read(done, "pairs.jsonl", Pair)
    assert len(pairs) == 4
    for pair in pairs:
        assert pair.prompt == prompts[pair.prompt_id].messages
        assert {said[key].prompt_id for key in (pair.chosen_id, pair.rejected_id)} == {pair.prompt_id}
        assert sides(pair) == (said[pair.chosen_id].text, said[pair.rejected_id].text)
    scores = read(done, "scores.jsonl", Score)
    samples = {part.id for item in exchanges if item.step == "sample" for part in item.completions}
    assert {item.completion_id for item in scores} == samples
    assert len(scores) == 6 * 10
    assert not [item for item in exchanges if "gold" in str(item.sent)]


def test_a_tied_vote_is_no_pair(tmp_path: Path) -> None:
    """Five answers of two votes each; as the weak one is among them a first one taken would confirm it at times."""
    done = synthesize(tmp_path, drop_below=0.2)
    assert done.manifest["counts"]["dropped"]["vote: tied vote"] == 1


def test_the_same_questions_make_the_same_bytes(tmp_path: Path) -> None:
    one, two = synthesize(tmp_path / "one"), synthesize(tmp_path / "two")
    for name in ("pairs.jsonl", "groups.jsonl", "exchanges.jsonl", "scores.jsonl"):
        assert one.path(name).read_bytes() == two.path(name).read_bytes()


@pytest.mark.parametrize("keep", ["weak", "both"])
def test_the_jobs_make_the_same_of_the_same_answers(keep: str, tmp_path: Path) -> None:
    """Agree and Vote read from files what the recipe asks: one rule, two ways to it."""
    done = synthesize(tmp_path, keep=keep)
    by_step: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in read(done, "exchanges.jsonl", Exchange):
        by_step.setdefault((item.step, item.role), []).extend(part.model_dump() for part in item.completions)
    prompts = done.path("prompts.jsonl")
    weak = write(tmp_path / "w.jsonl", by_step["answer", "weak"])
    strong = write(tmp_path / "s.jsonl", by_step["answer", ""])
    samples = write(tmp_path / "n.jsonl", by_step["sample", ""])
    agreed = build(Agree, {"prompts": prompts, "weak": weak, "strong": strong, "keep": keep}, source="test")
    groups = read(agreed.run(tmp_path / "agreed", quiet=True), "groups.jsonl", Group)
    made = [
        [item.model_copy(update={"source_id": ""}) for item in read(done, name, kind)]
        for name, kind in (("groups.jsonl", Group), ("pairs.jsonl", Pair))
    ]
    assert groups == made[0]
    voted = build(Vote, {"prompts": prompts, "weak": weak, "samples": samples}, source="test")
    pairs = read(voted.run(tmp_path / "voted", quiet=True), "pairs.jsonl", Pair)
    assert pairs == made[1]
