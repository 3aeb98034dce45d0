"""Chosen answers that lose probability are seen: on the bar, in the figures, and told once."""

from typing import Any

import pytest

from align.training import DISPLACED_NATS, LOOK_BACK, read_ratios, watch
from counterfoil.errors import RunError


class Bar:
    """Stands for the bar of a stage."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def advance(self, count: int = 1, **facts: str) -> None:
        """Keep what is shown."""
        self.shown.append(facts)


def run(ratios: list[float], *, beta: float | None = None) -> tuple[Bar, list[str]]:
    bar, told = Bar(), []
    callback: Any = watch(bar, say=told.append, beta=beta)  # pyright: ignore[reportArgumentType]

    class State:
        global_step = 0

    for step, ratio in enumerate(ratios, 1):
        State.global_step = step
        name, value = ("rewards/chosen", ratio * beta) if beta else ("log_ratio/chosen", ratio)
        callback.on_log(None, State, None, logs={"loss": 0.5, name: value})
    return bar, told


def test_a_lasting_fall_is_told_once() -> None:
    bar, told = run([-3.0] * (3 * LOOK_BACK))
    assert len(told) == 1
    assert f"step {LOOK_BACK}:" in told[0]
    assert "-3.0 nats" in told[0]
    assert bar.shown[0]["chosen"] == "-3.0 nats"


def test_a_rise_a_dip_and_noise_are_not_told() -> None:
    assert run([2.0] * 30)[1] == []
    assert run([0.0] * 20 + [-4.0] + [0.0] * 20)[1] == []
    assert run([DISPLACED_NATS + 0.1] * 30)[1] == []
    assert run([-5.0] * (LOOK_BACK - 1))[1] == []


def test_rewards_of_trl_are_read_in_nats() -> None:
    assert read_ratios({"rewards/chosen": -0.5, "rewards/rejected": -1.0}, 0.1) == {"chosen": -5.0, "rejected": -10.0}
    assert read_ratios({"log_ratio/chosen": -0.5}, 0.1) == {"chosen": -0.5}
    assert read_ratios({"rewards/chosen": -0.5}, None) == {}
    assert len(run([-3.0] * 20, beta=0.1)[1]) == 1


def test_a_gradient_that_is_no_number_stops_a_training_before_its_weights_are_saved() -> None:
    """The loss of that step was a number: it is told when it is logged, which comes before a checkpoint."""
    callback: Any = watch(Bar())  # pyright: ignore[reportArgumentType]

    class State:
        global_step = 3

    callback.on_log(None, State, None, logs={"loss": 0.5, "grad_norm": 2.0})
    with pytest.raises(RunError, match=r"step 3.*gradient's norm became nan"):
        callback.on_log(None, State, None, logs={"loss": 0.5, "grad_norm": float("nan")})
