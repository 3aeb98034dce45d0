"""Streams: several readings of one continuation, stepped together, each with its logits of the next token.

A stream is a model and a past. What two streams have in common is computed once: two prompts, or two adapters, of one model
are rows of one batch; each prompt is read by itself first, so that a long one costs a short one nothing.
Shapes: B rows, S streams, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from counterfoil.errors import InputError
from decode.adapters import stacked_adapters
from decode.attention import list_cache_obstacles, list_obstacles, replaced_attention, replaced_forward
from decode.grouped_attention import GROUPED

__all__ = ["Adapters", "Layers", "Rows", "Single", "Streams", "Together", "score_states"]


class Streams:
    """What a method contrasts."""

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def start(self) -> list[Tensor]:
        """Read the prompts; return each stream's logits of the next token, (B, V)."""
        raise NotImplementedError

    def step(self, tokens: Tensor) -> list[Tensor]:
        """Add a token to each row (B,), to all streams alike; return as `start` does."""
        raise NotImplementedError


class _Past:
    """A model's cache over rows of tokens, with their mask."""

    def __init__(self, model: Any) -> None:
        if obstacles := list_cache_obstacles(model):
            raise InputError(
                f"model: {model.config.model_type}",
                given=", ".join(obstacles),
                allowed="a decoder whose layers are attention, with a cache that grows",
                do="Use another model.",
            )
        self.model = model
        self.cache: Any = DynamicCache()
        self.mask = torch.empty(0)
        self._padded = False

    def read(self, input_ids: Tensor, mask: Tensor, **more: Any) -> Any:
        """Read a whole prompt; return the model's output, its logits those of the last token."""
        self.mask, self._padded = mask, not bool(mask.all())
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return self._run(input_ids, positions, **more)

    def append(self, tokens: Tensor, **more: Any) -> Any:
        """Add a token to each row."""
        positions = self.mask.sum(-1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], -1)
        return self._run(tokens[:, None], positions, **more)

    def _run(self, input_ids: Tensor, positions: Tensor, **more: Any) -> Any:
        return self.model(
            input_ids=input_ids,
            attention_mask=self.mask if self._padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **more,
        )

    @classmethod
    def stack(cls, parts: Sequence["_Past"]) -> "_Past":
        """Put rows that were read apart into one batch, padding the shorter on the left."""
        both = cls(parts[0].model)
        length = max(part.mask.shape[1] for part in parts)
        both.mask = torch.cat([pad(part.mask, (length - part.mask.shape[1], 0)) for part in parts])
        both._padded = not bool(both.mask.all())
        for layers in zip(*(part.cache.layers for part in parts), strict=True):
            keys, values = (
                torch.cat([pad(getattr(layer, name), (0, 0, length - layer.keys.shape[2], 0)) for layer in layers])
                for name in ("keys", "values")
            )
            both.cache.update(keys, values, len(both.cache.layers))
        return both


class Single(Streams):
    """One model after one prompt."""

    def __init__(self, model: Any, input_ids: Tensor, mask: Tensor | None) -> None:
        self._past = _Past(model)
        self._prompt = (input_ids, torch.ones_like(input_ids) if mask is None else mask)

    def start(self) -> list[Tensor]:
        """Read the prompt."""
        return [self._past.read(*self._prompt).logits[:, -1]]

    def step(self, tokens: Tensor) -> list[Tensor]:
        """Add a token to each row."""
        return [self._past.append(tokens).logits[:, -1]]


class Rows(Streams):
    """One model after several prompts, each of B rows: read one by one, then stepped as S x B rows of one batch."""

    def __init__(self, model: Any, prompts: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        self._model = model
        self._prompts = [(ids, torch.ones_like(ids) if mask is None else mask) for ids, mask in prompts]
        self._for_a_while = ExitStack()

    def __enter__(self) -> "Rows":
        if not list_obstacles(self._model):
            self._for_a_while.enter_context(replaced_attention(self._model.base_model, GROUPED))
        return self

    def __exit__(self, *error: object) -> None:
        self._for_a_while.close()

    @classmethod
    def pair(
        cls, model: Any, input_ids: Tensor, mask: Tensor | None, given: Mapping[str, Any], *, where: str
    ) -> "Rows":
        """Set prompts (B, T) against `negative_input_ids` (B, U). Raises InputError where those are missing."""
        negative: Tensor | None = given.get("negative_input_ids")
        if negative is None or len(negative) != len(input_ids):
            raise InputError(
                f"{where}: negative_input_ids",
                given="none" if negative is None else f"{len(negative)} rows beside {len(input_ids)}",
                allowed="token ids (B, U) of the prompts to contrast with, padded on the left",
                do="Pass negative_input_ids, and negative_attention_mask where it is padded.",
            )
        return cls(model, [(input_ids, mask), (negative, given.get("negative_attention_mask"))])

    def start(self) -> list[Tensor]:
        """Read the prompts."""
        parts: list[_Past] = []
        found: list[Tensor] = []
        for prompt in self._prompts:
            parts.append(_Past(self._model))
            found.append(parts[-1].read(*prompt).logits[:, -1])
        self._past = _Past.stack(parts)
        return found

    def step(self, tokens: Tensor) -> list[Tensor]:
        """Add a token to each row."""
        times = len(self._prompts)
        return list(self._past.append(tokens.repeat(times)).logits[:, -1].chunk(times))


class Adapters(Rows):
    """One prompt under several adapters, as rows of one batch from the start."""

    def __init__(
        self, model: Any, names: Sequence[str | None], input_ids: Tensor, attention_mask: Tensor | None
    ) -> None:
        super().__init__(model, [(input_ids, attention_mask)] * len(names))
        self._names = names

    def __enter__(self) -> "Adapters":
        super().__enter__()
        try:
            self._for_a_while.enter_context(stacked_adapters(self._model, self._names))
        except BaseException:
            self._for_a_while.close()
            raise
        return self

    def start(self) -> list[Tensor]:
        """Read the prompt under each adapter."""
        times = len(self._prompts)
        ids, mask = self._prompts[0]
        self._past = _Past(self._model)
        return list(self._past.read(ids.repeat(times, 1), mask.repeat(times, 1)).logits[:, -1].chunk(times))


class Together(Streams):
    """Streams side by side: other models, other tokens' worth of past."""

    def __init__(self, parts: Sequence[Streams]) -> None:
        self._parts = list(parts)

    def start(self) -> list[Tensor]:
        """Read the prompts."""
        return [logits for part in self._parts for logits in part.start()]

    def step(self, tokens: Tensor) -> list[Tensor]:
        """Add a token to each row."""
        return [logits for part in self._parts for logits in part.step(tokens)]


class Layers(Streams):
    """One model's last layer, and what the head would say of earlier ones."""

    def __init__(
        self, model: Any, input_ids: Tensor, mask: Tensor | None, layers: Sequence[int], *, norm: bool
    ) -> None:
        self._past = _Past(model)
        self._prompt = (input_ids, torch.ones_like(input_ids) if mask is None else mask)
        self._model, self._layers = model, list(layers)
        names = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
        found = [item for name in names if (item := getattr(model.base_model, name, None)) is not None]
        if norm and not found:
            raise InputError(
                f"model: {model.config.model_type}",
                given="no last norm under a known name",
                allowed=", ".join(names),
                do="Use norm=false.",
            )
        self._norm: Any = found[0] if norm else torch.nn.Identity()

    def start(self) -> list[Tensor]:
        """Read the prompt."""
        return self._look(self._past.read(*self._prompt, output_hidden_states=True))

    def step(self, tokens: Tensor) -> list[Tensor]:
        """Add a token to each row."""
        return self._look(self._past.append(tokens, output_hidden_states=True))

    def _look(self, result: Any) -> list[Tensor]:
        early = torch.stack([result.hidden_states[layer][:, -1] for layer in self._layers], 1)
        return [result.logits[:, -1], *score_states(self._model, self._norm(early)).unbind(1)]


class _States(BaseModelOutputWithPast):
    """A backbone's output that has last states and nothing else, whatever a head looks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def score_states(model: Any, states: Tensor) -> Tensor:
    """Return a model's own logits (B, T, V) of last-layer states (B, T, H): its forward, with the layers skipped."""
    skipped: list[bool] = []

    def skip(*_: Any, **__: Any) -> Any:
        skipped.append(True)
        return _States(last_hidden_state=states)  # pyright: ignore[reportArgumentType]

    with replaced_forward(model.base_model, skip):
        logits = model(inputs_embeds=states, use_cache=False).logits
    if not skipped:  # it calls a part of its backbone, so the states went through all layers again
        raise InputError(
            f"model: {model.config.model_type}",
            given="a head that does not stand on the whole backbone",
            allowed="a model that computes its logits from its backbone's output",
            do="Use another model, or form=replicated.",
        )
    return logits
