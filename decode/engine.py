"""Engine (family): the one interface to whatever writes text.

A request's way: `Request` -> `Session.stream` -> `Result`, as each finishes; given text's way: `Given` ->
`Session.stream` -> `GivenLogprobs`. It takes an iterable, reads it only as fast as it can use it, and yields in
order of completion; closing the iterator cancels what is in flight. One request that fails never hurts another: its Result
carries the reason.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator
from typing_extensions import TypeIs

from counterfoil.config import Choice, Config, dump, find_class, fingerprint, list_family
from counterfoil.errors import EngineError
from counterfoil.models import find_model, fingerprint_model
from counterfoil.records import Completion, Message, content_id
from decode.method import LogitsMethod, Method

__all__ = [
    "Content", "Engine", "Given", "GivenLogprobs", "Request", "Result", "Sampling", "Session", "fail", "is_token_ids",
    "require",
]  # fmt: skip

Content = tuple[Message, ...] | str | tuple[int, ...]
"""Chat messages, text that is continued as it stands, or token ids that are sent as they are."""


def is_token_ids(content: Content) -> TypeIs[tuple[int, ...]]:
    """Say whether these are token ids."""
    return not isinstance(content, str) and bool(content) and isinstance(content[0], int)


class Sampling(Config):
    """How the next token is drawn."""

    temperature: float = Field(default=0.0, ge=0, le=100)
    """0 is greedy; else from 0.01, below which scores overflow."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the likeliest tokens that hold this share of the probability. Sorts the vocabulary: slow on a CPU."""
    top_k: int = Field(default=0, ge=0)
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Keep tokens at least this likely relative to the likeliest."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Cut an answer off after this many tokens."""
    n: int = Field(default=1, ge=1)
    """Samples a prompt."""
    seed: int | None = Field(default=0, ge=-(2**63), lt=2**63)
    """Fixes the draws of a request; None leaves them to the engine."""
    stop: tuple[str, ...] = ()
    """End an answer before any of these strings."""
    num_beams: int = Field(default=1, ge=1)
    """More than one is beam search: the likeliest text that so many at a time lead to."""
    logprobs: bool = False
    """Also return the token ids and their log-probabilities."""
    json_schema: dict[str, Any] | None = None
    """Only tokens that keep the answer to this JSON schema are drawn; one that is cut off may still be no JSON. A server of
    your own is best started with --structured-outputs-config '{"backend": "xgrammar", "disable_any_whitespace": true}'."""

    @field_validator("temperature")
    @classmethod
    def check_temperature(cls, value: float) -> float:
        """Refuse what is neither greedy nor a number to divide by."""
        if 0 < value < 0.01:
            raise ValueError("0 is greedy; a temperature is at least 0.01")
        return value

    @field_validator("stop")
    @classmethod
    def check_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse a stop string that every text holds."""
        if "" in value:
            raise ValueError("an empty stop string would end every answer before it begins")
        return value


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for an engine."""

    id: str
    prompt: Content
    sampling: Sampling
    adapter: str | None = None
    """Folder of a PEFT adapter (for `openai_api`: the name under which the server has it); None is the bare model."""
    method: Method | None = None
    """How the next token is chosen; None is greedy or plain sampling, as `sampling` says."""
    negative: Content | None = None
    """For a method with two prompts: what `prompt` is contrasted with."""

    def find_fault(self, gives: frozenset[str]) -> str | None:
        """Say why an engine that gives `gives` cannot answer this request, or None."""
        sampling = self.sampling
        if sampling.num_beams > 1:
            if "beams" not in gives:
                return "beam search, which this engine does not give"
            if sampling.temperature > 0 or sampling.n > 1 or sampling.logprobs or self.method is not None:
                return "beam search with a temperature, n > 1, log-probabilities or a method"
        if sampling.json_schema is not None and "schema" not in gives:
            return "an answer by a JSON schema, which this engine does not give"
        if self.method is None:
            return None if self.negative is None else "a negative prompt, and no method that has a use for it"
        if missing := sorted(self.method.needs - gives):
            return f"the method needs {', '.join(missing)}, which this engine does not give"
        if self.adapter is not None and self.method.adapters:
            return "an adapter beside the method's own two"
        return self.method.find_fault(
            temperature=self.sampling.temperature, n=self.sampling.n, has_negative=self.negative is not None
        )


NO_NUMBER = "the log-probability of a token is no number"
IMPOSSIBLE_NATS = -1e4
"""Log-probability of a token that a method forbids: minus infinity is no JSON."""


def _is_no_number(value: float) -> bool:
    return math.isnan(value) or value == math.inf


def _bound(item: Completion) -> Completion:
    values = tuple(max(value, IMPOSSIBLE_NATS) for value in item.token_logprobs or ())
    return item.model_copy(update={"token_logprobs": values or item.token_logprobs})


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a request: its n completions in order of index, or why there are none."""

    id: str
    completions: tuple[Completion, ...] = ()
    failure: str | None = None

    def __post_init__(self) -> None:
        """Make a failure of log-probabilities that are no numbers, and ones that can be written of minus infinity."""
        values = [value for item in self.completions for value in item.token_logprobs or ()]
        if any(map(_is_no_number, values)):
            object.__setattr__(self, "completions", ())
            object.__setattr__(self, "failure", NO_NUMBER)
        elif -math.inf in values:
            object.__setattr__(self, "completions", tuple(map(_bound, self.completions)))


@dataclass(frozen=True, slots=True)
class Given:
    """Text whose probability is asked for: after chat messages the assistant's answer, after text its continuation.

    An empty prompt scores the text alone, from its second token on.
    """

    id: str
    prompt: Content
    text: str | tuple[int, ...]
    adapter: str | None = None
    method: Method | None = None
    """Under which the probabilities are; None is the model's own."""
    negative: Content | None = None
    """As a request's."""

    def find_fault(self, gives: frozenset[str]) -> str | None:
        """Say why an engine that gives `gives` cannot score this, or None."""
        if self.method is not None and not isinstance(self.method, LogitsMethod):
            return "the method chooses tokens by more than their probability, which a given text has none of"
        asked = Request(self.id, self.prompt, Sampling(), self.adapter, self.method, self.negative)
        return asked.find_fault(gives)


@dataclass(frozen=True, slots=True)
class GivenLogprobs:
    """Natural-log probabilities of the tokens of `Given.text` in order, or why there are none."""

    id: str
    token_logprobs: tuple[float, ...] = ()
    failure: str | None = None
    is_greedy: bool = False
    """Each token is the likeliest in its place; False as well where a server does not say."""
    num_prompt_tokens: int = 0
    """Tokens that the text goes on from, template included; of a text alone its first one."""

    def __post_init__(self) -> None:
        """Make a failure of values that are no log-probabilities; minus infinity, what a method forbids, is one."""
        if any(map(_is_no_number, self.token_logprobs)):
            object.__setattr__(self, "token_logprobs", ())
            object.__setattr__(self, "failure", NO_NUMBER)


def fail(item: Request | Given, why: str) -> Result | GivenLogprobs:
    """Answer that there is no answer."""
    return Result(item.id, failure=why) if isinstance(item, Request) else GivenLogprobs(item.id, failure=why)


class Session(ABC):
    """An open engine. Use it as a context manager: leaving it gives back memory, processes and connections."""

    @abstractmethod
    def stream(
        self, items: Iterable[Request | Given | None], *, glance: bool = False
    ) -> Generator[Result | GivenLogprobs | None]:
        """Answer each request and score each given text once, in order of completion; closing cancels what is in flight.

        A None among the items says that there is none at present: what is in flight goes on for a moment, and where nothing
        finished in it a None comes back before the next item is read. With `glance` a None comes after each such moment, also
        where there is no room for another item. So one thread can drive several sessions.
        """

    def complete(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Answer each request once, in order of completion. Closing the iterator cancels what is in flight."""
        with closing(self.stream(requests)) as replies:
            for reply in replies:
                assert isinstance(reply, Result)
                yield reply

    def logprobs(self, given: Iterable[Given]) -> Iterator[GivenLogprobs]:
        """Score each given text once, in order of completion. Closing the iterator cancels what is in flight."""
        with closing(self.stream(given)) as replies:
            for reply in replies:
                assert isinstance(reply, GivenLogprobs)
                yield reply

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """Stop one request in flight; it ends with the failure `cancelled`. Unknown ids are ignored."""

    @abstractmethod
    def num_tokens(self, prompt: Content) -> int:
        """Count the tokens that the model would be sent, template included."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. Calling it twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Engine(Choice):
    """A choice of engine; light until `open()`."""

    FOLDER: ClassVar[str] = "decode.engines"
    gives: ClassVar[frozenset[str]]
    """Out of: chat, text, n, stop, seed, logprobs, given_logprobs, adapters, cancel, num_tokens, beams, schema; and what
    methods need: states, layers, two_models, two_prompts, two_adapters."""

    @abstractmethod
    def open(self, model: str, *, adapters: Sequence[str | None] = (), methods: Sequence[Method] = ()) -> Session:
        """Load `model` (a name, a folder or a hub id), ready for requests with these adapters and methods.

        None among the adapters is the bare model: an engine that would add a lone adapter to the weights then does not.

        Raises EngineError or InputError before any weight is read.
        """

    def identify(self, model: str) -> str:
        """Hash whatever decides about answers but the request: the weights, the chat template, the engine's settings.

        Raises InputError where there is no such model.
        """
        return content_id(self._settings, fingerprint_model(find_model(model)))

    def key(self, item: Request | Given, identity: str) -> str:
        """Hash what is sent to a model of that identity, so that a kept answer is used again for the very same alone."""
        asked = item.sampling.model_dump_json() if isinstance(item, Request) else ["given", item.text]
        parts = [identity, item.prompt, asked, item.adapter and identify_adapter(item.adapter)]
        if item.method is not None:
            second = item.method.second_model
            beside = [identify_adapter(folder) for folder in item.method.adapters.values()]
            beside += [fingerprint_model(find_model(second))] if second else []
            parts += [fingerprint(item.method), beside, item.negative]
        return content_id(*parts)

    @cached_property
    def _settings(self) -> Any:
        return {key: value for key, value in dump(self).items() if key not in self.INCIDENTAL}


def identify_adapter(adapter: str) -> str:
    """Hash an adapter's content; a name that a server knows is itself."""
    return fingerprint_model(Path(adapter)) if Path(adapter).is_dir() else adapter


def require(engine: Engine, needs: Iterable[str], *, where: str) -> None:
    """Raise EngineError, naming both sides, unless the engine gives all that is needed. Loads nothing."""
    missing = sorted(set(needs) - engine.gives)
    if missing:
        name = type(engine).__module__.rsplit(".", 1)[-1]
        able = [other for other in list_family(Engine) if set(needs) <= find_class(Engine, other).gives]
        raise EngineError(
            where,
            given=f"needs {', '.join(missing)}, which engine {name!r} does not give",
            allowed=f"{name} gives {', '.join(sorted(engine.gives))}",
            do=f"Choose another engine: {', '.join(able)}." if able else "No engine gives all of it together.",
        )
