"""Contrast inside vLLM: two readings of a text in one request, with continuous batching and paged attention.

vLLM has one stream of tokens a request and one cache of keys and values a layer. Here a model's twin goes with it: a second
model (`contrastive`), or the same weights read a second time with a cache of their own (`decoupled`, `context_aware`,
`guided`). Both are in one request, so nothing the scheduler does, chunks, preemption, cancellation, can part them.

    processors.py   what a request asks for (`extra_args`, over HTTP `vllm_xargs`), and which row of a batch it is in
    batch.py        which rows each stream reads in a step, and where their keys and values lie
    model.py        the model: streams in, one row of logits out
    lora.py         an adapter for each stream
    settings.py     the arguments that start vLLM with a method

`register` is an entry point of `vllm.general_plugins`: it names a class and does nothing to engines that do not ask for it.
"""

__all__ = ["ARCHITECTURE", "register"]

ARCHITECTURE = "CounterfoilForCausalLM"


def register() -> None:
    """Tell vLLM where the model is; called by vLLM in each of its processes."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "decode.vllm_plugin.model:CounterfoilForCausalLM")
