"""sentence-transformers' trainer, and what a loss of ours keeps between steps: saved with checkpoints, read on going on."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PrinterCallback

from align.embedding_loss import Embedded, OwnLoss, Vectors
from align.training import refuse_not_finite
from counterfoil.errors import ConfigError
from counterfoil.records import Triplet

if TYPE_CHECKING:
    from align.embed import Embed

__all__ = ["EmbedTrainer", "OwnModule", "make_trainer"]

STATE = "loss.safetensors"


class OwnModule(torch.nn.Module):
    """An OwnLoss as the trainer calls it: columns of tokens to a scalar."""

    def __init__(
        self, model: SentenceTransformer, objective: OwnLoss, rows: Sequence[Triplet], *, batch_size: int
    ) -> None:
        super().__init__()
        self.model = model
        self._objective, self._rows = objective, rows
        self._momentum = objective.copy_momentum()
        self.copy: Any = None if self._momentum is None else deepcopy(model).requires_grad_(False)
        width = model.get_embedding_dimension()
        assert width is not None
        state = objective.start(rows, width=width, batch_size=batch_size)
        self._names = list(state)
        for name, value in state.items():
            self.register_buffer(name, value.to(model.device))
        self.shown: dict[str, list[Tensor]] = defaultdict(list)
        """Figures of the steps since they were last logged."""

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> Tensor:
        """Return the loss of a batch; `labels` are the rows' numbers."""
        features, rows = list(sentence_features), [self._rows[at] for at in labels.tolist()]
        slow = self._embed_slowly(features, rows)
        now = _join(embed_columns(self.model, features), rows)
        batch = Embedded(now, slow or now, rows, labels)
        found = self._objective.loss(batch, {name: self.get_buffer(name) for name in self._names})
        for name, value in found.metrics.items():
            self.shown[name].append(value.detach().float())
        return found.value

    def kept(self) -> dict[str, Tensor]:
        """Return all that is needed to go on and that a checkpoint of the model does not hold."""
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}
        return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in own.items()}

    @torch.no_grad()
    def _embed_slowly(self, features: Sequence[dict[str, Any]], rows: Sequence[Triplet]) -> Vectors | None:
        """Move the copy towards the model, then embed with it, without dropout."""
        if self._momentum is None:
            return None
        for slow, quick in zip(self.copy.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(quick.to(slow.dtype), 1 - self._momentum)
        self.copy.eval()  # a trainer may put all parts of a loss into training
        return _join([self.copy(dict(each))["sentence_embedding"] for each in features], rows)


def _join(columns: Sequence[Tensor], rows: Sequence[Triplet]) -> Vectors:
    """Bring the columns anchor, positives and perhaps negative to unit length, several positives to one."""
    anchor_BD, *others = [normalize(each.float(), dim=1) for each in columns]
    count = len(others) - (rows[0].negative is not None)
    if count > 1:
        shares = [[*row.shares.values()] or [1.0] for row in rows]
        weight_BP = torch.tensor([each + [0.0] * (count - len(each)) for each in shares], device=anchor_BD.device)
        pooled_BD = torch.einsum("bp,pbd->bd", weight_BP, torch.stack(others[:count]))
        others[:count] = [normalize(pooled_BD, dim=1)]
    return Vectors(anchor_BD, torch.cat(others))


class EmbedTrainer(SentenceTransformerTrainer):
    """The library's trainer, which also keeps a loss's state and names the rows of a loss that is no number."""

    def __init__(self, *, ids: Sequence[str], **rest: Any) -> None:
        super().__init__(**rest)
        self._ids = ids

    def compute_loss(self, model: Any, inputs: dict[str, Any], *given: Any, **rest: Any) -> Any:
        """Return the loss. Raises RunError, naming the batch's rows, where it is no number."""
        names = ", ".join(self._ids[int(at)] for at in inputs["label"])
        found = super().compute_loss(model, inputs, *given, **rest)
        loss = found[0] if isinstance(found, tuple) else found
        refuse_not_finite(float(loss.detach()), names, step=self.state.global_step + 1)
        return found

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        """Log the means of a loss's figures since the last time."""
        if isinstance(self.loss, OwnModule):
            logs |= {name: float(torch.stack(values).mean()) for name, values in self.loss.shown.items()}
            self.loss.shown.clear()
        super().log(logs, *rest, **more)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no model card: the run's manifest says how a model was made."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if isinstance(self.loss, OwnModule):
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            save_file(
                self.loss.kept(), folder / STATE
            )  # before the file whose presence says that a checkpoint is whole
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, checkpoint_path: str, *rest: Any, **more: Any) -> None:
        super()._load_from_checkpoint(checkpoint_path, *rest, **more)
        if isinstance(self.loss, OwnModule):
            read = self.loss.load_state_dict(load_file(Path(checkpoint_path) / STATE), strict=False)
            absent = [name for name in read.missing_keys if not name.startswith("model.")]  # that was read above
            assert not absent and not read.unexpected_keys, (absent, read.unexpected_keys)


def make_trainer(
    embed: "Embed", rows: Sequence[Triplet], *, model: SentenceTransformer, checkpoints: Path
) -> EmbedTrainer:
    """Return what trains a model on rows; those with a negative and those without never share a batch.

    Raises ConfigError where the loss does not go with the model, the rows or the batch.
    """
    num_positives = max(1, *(len(row.shares) for row in rows))
    if num_positives > 1 and not isinstance(embed.loss, OwnLoss):
        raise ConfigError(
            "loss", given=f"{type(embed.loss).__name__}, for positives of several texts",
            allowed="a loss of ours, such as pooled", do="Give loss=pooled, or neighbours=1.",
        )  # fmt: skip
    loss = embed.loss.build(model, rows, batch_size=embed.batch_size)
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for at, row in enumerate(rows):
        texts = embed.texts_of(row, num_positives=num_positives)
        kinds["pairs" if row.negative is None else "triplets"].append({**texts, "label": at})
    sets = {name: Dataset.from_list(kind) for name, kind in sorted(kinds.items())}
    on_gpu = torch.cuda.is_available()
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=embed.epochs,
        per_device_train_batch_size=embed.batch_size,
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # a text is never its own row's negative, nor an anchor another's
        learning_rate=embed.learning_rate,
        lr_scheduler_type=embed.schedule,
        warmup_steps=embed.warmup_frac,
        weight_decay=embed.weight_decay,
        max_grad_norm=embed.max_grad_norm,
        bf16=on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number is to be seen, and to stop us
        save_steps=embed.save_every,
        save_total_limit=2,
        report_to=list(embed.report_to) or "none",
        disable_tqdm=True,
        seed=embed.seed,
        use_cpu=not on_gpu and not torch.backends.mps.is_available(),
    )
    trainer = EmbedTrainer(
        ids=[row.id for row in rows],
        model=model,
        args=settings,
        train_dataset=next(iter(sets.values())) if len(sets) == 1 else DatasetDict(**sets),
        loss=loss,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
