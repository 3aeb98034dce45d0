"""Constraints on how long an answer is, in words and sentences."""

from random import Random
from typing import Any

from eval.constraints.kind import Kind, Params, Topic
from eval.constraints.text import sentences, words

__all__ = ["LENGTHS"]


def _between(rng: Random, _topic: Topic) -> dict[str, Any]:
    low = rng.randrange(10, 26, 5)
    return {"low": low, "high": low + rng.choice((10, 15))}


def _has_short_sentences(text: str, params: Params) -> bool:
    found = sentences(text)
    return len(found) >= 2 and all(len(words(sentence)) <= params["n"] for sentence in found)


LENGTHS = (
    Kind(
        name="max_words",
        groups=frozenset({"length"}),
        wordings=(
            "Use {n:word} or fewer.",
            "Stay within {n:word}.",
            "Your whole answer may have {n:word} at the very most.",
        ),
        sample=lambda rng, _topic: {"n": rng.randrange(12, 41, 4)},
        meets=lambda text, params: len(words(text)) <= params["n"],
    ),
    Kind(
        name="min_words",
        groups=frozenset({"length"}),
        wordings=("Use no fewer than {n:word}.", "Write {n:word} or more.", "Make it {n} words long or longer."),
        sample=lambda rng, _topic: {"n": rng.randrange(20, 41, 5)},
        meets=lambda text, params: len(words(text)) >= params["n"],
    ),
    Kind(
        name="words_between",
        groups=frozenset({"length"}),
        wordings=(
            "Use between {low} and {high} words.",
            "Write from {low} to {high} words, not fewer and not more.",
            "Aim for a length of {low} to {high} words.",
        ),
        sample=_between,
        meets=lambda text, params: params["low"] <= len(words(text)) <= params["high"],
    ),
    Kind(
        name="exact_sentences",
        groups=frozenset({"length", "sentences"}),
        wordings=(
            "Write exactly {n:sentence}.",
            "Your answer must be {n:sentence} long, no more and no less.",
            "Answer in precisely {n:sentence}.",
        ),
        sample=lambda rng, _topic: {"n": rng.randint(1, 4)},
        meets=lambda text, params: len(sentences(text)) == params["n"],
    ),
    Kind(
        name="max_sentences",
        groups=frozenset({"length", "sentences"}),
        wordings=(
            "Use no more than {n:sentence}.",
            "Stop after {n:sentence} or sooner.",
            "Say it in {n:sentence} or fewer.",
        ),
        sample=lambda rng, _topic: {"n": rng.randint(1, 3)},
        meets=lambda text, params: len(sentences(text)) <= params["n"],
    ),
    Kind(
        name="short_sentences",
        groups=frozenset({"length", "sentences"}),
        wordings=(
            "Write a few sentences, each of {n:word} or fewer.",
            "Use two or three short sentences; none may be longer than {n:word}.",
        ),
        sample=lambda rng, _topic: {"n": rng.randrange(8, 15, 2)},
        meets=_has_short_sentences,
    ),
)
