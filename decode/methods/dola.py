"""DoLa: the last layer's prediction against that of an earlier layer, chosen at each step as the one most unlike it.

Source: Chuang et al. 2023 (arXiv 2309.03883), equations 3 to 5: log p_N - log p_M on the tokens with p_N at least a tenth of
its maximum, M the candidate layer whose distribution has the largest Jensen-Shannon divergence from p_N.
Differences: (1) the divergence is the textbook one, in nats, each row choosing its own layer (the released code has the
arguments of its Kullback-Leibler terms the other way round and averages over the batch); (2) early states go through the
model's last norm before the head, as its own last state does (`norm=false` leaves it out, as the released code does).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from decode.method import LogitsMethod, expose, refuse_decoding

if TYPE_CHECKING:
    from torch import Tensor

    from decode.streams import Streams

__all__ = ["Dola", "dola"]


class Dola(LogitsMethod):
    """Late against early layers of one model."""

    needs: ClassVar[frozenset[str]] = frozenset({"layers"})

    layers: Literal["low", "high"] | tuple[int, ...] = "high"
    """Candidates for the early layer: every second of the lower or the upper half (of models of more than 40 layers, of
    the first or the last 20), or numbers from 0 (the embeddings) on. The authors: high for short answers, low for long."""
    threshold: float = Field(default=0.1, ge=0, le=1)
    """Tokens below this share of the last layer's largest probability are ruled out."""
    norm: bool = True
    """Put early states through the model's last norm."""

    @field_validator("layers", mode="before")
    @classmethod
    def check_layers(cls, value: Any) -> Any:
        """Take low, high, or numbers from 0 on."""
        numbers = value if isinstance(value, list | tuple) else ()
        if value in ("low", "high") or (numbers and all(isinstance(item, int) and item >= 0 for item in numbers)):
            return value
        allowed = "low, high, or a list of layers' numbers from 0 on"
        raise PydanticCustomError("layers", "no choice of layers", {"allowed": allowed, "do": "Give layers=[8,16]."})

    def open_streams(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None, **given: Any) -> Streams:
        """Read the prompt with an eye on the candidate layers."""
        from decode.streams import Layers

        number = model.config.get_text_config().num_hidden_layers
        candidates = _list_layers(self.layers, number, tied=bool(model.config.get_text_config().tie_word_embeddings))
        if not candidates or not all(0 <= layer < number for layer in candidates):
            refuse_decoding(
                model, what=f"layers {list(candidates)} of {number}", do=f"Choose layers from 0 to {number - 1}."
            )
        return Layers(model, input_ids, attention_mask, candidates, norm=self.norm)

    def combine(self, logits: Sequence[Tensor], allowed: Tensor | None = None) -> Tensor:
        """Contrast the last layer with the early one that diverges most from it."""
        import torch

        from decode.contrast import rule_out

        final = logits[0].float().log_softmax(-1)
        early = torch.stack([item.float().log_softmax(-1) for item in logits[1:]])
        chosen = _diverge(final, early).argmax(0)
        picked = early[chosen, torch.arange(len(final), device=final.device)]
        return rule_out(final - picked, final, self.threshold, allowed)


def _list_layers(layers: str | tuple[int, ...], number: int, *, tied: bool) -> tuple[int, ...]:
    if not isinstance(layers, str):
        return layers
    # Where the head is the embedding matrix, layer 0 predicts the token just read.
    start, middle = 2 if tied else 0, number // 2 if number <= 40 else 20
    if layers == "low":
        return tuple(range(start, middle, 2)) or (start,)
    return tuple(range(number // 2 if number <= 40 else number - 20, number, 2))


def _diverge(final: Tensor, early: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of log-probabilities (B, V) from each of (S, B, V): (S, B), in nats."""
    mean = final.logaddexp(early) - math.log(2)

    def diverge(logps: Tensor) -> Tensor:
        probs = logps.exp()
        return (probs * (logps - mean)).where(probs > 0, 0.0).sum(-1)  # 0 log 0 is 0

    return 0.5 * diverge(final) + 0.5 * diverge(early)


dola = expose(Dola)
