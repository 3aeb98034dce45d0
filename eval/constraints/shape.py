"""Constraints on letters, digits and marks: case, commas, questions, quotes and brackets."""

import re

from eval.constraints.kind import Kind, Params
from eval.constraints.text import strip_end, words

__all__ = ["SHAPES"]

_QUOTES = '"\u201c\u201d'
_NUMBER = re.compile(
    r"(?<![\w.])\d+(?:[.,:]\d+)*(?!\w)(?![.)][ \t])|(?<![\w.])\d+(?:[.,:]\d+)*(?:st|nd|rd|th|s|am|pm|%)"
)
_BLANK = re.compile(r"\[[A-Za-z][^\[\]\n]*\](?!\()")
_ASIDE = re.compile(r"(?<!\])\(([^()]+)\)")


def _is_lower(text: str, _params: Params) -> bool:
    lettered = sum(any(char.islower() for char in word) for word in words(text))
    return lettered >= 3 and not any(char.isupper() for char in text)


def _is_upper(text: str, _params: Params) -> bool:
    lettered = sum(any(char.isupper() for char in word) for word in words(text))
    return lettered >= 3 and not any(char.islower() for char in text)


def _has_capitals(text: str, params: Params) -> bool:
    found = words(text)
    loud = sum(word.isupper() and sum(char.isalpha() for char in word) >= 2 for word in found)
    calm = sum(any(char.islower() for char in word) for word in found)
    return loud >= params["n"] and calm >= 3


def _is_quoted(text: str, _params: Params) -> bool:
    wrapped = text[0] in '"\u201c' and text[-1] in '"\u201d'
    return wrapped and not any(char in _QUOTES for char in text[1:-1])


SHAPES = (
    Kind(
        name="lowercase",
        groups=frozenset({"case"}),
        wordings=(
            "Use small letters only; not a single capital.",
            "Write everything in lower case, the first letter too.",
            "do not use any capital letters.",
        ),
        meets=_is_lower,
    ),
    Kind(
        name="uppercase",
        groups=frozenset({"case"}),
        wordings=("Write everything in capital letters.", "USE CAPITALS ONLY.", "Answer in upper case throughout."),
        meets=_is_upper,
    ),
    Kind(
        name="capital_words",
        groups=frozenset({"case"}),
        wordings=(
            "Stress {n:word} or more, but not all of the text, by writing in CAPITALS.",
            "Write {n:word} or more in full capitals and the rest as usual.",
        ),
        sample=lambda rng, _topic: {"n": rng.randint(1, 3)},
        meets=_has_capitals,
        least_words=5,
    ),
    Kind(
        name="no_commas",
        groups=frozenset({"commas"}),
        wordings=("Do without commas.", "Do not write a single comma.", "Leave out every comma."),
        meets=lambda text, _params: "," not in text,
        least_words=5,
    ),
    Kind(
        name="end_exclamation",
        groups=frozenset({"closing"}),
        wordings=("End with an exclamation mark.", 'Let the last sentence end with "!".'),
        meets=lambda text, _params: strip_end(text).endswith("!"),
        least_words=4,
    ),
    Kind(
        name="end_question",
        groups=frozenset({"closing", "question"}),
        wordings=(
            "End with a question.",
            "Let the last sentence be a question.",
            "Close by asking the reader something.",
        ),
        meets=lambda text, _params: strip_end(text).endswith("?"),
        least_words=4,
    ),
    Kind(
        name="one_question",
        groups=frozenset({"question"}),
        wordings=("Ask one question, and only one, in your answer.", "Exactly one sentence should be a question."),
        meets=lambda text, _params: text.count("?") == 1,
        least_words=5,
    ),
    Kind(
        name="has_number",
        groups=frozenset({"digits"}),
        wordings=(
            "Mention {n:number} or more, written in digits.",
            "Give {n:figure} or more in digits, such as an age, a price or a year.",
        ),
        sample=lambda rng, _topic: {"n": rng.randint(1, 2)},
        meets=lambda text, params: len(_NUMBER.findall(text)) >= params["n"],
        least_words=5,
    ),
    Kind(
        name="quoted",
        groups=frozenset({"layout", "title", "quotes"}),
        wordings=(
            "Put the whole answer between double quotation marks.",
            'The first and the last character of your answer must be ", with no other quotation marks inside.',
        ),
        meets=_is_quoted,
    ),
    Kind(
        name="placeholder",
        groups=frozenset({"brackets"}),
        wordings=(
            "Leave {n:blank} or more for the reader to fill in, written in square brackets like [name].",
            "Include {n:item} or more in square brackets, like [date], to be filled in later.",
        ),
        sample=lambda rng, _topic: {"n": rng.randint(1, 2)},
        meets=lambda text, params: len(_BLANK.findall(text)) >= params["n"],
        least_words=5,
    ),
    Kind(
        name="aside",
        groups=frozenset({"brackets"}),
        wordings=(
            "Add a remark of two or more words in round brackets (like this).",
            "Somewhere, put two or more words inside parentheses.",
        ),
        meets=lambda text, _params: any(len(words(inside)) >= 2 for inside in _ASIDE.findall(text)),
        least_words=6,
    ),
)
