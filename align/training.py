"""What trainings share: checkpoints, the bar, a stop where the loss is no number, weights that appear whole."""

import math
import shutil
from pathlib import Path
from typing import Any

from counterfoil.errors import RunError
from counterfoil.progress import Stage

__all__ = ["find_checkpoint", "read_step", "save_whole", "silence", "watch"]


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint: the trainer's state is the last file that it writes into one."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def read_step(checkpoint: Path | None) -> int:
    """Return the step of a checkpoint; 0 for none."""
    return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0


def silence() -> None:
    """Leave the terminal to our own progress."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def watch(stage: Stage) -> Any:
    """Return a callback for transformers' Trainer that moves a bar, and stops a training whose loss is no number."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            if not math.isfinite(float(loss)):
                raise RunError(
                    f"step {state.global_step}",
                    given=f"the loss became {loss}",
                    allowed="a finite loss",
                    do="Lower learning_rate (with a preference loss, or raise its beta); the last checkpoint is kept.",
                )
            shown = {"loss": f"{float(loss):.3f}"}
            if "rewards/accuracies" in logs:
                shown["accuracy"] = f"{float(logs['rewards/accuracies']):.2f}"
            stage.advance(1, **shown)

    return Watch()


def save_whole(target: Path, *parts: Any) -> None:
    """Save a model and its tokenizer; the folder appears by rename."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in parts:
        part.save_pretrained(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
