"""The account of a synthesis: numbers that follow from a handful of records by hand."""

from pathlib import Path
from typing import Literal

import pytest

from counterfoil.account import Account, Share, VerdictTally, read_account
from counterfoil.records import Comparison, Completion, Dropped, Exchange, Pair, Prompt, Record, Score

Verdict = Literal["first", "second", "tie"]


def write_records(path: Path, *records: Record) -> None:
    path.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")


def compare(forward: Verdict, backward: Verdict, chars: tuple[int, int] = (3, 3)) -> Comparison:
    return Comparison(
        id="c", prompt_id="p", judge="judge", completion_ids=("a", "b"), chars=chars, forward=forward, backward=backward
    )


def answer(prompt: Prompt, text: str, *, finish: str = "stop") -> Completion:
    return Completion.make(
        prompt_id=prompt.id, index=0, text=text, finish_reason=finish, num_prompt_tokens=7, num_tokens=len(text.split())
    )


def pair(ask: str, chosen: str, rejected: str, scores: tuple[float, float], finish: str = "stop") -> Pair:
    prompt = Prompt.make(ask)
    return Pair.make(prompt, answer(prompt, chosen, finish=finish), answer(prompt, rejected), scores=scores, recipe="r")


def test_a_share_has_wilsons_interval() -> None:
    """8 of 10: (0.8 + z2/20 -+ z sqrt(0.016 + z2/400)) / (1 + z2/10) with z = 1.96 is 0.490 to 0.943."""
    assert Share(8, 10).interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert Share(0, 10).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Share(10, 10).interval[1] == pytest.approx(1)
    assert Share(0, 0).interval == (0, 1)
    assert str(Share(0, 0).value) == "nan"


def test_verdicts_are_told_apart_by_what_the_order_does() -> None:
    """The second of two is better in either order; what is shown first; what is shown second; ties."""
    tally = VerdictTally()
    for found in (
        compare("second", "second", (9, 4)),
        compare("first", "first", (9, 4)),
        compare("first", "first"),
        compare("first", "second"),
        compare("first", "second"),
        compare("second", "first"),
        compare("tie", "tie"),
        compare("tie", "second"),
    ):
        tally.add(found)
    assert (tally.total, tally.consistent, tally.ties, tally.half_ties) == (8, 4, 1, 1)
    assert (tally.toward_first, tally.toward_second) == (2, 1)
    assert tally.shares["first, of those that the order decided"] == Share(2, 3)
    assert tally.shares["the longer one, of winners in both orders"] == Share(1, 2)
    assert tally.consistent + tally.half_ties + tally.toward_first + tally.toward_second == tally.total


def test_pairs_are_counted_with_their_repeats() -> None:
    """The third pair repeats the first one's chosen answer but for case, and rejects what the second chooses."""
    account = Account()
    for found in (
        pair("one", "A good answer", "Bad", (1.0, 0.25)),
        pair("two", "Short one", "A longer answer here", (0.5, 0.5), "length"),
        pair("two", "a  GOOD answer", "Short one", (0.0, 1.0)),
    ):
        account.pairs.add(found)
    pairs = account.pairs
    assert pairs.margins == [0.75, 0.0, -1.0]
    assert (pairs.ties, pairs.inverted, len(pairs), len(pairs.prompts)) == (1, 1, 3, 2)
    assert (pairs.repeated_chosen, pairs.on_both_sides) == (1, 1)
    assert [*pairs.words_chosen] == [3, 2, 3]
    assert pairs.longer_chosen == Share(2, 3)
    assert pairs.cut == {"chosen": 1}


def test_a_folder_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    prompt = Prompt.make("one")
    replies = (answer(prompt, "a b c"), answer(prompt, "d e", finish="length"))
    sent = Exchange(prompt_id=prompt.id, step="answer", sent=prompt.messages, completions=replies)
    write_records(tmp_path / "exchanges.jsonl", sent, sent)
    write_records(tmp_path / "scores.jsonl", Score(completion_id="a", scorer="s", value=0.5))
    write_records(tmp_path / "dropped.jsonl", Dropped(id="x", stage="contrast", reason="tie", detail="best 1"))
    write_records(tmp_path / "comparisons.jsonl", compare("tie", "tie"))
    (tmp_path / "pairs.jsonl").write_text('{"id": "no pair"}\n{torn\n')
    found = read_account(tmp_path)
    step = found.steps["answer", ""]
    assert (step.asked, step.answers, step.prompt_tokens, step.tokens, step.cut) == (2, 4, 14, 10, 2)
    assert [*found.scores["s"]] == [0.5]
    assert found.dropped == {("contrast", "tie"): 1}
    assert found.examples == {("contrast", "tie"): ["best 1"]}
    assert found.verdicts["judge"].ties == 1
    assert (len(found.pairs), found.unreadable) == (0, {"pairs.jsonl": 2})
    assert len(read_account(tmp_path / "nowhere").pairs) == 0
