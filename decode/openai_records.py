"""What a server that speaks OpenAI's protocol answers, as our records."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from typing_extensions import TypeIs

from counterfoil.records import Completion, Message
from decode.engine import Content, Request, is_token_ids
from decode.http import HttpError

__all__ = ["is_chat", "read_completions"]

_LENGTH_REASONS = {"length", "max_tokens"}
_BROKEN_REASONS = {"abort", "error", "content_filter", "tool_calls", "function_call"}


class _Read(NamedTuple):
    """What is counted and kept of a choice's tokens."""

    num_tokens: int
    logprobs: tuple[float, ...] | None
    token_ids: tuple[int, ...] | None


def is_chat(prompt: Content) -> TypeIs[tuple[Message, ...]]:
    """Say whether these are messages."""
    return not isinstance(prompt, str) and not is_token_ids(prompt)


def _read_tokens(request: Request, choice: Mapping[str, Any], usage: Mapping[str, Any]) -> _Read:
    """Count the tokens of a choice. Usage has them of all n together, hence the count by log-probabilities."""
    sampling, found = request.sampling, cast(dict[str, Any], choice.get("logprobs") or {})
    if sampling.n == 1 and not sampling.logprobs:
        return _Read(int(usage["completion_tokens"]), None, None)
    values: Any = found.get("content" if is_chat(request.prompt) else "token_logprobs")
    if values is None:
        why = "" if sampling.logprobs else ", by which the tokens of n > 1 choices are counted: ask with n: 1"
        raise HttpError(f"server sent no log-probabilities{why}")
    if not sampling.logprobs:
        return _Read(len(values), None, None)
    logprobs = tuple(float(value["logprob"] if is_chat(request.prompt) else value) for value in values)
    ids = choice.get("token_ids")
    if ids is not None and len(ids) != len(logprobs):
        raise HttpError(f"server sent {len(ids)} token ids and {len(logprobs)} log-probabilities")
    return _Read(len(logprobs), logprobs, None if ids is None else tuple(int(token_id) for token_id in ids))


def read_completions(request: Request, answer: Mapping[str, Any]) -> tuple[Completion, ...]:
    """Turn the server's answer into completions in order of index.

    Raises:
        HttpError: choices are missing or broken off, or the answer has another shape.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        if len(choices) != request.sampling.n:
            raise HttpError(f"server sent {len(choices)} of {request.sampling.n} choices")
        if [int(choice["index"]) for choice in choices] != list(range(request.sampling.n)):
            raise HttpError("server gave two choices the same index")
        completions: list[Completion] = []
        for choice in choices:
            reason = str(choice.get("finish_reason") or "stop")
            if reason in _BROKEN_REASONS:
                raise HttpError(f"server ended a choice with finish_reason {reason}")
            text = choice["message"]["content"] if is_chat(request.prompt) else choice["text"]
            read = _read_tokens(request, choice, answer["usage"])
            completions.append(
                Completion.make(
                    prompt_id=request.id,
                    index=int(choice["index"]),
                    text=text or "",
                    finish_reason="length" if reason in _LENGTH_REASONS else "stop",
                    num_prompt_tokens=answer["usage"]["prompt_tokens"],
                    num_tokens=read.num_tokens,
                    token_ids=read.token_ids,
                    token_logprobs=read.logprobs,
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HttpError(f"server sent an answer of another shape: {type(error).__name__}: {error}") from None
    return tuple(completions)
