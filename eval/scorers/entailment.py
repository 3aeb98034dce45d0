"""Whether a text follows from what it should rest on, by any cross-encoder for natural language inference.

Source: factual consistency as entailment, sentence by sentence (Laban et al. 2021, SummaC, arXiv 2111.09525, its zero-shot
form: of each sentence of the answer the best supported reading of the context). Differences: (1) the context is read in
windows of several sentences, one after the other, each cut off where the model can hold no more; (2) `reduce` takes the least
supported sentence or their mean.
"""

import re
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import ModelName
from counterfoil.models import find_model
from counterfoil.records import Completion, Prompt, Score
from eval.judging import show_request
from eval.scorer import LocalScorer

__all__ = ["Entailment"]

BATCH = 32
"""Readings of a window with a sentence that are computed together."""


class Entailment(LocalScorer):
    """Probability that the context entails the answer, 0 to 1."""

    threads: ClassVar[int] = 1

    model: ModelName
    """A folder or hub id of a sequence classifier whose labels name one entailment."""
    key: str | None = None
    """The reference's text that is the context; None takes what was asked."""
    reduce: Literal["min", "mean"] = "min"
    """Of the answer's sentences, the least supported one or the mean."""
    window: int = Field(default=5, ge=1)
    """Sentences of the context that are read together."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Judge an answer; one without a sentence has 0. Raises InputError where there is no context."""
        import torch

        context = show_request(prompt) if self.key is None else prompt.reference.get(self.key)
        if not isinstance(context, str) or not context.strip():
            where, given = f"prompt {prompt.id}: reference.{self.key}", repr(context)
            raise InputError(where, given=given, allowed="a text", do="Add it, or set `key` to null.")
        claims, ground = _split(completion.text), _split(context)
        windows = [" ".join(ground[at : at + self.window]) for at in range(0, len(ground), self.window)]
        pairs = [(window, claim) for claim in claims for window in windows]
        tokenizer, model, label = self._loaded
        limit = min(tokenizer.model_max_length, model.config.to_dict().get("max_position_embeddings", 512))
        found: list[float] = []
        for at in range(0, len(pairs), BATCH):
            batch = tokenizer(
                pairs[at : at + BATCH], padding=True, truncation=True, max_length=limit, return_tensors="pt"
            ).to(model.device)
            with torch.no_grad():
                probs_BC = model(**batch).logits.float().softmax(-1)
            found += probs_BC[:, label].tolist()
        values = [max(found[at : at + len(windows)]) for at in range(0, len(found), len(windows))]
        value = 0.0 if not values else min(values) if self.reduce == "min" else sum(values) / len(values)
        detail = {"sentences": [round(item, 4) for item in values]}
        return Score(completion_id=completion.id, scorer="entailment", value=value, detail=detail)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = str(find_model(self.model))
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
        labels: dict[int, str] = {int(key): str(name) for key, name in model.config.id2label.items()}
        found = [at for at, name in labels.items() if name.lower().startswith("entail")]
        if len(found) != 1:
            given, allowed = f"labels {', '.join(labels.values())}", "one label that begins with `entail`"
            do = "Take a model for natural language inference, or mend its id2label."
            raise InputError(f"scorer.model: {self.model}", given=given, allowed=allowed, do=do)
        return tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), found[0]


def _split(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]
