"""Cut(Job): a weak model out of a strong one: some of its layers, trained again for a short while on a text.

It has the strong model's tokenizer, so that it can be the amateur of contrastive decoding, or the weak side of weak-to-strong
training, where a family has no small sibling. Source: leaving out layers between the first and the last, then training a
little, Gromov et al. 2024 (arXiv 2403.17887). Difference: everything but the embeddings is trained, not a LoRA adapter.
Settings of the config that have an entry for each layer are cut with them.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from align.training import find_checkpoint, read_step, save_whole, silence, watch
from counterfoil.errors import InputError
from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.models import find_model, fingerprint_model
from eval.prefixes import read_paragraphs

__all__ = ["Cut"]

HELD_OUT = 0.1
"""Share of the text, at its end, that is not trained on but measured."""
CLOSE = 1e-5
"""Of the largest logit: what rounding may part two models of the same layers by."""


class Cut(Job):
    """Leave out layers, train what is left."""

    VERB: ClassVar[str] = "align"

    corpus: InputPath
    """A text file, a paragraph a line, to train on."""
    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    layers: int = Field(default=6, ge=2)
    """Layers that stay: half of them the model's first, half its last."""
    steps: int = Field(default=150, ge=1)
    """Of the optimiser."""
    batch_size: int = Field(default=8, ge=1)
    """Rows a step."""
    row_tokens: int = Field(default=128, ge=2)
    """Tokens a row."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """At its peak, after a twentieth of the steps; from there it falls to 0 in a line."""
    save_every: int = Field(default=50, ge=1)
    """Steps between checkpoints."""
    seed: int = 0
    """Of the order of the rows."""

    def work(self, run: Run) -> None:
        """Cut, train, measure, save the folder `model`."""
        from decode.chat import load_tokenizer

        folder = find_model(self.model)
        run.facts |= {"model": fingerprint_model(folder), "seeds": {"seed": self.seed}}
        tokenizer = load_tokenizer(str(folder))
        rows = self._read_rows(tokenizer)
        at = len(rows) - max(1, int(len(rows) * HELD_OUT))
        run.counts |= {"read": len(rows), "kept": at}
        model, size = self._cut(folder, rows[0])
        trainer = self._build(run, model, rows[:at], rows[at:])
        run.figures["perplexity_cut"] = _perplexity(trainer)
        checkpoint = find_checkpoint(run.folder / "checkpoints")
        with run.progress.stage("train", total=self.steps, already=read_step(checkpoint)) as stage:
            trainer.add_callback(watch(stage))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        run.figures |= {"perplexity": _perplexity(trainer), "share_of_parameters": round(_count(model) / size, 4)}
        run.tokens["trained"] = self.steps * self.batch_size * self.row_tokens
        save_whole(run.folder / "model", model.save_pretrained, tokenizer.save_pretrained)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)

    def _read_rows(self, tokenizer: Any) -> list[list[int]]:
        """Return the text in rows of one length, each with the token that the tokenizer begins a text with, if any."""
        text = "\n\n".join(paragraph.text for paragraph in read_paragraphs(self.corpus))
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        first = [token for token in tokenizer.encode("x")[:1] if token == tokenizer.bos_token_id]
        length = self.row_tokens - len(first)
        rows = [first + ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
        if len(rows) < 2:
            allowed = f"a text of at least {2 * self.row_tokens} tokens"
            raise InputError(f"corpus: {self.corpus}", given=f"{len(ids)} tokens", allowed=allowed, do="Give more.")
        return rows

    def _cut(self, folder: Path, row: list[int]) -> tuple[Any, int]:
        """Return the model with the layers that stay, and how many parameters the whole one has."""
        import torch
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        size, config = _count(model), model.config
        number = getattr(config, "num_hidden_layers", 0)
        lists = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, torch.nn.ModuleList) and len(child) == number
        ]
        if len(lists) != 1 or self.layers >= number:
            given = f"{self.layers} of {number} layers" if len(lists) == 1 else f"a {config.model_type} model"
            allowed = "fewer layers than a decoder-only model has, all in one list"
            raise InputError("layers", given=given, allowed=allowed, do="Take fewer, or another model.")
        parent, name, layers = lists[0]
        first = -(-self.layers // 2)
        kept = [*range(first), *range(number - self.layers + first, number)]
        setattr(parent, name, torch.nn.ModuleList([layers[at] for at in kept]))
        config.num_hidden_layers = self.layers
        for key, value in list(vars(config).items()):
            if isinstance(value, list | tuple) and len(value) == number and not key.endswith("token_id"):
                setattr(config, key, [value[at] for at in kept])  # one entry a layer: layer_types, no_rope_layers ...
        fresh = _build_anew(model, torch.tensor([row]))
        fresh.get_input_embeddings().requires_grad_(False)
        return fresh, size

    def _build(self, run: Run, model: Any, rows: list[list[int]], held_out: list[list[int]]) -> Any:
        import torch
        from datasets import Dataset
        from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

        silence()
        settings = TrainingArguments(
            output_dir=str(run.folder / "checkpoints"),
            max_steps=self.steps,
            per_device_train_batch_size=self.batch_size,
            per_device_eval_batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.05,
            weight_decay=0.01,
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_steps=self.save_every,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            seed=self.seed,
        )
        trainer: Any = Trainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
            eval_dataset=Dataset.from_dict({"input_ids": held_out, "labels": held_out}),
            data_collator=default_data_collator,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def _build_anew(cut: Any, ids: Any) -> Any:
    """Build what the config of a cut model describes, with its weights: what is trained is then what will be loaded.

    Raises InputError where that is another model: a setting that counts layers, and is no list with an entry for each.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    try:
        config = type(cut.config).from_dict(json.loads(cut.config.to_json_string()))
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(cut.state_dict())
        with torch.inference_mode():
            wanted, found = (each.eval()(input_ids=ids, use_cache=False).logits for each in (cut, model))
        apart = float((wanted - found).abs().max() / wanted.abs().max())
        if apart > CLOSE:
            raise ValueError(f"its logits are others, by {apart:.1e} of the largest")
    except (ValueError, TypeError, LookupError, RuntimeError, StrictDataclassError) as error:
        given = f"a {cut.config.model_type} model that its config does not describe without the middle layers ({error})"
        allowed = "a model whose config says of each layer what it is"
        raise InputError(
            "layers", given=" ".join(given.split())[:300], allowed=allowed, do="Take another model."
        ) from error
    model.generation_config = cut.generation_config
    return model


def _count(model: Any) -> int:
    return sum(value.numel() for value in model.parameters())


def _perplexity(trainer: Any) -> float:
    return round(math.exp(trainer.evaluate()["eval_loss"]), 2)
