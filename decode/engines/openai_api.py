"""openai_api: any server that speaks OpenAI's protocol, a fleet of `vllm serve` behind one address, a hosted model.

What goes beyond the protocol is vLLM's: `/tokenize`, `return_token_ids`, token ids as a prompt, `top_k` and `min_p`. A
server without them still answers; what it cannot give then fails by name, request by request.
"""

import difflib
import math
import os
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from counterfoil.errors import EngineError
from counterfoil.records import Completion, content_id
from decode.engine import Content, Engine, Given, GivenLogprobs, Request, Result, Session, fail, is_token_ids
from decode.http import HttpClient, HttpError, Patience
from decode.method import Method
from decode.openai_records import is_chat, read_completions

__all__ = ["OpenaiApi", "OpenaiSession"]

ResultT = TypeVar("ResultT")

_MAX_NAMED = 20  # model names in an error


class OpenaiApi(Engine):
    """A server at an address; nothing is loaded here."""

    gives: ClassVar[frozenset[str]] = frozenset(
        {
            "chat",
            "text",
            "n",
            "stop",
            "seed",
            "logprobs",
            "given_logprobs",
            "adapters",
            "cancel",
            "num_tokens",
            "schema",
        }
    )

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset(
        {
            "api_key_env",
            "max_in_flight",
            "adaptive",
            "timeout_s",
            "retries",
            "backoff_s",
            "max_backoff_s",
            "deadline_s",
        }
    )

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address up to and with `/v1`."""
    revision: str = ""
    """What is behind the model's name, in a word of yours: under another word no answer that was kept is used again."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is read for each request and kept nowhere."""
    max_in_flight: int = Field(default=256, ge=1)
    """Requests that the server has at a time, at most: for a fleet, some 64 for each of its servers."""
    adaptive: bool = True
    """Begin with 16 at a time and find out how many the server takes; false keeps `max_in_flight` there throughout."""
    timeout_s: float = Field(default=120, gt=0)
    """For one try, from connecting to the last byte."""
    retries: int = Field(default=6, ge=0)
    """Tries after the first: on 408, 429, 5xx, timeouts, dropped connections, cut-off or broken bodies."""
    backoff_s: float = Field(default=0.5, ge=0)
    """The first wait is drawn between 0 and this; the bound doubles with each try. A Retry-After is waited out."""
    max_backoff_s: float = Field(default=30, ge=0)
    """Where the doubling stops."""
    deadline_s: float = Field(default=600, gt=0)
    """For all tries of a request and the waits between them; then it fails. Its wait for its turn is left out."""

    @field_validator("base_url")
    @classmethod
    def check_address(cls, value: str) -> str:
        """Drop a closing slash. Refuses what is no http address, and a password in it: the address is written down."""
        parts = urlsplit(value)
        if (
            parts.scheme in {"http", "https"}
            and parts.hostname
            and not (parts.username or parts.password or parts.query)
        ):
            return value.rstrip("/")
        allowed = "http:// or https://, a host, perhaps a path; no user, password or query"
        do = "Correct it; a key goes into the environment variable that api_key_env names."
        raise PydanticCustomError("address", "not an address of a server", {"allowed": allowed, "do": do})

    def open(
        self, model: str, *, adapters: Sequence[str | None] = (), methods: Sequence[Method] = ()
    ) -> "OpenaiSession":
        """Ask the server which models it has. `model` is one of them; `default` or nothing is the first.

        Raises:
            EngineError: the server is not there, refuses the key, or has no such model or adapter.
        """
        patience = Patience(
            timeout_s=self.timeout_s,
            retries=self.retries,
            backoff_s=self.backoff_s,
            max_backoff_s=self.max_backoff_s,
            deadline_s=self.deadline_s,
        )
        client = HttpClient(
            self.base_url,
            api_key_env=self.api_key_env,
            patience=patience,
            max_in_flight=self.max_in_flight,
            adaptive=self.adaptive,
        )
        try:
            owners = self._list_models(client, patience)
            names = list(owners)
            if model in {"", "default"} and model not in names and names:
                model = names[0]
            for name in (model, *filter(None, adapters)):
                self._check(name, names)
        except BaseException:
            client.close()
            raise
        return OpenaiSession(self, model, client, is_vllm=owners.get(model) == "vllm")

    def identify(self, model: str) -> str:
        """Hash the address and the name: what is behind them only the server knows."""
        return content_id(self._settings, model)

    def _list_models(self, client: HttpClient, patience: Patience) -> dict[str, str]:
        """Map the served names to their owners; empty where the server has no list."""
        probe = replace(patience, timeout_s=min(self.timeout_s, 10), retries=min(self.retries, 2), max_backoff_s=1)
        probe = replace(probe, deadline_s=min(self.deadline_s, 30))
        try:
            answer = client.wait(lambda: client.ask("GET", "/models", patience=probe))
        except HttpError as failure:
            if failure.status in {404, 405}:
                return {}
            raise self._explain(failure) from None
        data: Any = answer.get("data")
        models = cast(list[Any], data) if isinstance(data, list) else []
        named = [cast(dict[str, Any], item) for item in models if isinstance(item, dict) and "id" in item]
        return {str(item["id"]): str(item.get("owned_by")) for item in named}

    def _explain(self, failure: HttpError) -> EngineError:
        if failure.status in {401, 403}:
            state = "is set, but was refused" if os.environ.get(self.api_key_env) else "is not set"
            allowed = f"a key that the server accepts ({self.api_key_env} {state})"
            do = f"Set the environment variable {self.api_key_env} to a valid key."
        else:
            allowed = "an OpenAI-compatible server that answers GET /models"
            do = "Start one (python -m vllm.entrypoints.openai.api_server --model ...), or correct base_url."
        return EngineError("openai_api: base_url", given=f"{self.base_url}: {failure}", allowed=allowed, do=do)

    def _check(self, name: str, names: Sequence[str]) -> None:
        """Raise EngineError for a model or an adapter that the server does not list; without a list, all go."""
        if name in names or (not names and name not in {"", "default"}):
            return
        close = difflib.get_close_matches(name, names, n=1)
        given = "does not serve it" if names else "lists no models to take the first of"
        allowed = ", ".join([*names[:_MAX_NAMED], *["..."] * (len(names) > _MAX_NAMED)]) if names else "a served name"
        do = f"Did you mean {close[0]!r}?" if close else "Give a name under which the server has it."
        raise EngineError(f"model {name!r}", given=f"{self.base_url} {given}", allowed=allowed, do=do)


class _Scored(NamedTuple):
    """Log-probabilities in a given token's place."""

    own: float
    likeliest: float


class OpenaiSession(Session):
    """An open connection to a server. Threads may share it."""

    def __init__(self, engine: OpenaiApi, model: str, client: HttpClient, *, is_vllm: bool) -> None:
        self._model, self._client, self._is_vllm = model, client, is_vllm
        self._address, self._root = engine.base_url, engine.base_url.removesuffix("/v1")
        self._wants_ids = self._is_strict = True
        self._tokenizes: bool | None = None

    def stream(
        self, items: Iterable[Request | Given | None], *, glance: bool = False
    ) -> Generator[Result | GivenLogprobs | None]:
        """Answer and score, `max_in_flight` at a time; see Session."""
        return self._client.each(
            items,
            self._answer,
            name=lambda item: item.id,
            cancelled=lambda item: fail(item, "cancelled"),
            glance=glance,
        )

    async def _answer(self, item: Request | Given) -> Result | GivenLogprobs:
        if fault := item.find_fault(OpenaiApi.gives):
            return fail(item, fault)
        if isinstance(item, Request):
            completions = await self._catch(lambda: self._complete(item))
            return fail(item, completions) if isinstance(completions, str) else Result(item.id, completions)
        scored = await self._catch(lambda: self._score(item))
        if isinstance(scored, str):
            return fail(item, scored)
        values, num_prompt = scored
        greedy = all(value.own >= value.likeliest for value in values)
        return GivenLogprobs(item.id, tuple(one.own for one in values), is_greedy=greedy, num_prompt_tokens=num_prompt)

    def cancel(self, request_id: str) -> None:
        """Stop one request in flight; it ends with the failure `cancelled`. Unknown ids are ignored."""
        self._client.cancel(request_id)

    def num_tokens(self, prompt: Content) -> int:
        """Count the tokens that the model would be sent, template included. Raises EngineError where it fails."""
        try:
            return self._client.wait(lambda: self._count(prompt))
        except HttpError as failure:
            raise EngineError(
                "openai_api: num_tokens",
                given=str(failure),
                allowed="a prompt and a server that are well",
                do="Check both.",
            ) from None

    def close(self) -> None:
        """Cancel what is in flight and close the connections. Calling it twice is harmless."""
        self._client.close()

    async def _catch(self, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT | str:
        """Return what `work` returns or, as a sentence, why it failed: one request never hurts another.

        Raises EngineError where the server is gone: those that are left would fail one by one.
        """
        try:
            return await work()
        except HttpError as failure:
            if not failure.gone:
                return str(failure)
            raise EngineError(
                "openai_api: base_url",
                given=f"{self._address} went away: {failure}",
                allowed="a server that stays until all is answered",
                do="Start it again and run the same command: what was answered is kept.",
            ) from None
        except Exception as error:
            return self._client.redact(f"{type(error).__name__}: {error}")

    async def _complete(self, request: Request) -> tuple[Completion, ...]:
        while True:
            path, body = self._make_body(request)
            try:
                answer = await self._client.ask("POST", path, body=body)
                break
            except HttpError as failure:
                if failure.status not in {400, 422} or not self._do_without(body, str(failure)):
                    raise
        try:
            return read_completions(request, answer)
        except HttpError as failure:
            raise HttpError(self._client.redact(str(failure))) from None

    def _do_without(self, body: dict[str, Any], why: str) -> bool:
        """Leave out from now on what a server refuses and answers can do without; say whether there is such."""
        if "return_token_ids" in body and "return_token_ids" in why:
            self._wants_ids = False
            return True
        strict = body.get("response_format", {}).get("json_schema", {}).get("strict")
        if strict and ("strict" in why or "schema" in why.lower()):
            self._is_strict = False  # a dialect of schemas that this is not in; what comes back is validated here
            return True
        return False

    def _make_body(self, request: Request) -> tuple[str, dict[str, Any]]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": request.adapter or self._model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "n": sampling.n,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.json_schema:
            named = {"name": "answer", "schema": _close(sampling.json_schema), "strict": self._is_strict}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if self._is_vllm:  # said outright, as vLLM else takes the defaults of the model's generation_config.json
            body |= {"top_k": sampling.top_k, "min_p": sampling.min_p, "repetition_penalty": 1.0}
        else:
            body |= {key: value for key in ("top_k", "min_p") if (value := getattr(sampling, key))}
        if sampling.logprobs and self._wants_ids:
            body["return_token_ids"] = True
        counts = sampling.logprobs or sampling.n > 1
        if not is_chat(request.prompt):
            return "/completions", body | {"prompt": request.prompt} | ({"logprobs": 0} if counts else {})
        body["messages"] = list(request.prompt)
        return "/chat/completions", body | ({"logprobs": True, "top_logprobs": 0} if counts else {})

    async def _score(self, given: Given) -> tuple[list[_Scored], int]:
        """Return the values of the text's tokens, and the number of tokens before them."""
        model = given.adapter or self._model
        if not isinstance(given.text, str) or await self._has_tokenize():
            prefix = await self._tokenize(model, given.prompt) if given.prompt else []
            text = await self._tokenize(model, given.text, special=False)
            start = max(len(prefix), 1)
            if not text:
                return [], start
            values, _ = await self._echo(model, prefix + text)
            if len(values) not in {len(prefix + text), len(prefix + text) + 1}:
                raise HttpError(f"server echoed {len(values)} log-probabilities for {len(prefix + text)} tokens")
            return values[start : len(prefix + text)], start
        if not isinstance(given.prompt, str):
            raise HttpError("server has no /tokenize")
        if not given.text:
            return [], 0
        whole = given.prompt + given.text
        values, offsets = await self._echo(model, whole)
        if len(given.prompt) not in offsets:
            raise HttpError("a token crosses the border of prompt and text, and the server has no /tokenize")
        start = offsets.index(len(given.prompt)) if given.prompt else 1
        rows = list(zip(values, offsets, strict=True))[start:]
        return [value for value, offset in rows if offset < len(whole)], start

    async def _echo(self, model: str, prompt: str | list[int]) -> tuple[list[_Scored], list[int]]:
        """Return log-probabilities and text offsets of the prompt's tokens, and of one token more."""
        body = {"model": model, "prompt": prompt, "echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0.0}
        answer = await self._client.ask("POST", "/completions", body=body)
        try:
            found = answer["choices"][0]["logprobs"]
            # Null is no score. The first token has none, since nothing goes before it, and is not asked for.
            own = [math.nan if value is None else float(value) for value in found["token_logprobs"]]
            said = found.get("top_logprobs") or [{"unknown": math.inf}] * len(own)
            tops = [max(top.values()) if top else -math.inf for top in said]
            return [*map(_Scored, own, tops)], [int(offset) for offset in found["text_offset"]]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise HttpError("server sent no log-probabilities of the prompt (does it know echo?)") from None

    async def _has_tokenize(self) -> bool:
        """Try /tokenize once a session, with a model that is served."""
        if self._tokenizes is None:
            try:
                self._tokenizes = bool(await self._tokenize(self._model, "a"))
            except HttpError as failure:
                if failure.status is None or failure.status in {408, 429} or failure.status >= 500:
                    raise
                self._tokenizes = False
        return self._tokenizes

    async def _tokenize(self, model: str, prompt: Content, *, special: bool = True) -> list[int]:
        if is_token_ids(prompt):
            return list(prompt)
        body: dict[str, Any] = {"model": model}
        if isinstance(prompt, str):
            body |= {"prompt": prompt, "add_special_tokens": special}
        else:
            body |= {"messages": list(prompt), "add_generation_prompt": True}
        answer = await self._client.ask("POST", f"{self._root}/tokenize", body=body)
        tokens: Any = answer.get("tokens")
        if not isinstance(tokens, list):
            raise HttpError("server's /tokenize sent no tokens", status=200)
        return [int(token) for token in cast(list[Any], tokens)]

    async def _count(self, prompt: Content) -> int:
        if await self._has_tokenize():
            return len(await self._tokenize(self._model, prompt))
        path = "/chat/completions" if is_chat(prompt) else "/completions"
        asked = {"messages": list(prompt)} if is_chat(prompt) else {"prompt": prompt}
        answer = await self._client.ask("POST", path, body={"model": self._model, "max_tokens": 1} | asked)
        try:
            return int(answer["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError):
            raise HttpError("server sent no usage.prompt_tokens") from None


def _close(schema: Any) -> Any:
    """Return a JSON schema whose objects take no other keys, which OpenAI's strict mode wants said."""
    if isinstance(schema, list):
        return [_close(item) for item in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    found = {key: _close(value) for key, value in cast(dict[str, Any], schema).items()}
    return {"additionalProperties": False} | found if found.get("type") == "object" else found
