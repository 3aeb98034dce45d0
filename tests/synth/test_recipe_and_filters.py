"""BestOfN and the filters: which pairs come out, by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from counterfoil.records import Completion, Dropped, Group, Pair, Prompt, Record, Score
from decode.steps import Ask, Refusal
from eval.scorer import LocalScorer
from synth.filter import LocalFilter
from synth.filters.length_only import LengthOnly
from synth.filters.near_duplicate import NearDuplicate
from synth.recipe import Candidate
from synth.recipes.best_of_n import BestOfN

Alone = Callable[[LocalFilter], Callable[[Pair], Dropped | None]]

PROMPT = Prompt.make("Say it.")


def candidate(
    index: int, score: float, text: str | None = None, *, num_tokens: int = 5, cut_off: bool = False
) -> Candidate:
    """Return sample `index` of PROMPT; texts differ unless given."""
    completion = Completion.make(
        prompt_id=PROMPT.id,
        index=index,
        text=f"answer {index}" if text is None else text,
        finish_reason="length" if cut_off else "stop",
        num_prompt_tokens=2,
        num_tokens=num_tokens,
    )
    return Candidate(completion, score)


class Known(LocalScorer):
    """Scores that are given, by completion."""

    values: dict[str, float]

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Look it up."""
        return Score(completion_id=completion.id, scorer="known", value=self.values[completion.id])


def hold(recipe: BestOfN, candidates: Sequence[Candidate]) -> list[Pair] | Refusal:
    """Give the recipe these answers; every candidate and every score is kept, whatever comes of them."""
    steps = recipe.make(PROMPT, Known(values={item.completion.id: item.score for item in candidates}))
    asked = next(steps)
    answers, start = list[tuple[Completion, ...]](), 0
    for item in asked:
        assert isinstance(item, Ask)
        answers.append(tuple(part.completion for part in candidates[start : start + item.sampling.n]))
        start += item.sampling.n
    records: list[Record] = []
    try:
        kept = steps.send(answers)
        while True:
            assert all(isinstance(item, Record) for item in kept), "one round of questions is all"
            records += [item for item in kept if isinstance(item, Record)]
            kept = steps.send([()] * len(kept))
    except StopIteration as stop:
        found = [item for item in stop.value if isinstance(item, Pair)]
    except Refusal as refusal:
        found = refusal
    assert [item.value for item in records if isinstance(item, Score)] == [item.score for item in candidates]
    (group,) = [item for item in records if isinstance(item, Group)]
    assert [item.text for item in group.answers] == [item.completion.text for item in candidates]
    return found


def contrast(*candidates: Candidate, margin: float = 0.5, max_pairs: int = 1) -> list[Pair] | Refusal:
    return hold(BestOfN(n=max(2, len(candidates)), margin=margin, max_pairs=max_pairs), candidates)


def indices(found: list[Pair] | Refusal, candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
    """Name pairs by the samples that they are made of: (chosen, rejected)."""
    assert isinstance(found, list)
    by_id = {item.completion.id: item.completion.index for item in candidates}
    return [(by_id[pair.chosen_id], by_id[pair.rejected_id]) for pair in found]


def test_the_best_is_set_against_the_worst() -> None:
    given = [candidate(0, 0.5), candidate(1, 1.0), candidate(2, 0.0)]
    found = contrast(*given)
    assert indices(found, given) == [(1, 2)]
    assert isinstance(found, list)
    assert (found[0].score_chosen, found[0].score_rejected, found[0].recipe) == (1.0, 0.0, "best_of_n")
    assert found[0].prompt == PROMPT.messages
    assert found[0].chosen == ({"role": "assistant", "content": "answer 1"},)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [([0.5, 0.5, 0.5], "all scored alike"), ([0.0, 0.49], "margin too small"), ([1.0, 0.6, 0.8], "margin too small")],
)
def test_a_tie_or_a_small_margin_is_no_pair(scores: list[float], reason: str) -> None:
    found = contrast(*(candidate(at, score) for at, score in enumerate(scores)))
    assert isinstance(found, Refusal)
    assert (found.stage, found.reason) == ("contrast", reason)
    assert found.detail == f"best score {max(scores):.3f}"


def test_a_difference_of_just_the_margin_is_a_pair() -> None:
    """0.75 - 0.25 is 0.5 in binary too."""
    given = [candidate(0, 0.25), candidate(1, 0.75)]
    assert indices(contrast(*given, margin=0.5), given) == [(1, 0)]


def test_one_text_twice_is_no_pair_whatever_its_scores() -> None:
    found = contrast(candidate(0, 0.0, "same"), candidate(1, 1.0, "same"))
    assert isinstance(found, Refusal)


@pytest.mark.parametrize("num_texts", [0, 1])
def test_answers_without_text_do_not_count(num_texts: int) -> None:
    given = [candidate(at, float(at), "some" if at < num_texts else " \n") for at in range(3)]
    found = contrast(*given)
    assert isinstance(found, Refusal)
    assert found.reason == "fewer than two answers with text"


def test_an_empty_answer_is_never_the_rejected_one() -> None:
    given = [candidate(0, 0.0, ""), candidate(1, 0.25), candidate(2, 1.0)]
    assert indices(contrast(*given), given) == [(2, 1)]


def test_among_equals_the_closest_lengths_are_taken() -> None:
    """Best: 10 and 40 tokens; worst: 18, 38 and 90. Differences: 8, 28, 80; 22, 2, 50. The smallest is (1, 3)."""
    lengths = [(1.0, 10), (1.0, 40), (0.0, 18), (0.0, 38), (0.0, 90)]
    given = [candidate(at, score, num_tokens=tokens) for at, (score, tokens) in enumerate(lengths)]
    assert indices(contrast(*given), given) == [(1, 3)]


def test_among_equals_a_finished_answer_is_chosen() -> None:
    given = [candidate(0, 1.0, num_tokens=9, cut_off=True), candidate(1, 1.0), candidate(2, 0.0, num_tokens=9)]
    assert indices(contrast(*given), given) == [(1, 2)]
    alone = [given[0], given[2]]
    assert indices(contrast(*alone), alone) == [(0, 2)]


@pytest.mark.parametrize(
    ("samples", "greedy", "expected"),
    [
        ((0.5, 1.0, 0.0), 0.5, (1, 3)),  # rejected where a sample is better by the margin
        ((0.5, 1.0, 0.0), 1.0, (3, 2)),  # chosen where it is better than a sample by the margin
        ((0.5, 1.0, 0.5), 0.75, (1, 0)),  # left alone where neither holds
    ],
)
def test_the_greedy_answer_makes_the_first_pair(
    samples: Sequence[float], greedy: float, expected: tuple[int, int]
) -> None:
    recipe = BestOfN(n=3, greedy=True)
    given = [candidate(at, score) for at, score in enumerate((*samples, greedy))]
    assert indices(hold(recipe, given), given) == [expected]
    asked = [item for item in next(recipe.make(PROMPT, Known(values={}))) if isinstance(item, Ask)]
    assert [(item.sampling.n, item.sampling.temperature) for item in asked] == [(3, 0.9), (1, 0.0)]


@pytest.mark.parametrize("policies, greedy", [(("strong", ""), False), (("",), True)])
def test_one_sample_each_is_enough_for_two(policies: tuple[str, ...], greedy: bool) -> None:
    pairs = BestOfN(n=1, policies=policies, greedy=greedy).contrast(PROMPT, [candidate(0, 0.0), candidate(1, 1.0)])
    assert [pair.chosen[0]["content"] for pair in pairs] == ["answer 1"]


def test_one_sample_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="n=1 of one policy makes no pair"):
        BestOfN(n=1)


def test_several_pairs_share_no_candidate_and_stop_at_the_margin() -> None:
    """Scores 1, .8, .6, .4, .2, 0: 1-0 and .8-.2 differ by 0.5 or more, .6-.4 by 0.2."""
    given = [candidate(at, score) for at, score in enumerate((1.0, 0.8, 0.6, 0.4, 0.2, 0.0))]
    assert indices(contrast(*given, max_pairs=9), given) == [(0, 5), (1, 4)]
    assert indices(contrast(*given, max_pairs=1), given) == [(0, 5)]
    assert indices(contrast(*given, max_pairs=9, margin=0.1), given) == [(0, 5), (1, 4), (2, 3)]


def test_swapping_the_scores_swaps_the_pair() -> None:
    given = [candidate(0, 0.0), candidate(1, 1.0)]
    swapped = [candidate(0, 1.0), candidate(1, 0.0)]
    assert indices(contrast(*given), given) == [(1, 0)]
    assert indices(contrast(*swapped), swapped) == [(0, 1)]


def make_pair(chosen: str, rejected: str, *, prompt: Prompt = PROMPT) -> Pair:
    sides = [candidate(at, 1.0 - at, text).completion for at, text in enumerate((chosen, rejected))]
    first, second = (item.renumber(prompt_id=prompt.id, index=item.index) for item in sides)
    return Pair.make(prompt, first, second, scores=(1.0, 0.0), recipe="test")


@pytest.mark.parametrize(
    ("rejected", "kept"),
    [(" abcdefghij", False), ("abcdefghiX", False), ("abcdefghXY", True), ("something else", True)],
)
def test_answers_almost_the_same_are_dropped(rejected: str, kept: bool, alone: Alone) -> None:
    """Indel similarity of two texts of 10 letters with one changed: 1 - 2/20 = 0.9; with two: 1 - 4/20 = 0.8."""
    why = alone(NearDuplicate(similarity=0.9))(make_pair("abcdefghij", rejected))
    assert (why is None) == kept
    if why is not None:
        assert (why.stage, why.reason) == ("near_duplicate", "answers almost the same")


def test_an_answer_chosen_before_is_dropped_unless_allowed(alone: Alone) -> None:
    """Case and spaces do not make another answer; each opening of the filter begins anew."""
    first = make_pair("One two three.", "no")
    again = make_pair("one  TWO three.", "other words", prompt=Prompt.make("Say it again."))
    judge = alone(NearDuplicate())
    assert judge(first) is None
    assert judge(make_pair("one two three.", "several pairs of one prompt")) is None
    why = judge(again)
    assert why is not None
    assert (why.id, why.reason) == (again.id, "chosen answer came before")
    assert judge(first) is not None
    assert alone(NearDuplicate())(again) is None
    judge = alone(NearDuplicate(across_pairs=False))
    assert judge(first) is judge(again) is None


@pytest.mark.parametrize(
    ("chosen", "rejected", "kept"),
    [
        ("abcdefghij and much more of it", "abcdefghij", False),
        ("abcdefghij", "abcdefghij and much more of it", False),
        ("abcdefghij and more", "  abcdefghij\n", False),
        ("abcdefghij and more", "abcdefghiX", True),
        ("something else", "abcdefghij", True),
    ],
)
def test_an_answer_that_begins_the_other_is_dropped(chosen: str, rejected: str, kept: bool) -> None:
    """One letter of ten changed is a similarity of 0.9, below the usual 0.95."""
    why = LengthOnly().open()(make_pair(chosen, rejected))
    assert (why is None) == kept
    if why is not None:
        assert (why.stage, why.reason) == ("length_only", "one answer begins the other")


def test_the_threshold_of_length_only() -> None:
    assert LengthOnly(similarity=0.9).open()(make_pair("abcdefghij and more", "abcdefghiX")) is not None


def test_a_pair_takes_only_answers_to_its_prompt() -> None:
    good = candidate(0, 1.0).completion
    stranger = good.model_copy(update={"prompt_id": "0000000000000000"})
    for chosen, rejected in ((good, stranger), (stranger, good), (stranger, stranger)):
        with pytest.raises(ValueError, match="0000000000000000"):
            Pair.make(PROMPT, chosen, rejected, scores=(1.0, 0.0), recipe="test")


@pytest.mark.parametrize(("chosen", "rejected"), [("same", "same"), ("", "some"), ("some", " \n")])
def test_a_pair_is_of_two_texts_that_are_there(chosen: str, rejected: str) -> None:
    with pytest.raises(ValueError, match="an empty answer, or one answer twice"):
        make_pair(chosen, rejected)


def test_a_pair_knows_which_side_was_cut_off() -> None:
    cut, whole = candidate(0, 1.0, cut_off=True).completion, candidate(1, 0.0).completion
    assert Pair.make(PROMPT, cut, whole, scores=(1.0, 0.0), recipe="test").cut == ("chosen",)
    assert Pair.make(PROMPT, whole, cut, scores=(1.0, 0.0), recipe="test").cut == ("rejected",)


def test_an_id_is_of_the_content() -> None:
    assert make_pair("a", "b") == make_pair("a", "b")
    assert make_pair("a", "b").id != make_pair("b", "a").id
    assert len(make_pair("a", "b").id) == 16
    assert Prompt.make("Say it.", tags={"topic": "x"}).id == PROMPT.id
    assert Prompt.make("Say it.", reference={"n": 1}).id != PROMPT.id
    assert Prompt.make([{"role": "user", "content": "Say it."}]) == PROMPT


def test_pairs_load_as_a_data_set(tmp_path: Path) -> None:
    """The columns that TRL wants, as message lists, and the scores as numbers."""
    from datasets import load_dataset

    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(make_pair(f"good {at}", f"bad {at}").model_dump_json() + "\n" for at in range(3)))
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"} <= set(rows.column_names)
    assert rows[1]["prompt"] == [{"role": "user", "content": "Say it."}]
    assert rows[1]["chosen"] == [{"role": "assistant", "content": "good 1"}]
    assert rows[1]["rejected"] == [{"role": "assistant", "content": "bad 1"}]
    assert (rows[1]["score_chosen"], rows[1]["score_rejected"]) == (1.0, 0.0)
    assert Pair.model_validate(json.loads(path.read_text().splitlines()[0])) == make_pair("good 0", "bad 0")
