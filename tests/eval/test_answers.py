"""Questions whose context contradicts what is known, and answers to them compared: figures by hand, engines scripted."""

import json
from pathlib import Path
from typing import Any

import pytest

from counterfoil.errors import ConfigError, InputError
from counterfoil.records import Completion, Prompt
from decode.engine import Sampling
from decode.engines.scripted import Scripted
from decode.generate import Generate
from eval.answers import Answers
from eval.conflicts import Conflicts
from eval.facts import RELATIONS
from eval.parts import check_parts, name_method
from eval.scorers.exact_answer import ExactAnswer, normalise


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERFOIL_RUNS", str(tmp_path / "runs"))


def judge(text: str, wanted: Any, *, original: str | None = None, **fields: Any) -> tuple[float, dict[str, Any]]:
    prompt = Prompt.make("x", reference={"answer": wanted} | ({"original": original} if original else {}))
    completion = Completion.make(
        prompt_id=prompt.id, index=0, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=1
    )
    score = ExactAnswer(**fields).score(prompt, completion)
    return score.value, score.detail


def decode(prompts: Path, folder: Path, *replies: str, **sampling: Any) -> Path:
    engine = Scripted(replies=replies)
    return Generate(prompts=prompts, engine=engine, sampling=Sampling(**sampling)).run(folder, quiet=True).folder


def rewrite(part: Path, **changes: Any) -> None:
    path = part / "completions.jsonl"
    rows = [json.loads(line) | changes for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_answer_is_compared_as_squad_does() -> None:
    assert normalise("  The  Eiffel-Tower, (an) old. ") == "eiffeltower old"
    assert judge("The capital is Paris.", "paris")[0] == 1
    assert judge("The capital is Paris.", "paris", within=False)[0] == 0
    assert judge("the Paris!", "paris", within=False)[0] == 1
    assert judge("Parisian", "paris")[0] == 0, "words, not letters"
    assert judge("Rome\nParis", "paris")[0] == 0, "the first line"
    assert judge("lyon", ["Paris", "Lyon"])[0] == 1
    assert judge("", "paris")[0] == 0 and judge("x", "the")[0] == 0
    assert judge("Rome, not Paris", "Rome", original="Paris") == (1, {"original": True})
    for nothing in ("A", "the", "!!!", ""):
        assert judge("", nothing)[0] == judge("", nothing, within=False)[0] == 0, nothing
    assert judge("(A)", "A")[0] == judge("35", "3.5", within=False)[0] == 1
    for said, wanted in (("北京。", "北京"), ("“Paris”", "Paris"), ("Straße", "STRASSE"), ("Sa\u0303o", "São")):
        assert judge(said, wanted, within=False)[0] == 1, said
    for wrong in (None, [], 3, [""] * 0, [1]):
        with pytest.raises(InputError, match=r"reference\.answer"):
            judge("x", wrong)


def test_facts_have_others_to_be_contradicted_with() -> None:
    for name, relation in RELATIONS.items():
        assert len(set(relation.facts.values())) >= 5, name
        assert all(key and value for key, value in relation.facts.items()), name
        assert "{subject}" in relation.question and "{answer}" in relation.sentence, name


def test_what_is_known_is_contradicted_and_answers_are_compared(tmp_path: Path) -> None:
    """Three facts are known; one method follows the context, one does by half of its seeds, one never."""
    script = tmp_path / "script.jsonl"
    known = {"capital of France": "It is Paris.", "capital of Japan": "Tokyo", "opposite of the word 'hot'": "Cold!"}
    script.write_text("".join(json.dumps({"when": key, "replies": [text]}) + "\n" for key, text in known.items()))
    done = Conflicts(engine=Scripted(script=script, replies=("no idea",)), per_fact=3).run()
    assert done.figures == {"questions": 9, "known": 3}
    total = sum(len(relation.facts) for relation in RELATIONS.values())
    assert done.manifest["counts"]["dropped"] == {"known: another answer": total - 3}
    prompts = done.path("prompts.jsonl")
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    for row in rows:
        wanted, original = row["reference"]["answer"], row["reference"]["original"]
        assert wanted != original and wanted in row["prompt"] and original not in row["prompt"]
        assert row["prompt"].endswith(row["negative"]) and wanted not in row["negative"]
    parts = [
        decode(prompts, tmp_path / "follows", "{prompt}"),  # its first line is the context
        decode(prompts, tmp_path / "never", "nothing"),
        decode(prompts, tmp_path / "again", "nothing"),
        decode(prompts, tmp_path / "some_0", "{prompt}"),
        decode(prompts, tmp_path / "some_1", "{prompt}", seed=1),
    ]
    rewrite(parts[-1], text="Paris")
    result = Answers(prompts=prompts, parts=tuple(parts), baseline="never").run()
    alone = (result.folder / "summary.json").read_text()
    methods = json.loads(alone)["methods"]
    assert {name: row["score"]["mean"] for name, row in methods.items()} == {
        "follows": 1,
        "never": 0,
        "again": 0,
        "some": 0.5,
    }
    wins = {name: row["win_rate"]["mean"] for name, row in methods.items() if name != "never"}
    assert wins == {"follows": 1, "again": 0.5, "some": 1}, "a tie is half a win"
    assert methods["some"]["difference"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert methods["some"]["original"]["mean"] == pytest.approx(0.5 * 3 / 9, abs=1e-4)
    assert "difference" not in methods["never"]
    grouped = Answers(prompts=prompts, parts=tuple(parts), baseline="never", group_by="fact").run()
    summary = json.loads((grouped.folder / "summary.json").read_text())
    assert (summary["num_prompts"], summary["num_groups"]) == (9, 3)
    assert summary["methods"]["some"]["score"]["mean"] == 0.5
    wide, narrow = (found["methods"]["some"]["original"] for found in (summary, json.loads(alone)))
    assert wide["mean"] == narrow["mean"] and wide["high"] - wide["low"] > narrow["high"] - narrow["low"]
    with pytest.raises(InputError, match="a tag of all prompts: relation, subject, fact"):
        Answers(prompts=prompts, parts=tuple(parts), group_by="topic").run()
    with pytest.raises(InputError, match="baseline"):
        Answers(prompts=prompts, parts=tuple(parts), baseline="other").run()


def test_seeds_of_a_method_share_its_name() -> None:
    assert name_method(Path("a/nucleus_12")) == "nucleus"
    assert name_method(Path("a/k4")) == "k4"


def test_parts_of_one_name_are_refused(tmp_path: Path) -> None:
    """The same name twice; and seeds that differ in more than their seed, which is named."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    one, two = (decode(prompts, tmp_path / side / "same", reply) for side, reply in (("x", "yes"), ("y", "no")))
    with pytest.raises(InputError, match="a second part 'same'"):
        check_parts((one, two))
    weak, strong = (decode(prompts, tmp_path / f"limit_{size}", "a b c", max_new_tokens=size) for size in (1, 2))
    with pytest.raises(InputError, match=r"sampling\.max_new_tokens is 2, and 1 in limit_1(.|\n)*Rename"):
        check_parts((weak, one, strong))
    moved = prompts.rename(tmp_path / "moved.jsonl")
    seeds = tuple(decode(moved, tmp_path / f"seed_{seed}", "a", seed=seed) for seed in (3, 4))
    check_parts((one, weak, *seeds))


def test_prompts_that_not_all_answered_are_kept_with_the_reason(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text, "reference": {"answer": "yes"}}) + "\n" for text in "abc"))
    whole, part = (decode(prompts, tmp_path / name, "yes") for name in ("whole", "part"))
    path = part / "completions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    done = Answers(prompts=prompts, parts=(whole, part)).run()
    (row,) = map(json.loads, done.path("dropped.jsonl").read_text().splitlines())
    assert (row["stage"], row["reason"], row["detail"]) == ("compare", "not in all parts", "part")
    assert done.manifest["counts"]["kept"] == 2


def test_runs_with_other_seeds_are_one_table(tmp_path: Path) -> None:
    """By hand: a prompt that both runs asked counts once, by its mean; pairs are of the same runs' answers."""
    runs: list[Path] = []
    for at, (asked, replies) in enumerate((("ab", ("yes", "no")), ("bc", ("no", "yes")))):
        prompts = tmp_path / f"{at}.jsonl"
        rows = [{"prompt": text, "reference": {"answer": "yes"}} for text in asked]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        parts = [decode(prompts, tmp_path / str(at) / name, text) for name, text in zip("xy", replies, strict=True)]
        if at:
            rewrite(parts[1], text="yes")
        runs.append(Answers(prompts=prompts, parts=tuple(parts)).run(tmp_path / f"run{at}", quiet=True).folder)
    joined = Answers(runs=tuple(runs), baseline="x").run(tmp_path / "joined", quiet=True)
    summary = json.loads(joined.path("summary.json").read_text())
    assert (summary["num_prompts"], summary["num_groups"]) == (3, 3)
    score = {name: row["score"]["mean"] for name, row in summary["methods"].items()}
    assert score == {"x": 0.5, "y": 0.5}, "x: 1, (1 + 0) / 2, 0; y: 0, (0 + 1) / 2, 1"
    row = summary["methods"]["y"]
    assert (row["difference"]["mean"], row["difference"]["low"], row["difference"]["high"]) == (0, -1, 1)
    assert row["win_rate"]["mean"] == 0.5
    for fields, said in (
        ({"runs": tuple(runs), "parts": (tmp_path / "0" / "x",)}, "parts, runs: both"),
        ({}, "parts, runs: neither"),
        ({"runs": tuple(runs), "prompts": tmp_path / "0.jsonl"}, "prompts, runs: prompts"),
        ({"runs": tuple(runs), "scorer": ExactAnswer(within=False)}, "prompts, runs: scorer"),
        ({"parts": (tmp_path / "0" / "x",)}, "prompts beside parts"),
        ({"runs": (runs[0], tmp_path)}, "what an earlier job wrote"),
    ):
        with pytest.raises(InputError, match=said):
            Answers(**fields).run(tmp_path / "bad", quiet=True)
    alone = Answers(prompts=tmp_path / "0.jsonl", parts=(tmp_path / "0" / "x",)).run(tmp_path / "one", quiet=True)
    with pytest.raises(InputError, match="no answers of y"):
        Answers(runs=(runs[0], alone.folder), baseline="x").run(tmp_path / "bad", quiet=True)


def test_more_other_answers_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="per_fact: 40"):
        Conflicts(engine=Scripted(), per_fact=40).check()


def test_a_model_that_knows_nothing_is_said_to() -> None:
    with pytest.raises(InputError, match="none is known"):
        Conflicts(engine=Scripted(replies=("no idea",))).run()
