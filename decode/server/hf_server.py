"""A small OpenAI-compatible server over the hf engine: every method, chosen by the model's name or in the request."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from decode.engine import Request, Result, Sampling
from decode.engines.hf import Hf, HfSession
from decode.method import Method
from decode.server.gate import RefusedError
from decode.server.names import Names
from decode.server.worker import Ticket, Worker

__all__ = ["make_app"]

Stop = Annotated[str | list[str] | None, Field(default=None)]


class _Body(BaseModel):
    """What both endpoints take; a key that is neither here nor harmless is refused."""

    model_config = ConfigDict(extra="allow")

    model: str
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)
    n: int = Field(default=1, ge=1, le=64)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    method: Any = None
    """A method's name, or a mapping with its fields; see `Names`."""
    negative: str | list[dict[str, str]] | None = None
    """The other prompt of a method with two."""


class _Chat(_Body):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


class _Text(_Body):
    prompt: str | list[str]
    max_tokens: int = Field(default=16, ge=1)


HARMLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "best_of": 1, "echo": False, "repetition_penalty": 1,
    "parallel_tool_calls": True,
}  # fmt: skip
"""Keys that are not taken, and the value under which leaving them out changes nothing; for all others that is null."""


def make_app(session: HfSession, names: Names, *, engine: Hf) -> FastAPI:
    """Return the application; it closes the session at its end."""
    worker = Worker(session, batch_size=engine.batch_size)

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.close)
        session.close()

    app = FastAPI(title="counterfoil", lifespan=live, docs_url=None, redoc_url=None, openapi_url=None)
    numbers, started = itertools.count(1), int(time.time())

    _add_models(app, names, worker, started)
    _add_errors(app)

    @app.post("/v1/chat/completions")
    async def chat(body: _Chat, http: HttpRequest) -> Any:
        limit = body.max_completion_tokens or body.max_tokens or engine.max_model_len
        prompts = [tuple(_read_message(message) for message in body.messages)]
        return await answer("chat.completion", body, prompts, limit, http)

    @app.post("/v1/completions")
    async def complete(body: _Text, http: HttpRequest) -> Any:
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        return await answer("text_completion", body, prompts, body.max_tokens, http)

    async def answer(kind: str, body: _Body, prompts: list[Any], limit: int, http: HttpRequest) -> Any:
        _refuse_extra(body)
        method = names.find(body.model, body.method)
        reply = _Reply(kind, f"{'chatcmpl' if kind[0] == 'c' else 'cmpl'}-{started}-{next(numbers)}", body.model)
        tickets = [
            Ticket(
                _make_request(f"{reply.id}-{at}", prompt, body, method, limit), asyncio.get_running_loop(), body.stream
            )
            for at, prompt in enumerate(prompts)
        ]
        for ticket in tickets:
            if fault := ticket.request.find_fault(engine.gives):
                raise RefusedError(400, f"{fault}.")
            for given in (ticket.request.prompt, ticket.request.negative):
                if given is not None and (length := session.num_tokens(given)) >= engine.max_model_len:
                    said = f"{length} tokens leave no room for an answer in {engine.max_model_len} (max_model_len)."
                    raise RefusedError(400, said)
        for ticket in tickets:
            worker.submit(ticket)
        if body.stream:
            usage = bool((body.stream_options or {}).get("include_usage"))
            chunks = _stream(reply, tickets, body, worker, usage=usage)
            return StreamingResponse(chunks, media_type="text/event-stream")
        try:
            results = [await _wait(ticket, http) for ticket in tickets]
        finally:
            for ticket in tickets:
                worker.withdraw(ticket)
        return reply.whole(results)

    return app


def _add_models(app: FastAPI, names: Names, worker: Worker, started: int) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"failure": worker.failure}, status_code=500 if worker.failure else 200)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        data = [
            {"id": name, "object": "model", "created": started, "owned_by": "counterfoil"}
            for name in names.list_names()
        ]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        names.find(name, None)
        return {"id": name, "object": "model", "created": started, "owned_by": "counterfoil"}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refuse(_: HttpRequest, error: RefusedError) -> JSONResponse:
        return _explain(error.status, error.message)

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return _explain(400, f"{where}: {first['msg']}.")


def _explain(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return JSONResponse(content, status_code=status)


def _refuse_extra(body: _Body) -> None:
    for key, value in (body.model_extra or {}).items():
        if key not in HARMLESS and value is not None and value != NEUTRAL.get(key):
            raise RefusedError(400, f"{key} is not taken here. Leave it out.")


def _read_message(message: dict[str, Any]) -> dict[str, str]:
    """Take a message whose content is text, or parts that are."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str)) if len(parts) == len(content) else None
    if not isinstance(content, str) or not isinstance(message.get("role"), str):
        raise RefusedError(400, "messages: each needs a role and a content of text.")
    return {"role": message["role"], "content": content}


def _make_request(name: str, prompt: Any, body: _Body, method: Method | None, limit: int) -> Request:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    # A deterministic method answers clients that leave the temperature at their own default.
    temperature = (
        body.temperature if "temperature" in body.model_fields_set or method is None or method.samples else 0.0
    )
    sampling = Sampling(
        temperature=temperature, top_p=body.top_p, top_k=body.top_k, min_p=body.min_p, max_new_tokens=limit, n=body.n,
        seed=body.seed, stop=stop,
    )  # fmt: skip
    negative: Any = body.negative
    if isinstance(negative, str) and not isinstance(prompt, str):
        negative = ({"role": "user", "content": negative},)
    elif isinstance(negative, list):
        negative = tuple(_read_message(message) for message in negative)
    return Request(name, prompt, sampling, method=method, negative=negative)


async def _wait(ticket: Ticket, http: HttpRequest) -> Result:
    """Wait for a result, or for the sender to leave."""
    while True:
        try:
            item = await asyncio.wait_for(ticket.mailbox.get(), timeout=1.0)
        except TimeoutError:
            if await http.is_disconnected():
                raise RefusedError(400, "The sender left.") from None
            continue
        if isinstance(item, Result):
            if item.failure is not None:
                raise RefusedError(500 if ticket.crash else 400, f"{item.failure}.")
            return item


async def _stream(
    reply: _Reply, tickets: list[Ticket], body: _Body, worker: Worker, *, usage: bool
) -> AsyncIterator[str]:
    """Send texts as they grow; what a stop string may still take back is held until it is certain."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    held = max((len(stop) for stop in stops), default=1) - 1
    results: list[Result] = []
    try:
        for at, ticket in enumerate(tickets):
            sent = [""] * body.n
            for index in range(body.n):
                yield reply.chunk(at * body.n + index, "", role=True)
            while True:
                item = await ticket.mailbox.get()
                if isinstance(item, Result):
                    break
                index, text = item
                stable = text[: len(text) - held] if held else text
                if not text.endswith("\ufffd") and stable.startswith(sent[index]) and len(stable) > len(sent[index]):
                    yield reply.chunk(at * body.n + index, stable[len(sent[index]) :])
                    sent[index] = stable
            if item.failure is not None:
                yield _event({"error": {"message": item.failure, "type": "invalid_request_error", "code": 400}})
                return
            results.append(item)
            for index, part in enumerate(item.completions):
                rest = part.text.removeprefix(sent[index]) if part.text.startswith(sent[index]) else ""
                yield reply.chunk(at * body.n + index, rest, reason=part.finish_reason)
        if usage:
            yield _event(reply.frame([], streamed=True) | {"usage": _count(results)})
        yield "data: [DONE]\n\n"
    finally:
        for ticket in tickets:
            worker.withdraw(ticket)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _count(results: list[Result]) -> dict[str, int]:
    prompt = sum(item.completions[0].num_prompt_tokens for item in results if item.completions)
    new = sum(part.num_tokens for item in results for part in item.completions)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


class _Reply:
    """An answer in OpenAI's two forms."""

    def __init__(self, kind: Literal["chat.completion", "text_completion"] | str, name: str, model: str) -> None:
        self.id, self._kind, self._model, self._created = name, kind, model, int(time.time())

    def frame(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        """Return what is around the choices."""
        kind = f"{self._kind}.chunk" if streamed and self._kind.startswith("chat") else self._kind
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model, "choices": choices}

    def whole(self, results: list[Result]) -> dict[str, Any]:
        """Return all at once."""
        choices: list[dict[str, Any]] = []
        for part in (part for result in results for part in result.completions):
            text = {"message": {"role": "assistant", "content": part.text}}
            content = text if self._kind.startswith("chat") else {"text": part.text}
            choices.append({"index": len(choices), **content, "logprobs": None, "finish_reason": part.finish_reason})
        return self.frame(choices, streamed=False) | {"usage": _count(results)}

    def chunk(self, index: int, text: str, *, role: bool = False, reason: str | None = None) -> str:
        """Return an event with what is new of one choice."""
        delta = {"delta": ({"role": "assistant"} if role else {}) | {"content": text}}
        content = delta if self._kind.startswith("chat") else {"text": text}
        return _event(self.frame([{"index": index, **content, "finish_reason": reason}], streamed=True))
