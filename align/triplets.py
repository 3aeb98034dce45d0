"""Rows for an embedder: read, and dropped by name where they would teach nothing or the opposite of another row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counterfoil.jsonl import read_lines
from counterfoil.records import Dropped, Triplet, content_id

__all__ = ["read_triplets"]


def read_triplets(path: Path) -> Iterator[Triplet | Dropped]:
    """Yield each line with the columns anchor, positive and perhaps negative; what cannot be used comes as Dropped.

    Other columns than a Triplet's are left unread. Raises InputError where there is no file.
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

    if not {"anchor", "positive"} <= row.keys():
        return drop("missing column", f"columns: {', '.join(sorted(row))}")
    texts = {name: row[name] for name in ("anchor", "positive", "negative") if row.get(name) is not None}
    for name, text in texts.items():
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
    if len({text.strip() for text in texts.values()}) < len(texts):
        return drop("equal texts")
    about = {name: str(row.get(name) or "") for name in ("prompt_id", "recipe")}
    return Triplet(id=row_id, **texts, **about)
