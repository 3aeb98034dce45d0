"""vLLM's own server, started with a method: what a request says of the method is turned into vLLM's arguments.

A second prompt comes as text or messages (`negative`) and goes on as token ids, since the model's side has no template.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from counterfoil.errors import first_line
from decode.chat import encode_prompt, load_tokenizer
from decode.method import LogitsMethod
from decode.server.gate import Gate, read_message
from decode.server.names import Names

__all__ = ["Translate", "run"]

PATHS = ("/v1/chat/completions", "/v1/completions")


class Translate:
    """Turn a request that names a method into one that vLLM with the plugin understands."""

    def __init__(self, names: Names, folder: Path) -> None:
        from transformers import AutoConfig

        self._names = names
        self._tokenizer = load_tokenizer(str(folder))
        self._vocab_size: int = AutoConfig.from_pretrained(folder).get_text_config().vocab_size

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Translate the JSON object of a request; see Gate."""
        from decode.vllm_plugin.settings import make_arguments

        own = body.get("vllm_xargs")
        if isinstance(own, dict) and (set_here := {"contrast_negative", "contrast_pad"} & own.keys()):
            raise ValueError(f"vllm_xargs: {min(set_here)} is set by the server: give the second prompt as `negative`")
        negative, given = body.pop("negative", None), body.pop("method", None)
        model = body.get("model")
        if path not in PATHS:
            if negative is not None or given is not None or model in self._names.list_names()[1:]:
                raise ValueError(f"{path} takes no method: {' and '.join(PATHS)} do")
            return body
        method = None
        if model is not None or given is not None:
            method = self._names.find(str(model or self._names.list_names()[0]), given)
        if method is None:
            if negative is not None:
                raise ValueError("negative: no method is asked for that has a use for it")
            return body
        fault = method.find_fault(temperature=0, n=1, has_negative=negative is not None)
        if fault:
            raise ValueError(fault)
        assert isinstance(method, LogitsMethod)
        if body.get("truncate_prompt_tokens") is not None:
            raise ValueError("truncate_prompt_tokens: with a method a prompt is read whole or not at all")
        prompt = self._encode(body.get("messages", body.get("prompt")), where="prompt")
        other = None if negative is None else self._encode(_as_chat(negative, body), where="negative")
        if other is not None and not all(0 <= token < self._vocab_size for token in other):
            raise ValueError(f"negative: token ids are from 0 to {self._vocab_size - 1}")
        if other is not None and len(other) > len(prompt):
            raise ValueError(
                f"negative has {len(other)} tokens, the prompt {len(prompt)}: inside vLLM it may not be longer; "
                "shorten it, or serve with engine: hf"
            )
        _, arguments = make_arguments(method, prompt=prompt, negative=other)
        return body | {"vllm_xargs": (own or {}) | arguments}

    def _encode(self, prompt: Any, *, where: str) -> list[int]:
        if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
            return prompt
        if isinstance(prompt, list) and prompt and all(isinstance(item, dict) for item in prompt):
            prompt = tuple(read_message(item) for item in prompt)
        elif not isinstance(prompt, str):
            raise ValueError(f"{where}: with a method give one text, or messages")
        try:
            found = encode_prompt(self._tokenizer, prompt)
        except Exception as error:  # of the model's template, which may object to anything
            raise ValueError(f"{where}: {first_line(error)}") from error
        if not found:
            raise ValueError(f"{where}: an empty text has no token; leave it out, or give one")
        return found


def _as_chat(negative: Any, body: dict[str, Any]) -> Any:
    return [{"role": "user", "content": negative}] if isinstance(negative, str) and "messages" in body else negative


class Front(Gate):
    """The gate of the server in this process; vLLM makes middleware without arguments."""

    settings: dict[str, Any] = {}

    def __init__(self, app: Any) -> None:
        super().__init__(app, **self.settings)


def run(settings: dict[str, Any], *, host: str, port: int, grace_s: int, gate: dict[str, Any]) -> None:
    """Serve until interrupted, then give the answers under way some seconds; `settings` are vLLM's."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from decode.vllm_plugin.settings import make_flags

    Front.settings = gate
    parser = make_arg_parser(FlexibleArgumentParser())
    middleware = f"{__name__}.{Front.__name__}"
    own = {"host": host, "port": port, "middleware": middleware}
    args: Any = parser.parse_args(make_flags(settings | own))
    validate_parsed_serve_args(args)
    uvloop.run(run_server(args, timeout_graceful_shutdown=grace_s))
