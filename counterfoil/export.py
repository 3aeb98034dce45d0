"""Exports of a finished run: parquet, and a folder as the Hugging Face hub takes it, with a data set card.

Pairs (or completions) are the data set; groups, comparisons and triplets are further configs of it, where a run has them.
What has no fixed shape (a prompt's reference, another prompt that an answer belongs to) is a column of JSON.
"""

import importlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from counterfoil.account import read_account
from counterfoil.card import Table, write_card
from counterfoil.errors import InputError
from counterfoil.jsonl import open_atomic, read_lines
from counterfoil.records import Dropped

__all__ = ["export_run"]

BATCH = 5_000
"""Rows that are converted together."""

MESSAGES = [{"role": "string", "content": "string"}]
SPANS = [{"start": "int64", "stop": "int64", "label": "string"}]
ANSWER = {
    "text": "string", "role": "string", "score": "float64", "is_cut": "bool", "token_ids": ["int64"], "spans": SPANS,
    "final": "string", "prompt": "string",
}  # fmt: skip


class _Kind(NamedTuple):
    """A file of a run, the columns that it becomes, and what is done to a row before."""

    file: str
    columns: dict[str, Any]
    """Column -> type by Arrow's name; a list of one is a list of such, a mapping a structure."""
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row


def _flatten_group(row: dict[str, Any]) -> dict[str, Any]:
    """Make a group's prompt a chat, and JSON of what has no fixed shape."""
    prompt = row["prompt"]
    answers = [item | {"prompt": item.get("prompt") and _encode(item["prompt"])} for item in row["answers"]]
    chat = [{"role": "text", "content": prompt}] if isinstance(prompt, str) else prompt
    return row | {"prompt": chat, "answers": answers, "reference": _encode(row.get("reference", {}))}


def _flatten_triplet(row: dict[str, Any]) -> dict[str, Any]:
    """List the texts of a pooled positive, which are keys."""
    return row | {"shares": [{"text": text, "weight": weight} for text, weight in row.get("shares", {}).items()]}


def _flatten_prompt(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"reference": _encode(row.get("reference", {})), "tags": _encode(row.get("tags", {}))}


def _encode(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


KINDS = {
    "pairs": _Kind(
        "pairs.jsonl",
        {"id": "string", "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}
        | dict.fromkeys(("score_chosen", "score_rejected"), "float64")
        | dict.fromkeys(("prompt_id", "chosen_id", "rejected_id", "recipe", "source_id"), "string")
        | {"cut": ["string"]},
    ),
    "completions": _Kind(
        "completions.jsonl",
        dict.fromkeys(("id", "prompt_id", "text", "finish_reason"), "string")
        | dict.fromkeys(("index", "num_prompt_tokens", "num_tokens"), "int64")
        | {"token_ids": ["int64"], "token_logprobs": ["float64"]},
    ),
    "triplets": _Kind(
        "triplets.jsonl",
        dict.fromkeys(("id", "anchor", "positive", "negative", "prompt_id", "recipe", "source_id"), "string")
        | {"shares": [{"text": "string", "weight": "float64"}]},
        _flatten_triplet,
    ),
    "groups": _Kind(
        "groups.jsonl",
        {"id": "string", "prompt": MESSAGES, "answers": [ANSWER], "reference": "string", "source_id": "string"},
        _flatten_group,
    ),
    "comparisons": _Kind(
        "comparisons.jsonl",
        dict.fromkeys(("id", "prompt_id", "judge"), "string")
        | {"completion_ids": ["string"], "chars": ["int64"]}
        | {"forward": "string", "backward": "string", "preference": "float64"},
    ),
    "instructions": _Kind(
        "instructions.jsonl",
        {"id": "string", "messages": MESSAGES, "negative": MESSAGES, "reference": "string", "tags": "string"},
        _flatten_prompt,
    ),
}
"""Config of the data set -> where it comes from; of those that a run has, the first is the one that loads by default."""


def export_run(folder: Path, manifest: dict[str, Any], *, kind: str, to: Path) -> Path:
    """Write a run's records as parquet; return the folder written to.

    `parquet` writes the main ones alone, `hub-folder` all, with the card. Raises InputError where the run has none.
    """
    found = [name for name, item in KINDS.items() if _has_records(folder / item.file)]
    if not found:
        raise InputError(
            str(folder),
            given="a run without pairs, triplets, groups, instructions or completions",
            allowed="a synth or decode run",
            do="Export another.",
        )
    if kind == "parquet":
        _write_table(folder, KINDS[found[0]], to)
        return to
    if strange := [name for name in KINDS if name not in found[1:] and (to / name).is_dir()]:
        given = f"a folder with another export's {', '.join(strange)}"
        raise InputError(
            str(to), given=given, allowed="a new folder, or one with this run's own export", do="Give another --to."
        )
    tables = {name: _write_table(folder, KINDS[name], to / (name if at else "data")) for at, name in enumerate(found)}
    with open_atomic(to / "README.md") as stream:
        stream.write(write_card(manifest, tables, read_account(folder)))
    return to


def _has_records(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _write_table(folder: Path, kind: _Kind, to: Path) -> Table:
    arrow: Any = importlib.import_module("pyarrow")  # it has no types
    parquet: Any = importlib.import_module("pyarrow.parquet")
    schema = arrow.schema([(name, _make_type(arrow, item)) for name, item in kind.columns.items()])
    to.mkdir(parents=True, exist_ok=True)
    partial = to / ".train.partial"
    rows, num_rows = _read_rows(folder / kind.file), 0
    with parquet.ParquetWriter(partial, schema) as writer:
        while batch := [kind.change(row) for row in islice(rows, BATCH)]:
            writer.write_table(arrow.Table.from_pylist(batch, schema))
            num_rows += len(batch)
    partial.replace(to / "train-00000-of-00001.parquet")
    return Table(to.name, num_rows, {field.name: str(field.type) for field in schema})


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    for row in read_lines(path, where="export"):
        if isinstance(row, Dropped):
            given = f"{row.reason}, {row.detail}"
            raise InputError(str(path), given=given, allowed="what a run wrote", do="Mend the line, or run again.")
        yield row


def _make_type(arrow: Any, item: Any) -> Any:
    if isinstance(item, list):
        return arrow.list_(_make_type(arrow, item[0]))
    if isinstance(item, dict):
        inside = cast("dict[str, Any]", item)
        return arrow.struct([(name, _make_type(arrow, inner)) for name, inner in inside.items()])
    return arrow.type_for_alias(item)
