"""What a synthesis made, as the page's browser shows it: pairs, or else groups, or else triplets, each one an item."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from counterfoil.account import Account
from counterfoil.records import Answer, Group, Message, Pair, Prompt, Triplet
from eval.report_plots import clean

__all__ = ["KINDS", "Item", "Kind", "Side", "find_kind", "join_messages"]


class Side(NamedTuple):
    """One of an item's texts."""

    name: str
    text: str
    score: float | None = None
    note: str = ""
    """What else is known of it."""
    spans: tuple[tuple[int, int], ...] = ()
    """Pieces that are marked, in characters; without any, the words that differ are."""
    answer_id: str = ""
    """Of the completion, where it is known."""

    def pack(self) -> list[Any]:
        """Return what the page's script reads: name, score, text, and where there is more the note and the marks' ends."""
        score = self.score if self.score is not None and math.isfinite(self.score) else None
        # Ends are counted in the text as it is shown, in UTF-16 as a script counts.
        ends = [_count_units(clean(self.text[:end])) for span in sorted(self.spans) for end in span]
        row: list[Any] = [self.name, score, clean(self.text)]
        return [*row, clean(self.note), ends] if self.note or ends else row


class Item(NamedTuple):
    """A row of the browser."""

    id: str
    prompt: str
    prompt_id: str
    source_id: str
    """Of the prompt with which its dialogue began."""
    sides: tuple[Side, ...]
    numbers: dict[str, float]
    """What it can be sorted and filtered by; not a number where that is unknown."""
    choices: dict[str, str]


class Kind(NamedTuple):
    """A sort of items."""

    name: str
    """Several of them, as their file is named."""
    record: type[Pair] | type[Group] | type[Triplet]
    words: str
    """How to read them."""
    names: dict[str, str]
    """Sides in which alone a text can be sought, and what they are called then."""
    marks: bool
    """Whether words in which sides differ are marked."""
    read: Callable[[Any], Item]

    def walk(self, folder: Path, account: Account) -> Iterator[tuple[Pair | Group | Triplet, Item]]:
        """Yield what the run's file holds."""
        for record in account.read(folder / f"{self.name}.jsonl", self.record):
            yield record, self.read(record)


def join_messages(messages: str | Sequence[Message]) -> str:
    """Return turns as one text; a single one is its content alone."""
    if isinstance(messages, str):
        return messages
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def _read_pair(pair: Pair) -> Item:
    chosen, rejected = (join_messages(side) for side in (pair.chosen, pair.rejected))
    words = [float(len(side.split())) for side in (chosen, rejected)]
    return Item(
        id=pair.id,
        prompt=join_messages(pair.prompt),
        prompt_id=pair.prompt_id,
        source_id=pair.source_id or pair.prompt_id,
        sides=(
            Side("chosen", chosen, pair.score_chosen, answer_id=pair.chosen_id),
            Side("rejected", rejected, pair.score_rejected, answer_id=pair.rejected_id),
        ),
        numbers={
            "margin": pair.score_chosen - pair.score_rejected,
            "score of the chosen": pair.score_chosen,
            "score of the rejected": pair.score_rejected,
            "words of the chosen": words[0],
            "words of the rejected": words[1],
            "words more in the chosen": words[0] - words[1],
        },
        choices={"recipe": pair.recipe, "cut off": " and ".join(pair.cut) or "neither"},
    )


def _read_group(group: Group) -> Item:
    scores = [item.score for item in group.answers if item.score is not None]
    roles = [item.role for item in group.answers]
    lengths = [len(item.text.split()) for item in group.answers]
    asked = group.prompt if isinstance(group.prompt, str) else list(group.prompt)
    known = asked if isinstance(asked, str) else Prompt.make(asked, reference=group.reference).id
    return Item(
        id=group.id,
        prompt=join_messages(group.prompt),
        prompt_id=known,
        source_id=group.source_id or known,
        sides=tuple(_read_answer(item) for item in group.answers),
        numbers={
            "answers": len(roles),
            "chosen answers": roles.count("chosen"),
            "rejected answers": roles.count("rejected"),
            "highest score": max(scores, default=math.nan),
            "lowest score": min(scores, default=math.nan),
            "words an answer": sum(lengths) / max(len(lengths), 1),
            "marked pieces": sum(len(item.spans) for item in group.answers),
        },
        choices={"comes to": next((item.final for item in group.answers if item.final), "")},
    )


def _read_answer(answer: Answer) -> Side:
    notes = [f"comes to {answer.final}"] if answer.final else []
    notes += ["cut off"] if answer.is_cut else []
    notes += [f"marked: {label}" for label in dict.fromkeys(span.label for span in answer.spans) if label]
    if answer.prompt is not None:
        notes.append(f"an answer to: {join_messages(answer.prompt)}")
    spans = tuple((span.start, span.stop) for span in answer.spans)
    return Side(answer.role or "answer", answer.text, answer.score, "; ".join(notes), spans)


def _read_triplet(triplet: Triplet) -> Item:
    positives = [
        Side("positive", text, note=f"weight {share:.3f}")
        for text, share in sorted(triplet.shares.items(), key=lambda item: -item[1])
    ]
    sides = positives or [Side("positive", triplet.positive)]
    if triplet.negative is not None:
        sides.append(Side("negative", triplet.negative))
    words = {"anchor": triplet.anchor, "positive": triplet.positive, "negative": triplet.negative}
    return Item(
        id=triplet.id,
        prompt=triplet.anchor,
        prompt_id=triplet.prompt_id,
        source_id=triplet.source_id or triplet.prompt_id,
        sides=tuple(sides),
        numbers={f"words of the {name}": len(text.split()) if text else math.nan for name, text in words.items()}
        | {"positives": len(positives) or 1},
        choices={"recipe": triplet.recipe, "negative": "with one" if triplet.negative is not None else "without one"},
    )


KINDS = (
    Kind(
        name="pairs",
        record=Pair,
        words="Words that differ are marked. A margin is the chosen answer's score less the rejected one's.",
        names={"chosen": "chosen answers", "rejected": "rejected answers"},
        marks=True,
        read=_read_pair,
    ),
    Kind(
        name="groups",
        record=Group,
        words="Marked are the pieces that a recipe labelled, or else the words in which answers differ from the first one.",
        names={"chosen": "chosen answers", "rejected": "rejected answers", "answer": "other answers"},
        marks=True,
        read=_read_group,
    ),
    Kind(
        name="triplets",
        record=Triplet,
        words="First the anchor, then what is to be nearer to it and what is not. Positives with weights are one together.",
        names={"positive": "positives", "negative": "negatives"},
        marks=False,
        read=_read_triplet,
    ),
)
"""The first that a run has is shown: groups of a run with pairs hold what its pairs were made of."""


def find_kind(folder: Path) -> Kind:
    """Return which items a run made; pairs where it made none."""
    for kind in KINDS:
        path = folder / f"{kind.name}.jsonl"
        if path.is_file() and path.stat().st_size:
            return kind
    return KINDS[0]


def _count_units(text: str) -> int:
    return len(text.encode("utf-16-le", errors="surrogatepass")) // 2
