"""Serve: an OpenAI-compatible endpoint, the method in the model's name (`MODEL:METHOD`) or in the request (`method`).

With the engine `vllm` it is vLLM's own server with the plugin: one method, chosen in the config, and plain requests beside
it. With `hf` it is a small server that has every method; those that need a second model or adapters are chosen in the config.
"""

import socket
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from counterfoil.errors import ConfigError, EngineError
from counterfoil.job import Service
from counterfoil.models import find_model
from decode.engine import Engine, require
from decode.engines.hf import Hf
from decode.engines.vllm import Vllm, choose_method, make_engine_settings
from decode.method import LogitsMethod, Method
from decode.vllm_process import prepare_environment

__all__ = ["Serve"]

GRACE_S = 5
"""What an interrupted server gives the answers under way."""


class Serve(Service):
    """An endpoint; runs until it is interrupted."""

    model: str = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    name: str | None = None
    """What clients call it; None is the last part of `model`."""
    engine: Engine = Vllm()
    """vllm or hf."""
    method: Method | None = None
    """What MODEL:METHOD decodes with, and all that it needs; a request may change its numbers."""
    host: str = "127.0.0.1"
    """Address to listen at; there is no authentication: put a proxy in front before opening it to others."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen at."""
    max_body_bytes: int = Field(default=1 << 20, ge=1)
    """A larger request is refused (413)."""
    max_requests: int = Field(default=256, ge=1)
    """When as many are being answered or wait, others are refused (503)."""
    timeout_s: float = Field(default=600.0, gt=0)
    """A request that takes longer is given up (504)."""

    def check(self) -> None:
        """Compare what is needed with what the engine gives; loads nothing."""
        if not isinstance(self.engine, Hf | Vllm):
            kind = type(self.engine).__name__
            raise ConfigError("engine", given=kind, allowed="vllm or hf: models in this process", do="Choose one.")
        require(self.engine, self.method.needs if self.method else (), where="engine")
        if self.method is not None:
            fault = self.method.find_fault(temperature=0, n=1, has_negative="two_prompts" in self.method.needs)
            if fault:
                raise ConfigError("method", given=fault, allowed="a method with all that it needs", do="Add it.")
            for key, folder in self.method.adapters.items():
                if not (Path(folder) / "adapter_config.json").is_file():
                    raise ConfigError(
                        f"method.{key}",
                        given=repr(folder),
                        allowed="the folder of a PEFT adapter",
                        do="Check the path.",
                    )

    def run(self) -> None:
        """Serve. Raises EngineError where the engine or the server's packages are missing."""
        self.check()
        gate: dict[str, Any] = {
            "max_body_bytes": self.max_body_bytes,
            "max_requests": self.max_requests,
            "timeout_s": self.timeout_s,
        }
        name = self.name or Path(self.model).name
        try:
            if isinstance(self.engine, Vllm):
                self._run_vllm(self.engine, name, gate)
            elif isinstance(self.engine, Hf):
                self._run_hf(self.engine, name, gate)
        except ImportError as error:
            do = "Install counterfoil[cpu], counterfoil[gpu] or counterfoil[serve]."
            raise EngineError("serve", given=str(error), allowed="fastapi and uvicorn, or vLLM", do=do) from error

    def _run_vllm(self, engine: Vllm, name: str, gate: dict[str, Any]) -> None:
        on_gpu = prepare_environment()
        from decode.server.names import Names
        from decode.server.vllm_server import Translate, run

        folder = find_model(self.model)
        method = choose_method(folder, [self.method] if self.method else [])
        assert method is None or isinstance(method, LogitsMethod)
        names = Names(name, method, gives=frozenset())
        settings = {"model": str(folder), "served_model_name": names.list_names()}
        settings |= make_engine_settings(engine, method, on_gpu=on_gpu)
        run(
            settings,
            host=self.host,
            port=self.port,
            grace_s=GRACE_S,
            gate=gate | {"translate": Translate(names, folder)},
        )

    def _run_hf(self, engine: Hf, name: str, gate: dict[str, Any]) -> None:
        import uvicorn

        from decode.server.gate import Gate
        from decode.server.hf_server import make_app
        from decode.server.names import Names

        try:
            listening = socket.create_server((self.host, self.port))  # before the model, which takes a while
        except OSError as error:
            given = f"{self.host}:{self.port} ({error.strerror})"
            raise EngineError("port", given=given, allowed="a free one", do="Choose another.") from error
        with listening:
            session = engine.open(self.model, methods=[self.method] if self.method else [])
            names = Names(name, self.method, gives=engine.gives)
            app = Gate(make_app(session, names, engine=engine), **gate)
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S)
            host, port = listening.getsockname()[:2]
            sys.stdout.write(f"{', '.join(names.list_names())} at http://{host}:{port}/v1\n")
            sys.stdout.flush()
            uvicorn.Server(config).run(sockets=[listening])
