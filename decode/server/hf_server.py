"""A small OpenAI-compatible server over the hf engine: every method, chosen by the model's name or in the request."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from counterfoil.config import build
from counterfoil.errors import CounterfoilError, first_line
from decode.engine import Request, Result, Sampling
from decode.engines.hf import Hf, HfSession
from decode.method import Method
from decode.server.gate import RefusedError, describe_error, read_message
from decode.server.names import Names, one_line
from decode.server.worker import Ticket, Worker

__all__ = ["make_app"]

LEAST_TEMPERATURE = 0.01
"""Below it a request is answered greedily."""
MOST_TEXTS = 64
"""Answers that one request may ask for: prompts times n."""


class _Body(BaseModel):
    """What both endpoints take; a key that is neither here nor harmless is refused."""

    model_config = ConfigDict(extra="allow")

    model: str
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = Field(default=1, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    method: Any = None
    """A method's name, or a mapping with its fields; see `Names`."""
    negative: str | list[dict[str, Any]] | None = None
    """The other prompt of a method with two."""

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, given: Any) -> Any:
        """Take null for what was not given, as clients mean it."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


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
    "parallel_tool_calls": True, "tools": [], "tool_choice": "none", "logit_bias": {}, "response_format": {"type": "text"},
}  # fmt: skip
"""Keys that are not taken, and the value under which leaving them out changes nothing."""


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
        limit = body.max_completion_tokens or body.max_tokens or session.max_model_len
        prompts = [tuple(read_message(message) for message in body.messages)]
        return await answer("chat.completion", body, prompts, limit, http)

    @app.post("/v1/completions")
    async def complete(body: _Text, http: HttpRequest) -> Any:
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        return await answer("text_completion", body, prompts, body.max_tokens, http)

    async def answer(kind: str, body: _Body, prompts: list[Any], limit: int, http: HttpRequest) -> Any:
        _refuse_extra(body)
        method = names.find(body.model, body.method)
        reply = _Reply(kind, f"{'chatcmpl' if kind[0] == 'c' else 'cmpl'}-{started}-{next(numbers)}", body.model)
        if not 0 < len(prompts) * body.n <= MOST_TEXTS:
            said = f"prompt: {len(prompts)} of them with n={body.n}; a request asks for 1 to {MOST_TEXTS} answers."
            raise RefusedError(400, said)
        loop = asyncio.get_running_loop()
        tickets = [
            Ticket(_make_request(f"{reply.id}-{at}", prompt, body, method, limit), loop, body.stream)
            for at, prompt in enumerate(prompts)
        ]
        await asyncio.to_thread(_check, [ticket.request for ticket in tickets], session, engine)
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


def _check(requests: list[Request], session: HfSession, engine: Hf) -> None:
    """Raise RefusedError for what the engine could not answer."""
    for request in requests:
        if fault := request.find_fault(engine.gives):
            raise RefusedError(400, f"{fault}.")
        for where, given in (("the prompt", request.prompt), ("negative", request.negative)):
            if given is None:
                continue
            try:
                length = session.num_tokens(given)
            except Exception as error:  # of the model's template, which may object to anything
                raise RefusedError(400, f"{where}: {first_line(error)}") from error
            if not length:
                raise RefusedError(400, f"{where}: an empty text has no token. Leave it out, or give one.")
            if length >= session.max_model_len:
                said = f"{length} tokens leave no room for an answer in {session.max_model_len} (max_model_len)."
                raise RefusedError(400, f"{where}: {said}")


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

    @app.exception_handler(HTTPException)
    async def refuse_path(http: HttpRequest, error: HTTPException) -> JSONResponse:
        return _explain(error.status_code, f"{http.method} {http.url.path}: {error.detail}.")

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return _explain(400, f"{where}: {first['msg']}.")


def _explain(status: int, message: str) -> JSONResponse:
    return JSONResponse(describe_error(status, message), status_code=status)


def _refuse_extra(body: _Body) -> None:
    for key, value in (body.model_extra or {}).items():
        neutral = value == NEUTRAL.get(key) and isinstance(value, bool) == isinstance(NEUTRAL.get(key), bool)
        if key not in HARMLESS and not neutral:
            raise RefusedError(400, f"{key} is not taken here. Leave it out.")


def _make_request(name: str, prompt: Any, body: _Body, method: Method | None, limit: int) -> Request:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    # A deterministic method answers clients that leave the temperature at their own default.
    wanted = "temperature" in body.model_fields_set or method is None or method.samples
    temperature = body.temperature if wanted and body.temperature >= LEAST_TEMPERATURE else 0.0
    settings = {
        "temperature": temperature, "top_p": body.top_p, "top_k": body.top_k, "min_p": body.min_p,
        "max_new_tokens": limit, "n": body.n, "seed": body.seed, "stop": stop,
    }  # fmt: skip
    try:
        sampling = build(Sampling, settings, source="the request")
    except CounterfoilError as error:
        raise RefusedError(400, one_line(error)) from error
    negative: Any = body.negative
    if isinstance(negative, str) and not isinstance(prompt, str):
        negative = ({"role": "user", "content": negative},)
    elif isinstance(negative, list):
        negative = tuple(read_message(message) for message in negative or [None])
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
                stable = _cut(text, stops)
                if not text.endswith("\ufffd") and stable.startswith(sent[index]) and len(stable) > len(sent[index]):
                    yield reply.chunk(at * body.n + index, stable[len(sent[index]) :])
                    sent[index] = stable
            if item.failure is not None:
                yield _event(describe_error(500 if ticket.crash else 400, f"{item.failure}."))
                break
            results.append(item)
            for index, part in enumerate(item.completions):
                rest = part.text.removeprefix(sent[index]) if part.text.startswith(sent[index]) else ""
                yield reply.chunk(at * body.n + index, rest, reason=part.finish_reason)
        if usage and len(results) == len(tickets):
            yield _event(reply.frame([], streamed=True) | {"usage": _count(results)})
        yield "data: [DONE]\n\n"
    finally:
        for ticket in tickets:
            worker.withdraw(ticket)


def _cut(text: str, stops: list[str]) -> str:
    """Return what is certain of a text that grows: up to a stop string, less an end that may become one."""
    if found := [at for stop in stops if (at := text.find(stop)) >= 0]:
        return text[: min(found)]
    held = max((size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)
    return text[: len(text) - held]


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
