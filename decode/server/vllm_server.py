"""vLLM's own server, started with a method: what a request says of the method is turned into vLLM's arguments.

A second prompt comes as text or messages (`negative`) and goes on as token ids, since the model's side has no template.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decode.chat import encode_prompt, load_tokenizer
from decode.method import LogitsMethod
from decode.server.gate import Gate
from decode.server.names import Names

__all__ = ["Translate", "run"]


class Translate:
    """Turn a request that names a method into one that vLLM with the plugin understands."""

    def __init__(self, names: Names, folder: Path) -> None:
        self._names = names
        self._tokenizer = load_tokenizer(str(folder))

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Translate the JSON object of a request; see Gate."""
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return body
        from decode.vllm_plugin.settings import make_arguments

        negative, given = body.pop("negative", None), body.pop("method", None)
        method = self._names.find(str(body.get("model", "")), given)
        if method is None:
            if negative is not None:
                raise ValueError("negative: no method is asked for that has a use for it")
            return body
        fault = method.find_fault(temperature=0, n=1, has_negative=negative is not None)
        if fault:
            raise ValueError(fault)
        assert isinstance(method, LogitsMethod)
        prompt = self._encode(body.get("messages", body.get("prompt")), where="prompt")
        other = None if negative is None else self._encode(_as_chat(negative, body), where="negative")
        if other is not None and len(other) > len(prompt):
            raise ValueError(
                f"negative has {len(other)} tokens, the prompt {len(prompt)}: inside vLLM it may not be longer; "
                "shorten it, or serve with engine: hf"
            )
        _, arguments = make_arguments(method, prompt=prompt, negative=other)
        arguments.pop("contrast_pad", None)
        return body | {"vllm_xargs": (body.get("vllm_xargs") or {}) | arguments}

    def _encode(self, prompt: Any, *, where: str) -> list[int]:
        if isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
            return prompt
        if isinstance(prompt, str):
            return encode_prompt(self._tokenizer, prompt)
        if isinstance(prompt, list) and prompt and all(isinstance(item, dict) for item in prompt):
            return encode_prompt(self._tokenizer, tuple(prompt))
        raise ValueError(f"{where}: with a method give one text, or messages")


def _as_chat(negative: Any, body: dict[str, Any]) -> Any:
    return [{"role": "user", "content": negative}] if isinstance(negative, str) and "messages" in body else negative


class Front(Gate):
    """The gate of the server in this process; vLLM makes middleware without arguments."""

    settings: dict[str, Any] = {}

    def __init__(self, app: Any) -> None:
        super().__init__(app, **self.settings)


def run(settings: dict[str, Any], *, host: str, port: int, gate: dict[str, Any]) -> None:
    """Serve until interrupted; `settings` are vLLM's."""
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
    uvloop.run(run_server(args))
