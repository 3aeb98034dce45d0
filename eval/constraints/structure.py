"""Constraints on the layout of an answer: lists, lines, paragraphs, titles and JSON."""

import json
import re
from random import Random
from typing import Any, cast

from eval.constraints.kind import Kind, Params, Topic
from eval.constraints.text import items, lines, paragraphs, words

__all__ = ["KEYS", "LABELS", "STRUCTURES"]

KEYS = ("name", "reason", "tip", "detail", "example", "summary")
LABELS = (("Good", "Bad"), ("Fact", "Tip"), ("Before", "After"), ("Pro", "Con"))

_FENCE = re.compile(r"^```(?:json)?\s*\n(.*)\n\s*```$", re.DOTALL)
_POSTSCRIPT = re.compile(r"(?<!\w)p\. ?s\.", re.IGNORECASE)
_ANGLE_TITLE = re.compile(r"<<([^<>\n]+)>>")
_TITLE_LINE = re.compile(r"title:[ \t]*(.*)", re.IGNORECASE)


def _keys(rng: Random, _topic: Topic) -> dict[str, Any]:
    return {"keys": rng.sample(KEYS, 2)}


def _distinct(found: list[str], least: int) -> bool:
    return len({text.casefold() for text in found}) == len(found) and all(len(words(text)) >= least for text in found)


def _has_bullets(text: str, params: Params) -> bool:
    found = [rest for _, rest in items(text, r"[-*]")]
    return len(found) == params["n"] and _distinct(found, 1)


def _has_numbered(text: str, params: Params) -> bool:
    found = items(text, r"\d+[.)]")
    numbers = [mark[:-1].lstrip("0") for mark, _ in found]
    return numbers == [str(number) for number in range(1, params["n"] + 1)] and _distinct(
        [rest for _, rest in found], 1
    )


def _has_paragraphs(text: str, params: Params) -> bool:
    found = paragraphs(text)
    return len(found) == params["n"] and _distinct(found, 2)


def _has_lines(text: str, params: Params) -> bool:
    found = lines(text)
    return len(found) == params["n"] and _distinct(found, 2)


def _has_title_line(text: str, _params: Params) -> bool:
    first, _, rest = text.partition("\n")
    match = _TITLE_LINE.match(first)
    return match is not None and bool(words(match[1])) and len(words(rest)) >= 3


def _has_angle_title(text: str, _params: Params) -> bool:
    match = _ANGLE_TITLE.search(text)
    return match is not None and bool(words(match[1])) and len(words(_ANGLE_TITLE.sub("", text))) >= 3


def _is_filled(value: object) -> bool:
    if isinstance(value, str):
        return bool(words(value))
    if isinstance(value, list):
        return any(_is_filled(item) for item in cast(list[object], value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_json(text: str, params: Params) -> bool:
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):  # the latter: brackets nested too deep for the parser
        return False
    if not isinstance(value, dict):
        return False
    found = cast(dict[str, object], value)
    return set(found) == set(params["keys"]) and all(_is_filled(item) for item in found.values())


def _has_two_parts(text: str, _params: Params) -> bool:
    parts = [part.strip() for part in re.split(r"^[ \t]*\*\*\*[ \t]*$", text, flags=re.MULTILINE)]
    return len(parts) == 2 and _distinct(parts, 2)


def _has_postscript(text: str, _params: Params) -> bool:
    parts = _POSTSCRIPT.split(text)
    return len(parts) == 2 and len(words(parts[0])) >= 3 and len(words(parts[1])) >= 2


def _has_labels(text: str, params: Params) -> bool:
    found = [line.casefold().partition(":") for line in lines(text)]
    return all(
        sum(head == label.casefold() and sign == ":" and bool(words(rest)) for head, sign, rest in found) == 1
        for label in params["labels"]
    )


STRUCTURES = (
    Kind(
        name="bullets",
        groups=frozenset({"layout", "sentences"}),
        wordings=(
            'Give exactly {n} short bullet points, each on its own line after "- ".',
            'Answer as a list of {n} brief items; every item is a line that begins with "- ".',
            "Make it {n} short bullet points, no more and no fewer.",
        ),
        sample=lambda rng, _topic: {"n": rng.randint(2, 4)},
        meets=_has_bullets,
    ),
    Kind(
        name="numbered",
        groups=frozenset({"layout", "sentences", "digits"}),
        wordings=(
            "Answer as a numbered list of {n} short lines.",
            "Give exactly {n} brief points, numbered 1. to {n}. on lines of their own.",
        ),
        sample=lambda rng, _topic: {"n": rng.randint(2, 4)},
        meets=_has_numbered,
    ),
    Kind(
        name="paragraphs",
        groups=frozenset({"layout", "sentences", "title"}),
        wordings=(
            "Write {n} very short paragraphs with a blank line between them.",
            "Divide the answer into exactly {n} brief paragraphs, set apart by empty lines.",
        ),
        sample=lambda rng, _topic: {"n": rng.randint(2, 3)},
        meets=_has_paragraphs,
    ),
    Kind(
        name="lines",
        groups=frozenset({"layout", "sentences", "title"}),
        wordings=(
            "Write exactly {n} short lines.",
            "Make it {n} lines of text, each of them short, like a small poem.",
        ),
        sample=lambda rng, _topic: {"n": rng.randint(2, 4)},
        meets=_has_lines,
    ),
    Kind(
        name="title_line",
        groups=frozenset({"opening", "title", "sentences", "case"}),
        wordings=(
            'The first line must be "Title:" and then a title; the text follows on the next line.',
            'Put a line such as "Title: ..." with a title of yours above the text.',
        ),
        meets=_has_title_line,
    ),
    Kind(
        name="angle_title",
        groups=frozenset({"opening", "title", "sentences"}),
        wordings=(
            "Give it a title between << and >>.",
            "Put a title in double angle brackets, << and >>, above the text.",
        ),
        meets=_has_angle_title,
    ),
    Kind(
        name="json_keys",
        groups=frozenset(
            {"layout", "opening", "closing", "sentences", "title", "commas", "quotes", "brackets", "bold", "case"}
        ),
        wordings=(
            "Answer with nothing but a JSON object that has the keys {keys}, with a short value each.",
            "Reply in JSON: one object, the keys {keys}, and no other text.",
        ),
        sample=_keys,
        meets=_is_json,
    ),
    Kind(
        name="two_parts",
        groups=frozenset({"layout", "sentences"}),
        wordings=(
            "Write two short parts with a line that is just *** between them.",
            "Split the answer in two brief parts; a line with only *** divides them.",
        ),
        meets=_has_two_parts,
    ),
    Kind(
        name="postscript",
        groups=frozenset({"closing", "sentences", "case"}),
        wordings=(
            'After the text, add a short afterthought that starts with "P.S."',
            'Finish with one more remark, marked "P.S."',
        ),
        meets=_has_postscript,
    ),
    Kind(
        name="labels",
        groups=frozenset({"layout", "sentences", "case"}),
        wordings=(
            "Write two lines, labelled {labels}, each label followed by a colon and a few words.",
            "Use one line for each of the labels {labels}: first the label, then a colon, then a short text.",
        ),
        sample=lambda rng, _topic: {"labels": list(rng.choice(LABELS))},
        meets=_has_labels,
    ),
)
