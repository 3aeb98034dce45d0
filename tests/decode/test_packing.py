"""Packed linear layers are the plain ones, at any number of rows, and follow their weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from decode import contrastive_search, guided, packed_linears

Make = Callable[..., Any]


@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_the_plain_one(bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 80, bias=bias)
    for shape in ((1,), (2,), (1, 4), (2, 8), (3, 5), (40,)):
        x = torch.randn(*shape, 48)
        with torch.inference_mode():
            plain = layer(x)
            with packed_linears(layer):
                assert torch.allclose(layer(x), plain, rtol=1e-5, atol=1e-6), shape
            assert torch.equal(layer(x), plain)


def test_changed_weights_are_packed_anew_and_gradients_flow() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(16, 16), torch.randn(4, 16)
    with packed_linears(layer):
        with torch.no_grad():
            before = layer(x)
            layer.weight.mul_(2)
            assert torch.allclose(layer(x) - layer.bias, 2 * (before - layer.bias), rtol=1e-4, atol=1e-5)
        layer(x).sum().backward()
    assert layer.weight.grad is not None and torch.allclose(layer.weight.grad[0], x.sum(0))


def test_methods_write_the_same_tokens(make_model: Make) -> None:
    model, ids = make_model("llama"), torch.tensor([[3, 4, 5, 6, 7]])
    for method, settings in ((contrastive_search, {"alpha": 0.6, "k": 4}), (guided, {"scale": 2.0})):
        plain = model.generate(input_ids=ids, max_new_tokens=12, custom_generate=method, **settings)
        with packed_linears(model):
            packed = model.generate(input_ids=ids, max_new_tokens=12, custom_generate=method, **settings)
        assert torch.equal(packed, plain)


def test_other_precisions_are_left_as_they_are() -> None:
    layer, x = torch.nn.Linear(8, 8).bfloat16(), torch.randn(2, 8).bfloat16()
    with torch.inference_mode():
        plain = layer(x)
        with packed_linears(layer):
            assert torch.equal(layer(x), plain)
