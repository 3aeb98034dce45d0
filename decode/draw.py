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

__all__ = ["Draw", "Force", "Show", "Stop"]

STOP_WINDOW = 24
"""Tokens at the end of a row in which a stop string is looked for."""


class Draw(LogitsProcessor):
    """Draw each row's token with its own generator, and note the log-probability it had before any warping.

    Hand it to a greedy loop: what it returns has its maximum at the token drawn. The loop may still choose otherwise; the
    log-probabilities are of what it chose.
    """

    def __init__(self, sampling: Sampling, *, seeds: Sequence[int | None], device: str) -> None:
        self._sampling, self._device = sampling, device
        self._logps_TB: list[torch.Tensor] = []
        self._length = 0
        self._before_BV: torch.Tensor | None = None  # the scores from which the token to come is chosen
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
            self._note(input_ids)
            self._length = input_ids.shape[1]
            self._before_BV = logits_BV.clone() if found_BV is logits_BV else logits_BV
        return found_BV

    def _note(self, ids: torch.Tensor) -> None:
        if self._before_BV is not None and ids.shape[1] > self._length:  # a loop may ask twice for one token
            chosen_B = self._before_BV.gather(1, ids[:, -1:])[:, 0]
            self._logps_TB.append((chosen_B - self._before_BV.logsumexp(-1)).cpu())
            self._before_BV = None

    def logprobs(self, ids: torch.Tensor) -> list[list[float]]:
        """Return the log-probabilities of each row's new tokens, given all (B, T); those after a row's end mean nothing."""
        self._note(ids)
        return torch.stack(self._logps_TB, 1).tolist() if self._logps_TB else [[] for _ in ids]


class Force(LogitsProcessor):
    """Make a greedy loop write given tokens, and note the log-probability that each had."""

    def __init__(self, ids: Sequence[Sequence[int]], *, prompt_length: int, device: str) -> None:
        longest = max(map(len, ids))
        self._ids_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=device)
        self._start = prompt_length
        self._noted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores that allow the given token alone. Shapes: ids (B, T), scores (B, V)."""
        at = input_ids.shape[1] - self._start
        targets_B1 = self._ids_BT[:, at : at + 1]
        logps_BV = scores.float().log_softmax(-1)
        self._noted[at] = (logps_BV.gather(1, targets_B1)[:, 0].cpu(), (scores.argmax(-1) == targets_B1[:, 0]).cpu())
        found: Any = torch.full_like(scores, -torch.inf).scatter_(1, targets_B1, 0.0)
        return found

    def read(self, row: int, length: int) -> tuple[tuple[float, ...], bool]:
        """Return the log-probabilities of a row's tokens, and whether each was the likeliest."""
        noted = [self._noted[at] for at in range(length)]
        return tuple(float(logps[row]) for logps, _ in noted), all(bool(greedy[row]) for _, greedy in noted)


class Stop(StoppingCriteria):
    """End rows that wrote a stop string or were cancelled."""

    def __init__(
        self, tokenizer: Any, stops: Sequence[str], *, prompt_length: int, cancelled: Callable[[], list[bool]]
    ) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._prompt_length, self._cancelled = prompt_length, cancelled

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return which rows are done. Shape: (B,)."""
        rows = self._cancelled()
        done = [was for was in rows for _ in range(len(input_ids) // len(rows))]  # beams
        if self._stops:
            start = max(self._prompt_length, input_ids.shape[1] - STOP_WINDOW)
            tails = self._tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
            done = [was or any(stop in tail for stop in self._stops) for was, tail in zip(done, tails, strict=True)]
        found: Any = torch.tensor(done, device=input_ids.device)
        return found


class Show(StoppingCriteria):
    """End nothing; pass each row's new token ids on as they grow."""

    def __init__(self, show: Callable[[int, list[int]], None], *, prompt_length: int) -> None:
        self._show, self._prompt_length = show, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return that no row is done. Shape: (B,)."""
        for at, ids in enumerate(input_ids[:, self._prompt_length :].tolist()):
            self._show(at, ids)
        found: Any = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return found
