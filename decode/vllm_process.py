"""What vLLM's engines in one process have in common: variables read at import, and process groups that all of them use.

Source: vLLM 0.32. An engine that shuts down, or that is collected as garbage, takes down the process groups
(vllm/v1/engine/core.py), also where another engine of the process goes on; that one then fails with "pipeline model
parallel group is not initialized". So here the last of them does it.
"""

import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["adopt_engine", "prepare_environment"]

_LIVE = set[int]()
_TURN = threading.RLock()


def prepare_environment() -> bool:
    """Set what vLLM reads at import, before torch's thread pool exists; return whether a GPU is there."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    for key, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # In this process: on a CPU it starts in a third of the time of a process of its own, at the same speed.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(len(cores)),
        # Without it vLLM leaves a core idle.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }.items():
        os.environ.setdefault(key, value)
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.reduce_op.*")
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
    import torch

    return torch.cuda.is_available()


def adopt_engine(engine: Any) -> Callable[[], object]:
    """Take over the end of a vLLM `LLMEngine`: what is returned shuts it down when called, or when it is collected.

    Where the engine runs in a process of its own, its end is left as vLLM has it.
    """
    client = engine.engine_core
    core = getattr(client, "engine_core", None)
    theirs = getattr(client, "_finalizer", None)
    if core is None or theirs is None:
        return weakref.finalize(engine, client.shutdown)
    theirs.detach()
    _LIVE.add(id(core))
    return weakref.finalize(engine, _shut_down, core)


def _shut_down(core: Any) -> None:
    """End one engine; the groups go with the last."""
    from vllm.v1.engine import core as core_module

    module: Any = core_module  # which does not list what it imports among its names
    with _TURN:
        _LIVE.discard(id(core))
        theirs = module.cleanup_dist_env_and_memory
        if _LIVE:
            module.cleanup_dist_env_and_memory = _keep
        try:
            core.shutdown()
        finally:
            module.cleanup_dist_env_and_memory = theirs


def _keep(*_: Any, **__: Any) -> None:
    """Leave the groups to those who still use them."""
