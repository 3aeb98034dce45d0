"""The items of a prompt: what counts as one, and what becomes of the prompt when another takes its place."""

from typing import Any

import pytest

from counterfoil.records import Message, Prompt
from synth.items import list_items, replace_items


def chat(*texts: str) -> list[Message]:
    return [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("kind", "prompt", "items", "changed", "reference"),
    [
        ("lines", Prompt.make("Liked:\n- tea\n 2. rice \nWhat next?"), ["tea", "rice"],
         "Liked:\n- NEW\n 2. rice \nWhat next?", {}),
        ("marked", Prompt.make("Rome is not Romeo, nor Rome.", reference={"items": ["Rome", "Romeo"], "answer": "x"}),
         ["Rome", "Romeo"], "NEW is not Romeo, nor NEW.", {"items": ["NEW", "Romeo"]}),
        ("lines", Prompt.make("No list."), [], "No list.", {}),
        ("marked", Prompt.make("Nothing."), [], "Nothing.", {"items": []}),
    ],
)  # fmt: skip
def test_items_of_a_text_are_found_and_replaced(
    kind: Any, prompt: Prompt, items: list[str], changed: str, reference: dict[str, Any]
) -> None:
    found = list_items(prompt, kind)
    assert [item.messages[0]["content"] for item in found] == items
    other = replace_items(prompt, kind, {item.id: Prompt.make("NEW") for item in found[:1]})
    assert (other.messages[0]["content"], other.reference) == (changed, reference)


def test_demonstrations_are_the_turns_before_the_question() -> None:
    """What the system says first is none; the reference is of the question, and stays."""
    system: Message = {"role": "system", "content": "Be brief."}
    prompt = Prompt.make([system, *chat("1+1", "2", "1+2", "3", "2+2")], reference={"answer": "4"})
    found = list_items(prompt, "demonstrations")
    assert [item.messages for item in found] == [tuple(chat("1+1", "2")), tuple(chat("1+2", "3"))]
    other = replace_items(prompt, "demonstrations", {found[1].id: Prompt.make(chat("3+3", "6"))})
    assert other.messages == (system, *chat("1+1", "2", "3+3", "6", "2+2"))
    assert other.reference == {"answer": "4"}
    assert list_items(Prompt.make([system, *chat("2+2")]), "demonstrations") == []
