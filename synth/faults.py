"""Faults that code plants into a text exactly, and what of a text was changed, to the character."""

import difflib
import re
from collections.abc import Callable
from itertools import accumulate
from typing import Literal, NamedTuple

__all__ = ["RULES", "SENTENCE", "Change", "Edit", "Kind", "find_changes"]

Kind = Literal["entity", "number", "negation", "relation", "unsupported"]

NUMBER = re.compile(r"(?<![\w.,:/-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w|[,.:/-]\d)")
COUNTER = re.compile(r"^\s*(\d+)[.)]", re.M)
"""What numbers a list is no fact."""
VERB = r"is|are|was|were|can|could|will|would|should|must"
DENIED = re.compile(rf"\b(?P<verb>{VERB}) not\b|\b(?P<short>{VERB})n['\u2019]t\b|\bcannot\b")
STATED = re.compile(rf"(?<=\w )(?:{VERB})(?= \w)(?! (?:not|never|no|hardly|nothing|nobody|n't)\b)")
NAME = re.compile(r"(?<=[a-z,;] )[A-Z]\w+(?: [A-Z]\w+)*(?![\w-])")
"""Words in capitals within a sentence, where grammar asks for none."""
SENTENCE = re.compile(r"(?:\d+[.)]\s+)?\S.*?(?:[.!?](?=\s)|$)", re.M)
WORD = re.compile(r"\s*(?:\w+|[^\w\s])|\s+$")


class Change(NamedTuple):
    """A run of characters that a text has in place of others."""

    start: int
    stop: int
    was: str
    """What stood there."""


class Edit(NamedTuple):
    """What a rule would write, and where."""

    start: int
    stop: int
    now: str


def find_changes(good: str, flawed: str) -> list[Change]:
    """Return the runs of words in which a text differs from another, in order.

    Putting back what stood there gives `good` to the character. No run is empty: where words were taken out, it is the word
    after the gap, or else the one before, in place of both.
    """
    olds, news = WORD.findall(good), WORD.findall(flawed)
    runs: list[tuple[int, int, int, int]] = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, olds, news, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        if j1 == j2:
            i1, i2, j1, j2 = (i1, i2 + 1, j1, j2 + 1) if j2 < len(news) else (i1 - 1, i2, j1 - 1, j2)
        if runs and j1 <= runs[-1][3]:
            i1, _, j1, _ = runs.pop()
        runs.append((i1, i2, j1, j2))
    ends = [0, *accumulate(map(len, news))]
    changes: list[Change] = []
    for i1, i2, j1, j2 in runs:
        was, now = "".join(olds[i1:i2]), "".join(news[j1:j2])
        shared = 0  # white space that both begin with
        while shared + 1 < len(now) and now[shared].isspace() and was[shared : shared + 1] == now[shared]:
            shared += 1
        changes.append(Change(ends[j1] + shared, ends[j2], was[shared:]))
    return changes


def _find_sentence(text: str, at: int) -> str:
    return next(found[0] for found in SENTENCE.finditer(text) if found.start() <= at < found.end())


def _change_numbers(text: str) -> list[Edit]:
    """Change a digit in the latter half of a number that is no list's."""
    listed = {found.end(1) for found in COUNTER.finditer(text)}
    edits: list[Edit] = []
    for found in NUMBER.finditer(text):
        places = [at for at in range(*found.span()) if text[at].isdigit()]
        for at in places[len(places) // 2 :] if found.end() not in listed else ():
            leads = at == found.start() and len(found[0]) > 1
            edits += [Edit(at, at + 1, mark) for mark in "0123456789"[leads:] if mark != text[at]]
    return edits


def _turn_negations(text: str) -> list[Edit]:
    """Deny what a verb states, state what it denies; questions are left alone."""
    denied = [(item, item["verb"] or item["short"] or "can") for item in DENIED.finditer(text)]
    stated = [(item, "cannot" if item[0] == "can" else f"{item[0]} not") for item in STATED.finditer(text)]
    return [
        Edit(item.start(), item.end(), now)
        for item, now in denied + stated
        if not _find_sentence(text, item.start()).endswith("?")
    ]


def _swap_names(text: str) -> list[Edit]:
    """Put a name of the text in the place of another, in a sentence that does not have it."""
    found = list(NAME.finditer(text))
    names = dict.fromkeys(item[0] for item in found)
    return [
        Edit(item.start(), item.end(), name)
        for item in found
        for name in names
        if not set(name.split()) & set(item[0].split()) and name not in _find_sentence(text, item.start())
    ]


RULES: dict[Kind, Callable[[str], list[Edit]]] = {
    "entity": _swap_names,
    "number": _change_numbers,
    "negation": _turn_negations,
}
"""Faults that code can plant exactly."""
