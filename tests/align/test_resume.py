"""A training that was stopped anywhere ends with the weights of one that was not; batches may be cut as they fit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align import reference, trainers
from align import train as train_module
from align.objective import Objective
from align.objectives.copg import Copg
from align.objectives.decoupled import Decoupled
from align.objectives.distill import Distill
from align.objectives.dpo import Dpo
from align.objectives.sft import Sft
from align.objectives.unlikelihood import Unlikelihood
from align.train import Lora, Train
from align.training import find_checkpoint, read_step
from counterfoil.job import Finished
from counterfoil.records import Answer, Group, Message, Span


def write(path: Path, count: int = 8) -> Path:
    """Write groups that every objective of this file learns something from, and no two of which have as much in them."""
    made: list[Group] = []
    for number in range(count):
        good = Answer(text="Yes, it is fine. " * (1 + number % 3), role="chosen", score=1.0)
        bad = Answer(text=f"No, it is {number}.", role="rejected", score=number / 10)
        faulty = Answer(text="It is bad.", score=0.5, spans=(Span(start=6, stop=9),))
        answers = [good, bad, *([faulty] if number % 3 else [])]
        made.append(Group.make([Message(role="user", content=f"How is number {number}?")], answers))
    path.write_text("".join(group.model_dump_json() + "\n" for group in made))
    return path


def make_job(folder: Path, model: Path, objective: Objective, **changes: Any) -> Train:
    settings: dict[str, Any] = {
        "batch_size": 2,
        "save_every": 2,
        "learning_rate": 1e-2,
        "lora": Lora(rank=4),
        "epochs": 2,
    }
    settings = {key: value for key, value in settings.items() if key != "lora" or "start" not in changes}
    data = folder / "groups.jsonl"
    return Train(
        data=data if data.is_file() else write(data), model=str(model), objective=objective, **(settings | changes)
    )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_equal(one: Path, other: Path) -> None:
    left, right = read_weights(one), read_weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def start(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an adapter to start from."""
    folder = tmp_path_factory.mktemp("start")
    return make_job(folder, tiny_model, Sft()).run(folder / "run", quiet=True).path("adapter")


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("objective", [Copg(beta=0.5), Dpo()], ids=["copg", "dpo"])
def test_it_goes_on_beside_a_frozen_copy(
    objective: Objective, cached: bool, tmp_path: Path, tiny_model: Path, start: Path, interrupt: Callable[..., None]
) -> None:
    """The checkpoint holds two adapters; the one that was trained is the one that goes on."""
    job = make_job(tmp_path, tiny_model, objective, start=start, reference="start", cache_reference=cached)
    whole = job.run(tmp_path / "whole", quiet=True)
    interrupt(job, tmp_path / "broken", module=train_module, step=5)
    assert_equal(whole.folder, job.run(tmp_path / "broken", quiet=True).folder)
    first = load_file(start / "adapter_model.safetensors")
    assert any(not torch.equal(value, first[name]) for name, value in read_weights(whole.folder).items())


@pytest.mark.parametrize("objective", [Copg(beta=0.5), Dpo()], ids=["copg", "dpo"])
def test_a_frozen_copy_drops_nothing_out(
    objective: Objective, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that is computed in the step would be noise. The adapter that is trained keeps its dropout."""
    first = make_job(tmp_path, tiny_model, Sft(), lora=Lora(rank=4, dropout=0.3), epochs=1)
    start = first.run(tmp_path / "first", quiet=True).path("adapter")
    found: list[Any] = []
    real = trainers.make_trainer

    def spy(*given: Any, **rest: Any) -> Any:
        trainer = real(*given, **rest)
        found.extend(part.lora_dropout for part in trainer.model.modules() if hasattr(part, "lora_dropout"))
        return trainer

    monkeypatch.setattr(trainers, "make_trainer", spy)
    job = make_job(tmp_path, tiny_model, objective, start=start, reference="start", cache_reference=False, epochs=1)
    job.run(tmp_path / "run", quiet=True)
    assert found
    for parts in found:
        assert parts["default"].p == 0.3
        assert isinstance(parts["ref"], torch.nn.Identity)


@pytest.mark.parametrize("objective", [Copg(beta=0.5), Sft()], ids=["copg", "sft"])
def test_it_goes_on_between_batches_of_one_step(
    objective: Objective, tmp_path: Path, tiny_model: Path, interrupt: Callable[..., None]
) -> None:
    job = make_job(tmp_path, tiny_model, objective, batch_size=1, accumulate=2)
    whole = job.run(tmp_path / "whole", quiet=True)
    interrupt(job, tmp_path / "broken", module=train_module, step=5)
    assert_equal(whole.folder, job.run(tmp_path / "broken", quiet=True).folder)


@pytest.mark.parametrize("objective", [Copg(beta=0.5), Dpo()], ids=["copg", "dpo"])
def test_interrupted_in_the_reference_it_goes_on_with_the_next_batch(
    objective: Objective, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run has a cache of its own; of four batches the first is not computed again."""
    job = make_job(tmp_path, tiny_model, objective)
    monkeypatch.setenv("COUNTERFOIL_CACHE", str(tmp_path / "one"))
    whole = job.run(tmp_path / "whole", quiet=True)
    monkeypatch.setenv("COUNTERFOIL_CACHE", str(tmp_path / "two"))
    computed: list[int] = []
    real = reference._compute

    def breaking(*given: Any, **rest: Any) -> Any:
        for start, values in real(*given, **rest):
            computed.append(start)
            yield start, values
            if len(computed) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(reference, "_compute", breaking)
    with pytest.raises(KeyboardInterrupt):
        job.run(tmp_path / "broken", quiet=True)
    assert_equal(whole.folder, job.run(tmp_path / "broken", quiet=True).folder)
    assert computed == [0, 2, 4, 6]


def test_a_kept_reference_is_found_by_what_it_depends_on_and_by_nothing_else(
    tmp_path: Path, tiny_model: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another beta, seed, rate or loss computes nothing; other weights, another start or other tokens compute anew."""
    monkeypatch.setenv("COUNTERFOIL_CACHE", str(tmp_path / "cache"))
    computed: list[int] = []
    real = reference._compute

    def count(*given: Any, **rest: Any) -> Any:
        computed.append(1)
        return real(*given, **rest)

    monkeypatch.setattr(reference, "_compute", count)
    runs = iter(range(99))

    def computes(objective: Objective, **changes: Any) -> bool:
        model = changes.pop("model", tiny_model)
        computed.clear()
        make_job(tmp_path, model, objective, epochs=1, **changes).run(tmp_path / f"run{next(runs)}", quiet=True)
        return bool(computed)

    assert computes(Dpo())
    for objective, changes in (
        (Dpo(beta=0.5), {}),
        (Dpo(label_smoothing=0.1), {}),
        (Dpo(), {"seed": 3}),
        (Dpo(), {"learning_rate": 1e-3}),
        (Dpo(), {"lora": Lora(rank=2)}),
        (Dpo(), {"start": start}),  # held to the bare model, from an adapter
    ):
        assert not computes(objective, **changes), (objective, changes)
    assert computes(Dpo(), start=start, reference="start")
    assert not computes(Dpo(beta=0.5), start=start, reference="start")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = next(key for key in weights if "q_proj" in key)
    save_file(weights | {name: weights[name] * 2}, other / "model.safetensors", metadata={"format": "pt"})
    assert computes(Dpo(), model=other)
    write(tmp_path / "groups.jsonl", count=7)
    assert computes(Dpo())


@pytest.mark.parametrize("step", [1, 3])
def test_interrupted_in_the_second_of_two_trainings_it_does_not_train_the_first_again(
    step: int, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`decoupled` before and after a checkpoint of its negative part."""
    job = make_job(tmp_path, tiny_model, Decoupled(), save_every=2)
    whole = job.run(tmp_path / "whole", quiet=True)
    begun: list[str] = []
    real = train_module.watch

    def breaking(stage: Any, **rest: Any) -> Any:
        shown = real(stage, **rest)
        inner, begun[:] = shown.on_log, [*begun, "part"]

        def on_log(args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            inner(args, state, control, logs=logs, **rest)
            if len(begun) == 2 and state.global_step == step and "loss" in (logs or {}):
                raise KeyboardInterrupt

        shown.on_log = on_log
        return shown

    monkeypatch.setattr(train_module, "watch", breaking)
    with pytest.raises(KeyboardInterrupt):
        job.run(tmp_path / "broken", quiet=True)
    assert not (tmp_path / "broken/manifest.json").exists()
    job.run(tmp_path / "broken", quiet=True)
    assert len(begun) == 3, "the first part is found done"
    for part in ("positive", "negative"):
        one, other = (
            load_file(folder / part / "adapter_model.safetensors") for folder in (whole.folder, tmp_path / "broken")
        )
        assert all(torch.equal(one[name], other[name]) for name in one)


def read_losses(done: Finished) -> list[float]:
    return [json.loads(line)["loss"] for line in (done.folder / "metrics.jsonl").read_text().splitlines()]


LOSSES = {"copg": Copg(beta=0.5), "unlikelihood": Unlikelihood(), "distill": Distill(), "dpo": Dpo()}


@pytest.mark.parametrize("objective", LOSSES.values(), ids=LOSSES)
def test_four_at_once_are_four_times_one(objective: Objective, tmp_path: Path, tiny_model: Path) -> None:
    runs = [
        # Adam's first step is as long for the least of gradients, rounding and all, as for any other.
        make_job(tmp_path, tiny_model, objective, batch_size=size, accumulate=4 // size, warmup_frac=0.5).run(
            tmp_path / str(size), quiet=True
        )
        for size in (4, 1)
    ]
    assert read_losses(runs[0]) == pytest.approx(read_losses(runs[1]), rel=1e-4, abs=1e-5)
    one, other = (read_weights(run.folder) for run in runs)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_weights(tmp_path: Path, tiny_model: Path) -> None:
    """SIGKILL at times drawn over a whole run, a checkpoint every step: while loading, referring, stepping and saving."""
    config = tmp_path / "job.yaml"
    config.write_text("objective: {name: copg, beta: 0.5}\nlora: {rank: 4}\nepochs: 8\nsave_every: 1\nbatch_size: 1\n")
    write(tmp_path / "groups.jsonl", count=12)
    given = [f"data={tmp_path / 'groups.jsonl'}", f"model={tiny_model}"]

    def begin(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "counterfoil", "align", str(config), *given]
        command += ["--to", str(tmp_path / name), "--quiet"]
        env = os.environ | {"COUNTERFOIL_CACHE": str(tmp_path / f"cache of {name}"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    started = time.monotonic()
    whole = begin("whole")
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said[-3000:]
    took = time.monotonic() - started
    draw, kills, saved = random.Random(0), 0, tmp_path / "broken" / "checkpoints" / "adapter"
    moments: list[int] = []
    for part in (0.3, 0.5, 0.65, 0.6):
        running = begin("broken")
        time.sleep(took * draw.uniform(part - 0.1, part + 0.1))
        if running.poll() is not None:  # each begins further on, and one may come to the end
            break
        running.send_signal(signal.SIGKILL)
        running.communicate()
        kills += 1
        moments.append(read_step(find_checkpoint(saved)))
    last = begin("broken")
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said[-3000:]
    assert kills >= 2
    assert moments[-1] > 0, moments
    assert_equal(tmp_path / "whole", tmp_path / "broken")
