"""Each loss of an embedder against loops in NumPy, its limits and its gradient; no model is loaded."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from align.embedding.hard_mixing import HardMixing, mix
from align.embedding.inverse_propensity import Drawn, InversePropensity
from align.embedding.momentum_queue import MomentumQueue
from align.embedding.own_temperatures import OwnTemperatures
from align.embedding.weighted_targets import WeightedTargets, weigh_targets
from align.embedding.whitened import Whitened, whiten
from align.embedding_loss import Embedded, OwnLoss, State, Vectors
from counterfoil.errors import ConfigError
from counterfoil.records import Triplet

SIZE, WIDTH = 6, 12


def make_rows(count: int = SIZE) -> list[Triplet]:
    return [
        Triplet.make(f"question {at}", f"answer number {at}", f"no answer {at}", prompt_id="", recipe="")
        for at in range(count)
    ]


def make_batch(*, negatives: bool = True, seed: int = 0, double: bool = True, size: int = SIZE) -> Embedded:
    """Draw vectors of length 1; the slow ones are others than those of now."""
    draw = torch.Generator().manual_seed(seed)
    count = size * (1 + negatives)

    def unit(rows: int) -> Tensor:
        return normalize(torch.randn(rows, WIDTH, generator=draw, dtype=torch.double if double else torch.float), dim=1)

    now, slow = (Vectors(unit(size), unit(count)) for _ in range(2))
    rows = [row if negatives else row.model_copy(update={"negative": None}) for row in make_rows(size)]
    return Embedded(now, slow, rows, torch.arange(size))


def begin(loss: OwnLoss, batch: Embedded, *, batch_size: int = SIZE) -> State:
    return {
        name: value.double() if value.is_floating_point() else value
        for name, value in loss.start(batch.rows, width=WIDTH, batch_size=batch_size).items()
    }


def info_nce(batch: Embedded, tau: float) -> float:
    """Sum over candidates in loops."""
    anchors, candidates = (each.numpy() for each in batch.now)
    total = 0.0
    for at, anchor in enumerate(anchors):
        scores = [math.exp(float(anchor @ candidate) / tau) for candidate in candidates]
        total -= math.log(scores[at] / sum(scores))
    return total / len(anchors)


LIMITS: dict[str, OwnLoss] = {
    "an empty queue": MomentumQueue(queue=0),
    "a queue before the first batch": MomentumQueue(queue=8),
    "no mixtures": HardMixing(mixed=0, with_anchor=0),
    "mixtures later": HardMixing(after=1),
    "all negatives, each row once": InversePropensity(negatives=99, draw_rows=False),
}


@pytest.mark.parametrize("negatives", [True, False], ids=["triplets", "pairs"])
@pytest.mark.parametrize("loss", LIMITS.values(), ids=LIMITS)
def test_at_its_limit_a_loss_is_info_nce(loss: OwnLoss, negatives: bool) -> None:
    batch = make_batch(negatives=negatives)
    found = loss.loss(batch, begin(loss, batch)).value
    assert float(found) == pytest.approx(info_nce(batch, loss.temperature), rel=1e-9)


EVERY: dict[str, OwnLoss] = {
    "queue": MomentumQueue(queue=8),
    "mixing": HardMixing(hardest=3),
    "propensity": InversePropensity(negatives=3),
    "temperatures": OwnTemperatures(rho=1.0),
    "targets": WeightedTargets(),
    "whitened": Whitened(group_width=3),
}


@pytest.mark.parametrize("size", [1, 2, SIZE])
@pytest.mark.parametrize("negatives", [True, False], ids=["triplets", "pairs"])
@pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)
def test_every_loss_and_its_gradient_are_numbers_down_to_one_row(loss: OwnLoss, negatives: bool, size: int) -> None:
    """The last batch of a pass may have a single row."""
    batch = make_batch(negatives=negatives, double=False, size=size)
    for each in batch.now:
        each.requires_grad_(True)
    state = loss.start(make_rows(), width=WIDTH, batch_size=SIZE)
    for _ in range(2):
        loss.loss(batch, state).value.backward()
    assert all(each.grad is not None and bool(each.grad.isfinite().all()) for each in batch.now)


SMOOTH: dict[str, OwnLoss] = {name: EVERY[name] for name in ("queue", "targets", "whitened")}


@pytest.mark.parametrize("loss", SMOOTH.values(), ids=SMOOTH)
def test_the_gradient_is_that_of_the_value(loss: OwnLoss) -> None:
    """By differences; the other losses hold parts of themselves fixed, or draw."""
    batch = make_batch()
    state = begin(loss, batch)
    loss.loss(make_batch(seed=1), state)  # something is in the queue
    before = {name: value.clone() for name, value in state.items()}

    def value(anchor_BD: Tensor, candidates_CD: Tensor) -> Tensor:
        torch.manual_seed(0)
        state.update({name: kept.clone() for name, kept in before.items()})
        return loss.loss(batch._replace(now=Vectors(anchor_BD, candidates_CD), slow=batch.slow), state).value

    given = tuple(each.clone().requires_grad_(True) for each in batch.now)
    assert torch.autograd.gradcheck(value, given, atol=1e-6)  # float32 inside of no loss: doubles stay doubles


# Whitening.


@pytest.mark.parametrize("group_width", [1, 3, 4, 12])
def test_whitened_groups_have_no_covariance(group_width: int) -> None:
    """Each group of the shuffled coordinates has the identity as covariance; groups may go together."""
    draw = torch.Generator().manual_seed(0)
    rows_ND = (
        torch.randn(50, WIDTH, generator=draw, dtype=torch.double) @ torch.randn(WIDTH, WIDTH, generator=draw).double()
    )
    order_D = torch.randperm(WIDTH, generator=draw)
    found = whiten(rows_ND, order_D, group_width=group_width, shrinkage=1e-12).numpy()[:, order_D.numpy()]
    assert found.mean(0) == pytest.approx(np.zeros(WIDTH), abs=1e-9)
    for start in range(0, WIDTH, group_width):
        group = found[:, start : start + group_width]
        assert group.T @ group / 50 == pytest.approx(np.eye(group_width), abs=1e-6)


def test_whitening_is_zca() -> None:
    """The symmetric root of the inverse covariance, by NumPy's eigenvectors; a second whitening changes nothing."""
    rows = np.random.default_rng(0).normal(size=(40, 5)) @ np.diag([1, 2, 3, 4, 5.0])
    centred = rows - rows.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / 40)
    wanted = centred @ vectors @ np.diag(values**-0.5) @ vectors.T
    order = torch.tensor([3, 0, 4, 1, 2])
    found = whiten(torch.from_numpy(rows), order, group_width=5, shrinkage=1e-13)
    assert found.numpy() == pytest.approx(wanted, abs=1e-6)
    assert whiten(found, order, group_width=5, shrinkage=1e-13).numpy() == pytest.approx(wanted, abs=1e-6)


def test_whitening_has_a_gradient_where_eigenvalues_meet() -> None:
    """Rows whose covariance is the identity: torch's own derivative of eigenvectors is no number there."""
    rows_ND = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.double, requires_grad=True)

    def value(rows: Tensor) -> Tensor:
        return whiten(rows, torch.arange(3), group_width=3, shrinkage=1e-6)

    assert torch.autograd.gradcheck(value, (rows_ND,), atol=1e-6)


def test_a_view_is_an_order_of_its_own() -> None:
    batch = make_batch()
    torch.manual_seed(0)
    several = {float(Whitened(group_width=3, views=1).loss(batch, {}).value) for _ in range(4)}
    assert len(several) == 4
    torch.manual_seed(0)
    one = [Whitened(group_width=12, views=1).loss(batch, {}).value.item() for _ in range(2)]
    assert one[0] == pytest.approx(one[1], rel=1e-9), "one group has no order"


@pytest.mark.parametrize(("width", "batch_size"), [(5, 32), (6, 6)], ids=["no divisor", "as wide as the batch"])
def test_a_group_that_cannot_be_whitened_is_refused(width: int, batch_size: int) -> None:
    with pytest.raises(ConfigError, match="a divisor of 12"):
        Whitened(group_width=width).start([], width=12, batch_size=batch_size)


# Weighted targets.


def test_targets_of_weight_one_on_the_positive_are_info_nce() -> None:
    batch = make_batch()
    logits_BC = batch.now.cosine_BC / 0.05
    found = weigh_targets(logits_BC, torch.eye(*logits_BC.shape, dtype=torch.double))
    assert float(found) == pytest.approx(info_nce(batch, 0.05), rel=1e-9)


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_weighted_targets_in_loops(sharpness: float) -> None:
    batch = make_batch()
    anchors, candidates = (each.numpy() for each in batch.now)
    trusted = batch.slow.candidates_CD.numpy()
    forth = back = 0.0
    for i in range(SIZE):
        scores = [math.exp(anchors[i] @ candidate / 0.05) for candidate in candidates]
        weights = [((trusted[i] @ other) / 2 + 0.5) ** sharpness * (j != SIZE + i) for j, other in enumerate(trusted)]
        forth -= sum(
            weight * math.log(score / sum(scores)) for weight, score in zip(weights, scores, strict=True)
        ) / sum(weights)
        others = [math.exp(candidates[i] @ anchor / 0.05) for anchor in anchors]
        back -= math.log(others[i] / sum(others))
    found = WeightedTargets(sharpness=sharpness).loss(batch, {})
    assert float(found.value) == pytest.approx((forth + back) / 2 / SIZE, rel=1e-9)


# The queue.


def test_the_queue_in_loops() -> None:
    """Three batches of two into a queue of four: the oldest is written over, what shares a text is left out."""
    rows = make_rows(5)
    rows[4] = rows[4].model_copy(update={"anchor": rows[0].anchor})
    rows[3] = rows[3].model_copy(update={"positive": rows[1].positive})
    loss = MomentumQueue(queue=4)
    state = begin(loss, make_batch()._replace(rows=rows))
    kept: list[tuple[int, Any]] = []
    for step, members in enumerate([(0, 1), (2, 3), (4, 0), (1, 2)]):
        batch = make_batch(seed=step, size=2, negatives=False)._replace(
            row_B=torch.tensor(members), rows=[rows[at] for at in members]
        )
        total = 0.0
        for i, at in enumerate(members):
            scores = [math.exp(float(batch.now.anchor_BD[i] @ other) / 0.05) for other in batch.now.candidates_CD]
            far = [
                math.exp(float(batch.now.anchor_BD[i] @ key) / 0.05)
                for other, key in kept
                if rows[other].anchor != rows[at].anchor and rows[other].positive != rows[at].positive
            ]
            total -= math.log(scores[i] / sum(scores + far))
        assert float(loss.loss(batch, state).value) == pytest.approx(total / 2, rel=1e-9)
        kept = [*kept, *zip(members, batch.slow.candidates_CD, strict=True)][-4:]
    assert sorted(state["queue_row"].tolist()) == sorted(at for at, _ in kept)


def test_a_batch_larger_than_the_queue_leaves_its_last_rows() -> None:
    batch = make_batch()
    loss = MomentumQueue(queue=4)
    state = begin(loss, batch)
    loss.loss(batch, state)
    assert state["queue_row"].tolist() == [2, 3, 4, 5]
    assert torch.equal(state["queue"], batch.slow.candidates_CD[2:6])


# Mixing.


def test_a_mixture_lies_between_and_has_length_one() -> None:
    one, other = normalize(torch.randn(2, 5, WIDTH, dtype=torch.double), dim=2)
    assert torch.allclose(mix(one, other, torch.zeros(5)), other)
    assert torch.allclose(mix(one, other, torch.ones(5)), one)
    half = mix(one, other, torch.full((5,), 0.5))
    assert torch.allclose(half.norm(dim=1), torch.ones(5, dtype=torch.double))
    assert torch.allclose((half * one).sum(1), (half * other).sum(1))


def test_mixtures_in_loops() -> None:
    """The same draws, in the same order; mixtures are made of the hardest negatives and pass no gradient on."""
    batch = make_batch()
    loss = HardMixing(hardest=3, mixed=4, with_anchor=2)
    for each in batch.now:
        each.requires_grad_(True)
    torch.manual_seed(5)
    found = loss.loss(batch, begin(loss, batch)).value
    found.backward()
    torch.manual_seed(5)
    first, second = (torch.randint(3, (SIZE, 4)) for _ in range(2))
    share, chosen, less = torch.rand(SIZE, 4), torch.randint(3, (SIZE, 2)), torch.rand(SIZE, 2) / 2
    assert float(less.max()) < 0.5
    again = [each.detach().clone().requires_grad_(True) for each in batch.now]
    losses: list[Tensor] = []
    for i in range(SIZE):
        cosines = again[1] @ again[0][i]
        ranked = sorted((j for j in range(2 * SIZE) if j != i), key=lambda j: -float(cosines[j].detach()))[:3]
        hard, anchor = again[1].detach()[ranked], again[0][i].detach()
        made = [share[i, m] * hard[first[i, m]] + (1 - share[i, m]) * hard[second[i, m]] for m in range(4)]
        made += [less[i, m] * anchor + (1 - less[i, m]) * hard[chosen[i, m]] for m in range(2)]
        logits = torch.cat([cosines, *(((each / each.norm()) @ again[0][i])[None] for each in made)]) / 0.05
        losses.append(logits.logsumexp(0) - logits[i])
    wanted = torch.stack(losses).mean()
    wanted.backward()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    for one, other in zip(batch.now, again, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


# Propensities.


def test_pairs_are_drawn_by_their_weights() -> None:
    """Shares of 3,000 draws against the weights in loops; a negative that looks alike and means another thing comes most."""
    means = np.array([[0.9, 0.1, 0.5, -0.2], [0.2, 0.6, 0.3, 0.0]])
    looks = np.array([[0.3, 0.9, 0.2, 0.1], [0.1, 0.8, 0.4, 0.5]])
    loss = InversePropensity(negatives=1, floor=0.1)
    torch.manual_seed(0)
    kept, times = np.zeros((2, 4)), np.zeros(2)
    for _ in range(3000):
        drawn = loss.draw(torch.from_numpy(means), torch.from_numpy(looks))
        assert drawn.kept_BC.sum(1).tolist() == [2, 2]
        assert int(drawn.times_B.sum()) == 2
        kept, times = kept + drawn.kept_BC.numpy(), times + drawn.times_B.numpy()
    for i in range(2):
        weights = [(1 - means[i, j]) / (0.1 + 1 - looks[i, j]) * (i != j) for j in range(4)]
        shares = kept[i] / 3000
        assert shares[i] == 1
        assert shares == pytest.approx(np.array(weights) / sum(weights) + np.eye(4)[i], abs=0.03)
    assert kept[0, 1] > kept[0, 2], "it looks like the anchor"
    rows = [means[i, i] / (0.1 + looks[i, i]) for i in range(2)]
    assert times / 6000 == pytest.approx(np.array(rows) / sum(rows), abs=0.02)
    assert times[0] > times[1], "it means the same in other letters"


def test_letters_are_compared_by_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """From abcd to abxd: an x for a c, which are two insertions or deletions of eight letters; wxyz has no letter of it."""
    row = Triplet.make("abcd", "abxd", "wxyz", prompt_id="", recipe="")
    batch = make_batch(size=1)._replace(rows=[row])
    seen: list[Tensor] = []
    monkeypatch.setattr(
        InversePropensity,
        "draw",
        lambda self, means, looks: seen.append(looks) or Drawn(torch.ones(1), torch.ones(1, 2).bool()),
    )
    InversePropensity().loss(batch, {})
    assert seen[0].tolist() == [pytest.approx([0.75, 0.0])]


def test_rows_count_as_often_as_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(negatives=False)
    times = torch.tensor([2.0, 0, 1, 3, 0, 0])
    monkeypatch.setattr(InversePropensity, "draw", lambda *given: Drawn(times, torch.ones(SIZE, SIZE).bool()))
    found = InversePropensity().loss(batch, {}).value
    logits = batch.now.cosine_BC / 0.05
    wanted = sum(float(times[i]) * float(logits[i].logsumexp(0) - logits[i, i]) for i in range(SIZE)) / SIZE
    assert float(found) == pytest.approx(wanted, rel=1e-6)


# Temperatures.


def gaps(batch: Embedded) -> Tensor:
    cosine_BC = batch.now.cosine_BC
    own_BC = torch.eye(*cosine_BC.shape, dtype=torch.bool)
    return (cosine_BC - cosine_BC.diagonal()[:, None])[~own_BC].view(len(cosine_BC), -1)


def test_with_one_fixed_temperature_the_gradient_is_that_of_info_nce() -> None:
    """Of tau times InfoNCE whose positive is left out of the sum; in a row's first batch the running mean is the batch's."""
    batch = make_batch()
    for each in batch.now:
        each.requires_grad_(True)
    loss = OwnTemperatures(temperature=0.1, rate=0.0, rho=1.0)
    loss.loss(batch, begin(loss, batch)).value.backward()
    again = batch._replace(now=Vectors(*(each.detach().clone().requires_grad_(True) for each in batch.now)))
    (0.1 * (gaps(again) / 0.1).logsumexp(1)).mean().backward()
    for one, other in zip(batch.now, again.now, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)  # tau is in float32


def test_temperatures_in_loops() -> None:
    """Three batches, the rows of the second in another order, with plain exponentials instead of logarithms."""
    loss = OwnTemperatures(rho=1.0, rate=0.05, gamma=0.7, beta=0.6)
    first = make_batch()
    state = begin(loss, first)
    mean: dict[int, float] = {}
    tau = dict.fromkeys(range(SIZE), 0.07)
    slope = dict.fromkeys(range(SIZE), 0.0)
    for step, order in enumerate([[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 1, 0, 3, 4, 5]]):
        batch = make_batch(seed=step)._replace(row_B=torch.tensor(order))
        total = 0.0
        for row, gap in zip(order, gaps(batch).numpy(), strict=True):
            here = float(np.exp(gap / tau[row]).mean())
            mean[row] = 0.3 * mean[row] + 0.7 * here if row in mean else here
            weights = np.exp(gap / tau[row]) / mean[row]
            total += float((weights * gap).mean())
            by_tau = math.log(mean[row]) + 1.0 - float((weights * gap / tau[row]).mean())
            slope[row] = 0.4 * slope[row] + 0.6 * min(3.0, max(-3.0, by_tau))
            tau[row] = min(1.0, max(0.02, tau[row] - 0.05 * slope[row]))
        assert float(loss.loss(batch, state).value) == pytest.approx(total / SIZE, rel=1e-6)
    assert state["tau"].tolist() == pytest.approx([tau[row] for row in range(SIZE)], rel=1e-6)
    assert len({round(value, 4) for value in tau.values()}) > 1, "rows have come to temperatures of their own"


def test_a_temperature_settles_where_the_divergence_is_rho() -> None:
    """On one batch again and again: sum w log(N w) = rho at the minimum over tau, N negatives."""
    batch = make_batch()
    loss = OwnTemperatures(rho=0.5, rate=0.02, gamma=1.0, beta=1.0, floor=1e-3, ceiling=50.0)
    state = begin(loss, batch)
    for _ in range(3000):
        loss.loss(batch, state)
    for row, gap in enumerate(gaps(batch)):
        weight = (gap / state["tau"][row]).softmax(0)
        assert float((weight * (weight * len(gap)).log()).sum()) == pytest.approx(0.5, abs=1e-3)


def test_a_rho_that_no_batch_reaches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"below 3\.43, the logarithm of the 31 negatives"):
        OwnTemperatures(rho=6.0).start(make_batch(negatives=False).rows, width=WIDTH, batch_size=32)
    OwnTemperatures(rho=4.0).start(make_rows(), width=WIDTH, batch_size=32)  # 63, with the rows' own
