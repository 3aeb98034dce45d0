"""Answers from a script, log-probabilities too: a test double for users, with real token counts, seeds and failures.

    engine: {name: scripted, replies: ["yes", "no"]}

A token is a word with the space before it; each has the log-probability `logprob_nats`.
"""

import re
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import ClassVar

from pydantic import BaseModel, Field, ValidationError

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.jsonl import describe_file
from counterfoil.records import Completion, content_id
from decode.engine import Content, Engine, Given, GivenLogprobs, Request, Result, Sampling, Session, fail, is_token_ids
from decode.method import Method

__all__ = ["Scripted"]

_GLANCE_S = 0.005  # how long to wait for an answer where there is nothing to ask at present


class _Rule(BaseModel):
    """A line of a script."""

    when: str
    replies: tuple[str, ...] = Field(min_length=1)


class Scripted(Engine):
    """Deterministic replies: sample i of a prompt with seed s is reply (s + i) modulo their number."""

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

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset({"latency_s", "max_in_flight", "script"})

    replies: tuple[str, ...] = Field(("Reply {index} to: {prompt}",), min_length=1)
    """`{prompt}` stands for the last message, `{index}` for the sample's number, `{adapter}` for the adapter."""
    script: InputPath | None = None
    """JSONL of `{"when": text in the prompt, "replies": [...]}`; the first that fits is used, else `replies`."""
    fail_when: str = ""
    """A prompt that holds this text fails; empty for none."""
    latency_s: float = Field(default=0.0, ge=0)
    """Each answer comes this long after it was asked for."""
    max_in_flight: int = Field(default=1, ge=1)
    """Requests under way at a time."""
    logprob_nats: float = Field(default=-1.0, le=0)
    """Log-probability of every token."""

    def identify(self, model: str) -> str:
        """Hash the script."""
        return content_id(self._settings, model, self.script and describe_file(self.script).sha256)

    def open(
        self, model: str, *, adapters: Sequence[str | None] = (), methods: Sequence[Method] = ()
    ) -> "ScriptedSession":
        """Read the script. Raises InputError where it is broken."""
        rules: list[tuple[str, tuple[str, ...]]] = []
        if self.script is not None:
            for number, line in enumerate(self.script.read_text(encoding="utf-8").strip().split("\n"), 1):
                try:
                    rule = _Rule.model_validate_json(line)
                    rules.append((rule.when, rule.replies))
                except ValidationError as error:
                    raise InputError(
                        f"{self.script}: line {number}",
                        given=repr(line[:80]),
                        allowed='{"when": text, "replies": [text, ...]}',
                        do="Mend the line.",
                    ) from error
        return ScriptedSession(self, model, rules)


def _split(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _last(prompt: Content) -> str:
    if is_token_ids(prompt):
        return " ".join(map(str, prompt))
    last = prompt if isinstance(prompt, str) else prompt[-1]
    return last if isinstance(last, str) else str(last["content"])


class ScriptedSession(Session):
    """An open script."""

    def __init__(self, engine: Scripted, model: str, rules: list[tuple[str, tuple[str, ...]]]) -> None:
        self._engine, self._rules = engine, rules
        self._cancelled: set[str] = set()

    def stream(
        self, items: Iterable[Request | Given | None], *, glance: bool = False
    ) -> Generator[Result | GivenLogprobs | None]:
        """Answer in the order of asking, each `latency_s` after it was asked; see Session."""
        source, flying, more = iter(items), deque[tuple[float, Request | Given]](), True
        while more or flying:
            waits = False
            while more and not waits and len(flying) < self._engine.max_in_flight:
                item = next(source, "the end")
                if isinstance(item, Request | Given):
                    flying.append((time.monotonic() + self._engine.latency_s, item))
                else:
                    more, waits = item is None, True
            wait_s = flying[0][0] - time.monotonic() if flying else _GLANCE_S
            if (waits or glance) and more and wait_s > 0:
                time.sleep(min(wait_s, _GLANCE_S))
                yield None
            elif flying:
                if wait_s > 0:
                    time.sleep(wait_s)
                yield self._answer(flying.popleft()[1])

    def _answer(self, item: Request | Given) -> Result | GivenLogprobs:
        if fault := item.find_fault(self._engine.gives):
            return fail(item, fault)
        if isinstance(item, Given):
            count = len(_split(_last(item.text))) - (0 if item.prompt else 1)
            logprobs = (self._engine.logprob_nats,) * max(count, 0)
            return GivenLogprobs(
                item.id, logprobs, num_prompt_tokens=self.num_tokens(item.prompt) if item.prompt else 1
            )
        if item.id in self._cancelled:
            return fail(item, "cancelled")
        if self._engine.fail_when and self._engine.fail_when in _last(item.prompt):
            return fail(item, "scripted failure")
        return Result(item.id, tuple(self._reply(item, index) for index in range(item.sampling.n)))

    def _reply(self, request: Request, index: int) -> Completion:
        last, sampling = _last(request.prompt), request.sampling
        replies = next((found for when, found in self._rules if when in last), self._engine.replies)
        text = replies[((sampling.seed or 0) + index) % len(replies)]
        for name, value in {"index": str(index), "adapter": request.adapter or "", "prompt": last}.items():
            text = text.replace(f"{{{name}}}", value)
        text, reason = _cut(text, sampling)
        tokens = _split(text)
        return Completion.make(
            prompt_id=request.id,
            index=index,
            text=text,
            finish_reason=reason,
            num_prompt_tokens=self.num_tokens(request.prompt),
            num_tokens=len(tokens),
            token_ids=tuple(int(content_id(token)[:6], 16) for token in tokens) if sampling.logprobs else None,
            token_logprobs=(self._engine.logprob_nats,) * len(tokens) if sampling.logprobs else None,
        )

    def cancel(self, request_id: str) -> None:
        """Fail a request that was not answered yet."""
        self._cancelled.add(request_id)

    def num_tokens(self, prompt: Content) -> int:
        """Count words."""
        if isinstance(prompt, str) or is_token_ids(prompt):
            return len(_split(_last(prompt)))
        return sum(len(_split(_last((message,)))) for message in prompt)

    def close(self) -> None:
        """Nothing to give back."""


def _cut(text: str, sampling: Sampling) -> tuple[str, str]:
    found = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
    if found:
        text = text[: min(found)]
    tokens = _split(text)
    if len(tokens) > sampling.max_new_tokens:
        return "".join(tokens[: sampling.max_new_tokens]), "length"
    return text, "stop"
