"""Rows for an embedder: read, and dropped by name where they would teach nothing or the opposite of another row."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counterfoil.jsonl import read_lines
from counterfoil.records import Dropped, Triplet, content_id

__all__ = ["read_triplets"]


def read_triplets(path: Path) -> Iterator[Triplet | Dropped]:
    """Yield each line with the columns anchor, positive and perhaps negative; what cannot be used comes as Dropped.

    A group is read as well: its chosen answers are one positive together, each weighed by its score (alike without scores),
    and its first rejected one is the negative. Other columns than a Triplet's are left unread. Raises InputError where
    there is no file.
    """
    seen: set[tuple[str, str, str | None]] = set()
    near: set[tuple[str, str]] = set()
    far: set[tuple[str, str]] = set()
    for row in read_lines(path, where="data"):
        found = row if isinstance(row, Dropped) else _read_row(row)
        if isinstance(found, Triplet):
            key = (found.anchor, found.positive, found.negative)
            against = (found.anchor, found.negative or "")
            if key in seen:
                found = Dropped(id=found.id, stage="data", reason="repeated")
            elif key[:2] in far or against in near:
                found = Dropped(id=found.id, stage="data", reason="says the opposite of an earlier row")
            else:
                seen.add(key)
                near.add(key[:2])
                far.add(against)
        yield found


def _read_row(row: dict[str, Any]) -> Triplet | Dropped:
    row_id = str(row.get("id") or content_id(row))

    def drop(reason: str, detail: str = "") -> Dropped:
        return Dropped(id=row_id, stage="data", reason=reason, detail=detail[:200])

    if isinstance(row.get("answers"), list):
        row = _read_group(row)
        if not row:
            return drop("no chosen answer")
    if not {"anchor", "positive"} <= row.keys():
        return drop("missing column", f"columns: {', '.join(sorted(row))}")
    shares = row.get("shares") or {}
    if not isinstance(shares, dict) or not all(_is_weight(value) for value in shares.values()):
        return drop("weights that are no weights", repr(shares))
    texts = {name: row[name] for name in ("anchor", "positive", "negative") if row.get(name) is not None}
    for name, text in [*texts.items(), *(("shares", text) for text in shares)]:
        if not isinstance(text, str):
            return drop("not a text", name)
        if not text.strip():
            return drop("empty text", name)
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair is JSON, but no text that a tokenizer takes
            return drop("broken text", name)
    if len(texts) < 2:
        return drop("not a text", "anchor or positive")
    others = {text.strip() for name, text in texts.items() if name != "positive"}
    if len({text.strip() for text in texts.values()}) < len(texts) or others & {text.strip() for text in shares}:
        return drop("equal texts")
    about = {name: str(row.get(name) or "") for name in ("prompt_id", "recipe")}
    whole = sum(shares.values())
    return Triplet(id=row_id, **texts, **about, shares={text: part / whole for text, part in shares.items() if part})


def _read_group(row: dict[str, Any]) -> dict[str, Any]:
    """Return a group's texts by a triplet's columns; what is amiss in them is found where those are read."""
    answers = [item for item in row["answers"] if isinstance(item, dict)]
    chosen = [item for item in answers if item.get("role") == "chosen"]
    if not chosen:
        return {}
    weights = [1.0 if item.get("score") is None else item["score"] for item in chosen]
    shares: dict[Any, Any] = {}
    for item, weight in zip(chosen, weights, strict=True):
        text = item.get("text") if isinstance(item.get("text"), str) else ""
        shares[text] = shares[text] + weight if text in shares and _is_weight(weight) else weight
    found = {"anchor": row.get("prompt"), "positive": max(shares, key=lambda text: _weigh(shares[text]))}
    found |= {"shares": shares} if len(shares) > 1 else {}
    rejected = next((item.get("text") for item in answers if item.get("role") == "rejected"), None)
    return found if rejected is None else found | {"negative": rejected}


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _weigh(value: Any) -> float:
    return value if _is_weight(value) else 0.0
