"""Scores by a reward model: a sequence classifier with one output, or an adapter that makes the model one.

Source: the Bradley-Terry reward of Ouyang et al. 2022 (arXiv 2203.02155, section 3.5), as `objective: reward` trains it.
Differences: none known.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath, ModelName
from counterfoil.models import find_model
from counterfoil.records import Completion, Prompt, Score
from eval.scorer import LocalScorer

__all__ = ["RewardModel"]


BATCH = 16
"""Answers that are computed together."""


class RewardModel(LocalScorer):
    """The reward of an answer to its prompt, through the chat template; a real number of no fixed scale, or a probability."""

    threads: ClassVar[int] = 1

    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id: the classifier, or what `adapter` was trained on."""
    adapter: InputPath | None = None
    """Folder of an adapter that `objective: reward` trained."""
    probability: bool = False
    """Score by the logistic function of the reward: by Bradley and Terry the probability of being preferred to an answer of
    reward 0. Within 0..1, as the qualities of `distill` are; train with `center`, so that 0 is the mean."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Score one answer."""
        return self.score_all(prompt, [completion])[0]

    def score_all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Score]:
        """Score a prompt's answers together, up to BATCH of like length at a time."""
        import torch

        tokenizer, model = self._loaded
        ids: list[list[int]] = []
        for item in completions:
            turns: list[Any] = [*prompt.messages, {"role": "assistant", "content": item.text}]
            ids.append(tokenizer.apply_chat_template(turns, return_dict=False))
        values: dict[int, float] = {}
        order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            longest = max(len(ids[at]) for at in batch)
            rows = [ids[at] + [model.config.pad_token_id] * (longest - len(ids[at])) for at in batch]
            mask = [[1] * len(ids[at]) + [0] * (longest - len(ids[at])) for at in batch]
            with torch.no_grad():
                found = model(
                    input_ids=torch.tensor(rows, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                )
            rewards = found.logits[:, 0].float()
            values |= dict(zip(batch, (rewards.sigmoid() if self.probability else rewards).tolist(), strict=True))
        return [
            Score(completion_id=item.id, scorer="reward_model", value=values[at]) for at, item in enumerate(completions)
        ]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForSequenceClassification

        from decode.chat import load_tokenizer

        folder = str(find_model(self.model))
        tokenizer = load_tokenizer(folder)
        on_gpu = torch.cuda.is_available()
        found: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.bfloat16 if on_gpu else torch.float32, output_loading_info=True
        )
        model, loaded = found
        model.config.pad_token_id = tokenizer.pad_token_id
        if self.adapter is None and loaded["missing_keys"]:
            given, allowed = f"no weights for {', '.join(sorted(loaded['missing_keys']))}", "a classifier of one output"
            raise InputError(f"model: {self.model}", given=given, allowed=allowed, do="Give `adapter` as well.")
        if self.adapter is not None:
            from peft import PeftConfig, PeftModel

            kind = PeftConfig.from_pretrained(str(self.adapter)).task_type
            if kind != "SEQ_CLS":
                given, allowed = f"an adapter for {kind}", "one that `objective: reward` trained"
                raise InputError(f"adapter: {self.adapter}", given=given, allowed=allowed, do="Give another.")
            model = PeftModel.from_pretrained(model, str(self.adapter))
        return tokenizer, model.eval().to("cuda" if on_gpu else "cpu")
