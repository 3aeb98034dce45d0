"""Trainings that run out of memory say which setting to lower."""

import pytest
import torch

from align.training import advise_on_memory
from counterfoil.errors import RunError


def test_advice_names_the_settings_that_can_be_lowered() -> None:
    with (
        pytest.raises(
            RunError, match=r"batch_size below 8 .* gradient_checkpointing=true, or max_tokens below 512"
        ) as caught,
        advise_on_memory(8, 512, checkpointing=False),
    ):
        torch.empty(2**60)
    assert "allocate" in str(caught.value)
    with (
        pytest.raises(RunError, match="with max_tokens below 512;"),
        advise_on_memory(1, 512, checkpointing=True),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), advise_on_memory(8, 512, checkpointing=False):
        raise RuntimeError("shapes differ")
