"""Train(Job): groups of answers to a LoRA adapter, on TRL's and transformers' trainers with PEFT.

    data --(read_groups)--> groups --(objective.select)--> groups it learns from --(make_trainer)--> an adapter a part

What cannot teach anything is dropped with reasons before training starts. Checkpoints lie in the run folder; running the job
again goes on from the last whole one.
"""

import json
import math
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from align.objective import Objective
from align.objectives.dpo import Dpo
from align.training import (
    advise_on_memory,
    check_trackers,
    find_checkpoint,
    load_trained,
    log_to,
    read_ratios,
    read_step,
    save_whole,
    silence,
    watch,
)  # fmt: skip
from counterfoil.config import Config
from counterfoil.errors import ConfigError, InputError
from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.jsonl import write_json
from counterfoil.models import find_model, fingerprint_model
from counterfoil.records import Dropped, Group, content_id
from eval.groups import read_groups
from eval.parts import read_adapter

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

    @field_validator("targets")
    @classmethod
    def check_targets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse what would be ignored."""
        if "all-linear" in value and len(value) > 1:
            raise ValueError("all-linear stands for every linear layer, and alone")
        return value

    def build(self, task_type: str) -> Any:
        """Return PEFT's config; `task_type` is CAUSAL_LM or SEQ_CLS."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]  (PEFT takes any number)
            lora_dropout=self.dropout,
            target_modules="all-linear" if self.targets == ("all-linear",) else list(self.targets),
            task_type=task_type,  # pyright: ignore[reportArgumentType]  (PEFT takes its name)
            modules_to_save=["score"] if task_type == "SEQ_CLS" else None,  # a new head has to be trained whole
        )


class Train(Job):
    """Train an adapter on preferences, scores or answers."""

    VERB: ClassVar[str] = "align"
    FOLLOWS: ClassVar[bool] = True

    data: InputPath
    """JSONL: our pairs and groups, TRL's preference and prompt-completion formats, or prompt, completions, scores."""
    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    start: InputPath | None = None
    """An adapter to go on from, or a run with an `adapter` in it; None starts a new one that changes nothing."""
    reference: Literal["base", "start"] = "base"
    """What the policy is held to: the bare model, or the model with the adapter that training starts from."""
    cache_reference: bool = True
    """Compute the reference's log-probabilities once, and keep them on disk for other runs on the same data; false computes
    them in every step, as weights that are split over processes need."""
    objective: Objective = Dpo()
    """The loss."""
    lora: Lora = Lora()
    """A new adapter; with `start` it is that one's."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1)
    """Steps, whatever `epochs` says, so that trainings on more and on fewer groups take as many; None goes by `epochs`."""
    learning_rate: float = Field(default=2.0e-4, gt=0)
    """At its peak."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    """How the learning rate falls."""
    warmup_frac: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    batch_size: int = Field(default=8, ge=1)
    """Groups (pairs) a step and device."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are averaged before a step; a last, shorter one counts as much as a whole one."""
    max_tokens: int = Field(default=1024, ge=16)
    """A group with a longer prompt + answer is dropped, never cut."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    save_every: int = Field(default=10, ge=1)
    """Steps between checkpoints."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen weights: `auto` is bfloat16 on a GPU and float32 on a CPU."""
    share_prompts: bool | None = None
    """Compute what the answers of a batch begin with once (`align.logps`): the same loss in less time. None does so on a
    CPU, for a model whose states allow it, without dropout (which would be drawn once for what is computed once), and for
    batches in which it saves enough to pay; true for all."""
    gradient_checkpointing: bool = False
    """Trade a third more time for much less memory."""
    report_to: tuple[str, ...] = ()
    """Trackers that transformers knows: tensorboard (into the run's folder), trackio, wandb ... by their own packages."""
    seed: int = 0
    """Of the adapter's start and the order of the data."""

    def check(self) -> None:
        """Refuse settings of which one would be ignored."""
        if self.reference == "start" and self.start is None:
            given, do = "start, and no adapter to start from", "Give start=FOLDER, or leave the reference at base."
            raise ConfigError("reference", given=given, allowed="base, or start with `start`", do=do)
        if self.reference == "start" and not any(part.needs_reference for part in self.objective.parts().values()):
            given, do = "start, and an objective that has no reference", "Leave the reference at base."
            raise ConfigError("reference", given=given, allowed="base", do=do)
        if self.start is not None:
            self._check_shape(read_adapter(self.start, where="start"))

    def _check_shape(self, known: dict[str, Any]) -> None:
        """Refuse a shape beside `start` that is not its own."""
        keys = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
        for name in sorted(self.lora.model_fields_set & keys.keys()):
            if getattr(self.lora, name) != known.get(keys[name]):
                given, allowed = f"{getattr(self.lora, name)} beside `start`", f"{known.get(keys[name])}, as it has"
                raise ConfigError(
                    f"lora.{name}", given=given, allowed=allowed, do="Leave it out, or start without one."
                )

    def work(self, run: Run) -> None:
        """Drop what cannot teach; train and save an adapter for each part of the objective."""
        folder = find_model(self.model)
        run.facts |= {"model": fingerprint_model(folder), "seeds": {"seed": self.seed}}
        check_trackers(self.report_to)
        groups, left_out = self._read(run, folder)
        parts = self.objective.parts()
        shares = {
            name: self._share(run, part, groups) for name, part in parts.items()
        }  # all, before the first is trained
        if len(parts) > 1:
            run.counts |= {name.removeprefix("adapter_"): len(share) for name, share in shares.items()}
        passes = self.epochs
        for name, objective in parts.items():
            history = self._train(run, folder, name, objective, shares[name])
            for row in history:
                run.write("metrics.jsonl", row if len(parts) == 1 else {"part": name, **row})
            prefix = "" if len(parts) == 1 else f"{name}_"
            figures = _summarise(history, getattr(objective, "beta", None))
            run.figures |= {f"{prefix}{key}": value for key, value in figures.items()}
            passes = history[-1]["epoch"]
        if left_out:
            run.figures["answers left out"] = left_out
        run.tokens["trained"] = round(run.tokens.get("trained", 0) * passes)
        if run.leader is None:
            shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)

    def _read(self, run: Run, folder: Path) -> tuple[list[Group], dict[str, int]]:
        """Return what can teach, and how many answers of it cannot, by reason."""
        from decode.chat import check_end, load_tokenizer
        from decode.loaded import limit_length

        tokenizer = load_tokenizer(str(folder))
        check_end(tokenizer, str(folder))
        limit = limit_length(self.max_tokens, folder)
        left_out: Counter[str] = Counter()
        run.open_output("dropped.jsonl")
        run.open_output("metrics.jsonl")
        groups: list[Group] = []
        seen: set[str] = set()
        num_read = 0
        for row in read_groups(self.data):
            for part in [row] if isinstance(row, Dropped) else self.objective.split(row):
                num_read += 1
                kept = part if isinstance(part, Dropped) else self._check(run, part, seen, tokenizer, limit)
                if isinstance(kept, Dropped):
                    run.drop(kept)
                    continue
                groups.append(kept)
                if kept.answers and isinstance(part, Group):
                    left_out.update(why for answer in part.answers if (why := self.objective.find_unfit(answer)))
        run.counts |= {"read": num_read, "kept": len(groups)}
        lost = [f"{reason} {count}" for reason, count in sorted(run.dropped.items())]
        run.progress.say(f"data: kept {len(groups)} of {num_read}" + ("; dropped: " + ", ".join(lost) if lost else ""))
        asked = [answer.prompt for group in groups for answer in group.answers if answer.prompt is not None]
        if len({isinstance(prompt, str) for prompt in (*asked, *(group.prompt for group in groups))}) > 1:
            given, allowed = "texts and conversations", "one of the two in a file"
            raise InputError(
                f"data: {self.data}", given=given, allowed=allowed, do="Train on them one after the other."
            )
        return groups, dict(sorted(left_out.items()))

    def _share(self, run: Run, part: Objective, groups: list[Group]) -> list[Group]:
        """Return what a part of the objective learns from; never nothing."""
        kept = groups if part is self.objective else []
        if part is not self.objective:
            kept = [found for group in groups if isinstance(found := part.select(group), Group)]
        if not kept:
            raise InputError(
                f"data: {self.data}",
                given=f"nothing left to train on ({dict(run.dropped)})",
                allowed=f"at least one group that {type(part).__name__.lower()} learns from",
                do="See the reasons in dropped.jsonl; make pairs with a smaller margin or more prompts.",
            )
        return kept

    def _check(self, run: Run, group: Group, seen: set[str], tokenizer: Any, limit: int) -> Group | Dropped:
        from jinja2 import TemplateError

        from align.examples import encode_group, find_fault
        from decode.chat import encode_prompt

        fresh = getattr(self.objective, "fresh", None)
        draws = fresh is not None and not fresh.role  # its answers are drawn: those of the data are not looked at
        found = group.model_copy(update={"answers": ()}) if draws else self.objective.select(group)
        if isinstance(found, Dropped):
            return found
        mark = content_id(found.model_dump(exclude={"id", "source_id"}))
        if mark in seen:
            return Dropped(id=group.id, stage="data", reason="repeated")
        seen.add(mark)
        try:
            example = encode_group(tokenizer, found)
            lengths = [len(row.ids) for row in example.rows] or [len(encode_prompt(tokenizer, found.prompt))]
        except TemplateError as error:  # one without a system's turn, turns that must alternate
            return Dropped(id=group.id, stage="data", reason="refused by the chat template", detail=str(error)[:200])
        room = fresh.max_new_tokens if fresh is not None else 0
        if max(lengths) > limit or (room and len(encode_prompt(tokenizer, found.prompt)) + room > limit):
            detail = f"{max(lengths)} tokens" + (f" and {room} to be drawn" if room else "") + f", over {limit}"
            return Dropped(id=group.id, stage="data", reason="too long", detail=detail)
        if fault := find_fault(example):
            return Dropped(id=group.id, stage="data", reason=fault)
        run.tokens["trained"] = run.tokens.get("trained", 0) + sum(lengths)
        return found

    def _train(
        self, run: Run, folder: Path, name: str, objective: Objective, groups: list[Group]
    ) -> list[dict[str, Any]]:
        """Train one part, or find it done; return what was logged at each step."""
        checkpoints = run.home / "checkpoints" / name
        done = checkpoints.with_suffix(".json")  # every process looks here, so that all skip a part or none does
        if done.is_file():
            return json.loads(done.read_text(encoding="utf-8"))
        from transformers import set_seed

        from align.trainers import make_trainer

        silence()
        set_seed(self.seed)
        memory = partial(advise_on_memory, self.batch_size, self.max_tokens, checkpointing=self.gradient_checkpointing)
        with log_to(run.folder / "tensorboard" / name), memory():
            trainer = make_trainer(self, objective, groups, folder=folder, checkpoints=checkpoints, run=run)
        batches = math.ceil(len(trainer.train_dataset) / (self.batch_size * trainer.args.world_size))
        steps = self.max_steps or math.ceil(math.ceil(batches / self.accumulate) * self.epochs)
        # By the share transformers takes at least one step, and the first one's rate is 0: one of few, or the only one.
        trainer.args.warmup_steps = math.floor(self.warmup_frac * steps)
        checkpoint = find_checkpoint(checkpoints)
        stage_name = "train" if name == "adapter" else f"train {name}"
        with run.progress.stage(stage_name, total=steps, already=read_step(checkpoint)) as stage:
            beta = getattr(objective, "beta", None)
            trainer.add_callback(watch(stage, say=run.progress.say, beta=beta))
            with memory():
                if checkpoint is not None and read_step(checkpoint) >= steps:
                    load_trained(
                        trainer, checkpoint
                    )  # it ended before it was saved; transformers would train a step more
                else:
                    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        history = [
            {key: _plain(value) for key, value in row.items() if key != "num_tokens"}  # TRL's begins anew after a break
            for row in trainer.state.log_history
            if "loss" in row
        ]
        if run.leader is not None:
            trainer.save_model(
                str(run.home / f".{name}")
            )  # weights that are split are gathered by all; nothing is written
            return history
        save_whole(run.folder / name, lambda path: _save_adapter(trainer, path))
        write_json(done, history)
        return history


def _save_adapter(trainer: Any, path: Path) -> None:
    """Save the trained adapter and the tokenizer, and nothing else."""
    trainer.save_model(str(path))
    (path / "training_args.bin").unlink(missing_ok=True)  # a pickle
    shutil.rmtree(path / "ref", ignore_errors=True)  # the frozen copy


def _plain(value: Any) -> Any:
    return float(value) if not isinstance(value, int | str) else value


def _summarise(rows: list[dict[str, Any]], beta: float | None) -> dict[str, float]:
    """Average the last fifth of the steps: single steps are noise."""
    last = rows[-max(1, len(rows) // 5) :]
    names = {"loss": ["loss"], "accuracy": ["rewards/accuracies", "accuracy"], "margin": ["rewards/margins", "margin"]}
    figures = {
        name: round(_mean(last, key), 4) for name, keys in names.items() for key in keys if key in last[-1]
    }  # a reward model's have other names in TRL
    figures["steps"] = len(rows)
    for side in ("chosen", "rejected"):
        # Log-ratio to the reference, in nats an answer: below 0, chosen answers became less likely.
        ratios = [found[side] for row in last if side in (found := read_ratios(row, beta))]
        if ratios:
            figures[f"{side}_log_ratio"] = round(sum(ratios) / len(ratios), 4)
    return figures


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    values = [float(row[key]) for row in rows if key in row]
    return sum(values) / max(len(values), 1)
