"""A kind of constraint: how its parameters are drawn, said to a model, and checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from eval.constraints.text import words

__all__ = ["Kind", "Params", "Topic", "no_params"]

Params = Mapping[str, Any]


class Topic(NamedTuple):
    """What a prompt is about, with a few lower-case words that an answer may well contain, the likeliest first."""

    name: str
    words: tuple[str, ...]


class _Count(int):
    """Formats `{n:word}` as `1 word` or `2 words`."""

    def __format__(self, spec: str) -> str:
        return f"{int(self)} {spec}{'' if self == 1 else 's'}" if spec else str(int(self))


def _say(value: Any) -> Any:
    if isinstance(value, list):
        quoted = [f'"{item}"' for item in value]  # pyright: ignore[reportUnknownVariableType]  # JSON gives list[Any]
        return ", ".join(quoted[:-1]) + " and " + quoted[-1] if len(quoted) > 1 else "".join(quoted)
    return _Count(value) if isinstance(value, int) else value


def no_params(_rng: Random, _topic: Topic) -> dict[str, Any]:
    """Draw nothing: the kind has no parameters."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of constraint. Two kinds that share a group contradict or blur each other and are never combined."""

    name: str
    groups: frozenset[str]
    wordings: tuple[str, ...]
    """Ways to say it, each a sentence; `{n}` is the parameter n, `{n:word}` is `1 word` or `2 words`."""
    meets: Callable[[str, Params], bool]
    """The check proper, of a stripped text with at least `least_words` words."""
    sample: Callable[[Random, Topic], dict[str, Any]] = no_params
    """Draw JSON-able parameters from a generator and a topic."""
    least_words: int = 3
    """An answer with fewer words never meets the constraint, so that a stub cannot."""

    def phrase(self, params: Params, *, variant: int = 0) -> str:
        """Say the constraint to a model, in one of several wordings."""
        wording = self.wordings[variant % len(self.wordings)]
        return wording.format(**{key: _say(value) for key, value in params.items()})

    def check(self, text: str, params: Params) -> bool:
        """Say whether a text meets the constraint; an empty one meets none. Raises KeyError for a missing parameter."""
        stripped = text.strip()
        return self.meets(stripped, params) if len(words(stripped)) >= self.least_words else False
