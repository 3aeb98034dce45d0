"""Text out of models: engines and decoding methods.

The methods are functions for transformers: `model.generate(**inputs, custom_generate=contrastive_search, alpha=0.6, k=4)`;
on a CPU they are faster `with packed_linears(model):`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decode.methods.context_aware import context_aware
    from decode.methods.contrastive import contrastive
    from decode.methods.contrastive_search import contrastive_search
    from decode.methods.decoupled import decoupled
    from decode.methods.dola import dola
    from decode.methods.guided import guided
    from decode.packing import packed_linears

__all__ = ["context_aware", "contrastive", "contrastive_search", "decoupled", "dola", "guided", "packed_linears"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: the command line's help imports no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'decode' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("decode.packing" if name == "packed_linears" else f"decode.methods.{name}"), name)
