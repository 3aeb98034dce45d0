"""An interrupt in the middle of a training."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from align.training import watch
from counterfoil.job import Job


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what runs a job in a folder and interrupts it after a step; the job's module calls `watch`."""

    def run(job: Job, folder: Any, *, module: ModuleType, step: int) -> None:
        def breaking(stage: Any, **rest: Any) -> Any:
            shown = watch(stage, **rest)
            inner = shown.on_log

            def on_log(args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
                inner(args, state, control, logs=logs, **rest)
                if state.global_step == step and "loss" in (logs or {}):
                    raise KeyboardInterrupt

            shown.on_log = on_log
            return shown

        with monkeypatch.context() as patch:
            patch.setattr(module, "watch", breaking)
            with pytest.raises(KeyboardInterrupt):
                job.run(folder, quiet=True)

    return run
