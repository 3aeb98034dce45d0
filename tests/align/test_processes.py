"""Two processes on one training (gloo, as `accelerate launch` starts them) against one process with the same batches."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from counterfoil.records import Answer, Group


def write(path: Path) -> Path:
    made = [
        Group.make(
            [{"role": "user", "content": f"Say {number}."}],
            [
                Answer(text=f"yes {number}", role="chosen", score=1.0),
                Answer(text="no " * (1 + number % 3), role="rejected", score=number / 10),
            ],
        )
        for number in range(16)
    ]
    path.write_text("".join(item.model_dump_json() + "\n" for item in made))
    return path


SHARDED = """
import sys
from accelerate import state
begin = state.PartialState.__init__
def begin_as_another(self, *given, **named):
    begin(self, *given, **named)
    if self.distributed_type == state.DistributedType.MULTI_CPU:
        self.distributed_type = state.DistributedType.MULTI_XPU
state.PartialState.__init__ = begin_as_another
from counterfoil.cli import main
code = main(sys.argv[1:])
kind = state.AcceleratorState().distributed_type
assert kind == state.DistributedType.FSDP, kind  # else accelerate trains copies, without a word
sys.exit(code)
"""
"""counterfoil where accelerate takes CPUs for devices whose weights FSDP may split, which it does not by itself."""


def start(
    folder: Path, config: Path, *overrides: str, processes: int, environ: Mapping[str, str] | None = None
) -> list["subprocess.Popen[str]"]:
    """Start `counterfoil align` in `processes` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = ["-c", SHARDED] if environ else ["-m", "counterfoil"]
    command = [sys.executable, *program, "align", str(config), "--to", str(folder), "--quiet", *overrides]
    common = (
        os.environ
        | dict(environ or {})
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    )
    ranks = [
        {} if processes == 1 else {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        for rank in range(processes)
    ]
    return [
        subprocess.Popen(command, env=common | rank, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in ranks
    ]


def train(
    folder: Path, config: Path, *overrides: str, processes: int, environ: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Run it to its end; return what was logged."""
    for process in start(folder, config, *overrides, processes=processes, environ=environ):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


FRESH = "{name: copg, fresh: {every: 2, n: 3, max_new_tokens: 6, scorer: {name: chance}}}"


@pytest.mark.parametrize("objective", ["dpo", "copg", "sft", "reward", FRESH])
def test_two_processes_give_the_loss_curve_of_one(objective: str, tmp_path: Path, tiny_model: Path) -> None:
    """Also where answers are drawn: a group's are the same in whichever process."""
    config = tmp_path / "job.yaml"
    config.write_text(f"objective: {objective}\nlora: {{rank: 4}}\nepochs: 2\nlearning_rate: 5.0e-3\nsave_every: 3\n")
    given = (f"data={write(tmp_path / 'data.jsonl')}", f"model={tiny_model}")
    alone = train(tmp_path / "one", config, *given, "batch_size=4", processes=1)
    both = train(tmp_path / "two", config, *given, "batch_size=2", processes=2)
    assert len(alone) == len(both) == 8
    for row, twin in zip(alone, both, strict=True):
        assert row["loss"] == pytest.approx(twin["loss"], rel=1e-4, abs=1e-5)
    assert (tmp_path / "two" / "adapter" / "adapter_model.safetensors").is_file()
    assert not [item for item in (tmp_path / "two").iterdir() if item.name.startswith(".adapter")]
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["counts"]["kept"] == 16


def test_two_processes_that_were_killed_go_on_to_the_same_weights(tmp_path: Path, tiny_model: Path) -> None:
    """SIGKILL to both once a checkpoint is whole, then the same commands again: bit for bit, as with one process."""
    config = tmp_path / "job.yaml"
    config.write_text("objective: dpo\nlora: {rank: 4}\nepochs: 6\nlearning_rate: 5.0e-3\nsave_every: 1\n")
    given = (f"data={write(tmp_path / 'data.jsonl')}", f"model={tiny_model}", "batch_size=2")
    whole = train(tmp_path / "whole", config, *given, processes=2)
    killed = start(tmp_path / "broken", config, *given, processes=2)
    end = time.monotonic() + 120
    while not list((tmp_path / "broken/checkpoints/adapter").glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < end
        time.sleep(0.01)
    for process in killed:
        process.kill()
        process.communicate()
    assert not (tmp_path / "broken/manifest.json").exists(), "it was not done yet"
    resumed = train(tmp_path / "broken", config, *given, processes=2)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("objective", ["dpo", "copg"])
def test_weights_in_shards_give_the_adapter_of_one_process(objective: str, tmp_path: Path, tiny_model: Path) -> None:
    """FSDP2 for real, its shards on two CPU processes, by what accelerate makes of our config file."""
    launcher = load_launcher("fsdp")
    environ = {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}
    environ |= {key.upper(): str(value) for key, value in launcher.fsdp_config.items()}
    config = tmp_path / "job.yaml"
    config.write_text(f"objective: {objective}\nlora: {{rank: 4}}\nepochs: 2\nlearning_rate: 5.0e-3\nsave_every: 3\n")
    given = (f"data={write(tmp_path / 'data.jsonl')}", f"model={tiny_model}")
    split = ("batch_size=2", "cache_reference=false", "share_prompts=false")
    alone = train(tmp_path / "one", config, *given, "batch_size=4", processes=1)
    shards = train(tmp_path / "two", config, *given, *split, processes=2, environ=environ)
    assert [row["loss"] for row in shards] == pytest.approx([row["loss"] for row in alone], rel=1e-4, abs=1e-5)
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, whole in one.items():
        assert torch.allclose(whole, two[key], rtol=1e-3, atol=1e-4), key


def load_launcher(name: str) -> Any:
    from accelerate.commands.config.config_args import load_config_from_file

    return load_config_from_file(str(Path(__file__).parents[2] / "configs" / "accelerate" / f"{name}.yaml"))


def test_accelerate_reads_its_configs() -> None:
    """It refuses keys that it does not know."""
    sharded = load_launcher("fsdp")
    assert sharded.distributed_type == "FSDP"
    assert sharded.fsdp_config["fsdp_version"] == 2
    assert load_launcher("deepspeed").deepspeed_config["zero_stage"] == 2
