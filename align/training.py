"""What trainings share: checkpoints, the bar, a stop where the loss is no number, weights that appear whole."""

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from counterfoil.errors import ConfigError, RunError, first_line
from counterfoil.progress import Stage

__all__ = [
    "advise_on_memory", "check_trackers", "find_checkpoint", "load_trained", "log_to", "read_ratios", "read_step",
    "refuse_not_finite", "save_whole", "silence", "watch",
]  # fmt: skip

LOOK_BACK = 10
"""Steps over which a fall of the chosen answers is looked at."""
DISPLACED = (
    "step {step}: chosen answers became less likely than under the reference ({mean:+.1f} nats an answer, mean of the last "
    "steps). Raise beta, lower learning_rate, or add sft_weight (dpo)."
)
TENSORBOARD = "TENSORBOARD_LOGGING_DIR"  # transformers reads it
DISPLACED_NATS = -1.0
"""Below this mean log-ratio an answer is said to have lost probability: a third of it is left."""


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint: the trainer's state is the last file that the first process writes, not at once.

    Of several processes each writes a random state, and the first does not wait for the others': one with fewer than another
    checkpoint, or with the first one's alone, is not whole. Another number of processes may go on from it.
    """
    states = {path: len([*path.glob("rng_state_*.pth")]) for path in folder.glob("checkpoint-*")}
    most = max(states.values(), default=0)
    whole = [
        path
        for path, count in states.items()
        if _is_whole(path / "trainer_state.json") and (not count or 1 < count == most)
    ]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _is_whole(state: Path) -> bool:
    try:
        return bool(json.loads(state.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # not there, or torn
        return False


def read_step(checkpoint: Path | None) -> int:
    """Return the step of a checkpoint; 0 for none."""
    return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0


def load_trained(trainer: Any, checkpoint: Path) -> None:
    """Give a trainer the weights and the history of a checkpoint, as if it had just trained to there."""
    from transformers.trainer_callback import TrainerState

    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def silence() -> None:
    """Leave the terminal to our own progress."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def read_ratios(logs: dict[str, Any], beta: float | None) -> dict[str, float]:
    """Return the mean log-ratios of chosen and rejected answers to the reference, in nats an answer, where they are logged.

    Our own trainer logs them; TRL logs rewards, which are beta times as large.
    """
    found: dict[str, float] = {}
    for side in ("chosen", "rejected"):
        if f"log_ratio/{side}" in logs:
            found[side] = float(logs[f"log_ratio/{side}"])
        elif beta and f"rewards/{side}" in logs:
            found[side] = float(logs[f"rewards/{side}"]) / beta
    return found


def watch(stage: Stage, *, say: Callable[[str], None] | None = None, beta: float | None = None) -> Any:
    """Return a callback for transformers' Trainer that moves a bar, and stops a training whose loss is no number.

    `say` is told once when chosen answers lose probability against the reference, as they do under many preference losses.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.recent: deque[float] = deque(maxlen=LOOK_BACK)
            self.told = say is None

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            refuse_not_finite(float(loss), "", step=state.global_step)
            # transformers logs before it saves: weights that this gradient broke are not kept.
            refuse_not_finite(float(logs.get("grad_norm", 0)), "", step=state.global_step, what="gradient's norm")
            shown = {"loss": f"{float(loss):.3f}"}
            if "rewards/accuracies" in logs:
                shown["accuracy"] = f"{float(logs['rewards/accuracies']):.2f}"
            ratios = read_ratios(logs, beta)
            shown |= {side: f"{value:+.1f} nats" for side, value in ratios.items() if math.isfinite(value)}
            if "chosen" in ratios and math.isfinite(ratios["chosen"]):
                self.recent.append(ratios["chosen"])
            if len(self.recent) == LOOK_BACK:
                self.warn(state.global_step)
            stage.advance(1, **shown)

        def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.warn(state.global_step)  # a training of fewer steps

        def warn(self, step: int) -> None:
            mean = sum(self.recent) / max(len(self.recent), 1)
            if not self.told and say and mean < DISPLACED_NATS:
                self.told = True
                say(DISPLACED.format(step=step, mean=mean))

    return Watch()


def refuse_not_finite(value: float, records: str, *, step: int, what: str = "loss") -> None:
    """Raise RunError where a loss or a gradient is no number, naming the records that made it."""
    if not math.isfinite(value):
        raise RunError(
            f"step {step}",
            given=f"the {what} became {value}" + (f" on {records}" if records else ""),
            allowed=f"a finite {what}",
            do="Train anew with a lower learning_rate (with a preference loss, or a higher beta); the run's folder keeps its "
            "last checkpoint, which start=FOLDER goes on from.",
        )


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that transformers does not know, or whose package is not there."""
    if not names:
        return
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    ready = get_available_reporting_integrations()
    for name in names:
        if name not in ready:
            given = f"{name!r}, " + (
                "whose package is not there" if name in INTEGRATION_TO_CALLBACK else "which is none"
            )
            raise ConfigError(
                "report_to", given=given, allowed=", ".join(sorted(ready)) or "none", do="Install its package."
            )


@contextmanager
def log_to(folder: Path) -> Generator[None]:
    """Let TensorBoard's log lie in a folder that stays, unless the user named one: checkpoints do not stay."""
    before = os.environ.get(TENSORBOARD)
    os.environ.setdefault(TENSORBOARD, str(folder))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(TENSORBOARD, None)


@contextmanager
def advise_on_memory(batch_size: int, max_tokens: int, *, checkpointing: bool) -> Generator[None]:
    """Raise RunError that names the setting to lower where a training runs out of memory."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        ways = [f"batch_size below {batch_size} (and accumulate above 1 for the same step)"] if batch_size > 1 else []
        ways += [] if checkpointing else ["gradient_checkpointing=true"]
        raise RunError(
            "memory",
            given=first_line(error)[:160],
            allowed="a step that fits",
            do=f"Train anew with {', or '.join([*ways, f'max_tokens below {max_tokens}'])}; the run's folder keeps its last "
            "checkpoint, which start=FOLDER goes on from.",
        ) from error


def save_whole(target: Path, *savers: Callable[[Path], Any]) -> None:
    """Let each of `savers` write into a folder that appears under its name by rename."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for save in savers:
        save(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
