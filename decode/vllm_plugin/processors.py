"""What a request asks for, and which row of the batch it is in.

`--logits-processors decode.vllm_plugin.processors:NAME` gives a class for the method NAME. By this
interface vLLM validates a request's arguments where they come in, and says before each step which request is in which row. It
changes no logits but those of a request that turns out unreadable: whatever else the request forbids, that ends.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as FirstInterface
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SecondInterface

from counterfoil.config import build, find_class
from counterfoil.errors import CounterfoilError, first_line
from decode.method import LogitsMethod, Method
from decode.vllm_plugin.batch import find_batch
from decode.vllm_plugin.settings import list_numbers

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

__all__ = ["Asked", "read_arguments"]

logger = logging.getLogger("vllm.counterfoil")
PREFIX = "contrast"
OWN = {f"{PREFIX}_negative", f"{PREFIX}_pad"}


class Asked(NamedTuple):
    """A request, as the model sees it."""

    method: LogitsMethod
    negative: tuple[int, ...] | None
    """Token ids of the second prompt."""
    pad: int
    """Tokens in front of the prompt that are there only because the second prompt is longer."""
    prompt_length: int = 0
    """With those."""
    fault: str | None = None
    """Why it cannot be answered, where that is known too late to refuse it."""


def read_arguments(extra_args: dict[str, Any] | None, method: LogitsMethod) -> Asked | None:
    """Read a request's `extra_args`; None where it does not ask for contrast.

    `contrast: 1` asks for the engine's method; `contrast_strength` and the like, by the names of the method's numbers, change
    it for this request; `contrast: 0` or none of them leaves the request plain. `contrast_negative` is a list of token ids.
    Raises ValueError for what the method does not have.
    """
    found = {key: value for key, value in (extra_args or {}).items() if key.split("_")[0] == PREFIX}
    wanted = found.pop(PREFIX, 1 if found else 0)
    if wanted not in (0, 1):
        raise ValueError(f"{PREFIX}={wanted!r}: give 1 or 0, and the method's numbers as {PREFIX}_NAME")
    if not wanted:
        return None
    two_prompts = "two_prompts" in method.needs
    name = type(method).__module__.rsplit(".", 1)[-1]
    changes: dict[str, Any] = {}
    for key, value in found.items():
        if key in OWN:
            if not two_prompts:
                raise ValueError(f"{key}: {name} has no use for a second prompt")
            continue
        field = key.removeprefix(f"{PREFIX}_")
        if field not in list_numbers(type(method)):
            allowed = ", ".join(f"{PREFIX}_{number}" for number in list_numbers(type(method)))
            raise ValueError(f"{key}: {name} takes {PREFIX}, {allowed}")
        changes[field] = value
    negative = found.get(f"{PREFIX}_negative")
    if negative is not None and (not isinstance(negative, list) or not negative or not _are_ids(negative)):
        raise ValueError(f"{PREFIX}_negative: give token ids, at least one, not {str(negative)[:60]}")
    pad = found.get(f"{PREFIX}_pad", 0)
    if not isinstance(pad, int) or pad < 0:
        raise ValueError(f"{PREFIX}_pad: give a number of tokens, not {pad!r}")
    ids = None if negative is None else tuple(cast("list[int]", negative))
    if two_prompts and (fault := method.find_fault(temperature=0, n=1, has_negative=ids is not None)):
        raise ValueError(fault)
    return Asked(_change(method, changes), ids, pad)


def _are_ids(values: list[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values)


def _change(method: LogitsMethod, changes: dict[str, Any]) -> LogitsMethod:
    if not changes:
        return method
    values = method.model_dump(exclude_unset=True) | changes
    try:
        return build(type(method), values, source="request")
    except CounterfoilError as error:
        raise ValueError(first_line(error)) from error


class _Processor(FirstInterface, SecondInterface):
    """Follows requests through the batch; in vLLM's first interface by row, in its second by slot."""

    METHOD: ClassVar[type[LogitsMethod]]

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        self._batch = find_batch(vllm_config)
        self._states = rest[0] if len(rest) == 1 else None  # of the second interface: its requests, by slot
        self._vocab_size = vllm_config.model_config.get_vocab_size()
        end = vllm_config.model_config.hf_config.eos_token_id
        self._end: int = end[0] if isinstance(end, list) else end or 0
        if not isinstance(self._batch.method, self.METHOD):
            raise ValueError(
                f"the model was started with {type(self._batch.method)}, the processor is for {self.METHOD}"
            )

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse arguments that the method does not have, where the request comes in."""
        asked = read_arguments(sampling_params.extra_args, _make_default(cls.METHOD))
        if asked is None:
            return
        if "two_prompts" in cls.METHOD.needs:
            # What lies in the cache for a prompt is half of what such a request needs.
            sampling_params.skip_reading_prefix_cache = True

    def _ask(self, params: SamplingParams, prompt_length: int) -> Asked | None:
        asked = read_arguments(params.extra_args, self._batch.method)
        if asked is None:
            return None
        ids, fault = asked.negative or (), None
        if any(token >= self._vocab_size for token in ids):
            fault = f"{PREFIX}_negative has a token id over {self._vocab_size - 1}"
        elif len(ids) > prompt_length:
            fault = f"{PREFIX}_negative has {len(ids)} tokens, the prompt {prompt_length}: put {PREFIX}_pad in front"
        elif asked.pad >= prompt_length:
            fault = f"{PREFIX}_pad={asked.pad} leaves nothing of the prompt's {prompt_length} tokens"
        if fault:
            logger.error("A request ends without a token: %s.", fault)
        return asked._replace(prompt_length=prompt_length, fault=fault)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch (first interface)."""
        if batch_update is None:
            return
        rows = self._batch.asked
        for row in batch_update.removed:
            rows.pop(row, None)
        for row, params, prompt_ids, _ in batch_update.added:
            rows[row] = self._ask(params, len(prompt_ids or ()))
        for start, end, direction in batch_update.moved:
            first, second = rows.pop(start, None), rows.pop(end, None)
            rows[end] = first
            if direction == MoveDirectionality.SWAP:
                rows[start] = second

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Fill a slot (second interface)."""
        assert self._states is not None
        self._batch.asked[req_idx] = self._ask(sampling_params, int(self._states.prompt_len.np[req_idx]))
        return False

    def is_argmax_invariant(self) -> bool:
        """Say that logits may be changed."""
        return False

    def apply(self, logits: Any, ctx: Any = None) -> Any:
        """Leave a request at fault nothing but its end, which its own masks may have forbidden. Shape: (rows, V)."""
        slots = range(len(logits)) if ctx is None else ctx.idx_mapping_np.tolist()
        for row, slot in enumerate(slots):
            if (asked := self._batch.asked.get(slot)) is not None and asked.fault:
                logits[row] = -float("inf")
                logits[row, self._end] = 0.0
        return logits


@cache
def _make_default(cls: type[LogitsMethod]) -> LogitsMethod:
    return cls()


@cache
def __getattr__(name: str) -> Any:
    """Make the class for a method, which vLLM asks for by `MODULE:METHOD`."""
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        method = find_class(Method, name)
    except ValueError as error:
        raise AttributeError(str(error)) from error
    if not issubclass(method, LogitsMethod) or "layers" in method.needs:
        raise AttributeError(f"{name} does not run inside vLLM: contrastive, decoupled, context_aware and guided do")
    return type(f"Follow_{name}", (_Processor,), {"METHOD": method, "__module__": __name__})
