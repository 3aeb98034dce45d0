"""Counterfactual: which twins are kept, what is asked on the way and what is not, where the paths lie."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.objectives.thought_path import ThoughtPath
from counterfoil.config import build
from counterfoil.job import Finished
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Dropped, Exchange, Group, Record
from eval.groups import read_groups
from synth.recipes.counterfactual import _combine, _Path, _Rationale
from synth.synthesize import Synthesize

CONTEXT = "Bob is cold. Cold things are rough."
QUESTION = "Is it true that Bob is rough?"
OPTIONS = ["True", "False", "Unknown"]
REFERENCE = {"options": OPTIONS, "answer": "A", "context": CONTEXT}
TWINS = {"B": "Bob is warm. Nothing warm is rough.", "C": "Bob has a dog."}


def argue(answer: str, premises: Sequence[str] = ("Bob is cold.", "Cold things are rough."), **relations: str) -> str:
    """Write what a model says of the three options: that of the answer is supported by the first premise."""
    options = {
        letter: {
            "analysis": f"Of {option} one can say this.",
            "relation": relations.get(letter, "supported" if letter == answer else "contradicted"),
            "premises": [1] if letter == answer else [],
        }
        for letter, option in zip("ABC", OPTIONS, strict=True)
    }
    return json.dumps({"premises": premises, "options": options, "answer": answer})


def say(when: str, *replies: str) -> dict[str, Any]:
    return {"when": when, "replies": replies}


def script(**answers: str) -> list[dict[str, Any]]:
    """Answer each step; `answers` are what the verifier comes to with the passage for B and for C."""
    return [
        say('that make the answer "False" right', json.dumps({"premises": ["Bob is warm.", "Nothing warm is rough."]})),
        say('that make the answer "Unknown" right', json.dumps({"premises": ["Bob has a dog."]})),
        say("2. Nothing warm", json.dumps({"passage": TWINS["B"]})),
        say("1. Bob has a dog", json.dumps({"passage": TWINS["C"]})),
        say("Nothing else matters", json.dumps({"passage": "?"})),
        *(say(TWINS[letter], argue(answer)) for letter, answer in answers.items()),
        say(CONTEXT, argue("A")),
    ]


def read(folder: Path, name: str, cls: type[Record]) -> list[Any]:
    path = folder / name
    return list(read_jsonl(path, cls, where=name)) if path.stat().st_size else []


def synthesize(folder: Path, lines: Sequence[Any], *rows: Mapping[str, Any], **recipe: Any) -> Finished:
    """Make twins by a script; what comes in goes out as a group or as a named drop."""
    folder.mkdir(exist_ok=True)
    asked = rows or ({"prompt": f"{CONTEXT}\n{QUESTION}", "reference": REFERENCE},)
    for name, items in (("script", lines), ("prompts", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    values = {
        "task": {"name": "file", "path": str(folder / "prompts.jsonl")},
        "engine": {"name": "scripted", "script": str(folder / "script.jsonl")},
        "recipe": {"name": "counterfactual"} | recipe,
        "filters": [],
    }
    done = build(Synthesize, values, source="test").run(folder / "run", quiet=True)
    counts = done.manifest["counts"]
    assert counts["prompts"] == len(asked) == counts["kept"] + sum(counts.get("dropped", {}).values())
    return done


def test_a_twin_that_comes_to_the_wanted_option_is_kept(tmp_path: Path) -> None:
    """The passage for B leads to B, that for C to A: one group, one refusal."""
    done = synthesize(tmp_path, script(B="B", C="A"))
    (group,) = read(done.folder, "groups.jsonl", Group)
    original, twin = group.answers
    assert (original.final, twin.final) == ("A", "B")
    assert group.prompt[-1]["content"] == f"{CONTEXT}\n{QUESTION}"
    assert original.prompt is None
    assert twin.prompt[-1]["content"] == f"{TWINS['B']}\n{QUESTION}", "the passage stands where the context stood"
    (refused,) = read(done.folder, "refused.jsonl", Dropped)
    assert refused.reason == "the new passage leads to another answer"
    assert TWINS["C"] in refused.detail


def test_paths_are_the_analyses_under_their_letters_as_thought_path_takes_them(tmp_path: Path) -> None:
    done = synthesize(tmp_path, script(B="B", C="C"))
    groups = list(read_groups(done.folder / "groups.jsonl"))
    assert len(groups) == 2
    for group in groups:
        assert isinstance(group, Group)
        assert ThoughtPath().select(group) == group
        for answer in group.answers:
            argued = {span.label: answer.text[span.start : span.stop] for span in answer.spans}
            assert argued == {
                letter: f"Of {option} one can say this." for letter, option in zip("ABC", OPTIONS, strict=True)
            }
            assert answer.text.endswith(f"The answer is {answer.final}.")
            assert answer.text.count("It is supported by premise 1.\n") == 1


def test_the_verifier_is_not_told_what_the_answer_should_be(tmp_path: Path) -> None:
    """It is asked the very words that the original was, with another passage."""
    done = synthesize(tmp_path, script(B="B", C="C"))
    parts = read(done.folder, "exchanges.jsonl", Exchange)
    assert [(part.step, part.role) for part in parts] == [
        ("analyse", "teacher"),
        *[("imagine", "teacher"), ("narrate", "teacher"), ("analyse", "verifier")] * 2,
    ]
    texts = [part.sent[-1]["content"] for part in parts]
    for at, letter in ((3, "B"), (6, "C")):
        assert texts[at] == texts[0].replace(CONTEXT, TWINS[letter])
    assert CONTEXT not in texts[1], "premises are imagined for the bare question"


def test_a_question_without_a_context_gets_a_passage_before_it(tmp_path: Path) -> None:
    row = {"prompt": f"{QUESTION} Cold things are rough.", "reference": {"options": OPTIONS, "answer": "A"}}
    lines = [*script(B="B")[:-1], say(QUESTION, argue("A"))]
    done = synthesize(tmp_path, lines, row, max_options=1)
    (group,) = read(done.folder, "groups.jsonl", Group)
    assert group.answers[1].prompt[-1]["content"] == f"{TWINS['B']}\n\n{row['prompt']}"


def test_an_original_that_comes_to_another_answer_has_no_twins(tmp_path: Path) -> None:
    done = synthesize(tmp_path, [say(CONTEXT, argue("C"))])
    assert done.manifest["counts"]["dropped"] == {"counterfactual: the original comes to another answer": 1}
    assert len(read(done.folder, "exchanges.jsonl", Exchange)) == 1


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ({}, "the reference has no list of options"),
        (REFERENCE | {"options": "True"}, "the reference has no list of options"),
        (REFERENCE | {"answer": "D"}, "the reference has no right option"),
        (REFERENCE | {"answer": ["A"]}, "the reference has no right option"),
        (REFERENCE | {"options": ["True", "True", "False"]}, "the reference has no right option"),
        (REFERENCE | {"options": ["True", "False"]}, "no option that is wrong in both"),
        (REFERENCE | {"context": "Bob is hot."}, "the context is not in the prompt"),
    ],
)
def test_a_reference_that_is_none_is_a_named_drop(tmp_path: Path, reference: Any, reason: str) -> None:
    good = {"prompt": f"{CONTEXT}\n{QUESTION} Say.", "reference": REFERENCE}
    bad = {"prompt": f"{CONTEXT}\n{QUESTION}", "reference": reference}
    done = synthesize(tmp_path, script(B="B", C="C"), good, bad)
    assert done.manifest["counts"]["dropped"] == {f"counterfactual: {reason}": 1}


def test_an_unreadable_step_is_asked_again_and_then_dropped_with_its_text(tmp_path: Path) -> None:
    """No premise has the number 9; the option C goes on."""
    broken = argue("B").replace("[1]", "[9]")
    lines = [say(TWINS["B"], broken, "well"), *script(C="C")]
    done = synthesize(tmp_path, lines)
    assert [group.answers[1].final for group in read(done.folder, "groups.jsonl", Group)] == ["C"]
    (refused,) = read(done.folder, "refused.jsonl", Dropped)
    assert (refused.stage, refused.reason) == ("analyse", "not as the schema asks")
    asked = [part for part in read(done.folder, "exchanges.jsonl", Exchange) if TWINS["B"] in part.sent[-1]["content"]]
    assert len(asked) == 3
    assert refused.detail == asked[-1].completions[0].text


@pytest.mark.parametrize(
    ("right", "wrong", "kept"),
    [
        (
            ("supported", [1]),
            ("contradicted", [2]),
            [3],
        ),  # what the old answer hangs on goes, and what is against the new
        (("supported", [1]), ("supported", [2]), [2, 3]),  # the same relation: no clash
        (("supported", [1]), ("unrelated", [2]), [2, 3]),
        (("supported", []), ("unrelated", []), []),  # names none: hangs on all
        (("unrelated", [1]), ("unrelated", [2]), [1]),  # right because nothing bears on it
        (("unrelated", []), ("contradicted", [2]), [1, 3]),
        (("contradicted", [1]), ("supported", []), []),
    ],
)
def test_old_premises_are_kept_by_the_papers_rule(right: Any, wrong: Any, kept: list[int]) -> None:
    """As organize_premises.py of the released code decides, worked out by hand."""
    paths = {
        letter: _Path(analysis="x", relation=relation, premises=premises)
        for letter, (relation, premises) in (("A", right), ("B", wrong))
    }
    original = _Rationale.model_construct(premises=["p1", "p2", "p3"], options=paths, answer="A")
    assert _combine(original, "A", "B", ["new"]) == [*(f"p{number}" for number in kept), "new"]


def test_the_same_input_twice_is_the_same_output(tmp_path: Path) -> None:
    rows = [{"prompt": f"{CONTEXT}\n{QUESTION} {at}", "reference": REFERENCE} for at in range(6)]
    lines = [say(TWINS["B"], argue("B"), "no", argue("C")), *script(C="C")]
    runs = [synthesize(tmp_path / name, lines, *rows).folder for name in ("one", "two")]
    for name in ("groups", "exchanges", "refused", "dropped"):
        one, two = ((folder / f"{name}.jsonl").read_bytes() for folder in runs)
        assert one == two
