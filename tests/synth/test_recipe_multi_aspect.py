"""MultiAspect: which reviews are kept, what goes on from what, and that the surest are the ones of least entropy."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import build
from counterfoil.job import Finished
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Dropped, Exchange, Group, Record, Score, Triplet
from decode.engine import Given, GivenLogprobs, Request, Result
from decode.engines.scripted import Scripted, ScriptedSession
from decode.speaker import Role
from synth.synthesize import Synthesize

REVIEW = "The soup was hot and good."
REFERENCE = {"aspect": "soup", "polarity": "positive"}


class Minded(Scripted):
    """The double, as a classifier: a word that a review holds in capitals, as `POSITIVE 4`, is so many nats likelier."""

    def open(self, model: str, *, adapters: Any = (), methods: Any = ()) -> ScriptedSession:
        """Open it."""

        class Session(ScriptedSession):
            def _answer(self, item: Request | Given) -> Result | GivenLogprobs:
                assert isinstance(item, Given)
                said, word = str(item.prompt).split(), str(item.text).strip().upper()
                return GivenLogprobs(item.id, (float(said[said.index(word) + 1]) if word in said else 0.0,))

        return Session(self, model, [])


def write(*reviews: str) -> str:
    return json.dumps({"reviews": reviews})


def script(**replies: str | Sequence[str]) -> list[dict[str, Any]]:
    """Answer the channels: `add` and `turn` go from the review, `add_turn` and `turn_add` from what those wrote."""
    asked = {
        "add_turn": "FIRST ADDED\n\nWrite",
        "turn_add": "FIRST TURNED\n\nWrite",
        "add": "and says something about",
        "turn": "in which the opinion",
    }
    return [
        {"when": when, "replies": [replies[name]] if isinstance(replies[name], str) else list(replies[name])}
        for name, when in asked.items()
        if name in replies
    ]


ADDED = "Good soup, fair price. POSITIVE 5 FIRST ADDED"
TURNED = "Bad soup. NEGATIVE 5 FIRST TURNED"
ALL = script(
    add=write(ADDED, "Fine soup at a price. POSITIVE 4"),
    turn=write("Poor soup. NEGATIVE 4", TURNED),
    add_turn=write("Cold soup, low price. NEGATIVE 5", "Warm soup, high price. POSITIVE 5"),
    turn_add=write("Bad soup for the price. NEGATIVE 6", "Bad soup for its price. NEGATIVE 5"),
)


def read(folder: Path, name: str, cls: type[Record]) -> list[Any]:
    path = folder / name
    return list(read_jsonl(path, cls, where=name)) if path.exists() and path.stat().st_size else []


def synthesize(folder: Path, lines: Sequence[Any], *rows: Mapping[str, Any], **recipe: Any) -> Finished:
    """Write reviews by a script; what comes in goes out as triplets or as a named drop."""
    folder.mkdir(exist_ok=True)
    asked = rows or ({"prompt": REVIEW, "reference": REFERENCE},)
    for name, items in (("script", lines), ("prompts", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    values = {
        "task": {"name": "file", "path": str(folder / "prompts.jsonl")},
        "engine": {"name": "scripted", "script": str(folder / "script.jsonl")},
        "roles": {"classifier": Role(model="m", engine=Minded())},
        "recipe": {"name": "multi_aspect", "candidates": 2, "aspects": ["soup", "price"]} | recipe,
        "filters": [],
    }
    done = build(Synthesize, values, source="test").run(folder / "run", quiet=True)
    counts = done.manifest["counts"]
    assert counts["read"] == len(asked) == counts["kept"] + sum(counts.get("dropped", {}).values())
    return done


def test_what_agrees_is_set_against_what_does_not(tmp_path: Path) -> None:
    done = synthesize(tmp_path, ALL)
    found = read(done.folder, "triplets.jsonl", Triplet)
    assert [(item.anchor, item.positive, item.negative) for item in found] == [
        (REVIEW, ADDED, TURNED),
        (REVIEW, ADDED, "Cold soup, low price. NEGATIVE 5"),
        (REVIEW, ADDED, "Bad soup for the price. NEGATIVE 6"),
    ]
    reasons = [item.reason for item in read(done.folder, "refused.jsonl", Dropped)]
    assert reasons == [
        "aspect: surer ones are kept",
        "polarity: surer ones are kept",
        "aspect, polarity: the classifier says another polarity",
        "polarity, aspect: surer ones are kept",
    ]
    assert len(read(done.folder, "scores.jsonl", Score)) == 8, "every candidate is kept with its score"


def test_a_kept_review_is_a_question_with_its_answer(tmp_path: Path) -> None:
    done = synthesize(tmp_path, ALL)
    groups = read(done.folder, "groups.jsonl", Group)
    assert [group.reference["answer"] for group in groups] == ["positive", *["negative"] * 3]
    for group in groups:
        assert [item.text for item in group.answers if item.role == "chosen"] == [group.reference["answer"]]
        assert sum(item.score or 0 for item in group.answers) == pytest.approx(1)
        assert max(group.answers, key=lambda item: item.score or 0).role == "chosen"


def test_certainty_is_one_less_the_share_of_the_entropy(tmp_path: Path) -> None:
    """Log-odds of ln 2 and 0, 0 are shares 1/2, 1/4, 1/4: 1.5 bits of log2 3."""
    two = math.log(2)
    done = synthesize(tmp_path, script(add=write(f"Soup at a price. POSITIVE {two}", "Price of soup. NEUTRAL 0")))
    first, second = read(done.folder, "scores.jsonl", Score)
    assert first.value == pytest.approx(1 - 1.5 / math.log2(3), abs=1e-5)
    assert first.detail["shares"] == pytest.approx({"positive": 0.5, "negative": 0.25, "neutral": 0.25}, abs=1e-5)
    assert second.value == pytest.approx(0, abs=1e-5)


def test_the_least_entropy_is_kept_and_never_the_largest(tmp_path: Path) -> None:
    """The released code of the paper keeps the largest."""
    reviews = [f"Soup, price {at}. POSITIVE {nats}" for at, nats in enumerate((2, 6, 4))]
    lines = script(add=write(*reviews), turn=write("Soup a. NEGATIVE 9", "Soup b.", "Soup c."))
    done = synthesize(tmp_path, lines, candidates=3)
    assert {item.positive for item in read(done.folder, "triplets.jsonl", Triplet)} == {reviews[1]}
    two = synthesize(tmp_path / "two", lines, candidates=3, keep=2)
    assert {item.positive for item in read(two.folder, "triplets.jsonl", Triplet)} == {reviews[1], reviews[2]}


@pytest.mark.parametrize(
    ("review", "reason"),
    [
        (REVIEW, "a copy"),
        ("Broth at a price. POSITIVE 5", "the aspect is gone"),
        ("Good soup. POSITIVE 5", "the new aspect is not there"),
        ("Soup at a price. NEGATIVE 5", "the classifier says another polarity"),
        ("Soup at a price. POSITIVE 0.1", "the classifier is not sure"),
    ],
)
def test_what_is_not_what_it_should_be_is_dropped_with_its_text(tmp_path: Path, review: str, reason: str) -> None:
    done = synthesize(tmp_path, script(add=write(review), turn=write(TURNED)), candidates=1)
    assert done.manifest["counts"]["dropped"] == {"multi_aspect: no review that agrees": 1}
    refused = read(done.folder, "refused.jsonl", Dropped)
    assert refused[0].reason == f"aspect: {reason}"
    assert refused[0].detail.endswith(review)
    assert "aspect, polarity: nothing to go on from" in [item.reason for item in refused]


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ({}, "the reference has no aspect or no polarity"),
        (REFERENCE | {"polarity": "good"}, "the reference has no aspect or no polarity"),
        (REFERENCE | {"polarity": "neutral"}, "a neutral review has no opposite"),
        (REFERENCE | {"aspect": "price"}, "the review names every aspect"),
    ],
)
def test_a_reference_that_is_none_is_a_named_drop(tmp_path: Path, reference: Any, reason: str) -> None:
    good = {"prompt": REVIEW, "reference": REFERENCE}
    done = synthesize(tmp_path, ALL, good, {"prompt": f"{REVIEW} ", "reference": reference})
    assert done.manifest["counts"]["dropped"] == {f"multi_aspect: {reason}": 1}


def test_a_review_of_white_space_is_a_named_drop(tmp_path: Path) -> None:
    done = synthesize(
        tmp_path, ALL, {"prompt": REVIEW, "reference": REFERENCE}, {"prompt": " ", "reference": REFERENCE}
    )
    assert done.manifest["counts"]["dropped"] == {"read: empty prompt": 1}


def test_unreadable_reviews_are_asked_for_again_and_then_dropped_with_their_text(tmp_path: Path) -> None:
    lines = script(add=write(ADDED, "Fine soup at a price. POSITIVE 4"), turn=["no", write("one alone")])
    done = synthesize(tmp_path, lines)
    refused = next(item for item in read(done.folder, "refused.jsonl", Dropped) if item.stage == "polarity")
    asked = [part for part in read(done.folder, "exchanges.jsonl", Exchange) if part.step == "polarity"]
    assert len(asked) == 3
    assert done.manifest["counts"]["dropped"] == {"multi_aspect: no review that disagrees": 1}
    assert refused.reason == "not as the schema asks"
    assert refused.detail == asked[-1].completions[0].text


def test_the_same_input_twice_is_the_same_output(tmp_path: Path) -> None:
    rows = [{"prompt": f"{REVIEW} {at}", "reference": REFERENCE} for at in range(6)]
    lines = [*ALL[:2], *script(add=["no", write(ADDED, "x")], turn=["no", write(TURNED, "y")])]
    runs = [synthesize(tmp_path / name, lines, *rows).folder for name in ("one", "two")]
    for name in ("triplets", "groups", "scores", "exchanges", "refused", "dropped"):
        one, two = ((folder / f"{name}.jsonl").read_bytes() for folder in runs)
        assert one == two
