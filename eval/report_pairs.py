"""What the page holds of items: their texts, their fields, and the dialogues that made them, packed so that 100,000 fit.

Texts lie in chunks of JSON, deflated and in base64, which the page's script opens one at a time; fields lie apart, so that
the script filters and sorts without any text. Items and dialogues are joined by the prompt with which the dialogue began.
"""

import base64
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from counterfoil.account import Account, read_records
from counterfoil.records import Comparison, Exchange, Message, Pair, Prompt, Score
from eval.report_items import Item, Kind, find_kind
from eval.report_plots import clean

__all__ = ["Chunks", "Packed", "pack_items"]

LEVEL = 4
"""Of zlib: 6 makes texts 5 to 12 % smaller in three times the time."""
CHUNK_CHARS = 300_000
"""Of JSON; a browser opens one in some milliseconds."""


@dataclass
class Chunks:
    """Rows of JSON, packed as they come."""

    starts: list[int] = field(default_factory=list[int])
    """The number of each chunk's first row."""
    texts: list[Markup] = field(default_factory=list[Markup])
    """Base64, which needs no escaping."""
    num_rows: int = 0
    num_bytes: int = 0
    """Of all closed chunks."""
    _rows: list[str] = field(default_factory=list[str])
    _size: int = 0

    def add(self, row: Any) -> None:
        """Add a row."""
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._rows.append(text)
        self._size += len(text)
        self.num_rows += 1
        if self._size >= CHUNK_CHARS:
            self.close()

    def close(self) -> None:
        """Pack what is not packed yet."""
        if self._rows:
            self.starts.append(self.num_rows - len(self._rows))
            self.texts.append(_pack(f"[{','.join(self._rows)}]"))
            self.num_bytes += len(self.texts[-1])
            self._rows, self._size = [], 0


def _pack(text: str) -> Markup:
    return Markup(base64.b64encode(zlib.compress(text.encode(), LEVEL)).decode())  # noqa: S704  (base64 holds no markup)


@dataclass
class Packed:
    """What the page holds of one synthesis."""

    kind: Kind
    """What the items are."""
    items: Chunks
    dialogues: Chunks
    fields: Markup
    """Of every item, packed: numbers as they are, choices as their places in a list."""
    num_items: int
    """Of all items of the run, those that the page holds."""
    num_made: int
    """All items of the run."""
    num_without: int
    """Items whose dialogue is not in the page."""

    @property
    def index(self) -> dict[str, Any]:
        """Where what is, for the page's script."""
        return {
            "num": self.num_items,
            "kind": self.kind.name,
            "marks": self.kind.marks,
            "items": self.items.starts,
            "dialogues": self.dialogues.starts,
        }


def pack_items(folder: Path, account: Account, *, max_items: int, max_dialogue_chars: int) -> Packed:
    """Pack what a run made, and the dialogues that made it as far as they fit; count all that is read in `account`."""
    pages = {item.id: item for item in account.read(folder / "prompts.jsonl", Prompt)}
    pages |= {item.id: item for item in account.read(folder / "instructions.jsonl", Prompt)}
    kind = find_kind(folder)
    items, fields, sought, num_made = Chunks(), _Fields(), _Sought(), 0
    for record, item in kind.walk(folder, account):
        num_made += 1
        if isinstance(record, Pair):
            account.pairs.add(record)
        if num_made <= max_items:
            items.add([clean(item.id), clean(item.prompt), [side.pack() for side in item.sides]])
            fields.add(item, pages.get(item.prompt_id))
            sought.add(item)
    items.close()
    dialogues, places = _pack_dialogues(folder, account, pages, sought, max_dialogue_chars)
    found = [places.get(key, -1) for key in sought.keys]
    return Packed(
        kind=kind,
        items=items,
        dialogues=dialogues,
        fields=_pack(fields.dump(found)),
        num_items=len(sought.keys),
        num_made=num_made,
        num_without=found.count(-1),
    )


class _Fields:
    """The fields of items, by name, a place an item."""

    def __init__(self) -> None:
        self._num = 0
        self._numbers: dict[str, list[float | None]] = {}
        self._choices: dict[str, tuple[dict[str, int], list[int]]] = {}

    def add(self, item: Item, prompt: Prompt | None) -> None:
        for name, value in item.numbers.items():
            self._numbers.setdefault(name, []).append(round(value, 9) if math.isfinite(value) else None)
        choices = item.choices | {
            clean(f"tag: {name}"): value for name, value in (prompt.tags if prompt else {}).items()
        }
        for name in dict.fromkeys([*self._choices, *choices]):
            values, codes = self._choices.setdefault(name, ({"": 0}, [0] * self._num))
            codes.append(values.setdefault(clean(choices.get(name, "")), len(values)))
        self._num += 1

    def dump(self, places: list[int]) -> str:
        """Return all that tell items apart as JSON, with the number of each item's dialogue."""
        found: list[dict[str, Any]] = [
            {"name": name, "numbers": values}
            for name, values in self._numbers.items()
            if values.count(None) < len(values)
        ]
        for name, (values, codes) in sorted(self._choices.items(), key=lambda item: item[0].startswith("tag: ")):
            if len(values) > 1:
                found.append({"name": name, "values": [*values], "codes": codes})
        return json.dumps({"fields": found, "dialogues": places}, ensure_ascii=False, allow_nan=False)


class _Sought:
    """The dialogues of items, by the prompts with which they began.

    Answers to a prompt that a recipe wrote have other ids than in the dialogue: these are found by their texts in it.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._prompts: dict[str, set[str]] = {}
        self._answers: dict[tuple[str, int], set[str]] = {}

    def add(self, item: Item) -> None:
        key = item.source_id
        self.keys.append(key)
        self._prompts.setdefault(key, {key}).add(item.prompt_id)
        if item.prompt_id != key:
            for side in item.sides:
                self._answers.setdefault((key, _mark(side.text)), set()).add(side.answer_id)

    def match(self, dialogue: "_Dialogue") -> "_Match | None":
        """Say which prompts a dialogue is about, and the number of each of its answers by id; None for one not sought."""
        if dialogue.key not in self._prompts:
            return None
        answers = [item for exchange in dialogue.exchanges for item in exchange.completions]
        names = {item.id: item.index for item in answers}
        for item in answers if self._answers else ():
            others = self._answers.get((dialogue.key, _mark(item.text)), set())
            names |= dict.fromkeys(others - {""}, item.index)
        return _Match(self._prompts[dialogue.key], names)


class _Dialogue(NamedTuple):
    key: str
    """The id of the prompt with which it began."""
    exchanges: list[Exchange]


class _Match(NamedTuple):
    prompts: set[str]
    names: dict[str, int]


def _pack_dialogues(
    folder: Path, account: Account, pages: dict[str, Prompt], sought: _Sought, max_chars: int
) -> tuple[Chunks, dict[str, int]]:
    """Pack the dialogues that are sought; return them, and which is where, by the prompts with which they began."""
    path = folder / "exchanges.jsonl"
    held: set[str] = set()
    prompts: set[str] = set()
    answers: set[str] = set()
    for dialogue in _group(account.read(path, Exchange)):
        for exchange in dialogue.exchanges:
            account.add_exchange(exchange)
        match = sought.match(dialogue)
        if max_chars > 0 and match is not None:
            max_chars -= sum(_measure(exchange) for exchange in dialogue.exchanges)
            held.add(dialogue.key)
            prompts |= match.prompts
            answers.update(match.names)
    grades: dict[str, list[Score]] = {}
    for score in account.read(folder / "scores.jsonl", Score):
        account.add_score(score)
        if score.completion_id in answers:
            grades.setdefault(score.completion_id, []).append(score)
    verdicts: dict[str, list[Comparison]] = {}
    for found in account.read(folder / "comparisons.jsonl", Comparison):
        account.add_verdict(found)
        if found.prompt_id in prompts:
            verdicts.setdefault(found.prompt_id, []).append(found)
    packed, places = Chunks(), dict[str, int]()
    again = (item for item in read_records(path, Exchange) if isinstance(item, Exchange))
    for dialogue in _group(again):
        if dialogue.key in held and (match := sought.match(dialogue)) is not None:
            places[dialogue.key] = packed.num_rows
            told = [found for key in sorted(match.prompts) for found in verdicts.get(key, [])]
            packed.add(_show(dialogue.exchanges, pages.get(dialogue.key), match.names, grades, told))
    packed.close()
    return packed, places


def _group(exchanges: Iterable[Exchange]) -> Iterator[_Dialogue]:
    """Put a dialogue's exchanges together: a run writes them one after the other."""
    for key, found in groupby(exchanges, lambda exchange: exchange.prompt_id):
        yield _Dialogue(key, list(found))


def _mark(text: str) -> int:
    return hash(text.strip())


def _measure(exchange: Exchange) -> int:
    sent = exchange.sent
    asked = len(sent) if isinstance(sent, str) else sum(len(part["content"]) for part in sent if isinstance(part, dict))
    return asked + sum(len(item.text) + 40 for item in exchange.completions)


def _show(
    exchanges: list[Exchange],
    prompt: Prompt | None,
    names: dict[str, int],
    grades: dict[str, list[Score]],
    verdicts: list[Comparison],
) -> dict[str, Any]:
    """Return a dialogue as the page's script shows it; `names` are the numbers of its answers by id."""
    scores: dict[int, list[Any]] = {}
    for key, index in names.items():
        scores.setdefault(index, []).extend(_show_score(score) for score in grades.get(key, []))
    return {
        "reference": clean(json.dumps(prompt.reference, ensure_ascii=False)) if prompt and prompt.reference else "",
        "asked": [
            [
                clean(exchange.step),
                clean(exchange.role),
                _show_sent(exchange.sent),
                [
                    [
                        item.index,
                        clean(item.text),
                        clean(item.finish_reason),
                        item.num_tokens,
                        scores[item.index],
                    ]
                    for item in exchange.completions
                ],
            ]
            for exchange in exchanges
        ],
        "verdicts": [
            [clean(found.judge), *(names.get(item, -1) for item in found.completion_ids), found.forward, found.backward]
            for found in verdicts
        ],
    }


def _show_sent(sent: tuple[Message, ...] | str | tuple[int, ...]) -> list[tuple[str, str]]:
    if isinstance(sent, str):
        return [("text", clean(sent))]
    turns = [(clean(part["role"]), clean(part["content"])) for part in sent if isinstance(part, dict)]
    return turns or [("token ids", " ".join(map(str, sent)))]


def _show_score(score: Score) -> tuple[str, float | None, str]:
    value = score.value if math.isfinite(score.value) else None
    return (clean(score.scorer), value, clean(json.dumps(score.detail, ensure_ascii=False)) if score.detail else "")
