"""Fresh answers: what the policy, or the policy as it was some steps ago, says to the prompts of the batch at hand.

Offline answers age: the policy moves away from what it learns from. Every `every` steps the policy's adapter is copied; the
copy, or an older one (`lag`), answers each batch's prompts, a scorer judges the answers, and the loss sees them. Two uses:
contrastive policy gradient with samples of its own (then its gradient is RLOO's, Ahmadian et al. 2024, arXiv 2402.14740), and
negatives from a student's own past (Wang et al. 2024, arXiv 2405.13014, which finds the student of five iterations ago best).
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from align.examples import Example, encode_group
from align.objective import Fresh, LossObjective
from counterfoil.errors import InputError
from counterfoil.records import Answer, Completion, Group, Prompt, content_id
from counterfoil.store import Store
from decode.chat import encode_prompt
from decode.draw import Draw
from decode.engine import Sampling

__all__ = ["Sampler"]

COPIES = "copies.safetensors"


class Sampler:
    """Answers the prompts of batches with copies of the policy's adapter."""

    def __init__(self, fresh: Fresh, objective: LossObjective, tokenizer: Any, store: Store, *, seed: int) -> None:
        self._fresh, self._objective, self._tokenizer, self._store = fresh, objective, tokenizer, store
        self._seed = seed
        self._copies: list[dict[str, Tensor]] = []  # newest first
        self._copied_at = -1

    def renew(self, model: Any, groups: Sequence[Group], *, step: int) -> list[Example]:
        """Return the groups with fresh answers, in tokens; one whose answers teach nothing keeps those that it has."""
        if step % self._fresh.every == 0 and step != self._copied_at:
            copy = {name: value.detach().clone() for name, value in _trained(model).items()}
            self._copies = [copy, *self._copies][: self._fresh.lag + 1]
            self._copied_at = step
        drawn = self._draw(model, groups, step)
        return [
            encode_group(self._tokenizer, self._judge(group, answers, step))
            for group, answers in zip(groups, drawn, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Keep the copies beside a checkpoint."""
        flat = {f"{age}/{name}": value for age, copy in enumerate(self._copies) for name, value in copy.items()}
        save_file(flat, folder / COPIES, metadata={"step": str(self._copied_at)})

    def load(self, folder: Path) -> None:
        """Read what `save` kept."""
        with safe_open(folder / COPIES, "pt") as kept:
            self._copied_at = int((kept.metadata() or {})["step"])
            self._copies = []
            for key in sorted(kept.keys()):
                age, name = key.split("/", 1)
                self._copies += [{} for _ in range(int(age) + 1 - len(self._copies))]
                self._copies[int(age)][name] = kept.get_tensor(key)

    def _draw(self, model: Any, groups: Sequence[Group], step: int) -> list[list[Answer]]:
        """Draw answers to all prompts at once, each with a generator of its own.

        A group's are the same at a step, whatever is drawn before or beside them, in whichever process.
        """
        stops = model.generation_config.eos_token_id
        stops = self._tokenizer.eos_token_id if stops is None else stops
        fresh = self._fresh
        asked = [encode_prompt(self._tokenizer, group.prompt) for group in groups for _ in range(fresh.n)]
        seeds = [int(content_id(self._seed, step, group.id, at)[:15], 16) for group in groups for at in range(fresh.n)]
        batch = self._tokenizer.pad({"input_ids": asked}, return_tensors="pt").to(model.device)
        training, usual = model.training, model.generation_config
        model.eval()
        try:
            with torch.no_grad(), _weights(model, self._copies[-1]):
                # In place of the model's own, whose penalties and cuts would fill in what a request leaves open.
                model.generation_config = GenerationConfig(
                    do_sample=False,  # the loop is greedy over what Draw returns
                    max_new_tokens=fresh.max_new_tokens,
                    pad_token_id=self._tokenizer.pad_token_id,
                    eos_token_id=stops,
                )
                draw = Draw(Sampling(temperature=fresh.temperature), seeds=seeds, device=str(model.device))
                found = model.generate(**batch, logits_processor=[draw])[:, batch["input_ids"].shape[1] :]
        finally:
            model.generation_config = usual
            model.train(training)
        ends = torch.isin(found, torch.tensor(stops, device=found.device))
        sizes = [int(row.nonzero()[0]) + 1 if row.any() else len(row) for row in ends]
        drawn = [
            Answer(
                text=self._tokenizer.decode(row[:size], skip_special_tokens=True),
                token_ids=tuple(row[:size].tolist()),
                is_cut=not bool(end.any()),
                role=fresh.role,
            )
            for row, size, end in zip(found, sizes, ends, strict=True)
        ]
        return [drawn[at : at + fresh.n] for at in range(0, len(drawn), fresh.n)]

    def _judge(self, group: Group, drawn: Sequence[Answer], step: int) -> Group:
        prompt = Prompt.make(group.prompt, reference=group.reference)  # pyright: ignore[reportArgumentType]
        answers = list(group.answers) if self._fresh.role else []
        for at, answer in enumerate(drawn):
            made = Completion.make(
                prompt_id=prompt.id,
                index=at,
                text=answer.text,
                finish_reason="length" if answer.is_cut else "stop",
                num_prompt_tokens=0,
                num_tokens=len(answer.token_ids or ()),
            )
            answers.append(answer.model_copy(update={"score": self._fresh.scorer.score(prompt, made).value}))
        whole = group.model_copy(update={"answers": tuple(answers)})
        found = self._objective.select(whole)
        self._store.put("fresh", f"{step:09d} {group.id}", found.model_dump_json())
        if isinstance(found, Group):
            return found
        if self._objective.refuses(found):
            given, allowed = f"{found.reason} {found.detail}".strip(), "answers that the objective learns from"
            do = "Take a scorer whose scores the objective takes."
            raise InputError("objective.fresh.scorer", given=given, allowed=allowed, do=do)
        return group if group.answers else whole  # equal scores are a lesson too: the answers stay as likely


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@contextmanager
def _weights(model: Any, copy: dict[str, Tensor]) -> Generator[None]:
    """Let a model compute with a copy of its trained weights for a while."""
    own = _trained(model)
    before = {name: value.data for name, value in own.items()}
    for name, value in own.items():
        value.data = copy[name].to(value.device)
    try:
        yield
    finally:
        for name, value in own.items():
            value.data = before[name]
