"""Trainings that run out of memory say which setting to lower; their curves are seen by a tracker."""

import json
from pathlib import Path

import pytest
import torch

from align.objectives.sft import Sft
from align.train import Lora, Train
from align.training import advise_on_memory
from counterfoil.errors import RunError


def test_advice_names_the_settings_that_can_be_lowered() -> None:
    with (
        pytest.raises(
            RunError, match=r"batch_size below 8 .* gradient_checkpointing=true, or max_tokens below 512"
        ) as caught,
        advise_on_memory(8, 512, checkpointing=False),
    ):
        torch.empty(2**60)
    assert "allocate" in str(caught.value)
    with (
        pytest.raises(RunError, match="with max_tokens below 512;"),
        advise_on_memory(1, 512, checkpointing=True),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), advise_on_memory(8, 512, checkpointing=False):
        raise RuntimeError("shapes differ")


def test_a_tracker_has_the_curve_and_keeps_it(tmp_path: Path, tiny_model: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"Say {at}.", "completion": f"Yes, {at}."} for at in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = Train(
        data=data, model=str(tiny_model), objective=Sft(), batch_size=2, lora=Lora(rank=4), report_to=("tensorboard",)
    )
    done = job.run(tmp_path / "run", quiet=True)
    log = EventAccumulator(str(done.folder / "tensorboard" / "adapter"))
    log.Reload()
    seen = [event.value for event in log.Scalars("train/loss")]
    assert seen == pytest.approx(
        [json.loads(line)["loss"] for line in done.path("metrics.jsonl").read_text().splitlines()]
    )
