"""Flaw: what is planted, where it is marked, who must find it, and what becomes of the rest."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.objectives.unlikelihood import Unlikelihood
from counterfoil.config import build
from counterfoil.errors import ConfigError
from counterfoil.job import Finished
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Comparison, Dropped, Exchange, Group, Pair, Record, Score
from decode.engine import Given, GivenLogprobs, Request, Result
from decode.engines.scripted import Scripted, ScriptedSession
from decode.speaker import Role
from eval.groups import read_groups
from synth.faults import RULES, Change, find_changes
from synth.synthesize import Synthesize

GOOD = "The bridge was built in 1932 by Anna Hall. It is older than the tower, which stands in Leeds."
VERDICT = '{"reason": "why", "better": "%s"}'
FINDS = [
    {"when": f" answer A>\n{GOOD}\n<", "replies": [VERDICT % "A"]},
    {"when": " answer A>", "replies": [VERDICT % "B"]},
]
"""A judge that knows the good answer, whichever it sees first."""


def write_lines(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(folder: Path, name: str, cls: type[Record]) -> list[Any]:
    path = folder / name
    return list(read_jsonl(path, cls, where=name)) if path.exists() and path.stat().st_size else []


def synthesize(
    folder: Path,
    script: Sequence[Any],
    *,
    answers: Sequence[str] = (GOOD,),
    judged_by: Scripted | None = None,
    fail_when: str = "",
    retry_failed: bool = False,
    **recipe: Any,
) -> Finished:
    """Plant flaws into these answers, by a script; what comes in goes out as a pair or as a named drop."""
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"Tell me of it, {at}.", "reference": {"answer": text}} for at, text in enumerate(answers)]
    values: dict[str, Any] = {
        "task": {
            "name": "file",
            "path": write_lines(folder / "prompts.jsonl", rows),
            "scoring": {"name": "exact_answer"},
        },
        "engine": {"name": "scripted", "script": write_lines(folder / "script.jsonl", script), "fail_when": fail_when},
        "roles": {"judge": Role(model="m", engine=judged_by)} if judged_by else {},
        "recipe": {"name": "flaw"} | recipe,
        "filters": [],
    }
    done = build(Synthesize, values, source="test").run(folder / "run", quiet=True, retry_failed=retry_failed)
    counts = done.manifest["counts"]
    assert counts["prompts"] == len(set(answers)) == counts["kept"] + sum(counts.get("dropped", {}).values())
    return done


def undo(flawed: str, changes: Sequence[Change]) -> str:
    """Put back what stood there."""
    for change in reversed(changes):
        flawed = flawed[: change.start] + change.was + flawed[change.stop :]
    return flawed


@pytest.mark.parametrize(
    ("good", "flawed", "changes"),
    [
        ("It has 12 legs.", "It has 13 legs.", [(7, 9, "12")]),
        ("It is good.", "It is not good.", [(5, 9, "")]),
        ("It is not good.", "It is good.", [(6, 10, "not good")]),  # nothing is left of it but its neighbour
        ("So it is, yes.", "So it is, yes", [(10, 13, "yes.")]),
        ("A is older than B.", "B is older than A.", [(0, 1, "A"), (16, 17, "B")]),
        ("Same.", "Same.", []),
    ],
)
def test_what_differs_is_found_to_the_character(good: str, flawed: str, changes: list[tuple[int, int, str]]) -> None:
    assert find_changes(good, flawed) == changes


words = st.lists(st.sampled_from(["a", "b", "B.", "12", "\n", "it's"]), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(words, words)
def test_what_stood_there_gives_the_good_answer_again(good: str, flawed: str) -> None:
    changes = find_changes(good, flawed)
    assert undo(flawed, changes) == good
    for change in changes:
        assert change.start < change.stop
        assert flawed[change.start : change.stop] != change.was


def apply(kind: Any, text: str) -> set[str]:
    return {text[: edit.start] + edit.now + text[edit.stop :] for edit in RULES[kind](text)}


def test_numbers_are_changed_but_not_those_of_lists_names_and_times() -> None:
    text = "1. At 10:30 the A380 left.\n2. It had 52 seats."
    assert apply("number", text) == {text.replace("52", f"5{digit}") for digit in "013456789"}
    assert apply("number", "It had 0 seats.") == {f"It had {digit} seats." for digit in "123456789"}
    assert len(apply("number", "It cost 1,250 dollars.")) == 18, "the latter two digits, in nine ways each"


def test_negations_are_turned_but_not_those_of_questions() -> None:
    text = "It is red. What is it? It isn't blue. You cannot go, you must not stay."
    assert apply("negation", text) == {
        text.replace("It is red", "It is not red"),
        text.replace("isn't", "is"),
        text.replace("cannot", "can"),
        text.replace("must not", "must"),
    }
    assert apply("negation", "We can go.") == {"We cannot go."}


def test_names_change_places_with_those_of_other_sentences() -> None:
    text = "She met Anna Hall in Leeds. They saw the UV-C lamp of Bert Hall."
    assert apply("entity", text) == {
        text.replace("Leeds", "Bert Hall"),
        text.replace("Bert Hall", "Leeds"),
    }, "Anna Hall and Bert Hall share a word, Anna Hall and Leeds a sentence"


def test_faults_by_rule_are_pairs_with_marked_spans(tmp_path: Path) -> None:
    done = synthesize(tmp_path, FINDS, kinds=["number", "negation", "entity"])
    pairs = read(done.folder, "pairs.jsonl", Pair)
    (group,) = read(done.folder, "groups.jsonl", Group)
    assert [(pair.chosen[0]["content"], pair.score_chosen, pair.score_rejected) for pair in pairs] == [(GOOD, 1, 0)] * 3
    assert group.answers[0].text == GOOD
    assert [item.text for item in group.answers[1:]] == [pair.rejected[0]["content"] for pair in pairs]
    assert [[span.label for span in item.spans] for item in group.answers] == [[], ["number"], ["negation"], ["entity"]]
    scores = {score.completion_id: score for score in read(done.folder, "scores.jsonl", Score)}
    for pair, answer in zip(pairs, group.answers[1:], strict=True):
        (span,) = answer.spans
        (change,) = scores[pair.rejected_id].detail["changes"]
        assert answer.text[span.start : span.stop] == change["now"] != change["was"]
        assert answer.text[: span.start] + change["was"] + answer.text[span.stop :] == GOOD
        assert scores[pair.rejected_id].detail["by"] == "rule"
    assert {part.step for part in read(done.folder, "exchanges.jsonl", Exchange)} == {"compare"}, "no model planted"
    (taken,) = read_groups(done.folder / "groups.jsonl")
    assert isinstance(taken, Group)
    assert Unlikelihood().select(taken) == group.model_copy(update={"source_id": ""})


def test_a_fault_that_the_judge_does_not_find_is_dropped(tmp_path: Path) -> None:
    """One judge says A in both orders, one prefers the flawed answer in both, one says tie."""
    always = [{"when": " answer A>", "replies": [VERDICT % "A"]}]
    wrong = [{"when": f" answer A>\n{GOOD}\n<", "replies": [VERDICT % "B"]}, *always]
    tie = [{"when": " answer A>", "replies": [VERDICT % "tie"]}]
    for number, lines in enumerate((always, wrong, tie)):
        done = synthesize(tmp_path / str(number), lines, kinds=["number"])
        assert done.manifest["counts"]["dropped"] == {"flaw: number: the judge does not find it": 1}
        assert read(done.folder, "pairs.jsonl", Pair) == read(done.folder, "groups.jsonl", Group) == []
        (compared,) = read(done.folder, "comparisons.jsonl", Comparison)
        (score,) = read(done.folder, "scores.jsonl", Score)
        assert compared.completion_ids[1] == score.completion_id, "the candidate and what was said of it are kept"


class Likes(Scripted):
    """The double, as a judge by likelihood: A is `first` nats likelier than B, and `good` more where it is good, or less."""

    first: float = 2.0
    good: float = 0.5

    def open(self, model: str, *, adapters: Any = (), methods: Any = ()) -> ScriptedSession:
        """Open it."""
        engine = self

        class Session(ScriptedSession):
            def _answer(self, item: Request | Given) -> Result | GivenLogprobs:
                assert isinstance(item, Given)
                knows = engine.good if f" answer A>\n{GOOD}\n<" in item.prompt[-1]["content"] else -engine.good  # type: ignore[index, call-overload, operator]
                return GivenLogprobs(item.id, (engine.first + knows if item.text == "A" else 0.0,))

        return Session(self, model, [])


def test_a_judge_that_likes_a_place_can_be_balanced(tmp_path: Path) -> None:
    """Shown first the good answer leads by 2.5 nats, shown second it is 1.5 behind: tanh(1.25) less tanh(0.75), halved."""
    judge = {"by": "likelihood", "tie_band": 0.05}
    given: dict[str, Any] = {"kinds": ["number"], "judge": judge}
    both = synthesize(tmp_path / "both", [], judged_by=Likes(), **given)
    assert both.manifest["counts"]["dropped"] == {"flaw: number: the judge does not find it": 1}
    done = synthesize(tmp_path / "balance", [], judged_by=Likes(), found="balance", **given)
    (pair,) = read(done.folder, "pairs.jsonl", Pair)
    expected = (math.tanh(1.25) - math.tanh(0.75)) / 2
    assert pair.score_chosen - pair.score_rejected == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ConfigError, match="tie_band above 0"):
        synthesize(tmp_path / "any", [], found="balance", kinds=["number"], judge={"by": "likelihood", "tie_band": 0})
    blind = synthesize(tmp_path / "blind", [], judged_by=Likes(good=0.05), found="balance", **given)
    assert blind.manifest["counts"]["dropped"] == {"flaw: number: the judge does not find it": 1}, "within the band"


def test_a_judge_that_names_the_sentence(tmp_path: Path) -> None:
    """It is shown each answer alone, numbered: 0 is no mistake, another sentence is not the fault."""
    answers = ["It has 3 legs. It is old.", "It is big. It has 4 legs."]
    sound = [{"when": text, "replies": ['{"sentence": 0}']} for text in ("1. It has 3 legs.", "2. It has 4 legs.")]
    for named, kept in ((1, [answers[0]]), (2, [answers[1]]), (0, [])):
        script = [*sound, {"when": "may have a mistake", "replies": [json.dumps({"sentence": named})]}]
        done = synthesize(tmp_path / str(named), script, answers=answers, kinds=["number"], found="place")
        pairs = read(done.folder, "pairs.jsonl", Pair)
        assert [pair.chosen[0]["content"] for pair in pairs] == kept
        assert [(pair.score_chosen, pair.score_rejected) for pair in pairs] == [(1, 0)] * len(kept)
        shown = [item for item in read(done.folder, "exchanges.jsonl", Exchange) if item.step == "find"]
        assert len(shown) == 4
        assert sum("It has 3 legs. It is old." in str(item.sent).replace("\\n2.", "") for item in shown) == 1
        dropped = done.manifest["counts"]["dropped"]
        assert dropped == {"flaw: number: the judge does not find it": 2 - len(kept)}


def test_a_judge_that_names_the_same_sentence_of_any_answer_finds_nothing(tmp_path: Path) -> None:
    for named in (1, 2):
        script = [{"when": "may have a mistake", "replies": [json.dumps({"sentence": named})]}]
        answers = ["It has 3 legs. It is old.", "It is big. It has 4 legs."]
        done = synthesize(tmp_path / str(named), script, answers=answers, kinds=["number"], found="place")
        assert done.manifest["counts"]["dropped"] == {"flaw: number: the judge does not find it": 2}


def test_a_kind_without_a_place_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    done = synthesize(tmp_path, [], answers=["It has 3 legs.", "No."], kinds=["number", "entity"], judge=None)
    assert [pair.score_rejected for pair in read(done.folder, "pairs.jsonl", Pair)] == [0.0]
    assert done.manifest["counts"]["dropped"] == {"flaw: number: no place for it": 1}
    refused = [item.reason for item in read(done.folder, "refused.jsonl", Dropped)]
    assert refused == ["entity: no place for it", "number: no place for it", "entity: no place for it"]


def test_a_request_that_failed_beside_what_was_kept_is_counted_and_asked_again_on_demand(tmp_path: Path) -> None:
    def run(*, retry_failed: bool) -> Finished:
        fails = {"fail_when": "which is larger", "retry_failed": retry_failed}
        return synthesize(tmp_path, FINDS, kinds=["number", "relation"], **fails)

    done = run(retry_failed=False)
    counts = done.manifest["counts"]
    assert (counts["kept"], counts["failed"], counts["dropped"]) == (1, 1, {})
    assert not run(retry_failed=False).fresh
    assert run(retry_failed=True).fresh


def rewrite(sentence: int, text: str) -> str:
    return json.dumps({"sentence": sentence, "rewritten": text})


def test_a_model_plants_by_writing_a_sentence_anew(tmp_path: Path) -> None:
    told = rewrite(2, "It is younger than the tower, which stands in Leeds.")
    done = synthesize(tmp_path, [*FINDS, {"when": "which is larger", "replies": [told]}], kinds=["relation"])
    (pair,) = read(done.folder, "pairs.jsonl", Pair)
    assert pair.rejected[0]["content"] == GOOD.replace("older", "younger")
    (group,) = read(done.folder, "groups.jsonl", Group)
    (span,) = group.answers[1].spans
    assert (group.answers[1].text[span.start : span.stop], span.label) == ("younger", "relation")


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("It is older than the tower, which stands in Leeds.", "nothing changed"),
        ("No.", "outside of the band of similarity"),
        ("It was older than the house, which stands in Leeds.", "changed in too many places"),
        ("It is older than the tower, which in some ways of looking at it stands in Leeds.", "changed too many words"),
        ("It is olders than the tower, which stands in Leeds.", "changed too little"),
    ],
)
def test_what_is_no_small_edit_is_dropped_with_its_text(tmp_path: Path, sentence: str, reason: str) -> None:
    done = synthesize(tmp_path, [{"when": "which is larger", "replies": [rewrite(2, sentence)]}], kinds=["relation"])
    assert done.manifest["counts"]["dropped"] == {f"flaw: relation: {reason}": 1}
    (refused,) = read(done.folder, "refused.jsonl", Dropped)
    assert refused.detail.endswith(sentence)


def test_an_unreadable_edit_is_asked_for_again_and_then_dropped_with_its_text(tmp_path: Path) -> None:
    script = [*FINDS, {"when": "which is larger", "replies": ["I would say", rewrite(9, "It is younger.")]}]
    done = synthesize(tmp_path, script, kinds=["relation", "number"])
    assert len(read(done.folder, "pairs.jsonl", Pair)) == 1, "the other kind goes on"
    (refused,) = read(done.folder, "refused.jsonl", Dropped)
    asked = [part for part in read(done.folder, "exchanges.jsonl", Exchange) if part.step == "plant relation"]
    assert len(asked) == 3
    assert (refused.stage, refused.reason) == ("plant relation", "not as the schema asks")
    assert refused.detail == asked[-1].completions[0].text


def test_a_verdict_that_cannot_be_read_drops_what_was_planted_and_loses_nothing(tmp_path: Path) -> None:
    done = synthesize(tmp_path, [{"when": " answer A>", "replies": ["hm"]}], kinds=["number", "negation", "relation"])
    refused = read(done.folder, "refused.jsonl", Dropped)
    assert [item.stage for item in refused] == ["compare", "compare", "plant relation"]
    assert done.manifest["counts"]["dropped"] == {"compare: not as the schema asks": 1}
    assert refused[0].detail == "hm"


def test_an_own_answer_is_the_best_whole_one_by_the_scorer(tmp_path: Path) -> None:
    """`bridge` is wanted: one sample has it and is cut off at nine words, one has it not, one has it."""
    samples = ["The bridge has 4 arches, as all of its kind have", "It has 3 arches.", "The bridge has 5 arches."]
    script = [{"when": "Tell me", "replies": samples}]
    done = synthesize(
        tmp_path, script, answers=["bridge"], good="own", n=3, kinds=["number"], judge=None, max_new_tokens=9
    )
    (pair,) = read(done.folder, "pairs.jsonl", Pair)
    assert pair.chosen[0]["content"] == samples[2]
    values = {
        score.completion_id: score.value for score in read(done.folder, "scores.jsonl", Score) if score.scorer != "flaw"
    }
    assert sorted(values.values()) == [0, 1, 1]
    assert values[pair.chosen_id] == 1
    done = synthesize(tmp_path / "none", script, answers=["tower"], good="own", n=3, kinds=["number"], judge=None)
    assert done.manifest["counts"]["dropped"] == {"flaw: no good answer": 1}


def test_the_same_input_twice_is_the_same_output(tmp_path: Path) -> None:
    answers = [GOOD, "It has 3 legs.", "She is not in Paris. He saw Rome in 1999."]
    script = [
        *FINDS,
        {"when": "Choose one", "replies": ["no", rewrite(1, "It has many legs."), rewrite(1, "It is so.")]},
    ]
    runs = [synthesize(tmp_path / name, script, answers=answers).folder for name in ("one", "two")]
    for name in ("pairs", "groups", "scores", "comparisons", "exchanges", "refused", "dropped"):
        one, two = ((folder / f"{name}.jsonl").read_bytes() for folder in runs)
        assert one == two
