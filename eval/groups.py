"""Rows of any preference format to groups.

Read are: our own Pair and Group records; TRL's formats (prompt, chosen, rejected; chosen, rejected with the prompt in both;
prompt, completion with or without a label), as texts or as message lists; prompt, completions, scores; and a prompt alone,
for an objective that draws its answers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from counterfoil.jsonl import read_lines
from counterfoil.records import Dropped, Group, content_id

__all__ = ["read_groups"]


def read_groups(path: Path) -> Iterator[Group | Dropped]:
    """Yield each line as a group; a line that is none comes as Dropped. Raises InputError where there is no file."""
    for row in read_lines(path, where="data"):
        yield row if isinstance(row, Dropped) else _read_row(row)


def _read_row(row: dict[str, Any]) -> Group | Dropped:
    try:
        row_id = str(row.get("id") or content_id(row))
        group = _group(row, row_id)
        json.dumps(
            group.model_dump(), ensure_ascii=False
        ).encode()  # half of a surrogate pair is JSON, but no text that a tokenizer takes
        return group
    except UnicodeEncodeError:
        return Dropped(id=row_id, stage="data", reason="broken text")  # pyright: ignore[reportPossiblyUnboundVariable]
    except _Unfit as error:
        return Dropped(id=row_id, stage="data", reason=error.reason, detail=error.detail)  # pyright: ignore
    except ValidationError as error:
        first = error.errors()[0]
        detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return Dropped(id=row_id, stage="data", reason="not a group", detail=detail[:200])  # pyright: ignore


class _Unfit(Exception):  # noqa: N818  (never leaves this file)
    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail[:200]


def _group(row: dict[str, Any], row_id: str) -> Group:
    if "answers" in row:
        kept = {key: row[key] for key in ("prompt", "answers", "reference") if key in row}
        return Group.model_validate({"id": row_id, **kept})
    if "chosen" in row and "rejected" in row:
        prompt, texts = _split(row.get("prompt"), [row["chosen"], row["rejected"]])
        scores = [row.get(f"score_{side}", row.get(f"{side}_score")) for side in ("chosen", "rejected")]
        cut: Any = row.get("cut")
        cut = cut if isinstance(cut, list | tuple) else ()
        answers = [
            {"text": text, "role": role, "score": score, "is_cut": role in cut}
            for text, role, score in zip(texts, ("chosen", "rejected"), scores, strict=True)
        ]
    elif "completions" in row:
        prompt, texts = _split(row.get("prompt"), row["completions"])
        scores = row.get("scores", [None] * len(texts))
        if not isinstance(scores, list) or len(scores) != len(texts):
            raise _Unfit("as many scores as completions are needed", f"{len(texts)} completions")
        answers = [{"text": text, "score": score} for text, score in zip(texts, scores, strict=True)]
    elif "completion" in row:
        prompt, texts = _split(row.get("prompt"), [row["completion"]])
        label = row.get("label", True)
        if label not in (True, False):
            raise _Unfit("label is neither true nor false", repr(label))
        role = "chosen" if label else "rejected"
        answers = [{"text": texts[0], "role": role, "score": row.get("score"), "spans": row.get("spans", ())}]
    elif isinstance(row.get("prompt"), str | list) and not row.keys() & {"chosen", "rejected", "label", "scores"}:
        prompt, answers = row["prompt"], []  # for objectives that draw answers themselves
    else:
        raise _Unfit("missing column", f"columns: {', '.join(sorted(row))}")
    return Group.model_validate(
        {"id": row_id, "prompt": prompt, "answers": answers, "reference": row.get("reference") or {}}
    )


def _split(prompt: Any, sides: Any) -> tuple[Any, list[str]]:
    """Return the prompt and the answers' texts; without a prompt it is what all sides begin with."""
    if not isinstance(sides, list) or not sides:
        raise _Unfit("no answers")
    if all(isinstance(side, str) for side in sides) and isinstance(prompt, str):
        if not prompt:
            raise _Unfit("empty prompt")
        return prompt, sides
    if not all(isinstance(side, list) and side and all(map(_is_message, side)) for side in sides):
        texts = isinstance(prompt, list) and all(isinstance(side, str) for side in sides)
        raise _Unfit(
            "mixed texts and message lists" if texts or _mixed(prompt, sides) else "missing column", "prompt or answers"
        )
    if prompt is None:
        prompt = []
    elif not isinstance(prompt, list) or not all(map(_is_message, prompt)):
        raise _Unfit("mixed texts and message lists" if isinstance(prompt, str) else "missing column", "prompt")
    heads = [side[:-1] for side in sides]
    if any(head != heads[0] for head in heads):
        raise _Unfit("answers to different conversations")
    if not prompt and not heads[0]:
        raise _Unfit("missing column", "prompt")
    if any(side[-1]["role"] != "assistant" for side in sides):
        raise _Unfit("the last turn is not the assistant's")
    return [*prompt, *heads[0]], [side[-1]["content"] for side in sides]


def _mixed(prompt: Any, sides: list[Any]) -> bool:
    return len({type(part) for part in (prompt, *sides)} & {str, list}) > 1


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
