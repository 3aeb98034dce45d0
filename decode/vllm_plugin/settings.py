"""The arguments with which vLLM starts with a method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from counterfoil.config import dump
from decode.method import LogitsMethod, Method
from decode.vllm_plugin import ARCHITECTURE

__all__ = ["list_numbers", "make_arguments", "make_flags", "make_settings"]

SALT = "counterfoil: padded"
"""One for all: requests with two prompts write to the prefix cache and never read from it."""


def make_settings(method: LogitsMethod) -> dict[str, Any]:
    """Return arguments of `vllm.EngineArgs` (and `vllm.LLM`); on vLLM's command line they are written with dashes.

    `method` names folders (of the second model, of adapters): nothing is looked up here. Its numbers are what a request
    that asks for `contrast` gets unless it brings its own.
    """
    name = type(method).__module__.rsplit(".", 1)[-1]
    settings: dict[str, Any] = {
        "hf_overrides": {"architectures": [ARCHITECTURE], "counterfoil": {"method": dump(method)}},
        "logits_processors": [f"decode.vllm_plugin.processors:{name}"],
        "enforce_eager": True,
    }
    if "two_prompts" in method.needs:
        # A window's blocks are given back by the prompt that the scheduler sees; the other one may still look at them.
        settings["disable_hybrid_kv_cache_manager"] = True
    return settings


def make_flags(settings: Mapping[str, Any]) -> list[str]:
    """Write such arguments as vLLM's command line takes them: `--key-of-two-words value`."""
    flags: list[str] = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, dict):
            flags += [f"--{name}", json.dumps(value)]
        else:
            flags += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return flags


def make_arguments(
    method: LogitsMethod, *, prompt: list[int], negative: list[int] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the prompt that vLLM is to see, and the `extra_args` that go with it, for token ids of one or two prompts.

    The prompt that vLLM sees is as long as the longer one; what is in front of the shorter is read by nobody. A padded prompt
    has a `cache_salt`: under its tokens the cache holds the keys and values of the text without its padding.
    """
    arguments: dict[str, Any] = {"contrast": 1}
    for name in list_numbers(type(method)):
        if (value := getattr(method, name)) is not None:
            arguments[f"contrast_{name}"] = value
    if negative is None:
        return {"prompt_token_ids": prompt}, arguments
    arguments["contrast_negative"] = negative
    pad = len(negative) - len(prompt)
    if pad <= 0:
        return {"prompt_token_ids": prompt}, arguments
    return {"prompt_token_ids": [prompt[-1]] * pad + prompt, "cache_salt": SALT}, arguments | {"contrast_pad": pad}


@cache
def list_numbers(cls: type[Method]) -> tuple[str, ...]:
    """Name the fields of a method that a request may set for itself: those that are numbers."""
    numbers = {float, int, float | None, int | None}
    return tuple(name for name, field in cls.model_fields.items() if field.annotation in numbers)
