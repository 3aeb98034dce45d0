"""Linear layers packed for passes over few rows: what decoding on a CPU does all the time.

A product of a few rows with a matrix costs what reading the matrix costs, if the library reads it once and in order. In
PyTorch 2.13 on x86 a plain product of two rows costs nearly twice one row's, since the matrix is rearranged for every
product; oneDNN's packed layout is rearranged once. It holds the weights a second time.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from decode.attention import replaced_forward

__all__ = ["packed_linears"]

MOST_ROWS = 16
"""Above it a plain product is as fast."""


@contextmanager
def packed_linears(model: Any) -> Iterator[None]:
    """Compute a model's linear layers from packed weights for as long as the block lasts, up to 16 rows at a time.

    Takes a second copy of their weights in memory, made at a layer's first use and again when its weights change. Layers
    that are not in float32 on a CPU, and passes that need gradients, are left as they are. Sums are in another order, as they
    are in a batch of another size.
    """
    with ExitStack() as stack:
        if torch.backends.mkldnn.is_available():
            for module in model.modules():
                if type(module) is torch.nn.Linear:
                    stack.enter_context(replaced_forward(module, _pack(module, module.forward)))
        yield


def _pack(layer: torch.nn.Linear, plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    packed: Tensor | None = None
    made_of: tuple[int, int] | None = None

    def forward(x: Tensor) -> Tensor:
        nonlocal packed, made_of
        weight = layer.weight
        few = 1 < x.numel() // max(1, x.shape[-1]) <= MOST_ROWS
        usable = weight.dtype == x.dtype == torch.float32 and weight.device.type == "cpu" and not weight.is_inference()
        if not few or not usable or (torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad)):
            return plain(x)
        now = weight.data_ptr(), weight._version
        if packed is None or made_of != now:
            packed, made_of = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), MOST_ROWS // 2), now
        return torch.ops.mkldnn._linear_pointwise(x, packed, layer.bias, "none", [], "")

    return forward
