"""The items of a prompt, for each of which another of its kind may stand in: demonstrations, listed lines, marked words.

An item is a prompt of its own: it has an id by what it is, and an index of items is an index like any other.
"""

import re
from collections.abc import Mapping
from typing import Literal, cast

from counterfoil.records import Message, Prompt

__all__ = ["ItemKind", "list_items", "replace_items"]

ItemKind = Literal["demonstrations", "lines", "marked"]
"""`demonstrations` are the turns of user and assistant before the last message; `lines` are those of the last message that
begin with a dash or a number, as histories and constraints are listed; `marked` are the texts in `reference["items"]`,
entities for instance, wherever the last message has them."""

_LINE = re.compile(r"^(\s*(?:[-*]|\d+[.)])[ \t]+)(\S.*?)(?=[ \t]*$)", re.MULTILINE)


def list_items(prompt: Prompt, kind: ItemKind) -> list[Prompt]:
    """Return each item once, in the order in which they stand; they carry the tags of the prompt."""
    if kind == "demonstrations":
        found = [Prompt.make(turns, tags=prompt.tags) for turns in _pair_turns(prompt)]
    else:
        matches = _pattern(prompt, kind).finditer(prompt.messages[-1]["content"])
        found = [Prompt.make(match[2], tags=prompt.tags) for match in matches]
    return list({item.id: item for item in found}.values())


def replace_items(prompt: Prompt, kind: ItemKind, changes: Mapping[str, Prompt]) -> Prompt:
    """Return the prompt with others for the items of these ids; the rest of its text is as it was.

    The reference stays where demonstrations change, for the question is the same; else nothing that was verified of the
    old text is known of the new one, and only the marked items are kept.
    """
    *_, last = prompt.messages
    if kind == "demonstrations":
        turns = [changes.get(Prompt.make(pair).id) or pair for pair in _pair_turns(prompt)]
        shown = [message for pair in turns for message in (pair.messages if isinstance(pair, Prompt) else pair)]
        kept = prompt.messages[: len(prompt.messages) - 1 - 2 * len(turns)]
        return Prompt.make([*kept, *shown, last], reference=prompt.reference, tags=prompt.tags)

    def show(text: str) -> str:
        change = changes.get(Prompt.make(text).id)
        return change.messages[-1]["content"] if change else text

    text = _pattern(prompt, kind).sub(lambda match: match[1] + show(match[2]), last["content"])
    reference = {"items": [show(item) for item in _marked(prompt)]} if kind == "marked" else {}
    messages = [*prompt.messages[:-1], Message(role=last["role"], content=text)]
    return Prompt.make(messages, reference=reference, tags=prompt.tags)


def _pair_turns(prompt: Prompt) -> list[tuple[Message, Message]]:
    """Return the turns before the last message in twos, whatever comes before the first of them left out."""
    found: list[tuple[Message, Message]] = []
    for at in range(len(prompt.messages) - 3, -1, -2):
        asked, answered = prompt.messages[at : at + 2]
        if (asked["role"], answered["role"]) != ("user", "assistant"):
            break
        found.insert(0, (asked, answered))
    return found


def _pattern(prompt: Prompt, kind: ItemKind) -> re.Pattern[str]:
    """Return what finds an item as its second group, after a first that stays."""
    if kind == "lines":
        return _LINE
    texts = "|".join(re.escape(text) for text in sorted(_marked(prompt), key=len, reverse=True))
    return re.compile(rf"()(?<!\w)({texts})(?!\w)" if texts else r"(?!)()()")


def _marked(prompt: Prompt) -> list[str]:
    given = prompt.reference.get("items")
    return (
        [text for text in cast(list[object], given) if isinstance(text, str) and text]
        if isinstance(given, list)
        else []
    )
