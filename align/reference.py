"""The reference: the frozen model's log-probabilities of the answers, computed once and kept on disk.

What is kept is named by all it depends on: the model, the adapter that training starts from, the precision, the tokens
of every answer and how they are batched. So a grid over beta, another seed or a run that goes on finds it done, and nothing
else does; a pass that was killed goes on from the last whole batch and gives the same numbers. Of several processes each
computes its part.
"""

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor

from counterfoil.errors import InputError
from counterfoil.models import cache_folder
from counterfoil.progress import Progress
from counterfoil.records import content_id
from counterfoil.store import Store

__all__ = ["Row", "compute_reference", "pad_rows", "reference_weights"]

FROZEN = "ref"
"""Name of the frozen copy of an adapter that training starts from; TRL's name for it."""


class Row(NamedTuple):
    """A prompt with one answer."""

    ids: Sequence[int]
    start: int
    """Tokens from here on are the answer's."""


def pad_rows(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """Return rows side by side, padded on the right: `input_ids`, `attention_mask` and `labels`, each (N, L)."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for at, row in enumerate(rows):
        tokens = torch.tensor(row.ids)
        ids[at, : len(tokens)] = tokens
        mask[at, : len(tokens)] = 1
        labels[at, row.start : len(tokens)] = tokens[row.start :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@contextmanager
def reference_weights(model: Any) -> Generator[None]:
    """Let a model with adapters compute its reference: the frozen copy where there is one, else the bare model."""
    if FROZEN not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    before = model.active_adapter
    model.set_adapter(FROZEN)
    try:
        yield
    finally:
        model.set_adapter(before)


def compute_reference(
    model: Any,
    groups: Sequence[Sequence[Row]],
    *,
    identity: Any,
    progress: Progress,
    pad: int,
    half: bool = False,
    batch_size: int = 8,
) -> list[list[float]]:
    """Return the reference's log-probability of each answer of each group, summed over its tokens.

    `identity` names the weights; `half` computes as bfloat16 training does; `batch_size` counts groups. The model goes to
    where it will be trained, and must have `align.logps.install_head`.
    """
    state = PartialState(cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available())
    model.to(state.device)
    tokens = [[(list(row.ids), row.start) for row in group] for group in groups]
    identity = [identity, str(state.device).split(":")[0], half]
    folder = cache_folder() / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{content_id(identity, tokens, batch_size)}.sqlite"
    with contextlib.closing(Store(path)) as store:
        starts = range(0, len(groups), batch_size)
        own = starts[state.process_index :: state.num_processes]
        missing = [start for start in own if not store.has("batch", str(start))]
        if missing:
            with progress.stage("reference", total=len(own), already=len(own) - len(missing)) as stage:
                for start, values in _compute(model, groups, missing, pad=pad, batch_size=batch_size, half=half):
                    store.put("batch", str(start), json.dumps(values))
                    stage.advance()
        state.wait_for_everyone()
        if any(not store.has("batch", str(start)) for start in starts):
            given, allowed = "processes whose user's caches are not one folder", "one that all of them share"
            do = "Set COUNTERFOIL_CACHE to a shared folder, or cache_reference=false."
            raise InputError("cache_reference", given=given, allowed=allowed, do=do)
        flat: Iterator[float] = (
            value for start in starts for value in json.loads(store.get("batch", str(start)) or "[]")
        )
        return [[next(flat) for _ in group] for group in groups]


def _compute(
    model: Any, groups: Sequence[Sequence[Row]], starts: Sequence[int], *, pad: int, batch_size: int, half: bool
) -> Iterator[tuple[int, list[float]]]:
    training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            reference_weights(model),
            torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=half),
        ):
            for start in starts:
                rows = [row for group in groups[start : start + batch_size] for row in group]
                batch = {key: value.to(model.device) for key, value in pad_rows(rows, pad).items()}
                found = model(**batch, use_cache=False, fused_lm_head=True).log_probs.sum(1)
                yield start, [float(value) for value in found]
    finally:
        model.train(training)
