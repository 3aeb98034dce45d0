"""Chosen answers that lose probability are seen: on the bar, in the figures, and told once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from align.objective import Objective
from align.objectives.copg import Copg
from align.objectives.dpo import Dpo
from align.objectives.pairwise import Pairwise
from align.train import Train
from align.training import DISPLACED_NATS, LOOK_BACK, read_ratios, watch
from counterfoil.errors import RunError
from counterfoil.progress import Progress
from counterfoil.records import Answer, Group, Message
from decode.chat import load_tokenizer


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


@pytest.mark.parametrize("objective", [Dpo(beta=0.3), Copg(beta=0.3)], ids=["dpo", "copg"])
def test_what_is_shown_of_a_training_is_the_distance_from_the_reference(
    objective: Objective, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step over all pairs, from an adapter: the figures are what whole logits say. On the way there it was told."""
    asked = [[Message(role="user", content=f"Say {at}.")] for at in range(6)]
    texts = [(f"It is {at} and fine.", f"It is {at} and bad.") for at in range(6)]
    groups = [
        Group.make(prompt, [Answer(text=good, role="chosen", score=1.0), Answer(text=bad, role="rejected", score=0.0)])
        for prompt, (good, bad) in zip(asked, texts, strict=True)
    ]
    data = tmp_path / "groups.jsonl"
    data.write_text("".join(group.model_dump_json() + "\n" for group in groups))
    told: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda _, text: told.append(text))
    settings: dict[str, Any] = {"data": data, "model": str(tiny_model), "batch_size": 6}
    falling = Pairwise(loss_type="apo_down", beta=0.1)  # chosen answers are pushed down, the rejected further
    far = Train(objective=falling, learning_rate=3e-2, max_steps=25, **settings).run(tmp_path / "far", quiet=True)
    assert far.figures["chosen_log_ratio"] < -1
    assert sum("chosen answers became less likely" in text for text in told) == 1
    start = far.path("adapter")
    done = Train(objective=objective, start=start, learning_rate=1e-9, max_steps=1, **settings).run(
        tmp_path / "run", quiet=True
    )
    tokenizer = load_tokenizer(str(tiny_model))
    tuned: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(start)).eval()

    def read(prompt: list[Message], text: str) -> float:
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        turns = [*prompt, {"role": "assistant", "content": text}]
        whole = torch.tensor([tokenizer.apply_chat_template(turns, return_dict=False)])
        logps = tuned(input_ids=whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])
        return float(logps[len(before) - 1 :].sum())

    for side, name in enumerate(("chosen", "rejected")):
        with torch.no_grad():
            policy = [read(prompt, pair[side]) for prompt, pair in zip(asked, texts, strict=True)]
            with tuned.disable_adapter():
                bare = [read(prompt, pair[side]) for prompt, pair in zip(asked, texts, strict=True)]
        expected = sum(policy) / len(policy) - sum(bare) / len(bare)
        assert done.figures[f"{name}_log_ratio"] == pytest.approx(expected, rel=1e-3, abs=2e-3)


def test_a_gradient_that_is_no_number_stops_a_training_before_its_weights_are_saved() -> None:
    """The loss of that step was a number: it is told when it is logged, which comes before a checkpoint."""
    callback: Any = watch(Bar())  # pyright: ignore[reportArgumentType]

    class State:
        global_step = 3

    callback.on_log(None, State, None, logs={"loss": 0.5, "grad_norm": 2.0})
    with pytest.raises(RunError, match=r"step 3.*gradient's norm became nan"):
        callback.on_log(None, State, None, logs={"loss": 0.5, "grad_norm": float("nan")})
