"""Losses of our own on batches made by hand, and what each takes of a group."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from align.objective import Batch, Fresh, Objective, select_pair
from align.objectives.copg import Copg
from align.objectives.decoupled import Decoupled
from align.objectives.distill import Distill
from align.objectives.dpo import Dpo
from align.objectives.ipo import Ipo
from align.objectives.pairwise import Pairwise
from align.objectives.reward import Reward
from align.objectives.sft import Sft
from align.objectives.thought_path import ThoughtPath
from align.objectives.unlikelihood import Unlikelihood
from counterfoil.config import list_family
from counterfoil.records import Answer, Dropped, Group, Message, Span

LN2 = math.log(2)


def make_batch(
    groups: Sequence[Sequence[Answer]],
    log_probs: Sequence[Sequence[float]],
    *,
    labelled: Sequence[Sequence[int]] | None = None,
    states: Tensor | None = None,
) -> Batch:
    """Put answers and the log-probabilities of their tokens into a batch."""
    length = max(map(len, log_probs))
    values = torch.tensor([[*row, *[0.0] * (length - len(row))] for row in log_probs], requires_grad=True)
    mask = torch.tensor([[at < len(row) for at in range(length)] for row in log_probs])
    numbers = labelled or [[0] * len(row) for row in log_probs]
    answers = [(at, answer) for at, group in enumerate(groups) for answer in group]
    return Batch(
        log_probs_NT=values,
        mask_NT=mask,
        reference_N=torch.zeros(len(log_probs)),
        groups=[Group.make("Q", list(group)) for group in groups],
        group_N=torch.tensor([at for at, _ in answers]),
        score_N=torch.tensor([answer.score or 0.0 for _, answer in answers]),
        labelled_NT=torch.tensor([[*row, *[0] * (length - len(row))] for row in numbers]),
        states_NTD=torch.zeros(*values.shape, 4) if states is None else states,
    )


EVERY = (
    Copg(), Copg(preferences=True), Decoupled(), Distill(), Distill(contrast_weight=0), Dpo(),
    Ipo(), Pairwise(loss_type="hinge"), Reward(), Sft(),
    Sft(side="rejected"), ThoughtPath(), Unlikelihood(), Unlikelihood(way="only_spans"),
)  # fmt: skip


@pytest.mark.parametrize("objective", EVERY, ids=lambda item: type(item).__name__)
def test_what_was_selected_is_selected_again(objective: Objective) -> None:
    """Groups are selected when they are read and once more by the part that learns from them."""
    span = Span(start=0, stop=1, label="A")
    paths = [
        answer("abc", final=final, spans=[Span(start=at, stop=at + 1, label=name) for at, name in enumerate("ABC")])
        for final in "AB"
    ]
    groups = [
        [answer("a", score=1.0), answer("b", score=2.0)],
        [answer("a", "chosen"), answer("b", "rejected"), answer("c", "chosen")],
        [answer("a"), answer("b", spans=[span])],
        paths,
    ]
    asked = (Message(role="user", content="Q"),)
    taken = [found for rows in groups if isinstance(found := objective.select(Group.make(asked, rows)), Group)]
    assert taken
    assert [objective.select(found) for found in taken] == taken


def answer(text: str = "a", role: Any = "", score: float | None = None, **rest: Any) -> Answer:
    return Answer(text=text, role=role, score=score, **rest)


def reason(objective: Objective, *answers: Answer) -> str:
    found = objective.select(Group.make("Q", list(answers)))
    return found.reason if isinstance(found, Dropped) else "kept"


def texts(objective: Objective, *answers: Answer) -> list[str]:
    found = objective.select(Group.make("Q", list(answers)))
    assert isinstance(found, Group)
    return [item.text for item in found.answers]


def test_every_file_of_the_family_is_an_objective() -> None:
    names = list_family(Objective)
    assert set(names) >= {"copg", "decoupled", "distill", "dpo", "ipo", "pairwise", "reward", "sft", "thought_path"}


def test_a_pair_is_taken_by_role_or_else_by_score() -> None:
    def pair(*answers: Answer) -> Any:
        found = select_pair(Group.make("Q", list(answers)))
        return found.reason if isinstance(found, Dropped) else [item.text for item in found.answers]

    assert pair(answer("b", "rejected"), answer("a", "chosen")) == ["a", "b"]
    assert pair(answer("x", score=1), answer("y", score=3), answer("z", score=2)) == ["y", "x"]
    assert pair(answer("x", score=1), answer("y", score=1)) == "all scored alike"
    assert pair(answer("x", "chosen"), answer("x", "rejected")) == "chosen equals rejected"
    assert pair(answer("x", "chosen"), answer(" ", "rejected")) == "empty side"
    assert pair(answer("x", "chosen")) == "no pair"


def test_sft_takes_every_answer_of_its_side_or_the_best() -> None:
    assert texts(Sft(), answer("a", "chosen"), answer("b", "rejected"), answer("c", "chosen")) == ["a", "c"]
    assert texts(Sft(side="rejected"), answer("a", "chosen"), answer("b", "rejected")) == ["b"]
    assert texts(Sft(), answer("a", score=1), answer("b", score=2)) == ["b"]
    assert texts(Sft(side="rejected"), answer("a", score=1), answer("b", score=2)) == ["a"]
    assert reason(Sft(), answer("b", "rejected")) == "no chosen answer"
    assert reason(Decoupled(), answer("b", "rejected")) == "kept"
    assert reason(Decoupled(), answer("b"), answer("c")) == "neither a chosen nor a rejected answer"
    assert reason(Decoupled(), answer("b ", "chosen"), answer("b", "rejected")) == "chosen equals rejected"
    assert texts(Sft(), answer("b")) == texts(Sft(), answer("b", score=1)) == ["b"], "one that stands alone"
    assert reason(Sft(), answer("a", "chosen", score=0), answer("b", score=1)) == "kept"
    assert reason(Sft(side="rejected"), answer("a", "chosen", score=0), answer("b", score=1)) == "no rejected answer"
    best = answer("a", score=2, is_cut=True), answer("b", score=1), answer("c", score=0)
    assert texts(Sft(), *best) == ["b"], "the best of those that are whole"
    assert reason(Sft(), *best[::2]) == "cut off", "the worst of all is no good answer, whole as it may be"


def test_roles_are_never_turned_by_scores() -> None:
    """A chosen answer stays one beside an unlabelled one with a higher score; two chosen ones are no pair."""
    for objective in (Dpo(), Ipo()):
        assert reason(objective, answer("a", "chosen", score=0.2), answer("b", score=0.9)) == "no pair"
        assert reason(objective, answer("a", "chosen", score=1), answer("b", "chosen", score=0.5)) == "no pair"
        assert texts(objective, answer("a", score=0.2), answer("b", score=0.9)) == ["b", "a"]
    some = answer("a", "chosen"), answer("b", "rejected", score=0.1), answer("c", "rejected", score=0.3)
    assert reason(Copg(), *some) == "scores of some answers alone"


def test_copg_takes_scored_answers_once_each() -> None:
    assert texts(Copg(), answer("a", score=1), answer("b", score=0), answer("a", score=1), answer("c")) == ["b", "a"]
    assert reason(Copg(), answer("a", score=1), answer("b")) == "fewer than two different answers with scores"
    found = Copg().select(Group.make("Q", [answer("a", "chosen"), answer("b", "rejected")]))
    assert isinstance(found, Group)
    assert [(item.text, item.score) for item in found.answers] == [("b", 0.0), ("a", 1.0)]


def test_copg_with_preferences_is_ipo() -> None:
    """(D - 1 / (2 tau))^2 has the gradient of copg with scores of +-1/4, but for the factor -1 / (2 beta) = -1.25 (K = 2)."""
    objective = Copg(beta=0.4, preferences=True)
    found = objective.select(Group.make("Q", [answer("a", score=7), answer("b", score=9), answer("c", score=8)]))
    assert isinstance(found, Group)
    assert [(item.text, item.score) for item in found.answers] == [("a", -0.25), ("b", 0.25)]
    batch = make_batch([found.answers], [[-1.0, -0.5], [-0.25]])
    (slope,) = torch.autograd.grad(objective.loss(batch).value, batch.log_probs_NT)
    gap = batch.log_ratio_N[1] - batch.log_ratio_N[0]
    (ipo,) = torch.autograd.grad((gap - 1 / (2 * 0.4)) ** 2, batch.log_probs_NT)
    torch.testing.assert_close(slope, ipo * 0.4 / 4 * batch.mask_NT)


def test_unlikelihood_by_hand() -> None:
    """Clean: two tokens at p = 1/2, mean ln 2. Spans: {1/2} and {1/4, 3/4}: -ln(1/2) = ln 2, -(ln 3/4 + ln 1/4) / 2."""
    clean = answer("a b")
    faulty = answer("c d e", spans=(Span(start=0, stop=1), Span(start=2, stop=5)))
    half, quarter, most = math.log(0.5), math.log(0.25), math.log(0.75)
    batch = make_batch([[clean, faulty]], [[half, half], [half, -9.0, quarter, most]], labelled=[[0, 0], [1, 0, 2, 2]])
    spans = (LN2 + -(math.log(0.75) + math.log(0.25)) / 2) / 2
    loss = Unlikelihood(epsilon=0.5).loss(batch)
    assert loss.value.item() == pytest.approx(LN2 + 0.5 * spans, rel=1e-6)
    assert loss.metrics["prob_in_spans"].item() == pytest.approx((0.5 + 0.25 + 0.75) / 3)
    (slope,) = torch.autograd.grad(loss.value, batch.log_probs_NT)
    assert slope[1, 1] == 0, "what is not marked in an answer with faults carries no loss"
    ascent = Unlikelihood(way="ascent", floor=0.3).loss(batch)
    assert ascent.value.item() == pytest.approx(LN2 + (half + (quarter + most) / 2) / 2, rel=1e-6)
    (slope,) = torch.autograd.grad(ascent.value, batch.log_probs_NT)
    assert slope[1].tolist() == pytest.approx([0.5, 0, 0, 0.25]), "a token below the floor is left alone"
    learnt = Unlikelihood(way="only_spans").loss(batch)
    assert learnt.value.item() == pytest.approx(-(half + (quarter + most) / 2) / 2, rel=1e-6)


def test_unlikelihood_at_certainty_is_finite() -> None:
    batch = make_batch([[answer("a", spans=(Span(start=0, stop=1),))]], [[0.0]], labelled=[[1]])
    loss = Unlikelihood().loss(batch).value
    (slope,) = torch.autograd.grad(loss, batch.log_probs_NT)
    assert math.isfinite(loss.item())
    assert slope.isfinite().all()


def test_unlikelihood_takes_clean_answers_and_marked_ones() -> None:
    marked = answer("x y", "rejected", spans=(Span(start=0, stop=1),))
    assert texts(Unlikelihood(), answer("a", "chosen"), marked, answer("b", "rejected")) == ["a", "x y"]
    assert texts(Unlikelihood(way="only_spans"), answer("a", "chosen"), marked) == ["x y"]
    assert reason(Unlikelihood(), answer("b", "rejected")) == "no clean answer and no span"
    assert reason(Unlikelihood(), answer("b", spans=(Span(start=0, stop=9),))) == "a span outside of its answer"


def test_distill_by_hand() -> None:
    """CE a token: label 1; positives 2 and 1.5 (the better one counts, quality 0.8); negatives 1, 2 and 4 with delta 3."""
    group = [
        answer("l"), answer("p", "chosen", 1.0), answer("q", "chosen", 0.8),
        answer("m", "rejected", 0.25), answer("n", "rejected", 0.0), answer("o", "rejected", 0.5),
    ]  # fmt: skip
    rows = [[-1.0], [-2.0, -2.0], [-1.5], [-1.0], [-2.0], [-4.0]]
    common = 0.5 * 1 + 0.5 * 0.8 * 1.5
    cases = {"max": 0.5 * 0.0, "min": 0.75 * (3 - 1)}
    for negative, expected in cases.items():
        loss = Distill(negative=negative).loss(make_batch([group], rows))  # pyright: ignore[reportArgumentType]
        assert loss.value.item() == pytest.approx(common + 0.5 * 0.2 * expected, rel=1e-6)
    batch = make_batch([group[:3] + group[4:5]], [*rows[:3], rows[4]])
    (slope,) = torch.autograd.grad(Distill().loss(batch).value, batch.log_probs_NT)
    assert slope[3, 0].item() == pytest.approx(0.5 * 0.2), "a negative that is still likely is pushed down"
    assert slope[1].tolist() == [0, 0], "of the positives only the likeliest is learnt"


def test_distill_takes_rationales_with_qualities() -> None:
    assert reason(Distill(), answer("n", "rejected")) == "no positive rationale"
    assert reason(Distill(), answer("p", "chosen", 3.0)) == "a quality outside of 0..1"
    assert texts(Distill(), answer("p", "chosen"), answer(" ", "rejected"), answer("l")) == ["p", "l"]


def test_distill_computes_what_has_a_weight() -> None:
    whole = answer("p", "chosen"), answer("n", "rejected"), answer("l")
    assert texts(Distill(contrast_weight=0), *whole) == ["l"]
    assert texts(Distill(label_weight=0), *whole) == ["p", "n"]
    assert texts(Distill(beta=0), *whole) == ["p", "l"]
    assert reason(Distill(contrast_weight=0), *whole[:2]) == "no label"
    with pytest.raises(ValueError, match="both 0"):
        Distill(label_weight=0, contrast_weight=0)
    labels = Distill(contrast_weight=0, label_weight=1)
    assert labels.loss(make_batch([[whole[2]]], [[-1.0, -2.0]])).value.item() == pytest.approx(1.5)


def make_twins() -> list[Answer]:
    return [
        answer(
            "abcd", final=final, spans=tuple(Span(start=at, stop=at + 1, label=name) for at, name in enumerate("ABCD"))
        )
        for final in "AB"
    ]


def test_thought_paths_by_hand() -> None:
    """A and B are right in one of the twins, C and D in neither."""
    torch.manual_seed(0)
    states = torch.randn(2, 9, 6, requires_grad=True)
    labelled = [[0, 1, 1, 2, 0, 3, 3, 3, 4], [1, 2, 2, 0, 3, 0, 4, 4, 0]]
    batch = make_batch([make_twins()], [[-1.0] * 9] * 2, labelled=labelled, states=states)
    paths = [
        {name: torch.stack([states[row, at] for at in range(9) if labelled[row][at] == number]).mean(0)
         for number, name in enumerate("ABCD", 1)}
        for row in range(2)
    ]  # fmt: skip

    def alike(name: str) -> Tensor:
        one, other = paths[0][name], paths[1][name]
        return one @ other / one.norm() / other.norm()

    expected = sum(
        -torch.log(torch.sigmoid((alike(shared) - alike(right)) / 0.1)) / 4 for right in "AB" for shared in "CD"
    )
    loss = ThoughtPath().loss(batch)
    assert loss.metrics["contrast"].item() == pytest.approx(float(expected.detach()), rel=1e-5)  # pyright: ignore
    assert loss.value.item() == pytest.approx(float(expected.detach()) + 1.0, rel=1e-5)  # pyright: ignore
    (slope,) = torch.autograd.grad(loss.value, states)
    assert slope[0, 0].abs().sum() == 0, "a token that argues no option has no part in it"


def test_thought_paths_need_twins() -> None:
    one, other = make_twins()
    assert reason(ThoughtPath(), one, other) == "kept"
    assert reason(ThoughtPath(), one) == "not two rationales"
    assert reason(ThoughtPath(), one, one) == "the same right option in both"
    assert reason(ThoughtPath(), one, other.model_copy(update={"spans": other.spans[:3]})) == "different options"
    assert reason(ThoughtPath(), one, other.model_copy(update={"final": "E"})) == "a right option without a path"
    few = [item.model_copy(update={"spans": item.spans[:2]}) for item in (one, other)]
    assert reason(ThoughtPath(), *few) == "no option that is wrong in both"


def test_answers_to_different_prompts_are_no_pair() -> None:
    sides = [answer("a", "chosen", prompt="P1", score=1.0), answer("b", "rejected", prompt="P2", score=0.0)]
    assert reason(Reward(), *sides) == "a text, where rewards are of chats"
    for objective in (Dpo(), Ipo(), Copg()):
        assert reason(objective, *sides) == "answers to different prompts"


def test_draws_count_each_and_texts_of_the_data_once() -> None:
    drawn = [answer("a", score=float(at), token_ids=[5, at]) for at in range(2)]
    assert texts(Copg(), *drawn, answer("", score=0.0, token_ids=[2])) == ["a", "", "a"]
    assert texts(Copg(), answer("a", score=0.0), answer("a", score=1.0), answer("b", score=2.0)) == ["a", "b"]
    (found,) = [
        Copg().select(Group.make("Q", [answer("a", score=0.0), answer("a", score=1.0), answer("b", score=2.0)]))
    ]
    assert isinstance(found, Group)
    assert [item.score for item in found.answers] == [0.5, 2.0], "the mean of its scores"


def test_cut_off_answers_are_not_learnt_whole() -> None:
    assert reason(Sft(), answer("a", "chosen", is_cut=True)) == "cut off"
    assert texts(Sft(), answer("a", "chosen", is_cut=True), answer("b", "chosen")) == ["b"]


def test_fresh_answers_are_refused_where_they_teach_nothing() -> None:
    for kind in (Unlikelihood, ThoughtPath):
        with pytest.raises(ValueError, match="no spans"):
            kind(fresh=Fresh())
    with pytest.raises(ValueError, match=r"fresh\.role has to be rejected"):
        Distill(fresh=Fresh())
    with pytest.raises(ValueError, match=r"fresh\.n has to be 2"):
        Copg(fresh=Fresh(n=1))
