"""What a step of generation adds to transformers' loop: seeded draws, stop strings, cancellation."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from decode.engine import Sampling

__all__ = ["Draw", "Stop"]

STOP_WINDOW = 24
"""Tokens at the end of a row in which a stop string is looked for."""


class Draw(LogitsProcessor):
    """Draw each row's token with its own generator, and note the log-probability it had before any warping.

    Hand it to a greedy loop: what it returns has its maximum at the token drawn.
    """

    def __init__(self, sampling: Sampling, *, seeds: Sequence[int | None], device: str) -> None:
        self._sampling, self._device = sampling, device
        self._logps_TB: list[torch.Tensor] = []
        self._generators = [torch.Generator("cpu") for _ in seeds]
        for generator, seed in zip(self._generators, seeds, strict=True):
            if seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed)
        self._warpers = LogitsProcessorList()
        if sampling.temperature > 0:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))
            if sampling.min_p > 0:
                self._warpers.append(MinPLogitsWarper(sampling.min_p))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores whose argmax is the draw. Shapes: ids (B, T), scores (B, V)."""
        logits_BV = scores.float()
        found_BV: Any = logits_BV
        if self._sampling.temperature > 0:
            warped_BV: Any = self._warpers(input_ids, logits_BV)  # pyright: ignore[reportArgumentType]
            noise_BV = torch.stack([torch.rand(warped_BV.shape[1], generator=item) for item in self._generators])
            # -log(-log u) is Gumbel noise for u in (0, 1).
            found_BV = warped_BV - torch.log(-torch.log(noise_BV.clamp_min(1e-20))).to(self._device)
        if self._sampling.logprobs:
            token_B = found_BV.argmax(-1)
            chosen_B = logits_BV.gather(1, token_B[:, None])[:, 0]
            self._logps_TB.append((chosen_B - logits_BV.logsumexp(-1)).cpu())
        return found_BV

    def logprobs(self, row: int) -> list[float]:
        """Return the log-probabilities of a row's tokens so far; those after its end mean nothing."""
        return [float(step_B[row]) for step_B in self._logps_TB]


class Stop(StoppingCriteria):
    """End rows that wrote a stop string or were cancelled."""

    def __init__(
        self, tokenizer: Any, stops: Sequence[str], *, prompt_length: int, cancelled: Callable[[], list[bool]]
    ) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._prompt_length, self._cancelled = prompt_length, cancelled

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return which rows are done. Shape: (B,)."""
        done = self._cancelled()
        if self._stops:
            start = max(self._prompt_length, input_ids.shape[1] - STOP_WINDOW)
            tails = self._tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
            done = [was or any(stop in tail for stop in self._stops) for was, tail in zip(done, tails, strict=True)]
        found: Any = torch.tensor(done, device=input_ids.device)
        return found
