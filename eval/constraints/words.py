"""Constraints on which words an answer has, and where."""

import re
from random import Random
from typing import Any

from eval.constraints.kind import Kind, Params, Topic
from eval.constraints.text import has_word, opening, strip_end, words

__all__ = ["AVOIDED", "ENDINGS", "OPENINGS", "WORDS"]

OPENINGS = ("In my view", "To begin with", "Most people", "Here is a thought", "It is true that", "Believe me")
ENDINGS = ("That is all I know", "Thank you for reading", "Try it yourself", "This is worth a try", "So much for that")
AVOIDED = ("and", "can", "important", "many")
"""Common words that an answer may be asked to avoid; no fixed phrase or key of another kind has one of them."""

_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


def _two_words(rng: Random, topic: Topic) -> dict[str, Any]:
    return {"words": rng.sample(topic.words, 2)}


def _repeated(rng: Random, topic: Topic) -> dict[str, Any]:
    return {"word": rng.choice(topic.words), "n": rng.randint(2, 3)}


def _starts_with(text: str, params: Params) -> bool:
    start, wanted = opening(text), params["phrase"].casefold()
    rest = start[len(wanted) :]
    return start.startswith(wanted) and re.match(r"\w", rest) is None and len(words(rest)) >= 3


def _ends_with(text: str, params: Params) -> bool:
    end, wanted = strip_end(text).rstrip(".!?,;: ").casefold(), params["phrase"].casefold()
    rest = end[: max(0, len(end) - len(wanted))]
    return end.endswith(wanted) and re.search(r"\w$", rest) is None and len(words(rest)) >= 3


def _starts_with_letter(text: str, params: Params) -> bool:
    first = re.search(r"[^\W\d_]", text)
    return first is not None and first[0].casefold() == params["letter"].casefold()


WORDS = (
    Kind(
        name="include_word",
        groups=frozenset({"words"}),
        wordings=(
            'Use the word "{word}" somewhere.',
            'The word "{word}" has to appear in your answer.',
            'Work in the word "{word}".',
        ),
        sample=lambda rng, topic: {"word": rng.choice(topic.words)},
        meets=lambda text, params: has_word(text, params["word"]) >= 1,
    ),
    Kind(
        name="include_words",
        groups=frozenset({"words"}),
        wordings=("Use the words {words}.", "Both {words} have to appear as words in your answer."),
        sample=_two_words,
        meets=lambda text, params: all(has_word(text, word) >= 1 for word in params["words"]),
    ),
    Kind(
        name="repeat_word",
        groups=frozenset({"words"}),
        wordings=(
            'Use the word "{word}" {n:time} or more.',
            'The word "{word}" should come up no fewer than {n:time}.',
        ),
        sample=_repeated,
        meets=lambda text, params: has_word(text, params["word"]) >= params["n"],
        least_words=6,
    ),
    Kind(
        name="avoid_word",
        groups=frozenset({"words"}),
        wordings=(
            'Do not use the word "{word}".',
            'Never write the word "{word}".',
            'Manage without the word "{word}".',
        ),
        sample=lambda rng, topic: {"word": rng.choice((topic.words[0], *AVOIDED))},
        meets=lambda text, params: has_word(text, params["word"]) == 0,
        least_words=5,
    ),
    Kind(
        name="start_phrase",
        groups=frozenset({"opening", "case"}),
        wordings=('Begin with the words "{phrase}".', 'The first words must be "{phrase}".', 'Open with "{phrase}".'),
        sample=lambda rng, _topic: {"phrase": rng.choice(OPENINGS)},
        meets=_starts_with,
    ),
    Kind(
        name="end_phrase",
        groups=frozenset({"closing", "case"}),
        wordings=('Finish with the words "{phrase}".', 'The last words must be "{phrase}".', 'Close with "{phrase}".'),
        sample=lambda rng, _topic: {"phrase": rng.choice(ENDINGS)},
        meets=_ends_with,
    ),
    Kind(
        name="start_letter",
        groups=frozenset({"opening"}),
        wordings=(
            "Your first word must begin with the letter {letter}.",
            "Start with a word whose first letter is {letter}.",
        ),
        sample=lambda rng, _topic: {"letter": rng.choice("ABEFHIMOPSTWY")},
        meets=_starts_with_letter,
    ),
    Kind(
        name="bold_word",
        groups=frozenset({"words", "bold"}),
        wordings=(
            'Put the word "{word}" in bold by writing it between double asterisks: **{word}**.',
            "Write **{word}**, with the asterisks, somewhere in the answer.",
        ),
        sample=lambda rng, topic: {"word": rng.choice(topic.words)},
        meets=lambda text, params: any(has_word(span, params["word"]) for span in _BOLD.findall(text)),
    ),
)
