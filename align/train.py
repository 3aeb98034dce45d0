"""Train(Job): pairs to a LoRA adapter, on TRL's and transformers' trainers with PEFT.

What is in pairs.jsonl goes to TRL's DPOTrainer as it is, less what cannot teach anything (dropped with reasons before
training starts). Checkpoints lie in the run folder; running the job again goes on from the last whole one.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.objective import Objective
from align.objectives.dpo import Dpo
from align.training import find_checkpoint, read_step, save_whole, silence, watch
from counterfoil.config import Config
from counterfoil.errors import InputError
from counterfoil.job import InputPath, Job, Run
from counterfoil.jsonl import read_lines
from counterfoil.models import find_model, fingerprint_model
from counterfoil.records import Dropped, content_id

__all__ = ["Lora", "Train"]


class Lora(Config):
    """The adapter. Source: Hu et al. 2021 (arXiv 2106.09685), by PEFT."""

    rank: int = Field(default=16, ge=1)
    """Rank of each update (the paper's r)."""
    alpha: float = Field(default=32, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """On the adapter's input; 0 keeps the policy equal to the reference at the first step."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the adapted modules; `all-linear` alone stands for every linear layer but the head."""

    def build(self) -> Any:
        """Return PEFT's config."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]  (PEFT takes any number)
            lora_dropout=self.dropout,
            target_modules="all-linear" if self.targets == ("all-linear",) else list(self.targets),
            task_type="CAUSAL_LM",
        )


class Train(Job):
    """Train an adapter on preference pairs."""

    VERB: ClassVar[str] = "align"

    pairs: InputPath
    """JSONL in TRL's preference format: `prompt`, `chosen`, `rejected` as message lists or texts."""
    model: str = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    objective: Objective = Dpo()
    """The loss."""
    lora: Lora = Lora()
    """The adapter."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs."""
    learning_rate: float = Field(default=2.0e-4, gt=0)
    """At its peak."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    """How the learning rate falls."""
    warmup_frac: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    batch_size: int = Field(default=8, ge=1)
    """Pairs a step and device."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added before a step."""
    max_tokens: int = Field(default=1024, ge=16)
    """A pair with a longer prompt + answer is dropped, never cut."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    save_every: int = Field(default=10, ge=1)
    """Steps between checkpoints."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen weights: `auto` is bfloat16 on a GPU and float32 on a CPU."""
    share_prompts: bool | None = None
    """Compute what the answers of a batch begin with once (`align.logps`): the same loss in less time. None does so on a
    CPU, for a model whose states allow it, without dropout (which would be drawn once for what is computed once)."""
    gradient_checkpointing: bool = False
    """Trade a third more time for much less memory."""
    report_to: tuple[str, ...] = ()
    """Trackers that transformers knows: tensorboard, trackio, wandb ..."""
    seed: int = 0
    """Of the adapter's start and the order of the pairs."""

    def work(self, run: Run) -> None:
        """Drop what cannot teach, train, save the adapter."""
        folder = find_model(self.model)
        run.facts |= {"model": fingerprint_model(folder), "seeds": {"seed": self.seed}}
        rows = self._read_pairs(run, folder)
        trainer = self._build(run, folder, rows)
        steps = math.ceil(len(rows) / self.batch_size / self.accumulate * self.epochs)
        checkpoint = find_checkpoint(run.folder / "checkpoints")
        with run.progress.stage("train", total=steps, already=read_step(checkpoint)) as stage:
            trainer.add_callback(watch(stage))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        for row in (row for row in trainer.state.log_history if "loss" in row):
            run.write("metrics.jsonl", {key: _plain(value) for key, value in row.items()})
        self._save(run, trainer)
        run.figures |= _summarise(trainer.state.log_history)
        counted = [row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row]
        run.tokens["trained"] = int(counted[-1]) if counted else 0

    def _read_pairs(self, run: Run, folder: Path) -> list[dict[str, Any]]:
        from decode.chat import load_tokenizer

        tokenizer = load_tokenizer(str(folder))
        run.open_output("dropped.jsonl")
        rows: list[dict[str, Any]] = []
        seen: set[str] = set()
        num_read = 0
        for row in read_lines(self.pairs, where="pairs"):
            num_read += 1
            kept = row if isinstance(row, Dropped) else _check_pair(row, seen, tokenizer, max_tokens=self.max_tokens)
            if isinstance(kept, Dropped):
                run.drop(kept)
            else:
                rows.append(kept)
        run.counts |= {"read": num_read, "kept": len(rows)}
        if not rows:
            raise InputError(
                f"pairs: {self.pairs}",
                given=f"no pair left to train on ({dict(run.dropped)})",
                allowed="at least one pair with two different, non-empty answers",
                do="Make pairs with a smaller margin or more prompts.",
            )
        return rows

    def _build(self, run: Run, folder: Path, rows: list[dict[str, Any]]) -> Any:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, PrinterCallback, set_seed
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer
        from trl.trainer.utils import disable_dropout_in_model

        from align.logps import can_share, share_prefixes
        from decode.chat import load_tokenizer

        silence()
        _score_completions_only()
        set_seed(self.seed)
        on_gpu = torch.cuda.is_available()
        half = self.dtype == "bfloat16" or (self.dtype == "auto" and on_gpu)
        settings = DPOConfig(
            output_dir=str(run.folder / "checkpoints"),
            num_train_epochs=self.epochs,
            learning_rate=self.learning_rate,
            lr_scheduler_type=self.schedule,
            warmup_steps=self.warmup_frac,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.accumulate,
            max_grad_norm=self.max_grad_norm,
            max_length=None,
            disable_dropout=False,  # TRL would disable the adapter's too, in silence; the model's own is disabled below
            # Over one pass the reference's forward costs the same inside the step; over several it is computed once.
            precompute_ref_log_probs=self.objective.needs_reference and self.epochs > 1,
            gradient_checkpointing=self.gradient_checkpointing,
            bf16=half,
            logging_steps=1,
            logging_nan_inf_filter=False,  # a loss that is no number is to be seen, and to stop us
            save_steps=self.save_every,
            save_total_limit=2,
            report_to=list(self.report_to) or "none",
            disable_tqdm=True,
            seed=self.seed,
            use_cpu=not on_gpu and not torch.backends.mps.is_available(),
            **self.objective.trainer_settings(),
        )
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if half else torch.float32)
        disable_dropout_in_model(model)
        _check_targets(model, self.lora.targets)
        trainer = DPOTrainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=load_tokenizer(str(folder)),
            peft_config=self.lora.build(),
        )
        trainer.remove_callback(PrinterCallback)
        exact = not self.lora.dropout and can_share(model)
        if self.share_prompts or (self.share_prompts is None and not on_gpu and exact):
            share_prefixes(model)
        return trainer

    def _save(self, run: Run, trainer: Any) -> None:
        save_whole(run.folder / "adapter", trainer.model, trainer.processing_class)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


def _text_of(side: Any) -> str | None:
    """Return the last message's text, or the text itself; None for anything else."""
    if isinstance(side, str):
        return side
    if isinstance(side, list) and side and isinstance(side[-1], dict) and isinstance(side[-1].get("content"), str):
        return side[-1]["content"]
    return None


def _check_pair(row: dict[str, Any], seen: set[str], tokenizer: Any, *, max_tokens: int) -> dict[str, Any] | Dropped:
    pair = {key: row.get(key) for key in ("prompt", "chosen", "rejected")}
    row_id = str(row.get("id") or content_id(pair))

    def refuse(reason: str, detail: str = "") -> Dropped:
        return Dropped(id=row_id, stage="pairs", reason=reason, detail=detail)

    texts = {key: _text_of(value) for key, value in pair.items()}
    absent = [key for key, text in texts.items() if text is None]
    if absent:
        return refuse("missing column", f"{', '.join(absent)}; columns: {', '.join(sorted(row))}"[:200])
    if len({type(value) for value in pair.values()}) > 1:
        return refuse("mixed texts and message lists")
    empty = [key for key, text in texts.items() if not str(text).strip()]
    if empty:
        return refuse("empty side", ", ".join(empty))
    try:
        json.dumps(pair, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair is JSON, but no text that a tokenizer takes
        return refuse("broken text")
    if texts["chosen"] == texts["rejected"]:
        return refuse("chosen equals rejected")
    mark = content_id(pair)
    if mark in seen:
        return refuse("repeated pair")
    seen.add(mark)
    longest = max(
        len(tokenizer.encode(f"{_flatten(pair['prompt'])}{_flatten(pair[key])}")) for key in ("chosen", "rejected")
    )
    return refuse("too long", f"{longest} tokens, over {max_tokens}") if longest > max_tokens else pair


def _flatten(side: Any) -> str:
    return side if isinstance(side, str) else "\n".join(f"{item['role']}\n{item['content']}" for item in side)


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    """Refuse a name that no module ends in; PEFT is content when one of several is found."""
    known = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if "." in name} | {"all-linear"}
    unknown = [name for name in targets if name.rsplit(".", 1)[-1] not in known]
    if unknown:
        raise InputError(
            "lora.targets",
            given=", ".join(unknown),
            allowed=f"all-linear, or names of modules: {', '.join(sorted(name for name in known if 'proj' in name))}",
            do="Name modules of this model.",
        )


def _score_completions_only() -> None:
    """Let TRL put the language-model head on completion positions alone, as it does by itself on Triton devices only.

    Elsewhere it scores prompts and padding as well and throws them away: the same loss at 1.7 times a step's cost here.
    This goes when TRL does it on a CPU.
    """
    import trl.trainer.utils

    utils: Any = trl.trainer.utils
    utils._use_triton = lambda device: True  # noqa: ARG005


def _plain(value: Any) -> Any:
    return float(value) if not isinstance(value, int | str) else value


def _summarise(history: list[dict[str, Any]]) -> dict[str, float]:
    """Average the last fifth of the steps: single steps are noise."""
    rows = [row for row in history if "loss" in row]
    last = rows[-max(1, len(rows) // 5) :]
    names = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}
    figures = {name: round(_mean(last, key), 4) for name, key in names.items() if key in last[-1]}
    figures["steps"] = len(rows)
    if "rewards/chosen" in last[-1]:
        # The implicit reward is beta times the log-ratio to the reference: below 0, chosen answers became less likely.
        figures["chosen_reward"] = round(_mean(last, "rewards/chosen"), 4)
    return figures


def _mean(rows: Iterator[dict[str, Any]] | list[dict[str, Any]], key: str) -> float:
    values = [float(row[key]) for row in rows if key in row]
    return sum(values) / max(len(values), 1)
