"""Method (family): a way of choosing the next token, for `model.generate(custom_generate=...)`.

A method is a frozen object whose fields are its hyperparameters and whose call has the signature that transformers gives to
its own decoding loops; its logits processors, stopping criteria, streamer and outputs are therefore those of `generate`.
`expose` makes the function that takes the fields, and what else the method `takes`, from the arguments of `generate`; where
an object is at hand, `functools.partial` binds what it takes.
"""

from __future__ import annotations

import inspect
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from counterfoil.config import Choice, build
from counterfoil.errors import InputError

if TYPE_CHECKING:  # a config names a method before anything heavy is loaded
    from torch import Tensor

    from decode.streams import Streams

__all__ = ["LogitsMethod", "Method", "Output", "expose", "refuse_decoding"]

_GENERATE = (
    "model",
    "input_ids",
    "logits_processor",
    "stopping_criteria",
    "generation_config",
    "synced_gpus",
    "streamer",
)


class Method(Choice):
    """Chooses tokens."""

    FOLDER: ClassVar[str] = "decode.methods"
    needs: ClassVar[frozenset[str]]
    """What an engine must give: states (of the last layer), layers (states of all), two_models, two_prompts, two_adapters."""
    samples: ClassVar[bool] = True
    """Whether a temperature makes sense on top."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Names of what its call takes beside its fields: a loaded model, a second prompt."""

    @property
    def second_model(self) -> str | None:
        """The name of the model to be loaded beside the first, for a method that needs two."""
        return None

    @property
    def adapters(self) -> dict[str, str]:
        """The adapters to be loaded side by side, by the field that names them, for a method that needs two."""
        return {}

    def find_fault(self, *, temperature: float, n: int, has_negative: bool) -> str | None:
        """Say why a request cannot be answered with this method, or None."""
        name = type(self).__module__.rsplit(".", 1)[-1]
        if temperature > 0 and not self.samples:
            return f"{name} is deterministic: temperature {temperature} is of no use"
        if n > 1 and not self.samples:
            return f"{name} is deterministic: {n} samples would be the same"
        if has_negative and "two_prompts" not in self.needs:
            return f"{name} has no use for a negative prompt"
        return None

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Generate after `input_ids` (B, T); called by transformers' `generate`. Returns what `generate` returns.

        Raises InputError for a model, or for arguments of `generate`, that the method cannot decode with.
        """
        if found := list(_list_unusable(generation_config, model_kwargs)):
            allowed = "token ids in, one sequence a row, a cache that begins empty and grows"
            raise InputError(type(self).__name__, given=", ".join(found), allowed=allowed, do="Leave it out.")
        if streamer is None and not synced_gpus:
            streamer, synced_gpus = _recover_arguments(model)
        output = Output(model, input_ids, stopping_criteria, generation_config, streamer, synced=synced_gpus)
        self.decode(model, output, logits_processor, generation_config, model_kwargs)
        return output.finish(model_kwargs)

    @abstractmethod
    def decode(
        self, model: Any, output: Output, logits_processor: Any, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> None:
        """Append tokens to `output`, which holds the prompt, for as long as it goes on."""


class LogitsMethod(Method):
    """Scores tokens by the logits of several streams over the same continuation; greedy, or with sampling on top."""

    @abstractmethod
    def open_streams(self, model: Any, input_ids: Tensor, attention_mask: Tensor | None, **given: Any) -> Streams:
        """Return what is contrasted. `given` is what the method's call takes beside its fields."""

    @abstractmethod
    def combine(self, logits: Sequence[Tensor], allowed: Tensor | None = None) -> Tensor:
        """Turn the streams' logits, (B, V) each, into scores (B, V) in float32; minus infinity forbids a token.

        Where `allowed` (B, V) is given, only those tokens may have a score, and one of them at least has one.
        """

    def decode(
        self, model: Any, output: Output, logits_processor: Any, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> None:
        """Contrast, choose, step; see Method."""
        given = {key: model_kwargs.pop(key) for key in self.takes & model_kwargs.keys()}
        with self.open_streams(model, output.input_ids, model_kwargs.get("attention_mask"), **given) as streams:
            logits = streams.start()
            while output.goes_on():
                combined = self.combine(logits)
                scores = logits_processor(output.input_ids, combined.clone())
                if scores.amax(-1).isneginf().any():  # all that is plausible is forbidden: what is so among the rest?
                    rest = logits_processor(output.input_ids, logits[0].float().clone())[..., : combined.shape[-1]]
                    combined = self.combine(logits, ~rest.isneginf())
                    scores = logits_processor(output.input_ids, combined.clone())
                tokens = choose(scores, sample=generation_config.do_sample)
                output.append(tokens, scores=scores, logits=combined)
                if output.needs_step():
                    logits = streams.step(output.input_ids[:, -1])


def expose(cls: type[Method]) -> Callable[..., Any]:
    """Make the function of a method: its fields, and what its call takes, are keyword arguments of `model.generate`.

    transformers reads from a callable's signature which of the arguments of `generate` are meant for it.
    """

    def decode(*arguments: Any, **given: Any) -> Any:
        fields = {key: given.pop(key) for key in cls.model_fields.keys() & given.keys() - cls.takes}
        return build(cls, fields, source="generate")(*arguments, **given)

    kinds = inspect.Parameter
    parameters = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in _GENERATE]
    parameters += [kinds(name, kinds.KEYWORD_ONLY) for name in sorted(cls.model_fields.keys() | cls.takes)]
    parameters.append(kinds("model_kwargs", kinds.VAR_KEYWORD))
    decode.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    decode.__doc__ = f"{(sys.modules[cls.__module__].__doc__ or '').strip()}\n\nFields: see {cls.__name__}."
    return decode


def _list_unusable(config: Any, model_kwargs: dict[str, Any]) -> Iterator[str]:
    """Name what `generate` was given and no method has a use for; decoding as if it were not there would be wrong."""
    plain = {
        "num_beams": (None, 1),
        "guidance_scale": (None, 1),
        "cache_implementation": (None, "dynamic", "dynamic_full"),
    }
    for key, usual in plain.items():
        if getattr(config, key, None) not in usual:
            yield f"{key}={getattr(config, key)!r}"
    for key in ("penalty_alpha", "dola_layers", "output_hidden_states", "output_attentions"):
        if getattr(config, key, None):
            yield f"{key}={getattr(config, key)!r}"
    for key in ("inputs_embeds", "pixel_values", "input_features", "token_type_ids"):
        if model_kwargs.get(key) is not None:
            yield key
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is not None:  # transformers adds those that the mask says, and leaves a mask out that hides nothing
        said = (positions.new_ones(positions.shape) if mask is None else mask).cumsum(-1) - 1
        if positions.shape[-1] != said.shape[-1] or bool((positions != said).masked_fill(said < 0, False).any()):
            yield "position_ids of its own"
    past = model_kwargs.get("past_key_values")
    if past is not None and past.get_seq_length() > 0:
        yield "past_key_values with tokens in it"


def _recover_arguments(model: Any) -> tuple[Any, bool]:
    """Return the streamer and `synced_gpus` that `generate` was called with.

    transformers (4.57 to 5.19 at least) hands a callable only what its own loop does not take, so that a streamer would wait
    for ever and a sharded model's ranks fall out of step. Where a later version hands them over, this is not reached.
    """
    frame = sys._getframe(1)
    while frame is not None and not (frame.f_code.co_name == "generate" and frame.f_locals.get("self") is model):
        frame = frame.f_back
    if frame is None:
        return None, False
    synced = frame.f_locals.get("synced_gpus")
    if synced is None:
        import torch
        from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
        from transformers.integrations.fsdp import is_fsdp_managed_module

        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)
        synced = several and torch.distributed.get_world_size() > 1 and sharded
    return frame.f_locals.get("streamer"), bool(synced)


def refuse_decoding(model: Any, *, what: str, do: str = "Use another method, or another model.") -> None:
    """Raise InputError for a model that a method cannot decode with."""
    raise InputError(
        f"model: {model.config.model_type}", given=what, allowed="attention layers with a cache that grows", do=do
    )


def choose(scores: Tensor, *, sample: bool) -> Tensor:
    """Draw a token of each row, or take the likeliest. Shapes: (B, V) to (B,)."""
    return scores.softmax(-1).multinomial(num_samples=1).squeeze(1) if sample else scores.argmax(-1)


class Output:
    """The sequences as they grow, and what `generate` returns of them."""

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any,
        *,
        synced: bool,
    ) -> None:
        self.input_ids = input_ids
        self._done = False
        self._model, self._synced = model, synced
        self._criteria, self._config, self._streamer = stopping_criteria, generation_config, streamer
        self._unfinished = input_ids.new_ones(len(input_ids))
        self._pads = any(hasattr(item, "eos_token_id") for item in stopping_criteria)
        self._scores: list[Tensor] = []
        self._logits: list[Tensor] = []

    def goes_on(self) -> bool:
        """Say whether a row, here or on another rank of a sharded model, is not finished."""
        return self._model._has_unfinished_sequences(self._done, self._synced, device=self.input_ids.device)

    def needs_step(self) -> bool:
        """Say whether the model has to read what was appended: the last token of all is read by nobody."""
        return self._synced or not self._done

    def append(self, tokens: Tensor, *, scores: Tensor, logits: Tensor) -> None:
        """Add a token to each row (B,), padding to those that ended; nothing once all rows here are finished."""
        if self._done:
            return
        if self._pads:
            tokens = tokens * self._unfinished + self._config._pad_token_tensor * (1 - self._unfinished)
        import torch

        self.input_ids = torch.cat([self.input_ids, tokens[:, None]], -1)
        if self._streamer is not None:
            self._streamer.put(tokens.cpu())
        if self._config.return_dict_in_generate:
            if self._config.output_scores:
                self._scores.append(scores)
            if self._config.output_logits:
                self._logits.append(logits)
        self._unfinished &= ~self._criteria(self.input_ids, scores)
        self._done = int(self._unfinished.max()) == 0

    def finish(self, model_kwargs: dict[str, Any]) -> Any:
        """Return the sequences, or transformers' record of them."""
        if self._streamer is not None:
            self._streamer.end()
        if not self._config.return_dict_in_generate:
            return self.input_ids
        from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

        found: dict[str, Any] = {
            "sequences": self.input_ids,
            "scores": tuple(self._scores) if self._config.output_scores else None,
            "logits": tuple(self._logits) if self._config.output_logits else None,
        }
        if self._model.config.is_encoder_decoder:
            encoder = model_kwargs["encoder_outputs"]
            return GenerateEncoderDecoderOutput(
                **found,
                encoder_attentions=encoder.get("attentions") if self._config.output_attentions else None,
                encoder_hidden_states=encoder.get("hidden_states") if self._config.output_hidden_states else None,
            )
        return GenerateDecoderOnlyOutput(**found)
