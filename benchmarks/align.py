"""What sharing a prompt saves a trainer: ratios of CPU seconds of whole steps, in float32 on one torch thread.

    python benchmarks/align.py dpo        # a DPO step against TRL's DPOTrainer, with the reference in the step and cached
                                          # (--only 512/64: one prompt and answer length, here and in `sharing`)
    python benchmarks/align.py sharing    # shared prompts alone: the same head, the same cached reference
    python benchmarks/align.py copg       # eight completions of one prompt against eight rows of their own
    python benchmarks/align.py counts     # the work of `dpo`, counted alone
    python benchmarks/align.py kinds      # where our step's time goes: matrix products, attention, the rest
    python benchmarks/align.py memory     # peak memory of a step against TRL's, each in a process of its own

A step is forward, backward, clipping and the optimiser's. Variants train copies of the embedded model with LoRA r=16 on all
linear layers, on the same random tokens, and take turns: 6 rounds, the first warms up, the minimum of the others counts.
Their losses must agree to 1e-4 at every round (they move, so this compares gradients too): asserted in the same run.
Work is counted, exactly and the same on any machine: positions that go through the layers, and through the head (each
way counted, forwards and backwards), and the operations of all matrix products of a step, apart for the head (where a side is
a part of the vocabulary) and for the rest.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # this file's own name would hide the package `align`

ROUNDS = 6
PAIRS = 2
ONLY: list[str] = []


def draw(length: int, seed: int) -> list[int]:
    """Draw tokens."""
    return torch.randint(1000, 40_000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def draw_pairs(prompt: int, answer: int) -> list[dict[str, Any]]:
    """Draw PAIRS pairs."""
    return [
        {
            "id": str(at),
            "prompt_ids": draw(prompt, at),
            "chosen_ids": draw(answer, 100 + at),
            "rejected_ids": draw(answer, 200 + at),
        }
        for at in range(PAIRS)
    ]


def make_theirs(folder: str, out: str) -> Any:
    """Build TRL's trainer as its documentation does."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import DPOConfig, DPOTrainer

    set_seed(0)
    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=DPOConfig(
            output_dir=out, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", learning_rate=1e-4,
            max_length=None,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip


def make_ours(folder: str, out: str, *, objective: Any = None, share: bool = True) -> Any:
    """Build our trainer as a job does."""
    from transformers import set_seed

    from align.objectives.dpo import Dpo
    from align.train import Train
    from align.trainers import make_trainer
    from counterfoil.job import Run
    from counterfoil.progress import Progress
    from counterfoil.records import Answer, Group
    from counterfoil.store import Store

    set_seed(0)
    train = Train(
        data=Path("none"), model=folder, share_prompts=share, cache_reference=False, learning_rate=1e-4, dtype="float32"
    )
    groups = [Group.make("a", [Answer(text="b", role="chosen", score=1), Answer(text="c", role="rejected", score=0)])]
    run = Run(Path(out), Store(Path(out) / "state.sqlite"), Progress(None, label="", quiet=True))
    return make_trainer(train, objective or Dpo(), groups, folder=Path(folder), checkpoints=Path(out), run=run)


class Work(TorchDispatchMode):
    """Counts the operations of matrix products, in GFLOP: of the head, and of the rest."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.done = vocab_size, {"head": 0.0, "rest": 0.0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, count it."""
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            shapes = [part.shape for part in args if isinstance(part, torch.Tensor)]
            large = self.vocab_size // 8  # both sides tile the vocabulary; no other side of a product is that long
            where = "head" if any(size >= large for shape in shapes for size in shape) else "rest"
            self.done[where] += count(*args, **(kwargs or {}), out_val=found) / 1e9
        return found


class Runner:
    """Takes steps with a trainer, and counts what goes through its model."""

    def __init__(self, trainer: Any, rows: Sequence[Any], *, reference: Sequence[Any] | None = None) -> None:
        self.trainer, self.rows, self.reference = trainer, rows, reference
        self.model = trainer.model
        self.model.train()
        trainer.current_gradient_accumulation_steps = 1  # what the training loop sets
        self.optimizer = torch.optim.AdamW((part for part in self.model.parameters() if part.requires_grad), lr=1e-4)
        self.positions = 0
        self.work: dict[str, float] = {}
        self.in_head = 0
        inner = self.model.get_base_model().model.layers[0]
        inner.register_forward_hook(lambda _, given, __: self._count(given[0]), with_kwargs=False)
        self.losses: list[float] = []

    def _count(self, states: torch.Tensor) -> None:
        self.positions += states.shape[0] * states.shape[1]

    def count(self) -> None:
        """Take a step and count what it computes."""
        with Work(self.model.config.vocab_size) as work:
            self()
        self.work = work.done
        config = self.model.config
        self.in_head = round(work.done["head"] * 1e9 / (2 * config.hidden_size * config.vocab_size))

    def __call__(self) -> float:
        """Take a step; return its CPU seconds."""
        start = time.process_time()
        self.positions = 0
        batch = self.trainer._prepare_inputs(self.trainer.data_collator(list(self.rows)))
        if self.reference is not None and isinstance(batch, dict):
            batch |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), self.reference, strict=True))
        loss = self.trainer.training_step(self.model, batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(float(loss))
        return time.process_time() - start


def compare(runners: dict[str, Runner]) -> dict[str, float]:
    """Let the variants take turns, from the same weights; return the minimum of each. Asserts equal losses."""
    best: dict[str, float] = {}
    first, *others = runners.values()
    for other in others:
        other.model.load_state_dict(first.model.state_dict())
    for number in range(ROUNDS):
        for name, run in runners.items():
            seconds = run()
            if number:
                best[name] = min(best.get(name, seconds), seconds)
    for run in runners.values():
        run.count()
    for other in others:
        for loss, twin in zip(first.losses, other.losses, strict=True):
            assert abs(loss - twin) < 1e-4 * max(1.0, abs(loss)), (first.losses, other.losses)
    return best


def show(title: str, best: dict[str, float], over: str, under: str, runners: dict[str, Runner]) -> None:
    """Print one variant's time, where it was taken, and work as a multiple of another's."""
    one, other = runners[over], runners[under]
    work = {where: (one.work[where], other.work[where]) for where in ("rest", "head")}
    total = sum(one.work.values()) / sum(other.work.values())
    layers, head = (f"{where[0]:.0f} and {where[1]:.0f}" for where in work.values())
    places = (
        f"positions in the layers {one.positions} and {other.positions}, in the head {one.in_head} and {other.in_head}"
    )
    took = f"{best[over] / best[under]:.2f} ({best[over]:.2f} and {best[under]:.2f} s a step); " if best else ""
    print(
        f"{title}: {over} / {under}: {took}work {total:.2f} (GFLOP of the layers {layers}, head {head}; {places})",
        flush=True,
    )


def refer(trainer: Any, rows: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """Compute the reference as TRL does."""
    batch = trainer.data_collator(list(rows))
    batch.pop("ids", None)
    return list(trainer.compute_ref_log_probs(trainer.model, batch))


def choose(*lengths: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the lengths of prompt and answer that were asked for; all where none were."""
    return [pair for pair in lengths if not ONLY or f"{pair[0]}/{pair[1]}" in ONLY]


def compare_counts(folder: str, out: str) -> None:
    """Count a step of each."""
    compare_dpo(folder, out, compare=count)


def count(runners: dict[str, Runner]) -> dict[str, float]:
    """Let each take the step that is counted."""
    for run in runners.values():
        run.count()
    return {}


def compare_dpo(folder: str, out: str, *, compare: Callable[[dict[str, Runner]], dict[str, float]] = compare) -> None:
    """Against TRL's DPOTrainer."""
    for prompt, answer in choose((512, 64), (256, 128), (128, 256)):
        rows = draw_pairs(prompt, answer)
        trainers = {name: make_theirs(folder, out) for name in ("trl", "trl cached")}
        trainers |= {name: make_ours(folder, out) for name in ("ours", "ours cached")}
        runners: dict[str, Runner] = {}
        for name, trainer in trainers.items():
            reference = refer(trainer, rows) if "cached" in name else None
            trainer.precompute_ref_logps = reference is not None
            runners[name] = Runner(trainer, rows, reference=reference)
        best = compare(runners)
        for over, under in (("trl", "ours"), ("trl", "ours cached"), ("trl cached", "ours cached")):
            show(f"prompt {prompt}, answers {answer}", best, over, under, runners)


def compare_sharing(folder: str, out: str) -> None:
    """Shared prompts alone, also where there is little to share."""
    for prompt, answer in choose((512, 64), (256, 128), (128, 256), (16, 256), (1, 256)):
        rows = draw_pairs(prompt, answer)
        runners: dict[str, Runner] = {}
        for name, share in (("separate", False), ("shared", True)):
            trainer = make_ours(folder, out, share=share)
            reference = refer(trainer, rows)
            trainer.precompute_ref_logps = True
            runners[name] = Runner(trainer, rows, reference=reference)
        show(f"prompt {prompt}, answers {answer}", compare(runners), "separate", "shared", runners)


def compare_copg(folder: str, out: str) -> None:
    """Eight completions of a prompt."""
    from align.examples import Example
    from align.objectives.copg import Copg
    from align.reference import Row
    from counterfoil.records import Answer, Group

    prompt, num = draw(512, 0), 8
    group = Group.make("", [Answer(text=str(at), score=at / num) for at in range(num)])
    rows = [Row(prompt + draw(64, 1 + at), len(prompt)) for at in range(num)]
    example = Example(group, rows, [[0] * 64] * num, reference=[-600.0] * num)
    runners = {
        name: Runner(make_ours(folder, out, objective=Copg(beta=0.1), share=share), [example])
        for name, share in (("separate", False), ("shared", True))
    }
    show("prompt 512, 8 completions of 64", compare(runners), "separate", "shared", runners)


def compare_kinds(folder: str, out: str) -> None:
    """Where our DPO step with a cached reference spends its CPU time, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    for prompt, answer in choose((512, 64), (256, 128), (128, 256)):
        rows, trainer = draw_pairs(prompt, answer), make_ours(folder, out)
        reference = refer(trainer, rows)
        trainer.precompute_ref_logps = True
        run = Runner(trainer, rows, reference=reference)
        run()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
        spent = {"matrix products": 0.0, "attention": 0.0, "the rest": 0.0}
        for item in seen.key_averages():
            kind = "attention" if "scaled_dot_product" in item.key else "the rest"
            spent["matrix products" if item.key in ("aten::mm", "aten::bmm") else kind] += (
                item.self_cpu_time_total / 1e6
            )
        total = sum(spent.values())
        shares = ", ".join(f"{kind} {seconds / total:.2f}" for kind, seconds in spent.items())
        print(f"prompt {prompt}, answers {answer}, ours cached: {total:.2f} s a step: {shares}", flush=True)


def compare_memory(folder: str, out: str) -> None:  # noqa: ARG001  (called as its siblings)
    """Peak memory of a process that takes two steps, weights and libraries included."""
    found = {
        name: float(subprocess.run([sys.executable, __file__, f"{name}_memory", folder], capture_output=True, text=True,
        check=True).stdout.split()[-1]) for name in ("theirs", "ours")
    }  # fmt: skip
    ratio = found["ours"] / found["theirs"]
    print(
        f"prompt 1024, answers 256: ours / TRL's peak {ratio:.2f} ({found['ours']:.0f} and {found['theirs']:.0f} MiB)"
    )


def measure_memory(make: Callable[[str, str], Any], folder: str, out: str) -> None:
    """Print the peak of this process in MiB."""
    run = Runner(make(folder, out), draw_pairs(1024, 256))
    run()
    run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(arguments: Sequence[str]) -> None:
    """Run one comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = {name.removeprefix("compare_"): run for name, run in globals().items() if name.startswith("compare_")}
    parser.add_argument("which", choices=[*runs, "theirs_memory", "ours_memory"])
    parser.add_argument("folder", nargs="?", help="of the model; by default the embedded one")
    parser.add_argument("--only", action="append", default=[], metavar="PROMPT/ANSWER", help="these lengths alone")
    given = parser.parse_args(arguments)
    ONLY.extend(given.only)
    torch.set_num_threads(1)
    from counterfoil.models import find_model

    folder = given.folder or str(find_model("smollm2"))
    with tempfile.TemporaryDirectory() as out:
        if given.which.endswith("_memory"):
            return measure_memory(make_theirs if given.which == "theirs_memory" else make_ours, folder, out)
        return runs[given.which](folder, out)


if __name__ == "__main__":
    main(sys.argv[1:])
