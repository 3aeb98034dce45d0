"""Trainings that run out of memory say which setting to lower; their curves are seen by a tracker."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl.trainer.sft_trainer import SFTTrainer

from align import trainers
from align.objectives.sft import Sft
from align.train import Lora, Train
from align.training import advise_on_memory, find_checkpoint
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


def test_a_checkpoint_of_several_processes_is_whole_with_each_ones_random_state(tmp_path: Path) -> None:
    both, first, alone = ("rng_state_0.pth", "rng_state_1.pth"), ("rng_state_0.pth",), ("rng_state.pth",)
    for step, files in ((1, alone), (2, both), (3, first), (4, ())):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in files:
            (folder / name).touch()
        (folder / "trainer_state.json").write_text('{"global_step": 1}')
    (tmp_path / "checkpoint-4/trainer_state.json").write_text('{"global')
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2/rng_state_1.pth").unlink()
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-1", "none of two with the first one's alone"


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), advise_on_memory(8, 512, checkpointing=False):
        raise RuntimeError("shapes differ")


def make_job(folder: Path, model: Path, **changes: Any) -> Train:
    data = folder / "data.jsonl"
    rows = [{"prompt": f"Say {at}.", "completion": f"Yes, {at}."} for at in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"objective": Sft(), "batch_size": 2, "lora": Lora(rank=4), "save_every": 2, "epochs": 2}
    return Train(data=data, model=str(model), **(settings | changes))


def test_what_was_kept_is_said_before_training_starts(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path, tiny_model)
    with job.data.open("a") as stream:
        stream.write(job.data.read_text().splitlines()[0] + "\n" + "{broken\n")

    def stop(*given: Any, **rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainers, "make_trainer", stop)
    with pytest.raises(KeyboardInterrupt):
        job.run(tmp_path / "run")
    said = capsys.readouterr()
    assert "kept 6 of 8; dropped: data: repeated 1, read: broken JSON 1" in said.out + said.err


@pytest.mark.parametrize("ways", [{"dtype": "bfloat16"}, {"gradient_checkpointing": True}], ids=str)
def test_half_precision_and_checkpointing_train_as_the_plain_way(
    ways: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    """Checkpointing to the digit of rounding; bfloat16 as far as it goes, and with weights that are others."""
    rows: list[list[float]] = []
    weights: list[dict[str, torch.Tensor]] = []
    for name, changes in (("plain", {}), ("other", ways)):
        done = make_job(tmp_path, tiny_model, learning_rate=1e-2, **changes).run(tmp_path / name, quiet=True)
        rows.append([json.loads(line)["loss"] for line in done.path("metrics.jsonl").read_text().splitlines()])
        weights.append(load_file(done.path("adapter") / "adapter_model.safetensors"))
    assert rows[0] == pytest.approx(rows[1], rel=2e-2 if "dtype" in ways else 1e-5)
    assert weights[0].keys() == weights[1].keys()
    assert all(bool(value.isfinite().all()) for value in weights[1].values())
    if "dtype" in ways:
        assert any(not torch.equal(value, weights[1][key].float()) for key, value in weights[0].items())


def test_out_of_memory_the_setting_to_lower_is_named_and_what_was_saved_is_kept(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SFTTrainer.compute_loss

    def compute(self: Any, *given: Any, **rest: Any) -> Any:
        if self.state.global_step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return real(self, *given, **rest)

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute)
    with pytest.raises(RunError, match="out of memory") as raised:
        make_job(tmp_path, tiny_model).run(tmp_path / "run", quiet=True)
    for name in ("batch_size below 2", "gradient_checkpointing=true", "max_tokens below 1024"):
        assert name in raised.value.do
    assert (tmp_path / "run/checkpoints/adapter/checkpoint-4/adapter_model.safetensors").is_file()


def test_a_tracker_has_the_curve_and_keeps_it(tmp_path: Path, tiny_model: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = make_job(tmp_path, tiny_model, report_to=("tensorboard",)).run(tmp_path / "run", quiet=True)
    log = EventAccumulator(str(done.folder / "tensorboard" / "adapter"))
    log.Reload()
    seen = [event.value for event in log.Scalars("train/loss")]
    assert seen == pytest.approx(
        [json.loads(line)["loss"] for line in done.path("metrics.jsonl").read_text().splitlines()]
    )
