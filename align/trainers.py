"""A trainer for an objective: TRL's own where TRL has the loss, ours for losses on groups; both on the same model.

The model is made ready once, whatever trains it: adapters by PEFT, the head on answers alone, shared prompts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PrinterCallback, TrainingArguments
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import disable_dropout_in_model

from align.data import encode
from align.examples import count_end, encode_group
from align.fresh import Sampler
from align.group_trainer import GroupTrainer
from align.logps import can_share, install_head, share_prefixes
from align.objective import LossObjective, Objective, TrlObjective
from align.reference import FROZEN, Row, compute_reference
from align.training import refuse_not_finite
from counterfoil.errors import InputError
from counterfoil.job import Run
from counterfoil.models import fingerprint_model
from counterfoil.records import Answer, Group
from counterfoil.store import Store
from decode.attention import varies_with_batch
from decode.chat import load_tokenizer
from decode.head import reads_states
from eval.parts import find_adapter

if TYPE_CHECKING:
    from align.train import Train

__all__ = ["make_trainer"]


class Setup(NamedTuple):
    """What each kind of trainer is made of."""

    train: "Train"
    groups: Sequence[Group]
    model: Any
    """With its trainable adapter."""
    tokenizer: Any
    settings: dict[str, Any]
    """Of transformers' TrainingArguments."""
    store: Store
    """Where fresh answers are kept."""
    refer: Callable[[Sequence[Sequence[Row]]], list[list[float]]]
    """Computes the reference's log-probabilities of each row of each group."""


def make_trainer(
    train: "Train",
    objective: Objective,
    groups: Sequence[Group],
    *,
    folder: Path,
    checkpoints: Path,
    run: Run,
) -> Any:
    """Return what trains an objective on groups that it selected; the model is loaded, the reference computed."""
    tokenizer = load_tokenizer(str(folder))
    half = train.dtype == "bfloat16" or (train.dtype == "auto" and torch.cuda.is_available())
    classifies = isinstance(objective, TrlObjective) and objective.trainer == "reward"
    model = _load(train, folder, torch.bfloat16 if half else torch.float32, classifies=classifies)
    adapter = find_adapter(train.start) if train.start and train.reference == "start" else None
    if train.cache_reference and varies_with_batch(model):
        run.progress.say("the reference is computed in each step: this model's positions depend on the batch")
        train = train.model_copy(update={"cache_reference": False})
    identity = [fingerprint_model(folder), adapter and fingerprint_model(adapter), str(model.dtype)]

    def refer(rows: Sequence[Sequence[Row]]) -> list[list[float]]:
        return compute_reference(
            model,
            rows,
            identity=identity,
            progress=run.progress,
            pad=tokenizer.pad_token_id,
            half=half,
            batch_size=min(train.batch_size, 8),  # what does not fit into memory is made smaller by the same setting
        )

    setup = Setup(train, groups, model, tokenizer, _settings(train, checkpoints, half=half), run.store, refer)
    if isinstance(objective, LossObjective):
        trainer = _train_groups(setup, objective)
    else:
        assert isinstance(objective, TrlObjective)
        trainer = {"dpo": _train_pairs, "sft": _train_answers, "reward": _train_reward}[objective.trainer](
            setup, objective
        )
    if FROZEN in model.peft_config:
        _still_copy(model)
        _resume_own(trainer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _load(train: "Train", folder: Path, dtype: torch.dtype, *, classifies: bool) -> Any:
    """Load the model with a trainable adapter, ready to share prompts and to score answers alone."""
    if classifies:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, num_labels=1)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    disable_dropout_in_model(model)
    _still_attention(model)
    if train.start is None:
        _check_targets(model, train.lora.targets)
    start = train.start and find_adapter(train.start)
    dropout = train.lora.dropout if start is None else _read_start(start, classifies=classifies)
    exact = not dropout and can_share(model)
    shares = train.share_prompts or (train.share_prompts is None and not torch.cuda.is_available() and exact)
    if shares and not classifies:
        share_prefixes(model, **({"least_saved": 0} if train.share_prompts else {}))
    try:
        if start is None:
            tuned = get_peft_model(model, train.lora.build("SEQ_CLS" if classifies else "CAUSAL_LM"))
        else:
            tuned = PeftModel.from_pretrained(model, str(start), is_trainable=True)
    except (ValueError, RuntimeError) as error:  # modules that PEFT cannot adapt; weights of other shapes
        where, do = (
            ("lora.targets", _name_targets(model)) if start is None else (f"start: {start}", "Take one of this model.")
        )
        given = " ".join(str(error).split())[:300]
        raise InputError(where, given=given, allowed="an adapter that fits the model", do=do) from error
    if train.gradient_checkpointing:
        tuned.enable_input_require_grads()
    return tuned


def _still_attention(model: Any) -> None:
    """Take the dropout out of attention as well, which is a number of a module and no module of its own.

    With it a policy would differ from its reference before the first step, and what is shared would be drawn once.
    """
    for part in model.modules():
        for name in ("attention_dropout", "attn_dropout", "dropout_rate", "dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def _read_start(start: Path, *, classifies: bool) -> float:
    """Return the dropout of an adapter to start from. Raises InputError where it is one of another kind of model."""
    config = PeftConfig.from_pretrained(str(start))
    wanted = "SEQ_CLS" if classifies else "CAUSAL_LM"
    if config.task_type not in (wanted, None):
        raise InputError(
            f"start: {start}", given=f"an adapter for {config.task_type}", allowed=wanted, do="Start from another."
        )
    return float(getattr(config, "lora_dropout", 0.0))


def _settings(train: "Train", checkpoints: Path, *, half: bool) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(checkpoints),
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup_frac,
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.accumulate,
        "max_grad_norm": train.max_grad_norm,
        "gradient_checkpointing": train.gradient_checkpointing,
        "bf16": half,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is no number is to be seen, and to stop us
        "save_steps": train.save_every,
        "save_total_limit": 2,
        "report_to": list(train.report_to) or "none",
        "disable_tqdm": True,
        "seed": train.seed,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,  # an adapter's weights are all used
        "use_cpu": not on_gpu and not torch.backends.mps.is_available(),
    }


def _train_groups(setup: Setup, objective: LossObjective) -> Any:
    install_head(setup.model.get_base_model())
    if objective.needs_reference and setup.train.reference == "start":
        assert setup.train.start is not None, "Train.check"
        setup.model.load_adapter(str(find_adapter(setup.train.start)), adapter_name=FROZEN, is_trainable=False)
        setup.model.set_adapter("default")
    examples = [encode_group(setup.tokenizer, group) for group in setup.groups]
    if objective.needs_reference and setup.train.cache_reference and objective.fresh is None:
        found = setup.refer([example.rows for example in examples])
        examples = [example._replace(reference=values) for example, values in zip(examples, found, strict=True)]
    sampler = None
    if objective.fresh is not None:
        sampler = Sampler(objective.fresh, objective, setup.tokenizer, setup.store, seed=setup.train.seed)
    return GroupTrainer(
        model=setup.model,
        args=TrainingArguments(**setup.settings),
        objective=objective,
        examples=examples,
        sampler=sampler,
        pad=setup.tokenizer.pad_token_id,
        processing_class=setup.tokenizer,
    )


def _train_pairs(setup: Setup, objective: TrlObjective) -> Any:
    trainer = DPOTrainer(
        model=setup.model,
        args=DPOConfig(
            **setup.settings,
            max_length=None,
            disable_dropout=False,  # TRL would disable the adapter's too, in silence; the model's own is disabled
            **objective.trainer_settings(),
        ),
        train_dataset=Dataset.from_list([_as_pair(group) for group in setup.groups]),
        processing_class=setup.tokenizer,
    )
    _replace_head(trainer, setup.model)
    _open_ends(trainer, setup.tokenizer, setup.groups)
    if setup.train.reference == "base":
        # TRL's copy of the adapter as it is given; without it the bare model is the reference.
        setup.model.delete_adapter(FROZEN)
    if objective.needs_reference and setup.train.cache_reference:
        rows: Any = trainer.train_dataset
        asked = [
            [Row(row["prompt_ids"] + row[f"{side}_ids"], len(row["prompt_ids"])) for side in ("chosen", "rejected")]
            for row in rows
        ]
        found = setup.refer(asked)
        for at, side in enumerate(("chosen", "rejected")):
            rows = rows.add_column(f"ref_{side}_logps", [values[at] for values in found])
        trainer.train_dataset = rows
        trainer.precompute_ref_logps = True  # TRL's own pass would have no cache on disk and share no prompts
    return _name_records(trainer)


def _train_answers(setup: Setup, objective: TrlObjective) -> Any:
    rows = [
        {"id": group.id, "prompt": _as_messages(group, answer), "completion": _as_answer(group, answer)}
        for group in setup.groups
        for answer in group.answers
    ]
    trainer = SFTTrainer(
        model=setup.model,
        args=SFTConfig(**setup.settings, max_length=None, **objective.trainer_settings()),
        train_dataset=Dataset.from_list(rows),
        processing_class=setup.tokenizer,
    )
    _replace_head(trainer, setup.model)
    return _name_records(trainer)


def _train_reward(setup: Setup, objective: TrlObjective) -> Any:
    trainer = RewardTrainer(
        model=setup.model,
        args=RewardConfig(**setup.settings, max_length=None, disable_dropout=False, **objective.trainer_settings()),
        train_dataset=Dataset.from_list([_as_pair(group) for group in setup.groups]),
        processing_class=setup.tokenizer,
    )
    return _name_records(trainer)


def _replace_head(trainer: Any, model: Any) -> None:
    """Install our head in place of TRL's, which has just been installed, where ours can do what is asked."""
    base = model.get_base_model()
    if not getattr(trainer, "aux_loss_enabled", False) and reads_states(base):
        install_head(base)


def _open_ends(trainer: Any, tokenizer: Any, groups: Sequence[Group]) -> None:
    """Take the end that TRL put after each side out of those that stop before their end.

    Where a limit of tokens cut a text off, an end after it would be learnt as the model's own.
    """
    rows: Any = trainer.train_dataset
    assert len(rows) == len(groups), "a row a pair, in order"
    for side in ("chosen", "rejected"):
        answers = [next(answer for answer in group.answers if answer.role == side) for group in groups]
        surplus = [
            count_end(encode(tokenizer, _as_prompt(group, answer), answer.text), answer) if answer.is_cut else 0
            for group, answer in zip(groups, answers, strict=True)
        ]
        if any(surplus):
            name = f"{side}_ids"
            values = [ids[: len(ids) - extra] for ids, extra in zip(rows[name], surplus, strict=True)]
            rows = rows.remove_columns(name).add_column(name, values)
    trainer.train_dataset = rows


def _still_copy(model: Any) -> None:
    """Take the dropout out of the frozen copy: it is computed beside the policy, in training, and would be noise."""
    for part in model.modules():
        if FROZEN in getattr(part, "lora_dropout", {}):
            part.lora_dropout[FROZEN] = torch.nn.Identity()


def _resume_own(trainer: Any) -> None:
    """Make a trainer read the trained adapter from a checkpoint also where a frozen copy lies beside it.

    transformers then reads the copies in folders alone, and would go on from the start.
    """
    load = trainer._load_from_checkpoint

    def load_both(checkpoint: str, model: Any = None) -> None:
        load(checkpoint, model)
        path = Path(checkpoint) / "adapter_model.safetensors"
        if path.is_file():  # else the weights are in shards, and were read whole
            set_peft_model_state_dict(
                trainer.accelerator.unwrap_model(model or trainer.model), load_file(path), "default"
            )

    trainer._load_from_checkpoint = load_both


def _name_records(trainer: Any) -> Any:
    """Make one of TRL's trainers say which records made a loss that is no number."""
    collate, compute = trainer.data_collator, trainer.compute_loss

    def collate_named(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {**collate(examples), "ids": [example["id"] for example in examples]}

    def compute_named(model: Any, inputs: dict[str, Any], *given: Any, **rest: Any) -> Any:
        ids = inputs.pop("ids", [])
        found = compute(model, inputs, *given, **rest)
        loss = found[0] if isinstance(found, tuple) else found
        refuse_not_finite(float(loss.detach()), ", ".join(ids), step=trainer.state.global_step + 1)
        return found

    trainer.data_collator, trainer.compute_loss = collate_named, compute_named
    return trainer


def _as_pair(group: Group) -> dict[str, Any]:
    sides = {answer.role: _as_answer(group, answer) for answer in group.answers}
    return {"id": group.id, "prompt": _as_messages(group, group.answers[0]), **sides}


def _as_prompt(group: Group, answer: Answer) -> Any:
    return group.prompt if answer.prompt is None else answer.prompt


def _as_messages(group: Group, answer: Answer) -> Any:
    asked = _as_prompt(group, answer)
    return asked if isinstance(asked, str) else list(asked)


def _as_answer(group: Group, answer: Answer) -> Any:
    asked = _as_prompt(group, answer)
    return answer.text if isinstance(asked, str) else [{"role": "assistant", "content": answer.text}]


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    """Refuse a name that no module ends in; PEFT is content when one of several is found."""
    known = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if "." in name} | {"all-linear"}
    unknown = [name for name in targets if name.rsplit(".", 1)[-1] not in known]
    if unknown:
        allowed = "all-linear, or names of modules"
        raise InputError("lora.targets", given=", ".join(unknown), allowed=allowed, do=_name_targets(model))
    tied = {id(module.weight) for module in (model.get_input_embeddings(),) if model.config.tie_word_embeddings}
    both = [name for name, module in model.named_modules() if id(getattr(module, "weight", None)) in tied]
    if hit := [name for name in targets if any(known == name or known.endswith(f".{name}") for known in both)]:
        given = f"{', '.join(hit)}, one weight with the {'head' if len(both) > 1 else 'embedding'}"
        do = "Leave it out: added to the weights, the adapter would change both, and in training one."
        raise InputError("lora.targets", given=given, allowed="modules with weights of their own", do=do)


def _name_targets(model: Any) -> str:
    """Say which modules an adapter may be put on."""
    found = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not isinstance(module, torch.nn.Embedding)
    }
    return f"Name modules of this model: lora.targets={','.join(sorted(found - {'lm_head', 'score'}))}."
