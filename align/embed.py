"""Embed(Job): triplets to an embedder, on sentence-transformers' trainer.

    data --(read_triplets)--> rows --(make_trainer)--> a folder `model` that every embedder here, and the library, loads

What cannot teach anything is dropped with reasons before training starts. Checkpoints lie in the run folder; running the job
again goes on from the last whole one.
"""

import importlib.util
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.embedding.info_nce import InfoNce
from align.embedding_loss import EmbeddingLoss
from align.train import Lora
from align.training import find_checkpoint, log_to, read_step, save_whole, silence, watch
from align.triplets import read_triplets
from counterfoil.errors import EngineError, InputError, first_line
from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.models import find_model, fingerprint_model
from counterfoil.records import Triplet

__all__ = ["Embed"]


class Embed(Job):
    """Train an embedder to put an anchor near its positive."""

    VERB: ClassVar[str] = "align"

    data: InputPath
    """JSONL with the columns anchor, positive and perhaps negative, as `synth` writes triplets.jsonl; or groups, whose chosen
    answers are one positive together, each weighed by its score, for a loss of ours."""
    model: ModelName = "minilm"
    """A name, a folder or a hub id of a sentence-transformers model; a plain encoder gets mean pooling."""
    loss: EmbeddingLoss = InfoNce()
    """What is minimised."""
    lora: Lora | None = None
    """Train an adapter and merge it at the end; None trains all weights, as is usual for small encoders."""
    anchor_prefix: str = ""
    """Set before every anchor, for models that were trained with one (`query: `)."""
    text_prefix: str = ""
    """Set before every positive and negative (`passage: `)."""
    neighbours: int = Field(default=4, ge=1)
    """Of the texts that are one positive together, so many are read, the heaviest; each costs a pass over it."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Tokens of a text that are read in training; what is longer is cut off and counted. None is the model's own limit."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data."""
    learning_rate: float = Field(default=2.0e-5, gt=0)
    """At its peak."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate falls."""
    warmup_frac: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    batch_size: int = Field(default=32, ge=2)
    """Rows a step: each row's texts are negatives of the others, so a larger batch is a harder task."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    save_every: int = Field(default=50, ge=1)
    """Steps between checkpoints."""
    report_to: tuple[str, ...] = ()
    """Trackers that transformers knows, as in a training of a language model."""
    seed: int = 0
    """Of dropout, of the order of the data and of what a loss draws."""

    def check(self) -> None:
        """Refuse to begin without the library."""
        if importlib.util.find_spec("sentence_transformers") is None:
            allowed, do = "the package sentence-transformers", "uv pip install 'counterfoil[synth]'"
            raise EngineError("align embed", given="it is not installed", allowed=allowed, do=do)

    def texts_of(self, row: Triplet, *, num_positives: int = 1) -> dict[str, str]:
        """Return what is read of a row, by column; where it has fewer positives than `num_positives`, the first again."""
        texts = [*row.shares] or [row.positive]
        texts += [texts[0]] * (num_positives - len(texts))
        found = {"anchor": self.anchor_prefix + row.anchor}
        found |= {f"positive_{at}" if at else "positive": self.text_prefix + text for at, text in enumerate(texts)}
        return found if row.negative is None else {**found, "negative": self.text_prefix + row.negative}

    def work(self, run: Run) -> None:
        """Drop what cannot teach; train; save the folder `model`."""
        from transformers import set_seed

        from align.embed_trainer import make_trainer

        folder = find_model(self.model)
        run.facts |= {"model": fingerprint_model(folder), "seeds": {"seed": self.seed}}
        rows = self._read(run)
        silence()
        set_seed(self.seed)
        model = self._load(folder)
        limit = model.max_seq_length
        if self.max_tokens is not None:
            model.max_seq_length = min(self.max_tokens, limit or self.max_tokens)
        self._count_cut(run, model, rows)
        with log_to(run.folder / "tensorboard"):
            trainer = make_trainer(self, rows, model=model, checkpoints=run.folder / "checkpoints")
        self._train(run, trainer)
        if self.max_tokens is not None:
            model.max_seq_length = limit
        if self.lora is not None:
            _merge(model)
        save_whole(run.folder / "model", lambda path: model.save_pretrained(str(path), create_model_card=False))
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)

    def _read(self, run: Run) -> list[Triplet]:
        run.open_output("dropped.jsonl")
        run.open_output("metrics.jsonl")
        rows = [self._keep_heaviest(row) for row in run.sift(read_triplets(self.data))]
        run.counts["kept"] = len(rows)
        if len(rows) < 2:
            given = f"{len(rows)} rows left to train on ({dict(run.dropped)})"
            allowed, do = (
                "at least two rows: one's texts are the other's negatives",
                "See the reasons in dropped.jsonl.",
            )
            raise InputError(f"data: {self.data}", given=given, allowed=allowed, do=do)
        return rows

    def _keep_heaviest(self, row: Triplet) -> Triplet:
        heaviest = sorted(row.shares.items(), key=lambda item: -item[1])[: self.neighbours]
        whole = sum(weight for _, weight in heaviest)
        return row.model_copy(update={"shares": {text: weight / whole for text, weight in heaviest}})

    def _load(self, folder: Path) -> Any:
        from sentence_transformers import SentenceTransformer

        try:
            model: Any = SentenceTransformer(str(folder))
        except (OSError, ValueError) as error:
            allowed, do = "a sentence-transformers model or an encoder", "Check the name."
            raise InputError("model", given=first_line(error), allowed=allowed, do=do) from error
        if self.lora is not None:
            model.add_adapter(self.lora.build("FEATURE_EXTRACTION"))
        return model

    def _count_cut(self, run: Run, model: Any, rows: list[Triplet]) -> None:
        """Say how many texts are longer than what is read of them."""
        texts = [text for row in rows for text in self.texts_of(row).values()]
        once = sorted(set(texts))
        ids = model.tokenizer(once, truncation=False, verbose=False)["input_ids"]
        length = {text: len(each) for text, each in zip(once, ids, strict=True)}
        limit = model.max_seq_length or max(length.values())
        run.tokens["trained"] = round(sum(min(length[text], limit) for text in texts) * self.epochs)
        run.counts["cut"] = sum(each > limit for each in length.values())
        if run.counts["cut"]:
            run.progress.say(f"{run.counts['cut']} of {len(once)} texts are cut off at {limit} tokens")

    def _train(self, run: Run, trainer: Any) -> None:
        sampler = trainer.get_train_dataloader().batch_sampler
        # Batches without a text twice may be more than a pass has steps for: what they hold is not seen in it.
        seated = {at for batch in list(sampler)[: len(sampler)] for at in batch}
        run.counts["left_out_of_first_pass"] = waiting = run.counts["kept"] - len(seated)
        if waiting:
            why = "they share a text with too many others (a smaller batch_size has room)"
            run.progress.say(f"{waiting} rows wait for a later pass: {why}")
        checkpoint = find_checkpoint(run.folder / "checkpoints")
        steps = math.ceil(len(sampler) * self.epochs)
        with run.progress.stage("train", total=steps, already=read_step(checkpoint)) as stage:
            trainer.add_callback(watch(stage))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        history = [row for row in trainer.state.log_history if "loss" in row]
        for row in history:
            run.write("metrics.jsonl", row)
        last = history[-max(1, len(history) // 5) :]  # single steps are noise
        run.figures |= {"loss": round(sum(row["loss"] for row in last) / len(last), 4), "steps": len(history)}


def _merge(model: Any) -> None:
    """Add an adapter into the weights and leave no trace of it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = model.transformers_model
    for name, part in list(inner.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            parent, _, last = name.rpartition(".")
            setattr(inner.get_submodule(parent), last, part.get_base_layer())
    inner._hf_peft_config_loaded = False  # else transformers would save the adapter alone, which is gone
    del inner.peft_config
