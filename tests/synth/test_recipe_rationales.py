"""Rationales: which are positives, which are negatives, and what is no vote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Answer, Completion, Dropped, Exchange, Group, Prompt, Record, Score
from decode.steps import Ask, Refusal
from eval.scorer import LocalScorer
from eval.scorers.verifiable import Verifiable
from synth.recipes.rationales import Rationales
from synth.synthesize import Synthesize

PROMPT = Prompt.make("How many?", reference={"answer": "4"})


def hold(
    recipe: Rationales, *answered: Sequence[str], prompt: Prompt = PROMPT, scorer: LocalScorer | None = None
) -> tuple[Group | Refusal, list[Score]]:
    """Give the recipe these texts for what it asks in turn; one that ends in `...` was cut off. Return all scores too."""
    steps = recipe.make(prompt, scorer or Verifiable())
    asked = [item for item in next(steps) if isinstance(item, Ask)]
    assert [item.sampling.n for item in asked] == [len(texts) for texts in answered]
    numbers = iter(range(100))
    answers = [
        tuple(
            Completion.make(
                prompt_id=prompt.id, index=next(numbers), text=text, num_prompt_tokens=1, num_tokens=1,
                finish_reason="length" if text.endswith("...") else "stop",
            )
            for text in texts
        )
        for texts in answered
    ]  # fmt: skip
    scores: list[Score] = []
    try:
        kept = steps.send(answers)
        while True:
            scores += [item for item in kept if isinstance(item, Score)]
            kept = steps.send([()] * len(kept))
    except StopIteration as stop:
        (group,) = stop.value
        return group, scores
    except Refusal as refusal:
        return refusal, scores


def split(found: Group | Refusal) -> dict[str, list[tuple[str, float | None]]]:
    """Return texts with their quality, by role."""
    assert isinstance(found, Group), found
    roles = ("chosen", "rejected", "")
    return {role: [(item.text, item.score) for item in found.answers if item.role == role] for role in roles}


def alone(**changes: Any) -> Rationales:
    return Rationales(n=5, hot_n=0, **changes)


def test_those_that_agree_with_the_vote_are_positives_the_others_negatives() -> None:
    """Three of five come to 4, two to other answers: shares 0.6, 0.2 and 0.2. The label is the winner, asked for alone."""
    found, scores = hold(alone(), ["so 4", "thus 5", "2 + 2 is 4.0", "The answer is 4.", "maybe 6"])
    assert split(found) == {
        "chosen": [("so 4", 0.6), ("2 + 2 is 4.0", 0.6), ("The answer is 4.", 0.6)],
        "rejected": [("thus 5", 0.2), ("maybe 6", 0.2)],
        "": [("4", None)],
    }
    assert isinstance(found, Group)
    assert [item.final for item in found.answers] == ["4", "5", "4.0", "4", "6", "4"]
    assert [item.value for item in scores] == [0.6, 0.2, 0.6, 0.6, 0.2]
    explain, label = found.prompt[0], found.answers[-1].prompt
    assert isinstance(explain, dict)
    assert explain["content"].startswith("How many?\n\nExplain it in a few short steps.")
    assert label == ({"role": "user", "content": "How many?\n\nReply with the answer alone."},)
    assert found.reference == PROMPT.reference


def test_earlier_turns_stay_before_the_question() -> None:
    turns = [
        {"role": "system", "content": "Be brief {so}."}, {"role": "user", "content": "How {many}?"},
    ]  # fmt: skip
    asked = next(alone().make(Prompt.make(turns), Verifiable()))[0]  # type: ignore[arg-type]
    assert isinstance(asked, Ask)
    assert asked.prompt[0] == turns[0]
    assert str(asked.prompt[1]["content"]).startswith("How {many}?\n\nExplain")  # type: ignore[index]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["is 4", "is 4", "is 5", "is 5", "is 6"], "low confidence"),
        (["is 4...", "is 4...", "is 4...", "is 4", "is 5"], "most rationales come to nothing"),
        (["a 4", "b 4", "c 4", "d 4", "e 4"], "too few negatives"),
        (["a 5", "b 5", "c 5", "d 4", "e 4"], "not the known answer"),
    ],
)
def test_what_makes_no_group(texts: list[str], reason: str) -> None:
    found, scores = hold(alone(known=True), texts)
    assert isinstance(found, Refusal)
    assert found.reason == reason
    assert len(scores) == 5, "shares are kept whatever comes of them"


def test_a_tie_is_no_vote() -> None:
    """2 and 2 of 5 pass a small threshold and are refused all the same; an answer that ties with silence is none."""
    found, _ = hold(alone(min_share=0.3), ["is 4", "is 4", "is 5", "is 5", "is 6"])
    assert isinstance(found, Refusal)
    assert (found.stage, found.reason, found.detail) == ("vote", "tied vote", "0.40")
    found, _ = hold(
        alone(min_share=0.3, marked=True), ["The answer is 4", "The answer is 4.", "well", "hm", "Answer: 5"]
    )
    assert [text for text, _ in split(found)["chosen"]] == ["The answer is 4", "The answer is 4."]


def test_a_voter_that_was_cut_off_votes_for_nothing_and_is_learnt_on_no_side() -> None:
    """Three of five still make the share of 0.6."""
    found, scores = hold(alone(), ["is 4", "is 4", "so it is 4", "it is 5...", "it is 6"])
    assert split(found)["rejected"] == [("it is 6", 0.2)]
    assert [item.value for item in scores] == [0.6, 0.6, 0.6, 0.0, 0.2]
    assert len(split(found)["chosen"]) == 2, "one text is learnt once"


def test_hot_ones_do_not_vote_and_are_negatives_where_they_disagree() -> None:
    """Two hot ones of the main model and two of a student as it was: 5 has a fifth of the votes, 9 none."""
    recipe = Rationales(n=5, hot_n=2, hot_roles=("", "lag"))
    assert recipe.asks().keys() == {"", "lag"}
    asked = [item for item in next(recipe.make(PROMPT, Verifiable())) if isinstance(item, Ask)]
    assert [(item.role, item.sampling.n, item.sampling.temperature) for item in asked] == [
        ("", 5, 0.7), ("", 2, 1.5), ("lag", 2, 1.5),
    ]  # fmt: skip
    assert len({str(item.prompt) for item in asked}) == 1
    found, _ = hold(recipe, ["a 4", "b 4", "c 4", "d 4", "e 5"], ["wild 9", "wild 4"], ["old 5", "  "])
    assert split(found) == {
        "chosen": [("a 4", 0.8), ("b 4", 0.8), ("c 4", 0.8), ("d 4", 0.8)],
        "rejected": [("e 5", 0.2), ("wild 9", 0.0), ("old 5", 0.2)],
        "": [("4", None)],
    }
    assert not Rationales(hot_n=0, hot_roles=("lag",)).asks().keys() - {""}


def test_a_hot_one_that_was_cut_off_is_a_negative_without_an_end() -> None:
    found, scores = hold(Rationales(n=3), ["a 4", "b 4", "c 4"], ["on and on, 4..."])
    assert split(found)["rejected"] == [("on and on, 4...", 0.0)]
    assert isinstance(found, Group)
    assert [item.is_cut for item in found.answers] == [False, False, False, True, False]
    assert scores[-1].detail == {"final": "", "won": False}


def test_a_known_answer_is_no_models_to_see(tmp_path: Path) -> None:
    for prompt, reason in (
        (Prompt.make("How many?", reference={"answer": "5"}), "not the known answer"),
        (Prompt.make("How many?", reference={}), "no known answer"),
        (Prompt.make("How many?", reference={"answer": True}), "no known answer"),
    ):
        found, _ = hold(alone(known=True), ["a 4", "b 4", "c 4", "d 6", "e 5"], prompt=prompt)
        assert isinstance(found, Refusal)
        assert (found.stage, found.reason) == ("vote", reason)
    found, _ = hold(alone(known=True), ["a 4", "b 4", "c 4", "d 6", "e 5"])
    assert len(split(found)["rejected"]) == 2


class Length(LocalScorer):
    """Tenths of characters."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Count."""
        return Score(completion_id=completion.id, scorer="length", value=len(completion.text) / 10)


def test_quality_may_be_a_scorers() -> None:
    found, scores = hold(alone(quality="scorer"), ["a 4", "bb 4", "ccc 4", "d 5", "ee 6"], scorer=Length())
    assert split(found)["chosen"] == [("a 4", 0.3), ("bb 4", 0.4), ("ccc 4", 0.5)]
    assert split(found)["rejected"] == [("d 5", 0.3), ("ee 6", 0.4)]
    assert {item.scorer for item in scores} == {"length", "self_consistency"}
    found, _ = hold(alone(quality="scorer"), ["a 4", "b 4", "c 4", "d 5", "eleven chars 6"], scorer=Length())
    assert isinstance(found, Refusal)
    assert (found.stage, found.reason, found.detail) == ("quality", "a score outside of 0..1", "1.4")


def read(path: Path, cls: type[Record]) -> list[Any]:
    return list(read_jsonl(path, cls, where=path.name)) if path.stat().st_size else []


@pytest.fixture
def job(tmp_path: Path) -> Synthesize:
    """Return a run of five questions: one group, three that are refused, one that fails."""
    script = {
        "Which of good": ["It is 4", "So 4", "Then 4", "Hence 4", "No, 5"],
        "Which of torn": ["It is 1", "So 2", "Then 3", "Hence 4", "No, 5"],
        "Which of sure": ["It is 4", "So 4", "Then 4", "Hence 4", "Ah, 4"],
        "Which of wrong": ["It is 7", "So 7", "Then 7", "Hence 4", "No, 5"],
    }
    lines = [{"when": when, "replies": replies} for when, replies in script.items()]
    (tmp_path / "script.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = ["good", "torn", "sure", "wrong", "failing"]
    rows = [{"prompt": f"Which of {name}?", "reference": {"answer": 4}} for name in names]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": {"name": "file", "path": str(tmp_path / "prompts.jsonl")},
        "engine": {"name": "scripted", "script": str(tmp_path / "script.jsonl"), "fail_when": "failing"},
        "recipe": {"name": "rationales", "known": True, "hot_roles": ["lag"]},
        "roles": {"lag": {"model": "m", "engine": {"name": "scripted", "replies": ["Once more 8"]}}},
    }
    return build(Synthesize, values, source="test")


def test_what_comes_in_goes_out_as_a_group_or_a_named_drop(job: Synthesize, tmp_path: Path) -> None:
    """`sure` is kept: all voters agree, and the earlier student alone is wrong."""
    done = job.run(tmp_path / "run", quiet=True)
    counts = done.manifest["counts"]
    assert counts["dropped"] == {
        "vote: low confidence": 1, "vote: not the known answer": 1, "generate: request failed": 1,
    }  # fmt: skip
    assert counts["read"] == 5 == counts["kept"] + sum(counts["dropped"].values())
    good, sure = read(done.folder / "groups.jsonl", Group)
    assert [item.text for item in sure.answers if item.role == "rejected"] == ["Once more 8"]
    assert sorted(item.text for item in good.answers if item.role == "rejected") == ["No, 5", "Once more 8"]
    exchanges = read(done.folder / "exchanges.jsonl", Exchange)
    asked = {item.prompt_id: item.sent for item in exchanges}
    for group in (good, sure):  # the answers belong to their prompt
        (key,) = [key for key, sent in asked.items() if sent == group.prompt]
        said = {part.text for item in exchanges if item.prompt_id == key for part in item.completions}
        assert {item.text for item in group.answers if item.role} <= said
    scores = {item.completion_id for item in read(done.folder / "scores.jsonl", Score)}
    (failed,) = [item.id for item in read(done.folder / "dropped.jsonl", Dropped) if item.stage == "generate"]
    assert scores == {part.id for item in exchanges if item.prompt_id != failed for part in item.completions}
    assert [item for item in exchanges if item.prompt_id == failed], "what was answered beside what failed is kept"
    assert not [sent for sent in asked.values() if "4" in str(sent)], "the answer is shown to nobody"
    dropped = read(done.folder / "dropped.jsonl", Dropped)
    assert [item.stage for item in dropped] == ["vote", "vote", "generate"]
    again = job.run(tmp_path / "again", quiet=True)
    for name in ("groups.jsonl", "exchanges.jsonl", "scores.jsonl"):
        assert again.path(name).read_bytes() == done.path(name).read_bytes()


def test_distill_takes_what_it_makes(job: Synthesize, tmp_path: Path) -> None:
    from align.objectives.distill import Distill
    from eval.groups import read_groups

    done = job.run(tmp_path / "run", quiet=True)
    groups = list(read_groups(done.path("groups.jsonl")))
    assert len(groups) == 2
    for group in groups:
        assert isinstance(group, Group)
        assert Distill().select(group) == group
        label = [item for item in group.answers if not item.role]
        assert label == [Answer(text=label[0].text, final="4", prompt=label[0].prompt)]
        assert all(item.score is not None for item in group.answers if item.role)
