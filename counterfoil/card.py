"""The data set card of a run: all that the run knows of how its records came about, in the hub's Markdown."""

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from counterfoil.account import Account, Share
from counterfoil.progress import show_seconds

__all__ = ["Table", "write_card"]

WHAT = {
    "pairs": "Preference pairs in TRL's conversational format, made by a model from prompts and judged by a scorer.",
    "completions": "Completions of prompts by a model.",
    "triplets": "Texts for an embedder, in sentence-transformers' columns: an anchor, its positive, its negative.",
    "groups": "All answers to a prompt, each with its score.",
    "comparisons": "What a judge said of two answers, shown in both orders.",
    "instructions": "Prompts that a recipe wrote, with tags that say from what.",
}
LICENCE = "The prompts' and the models' licences apply to what was made from them; state yours here before you share."
TAGS = {"pairs": ["preference", "dpo"], "triplets": ["sentence-transformers"]}


class Table(NamedTuple):
    """A config of the data set: a parquet file."""

    folder: str
    num_rows: int
    columns: Mapping[str, str]
    """Column -> type, in Arrow's words."""


def write_card(manifest: dict[str, Any], tables: Mapping[str, Table], account: Account) -> str:
    """Write the card; the first table is what loads by default."""
    main = next(iter(tables))
    parts = [
        f"---\n{_front(tables)}---\n",
        f"# {main.capitalize()} by counterfoil\n",
        WHAT[main] + "\n",
        _section("Load it", _show_loading(tables)),
        _section("How it was made", _show_facts(manifest, tables[main].num_rows)),
        _section("What stopped", _show_stops(manifest, account)),
        _section("Scores, margins, lengths", _show_numbers(account)),
        _section("Ties, duplicates, overlap", _show_repeats(manifest, account)),
        _section("Judges", _show_judges(account)),
        _section("Tokens and time", _show_costs(manifest, account)),
        _section("Config", _show_config(manifest)),
        _section("Licence", LICENCE),
    ]
    return "\n".join(part for part in parts if part)


def _front(tables: Mapping[str, Table]) -> str:
    main = next(iter(tables))
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{table.folder}/*.parquet"}]}
        | ({"default": True} if name == main else {})
        for name, table in tables.items()
    ]
    front = {
        "configs": configs,
        "license": "other",
        "license_name": "see-card",
        "size_categories": [_size_category(tables[main].num_rows)],
        "tags": ["synthetic", "counterfoil", *TAGS.get(main, [])],
    }
    return yaml.safe_dump(front, sort_keys=False)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n" if text else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [[*head], ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    """Write a value so that it stays in its cell and is no markup."""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return re.sub(r"([|\\`*_\[\]<])", r"\\\1", text).replace("\n", " ")


def _show_loading(tables: Mapping[str, Table]) -> str:
    main, *others = tables
    code = ["from datasets import load_dataset", "", f'{main} = load_dataset("REPO_OR_FOLDER", split="train")']
    code += [f'{name} = load_dataset("REPO_OR_FOLDER", "{name}", split="train")' for name in others]
    parts = ["```python\n" + "\n".join(code) + "\n```"]
    for name, table in tables.items():
        parts.append(f"`{name}`, {table.num_rows:,} rows. {WHAT[name]}")
        parts.append("\n".join(f"- `{column}`: {kind}" for column, kind in table.columns.items()))
    return "\n\n".join(parts)


def _show_facts(manifest: dict[str, Any], num_rows: int) -> str:
    config: dict[str, Any] = manifest["config"]
    roles: dict[str, dict[str, Any]] = config.get("roles") or {}
    models = [("", config), *roles.items()]
    rows: list[tuple[str, Any]] = [
        ("rows", num_rows),
        ("recipe", _name(config.get("recipe"))),
        ("scorer", _name(config.get("scorer"))),
    ]
    if not config.get("scorer"):
        rows[-1] = ("scorer", f"of the task {_name(config.get('task'))}")
    for role, item in models:
        of = f" of {role}" if role else ""
        rows.append((f"model{of}", f"{item.get('model')}, by {_name(item.get('engine'))}"))
        rows.append((f"fingerprint{of}", manifest.get(f"model{of}") or "-"))
    rows += [
        ("filters", ", ".join(_name(item) for item in config.get("filters") or ()) or "none"),
        ("counts", ", ".join(f"{key} {value}" for key, value in manifest["counts"].items() if key != "dropped")),
        ("seeds", json.dumps(manifest.get("seeds", {}))),
        ("made", manifest["started"]),
        ("code", json.dumps(manifest.get("git"))),
        ("versions", ", ".join(f"{key} {value}" for key, value in manifest["versions"].items())),
        ("inputs", json.dumps({key: fact.get("sha256") for key, fact in manifest["inputs"].items()})),
    ]
    return _table(("", ""), rows)


def _name(item: Any) -> str:
    return str(item.get("name", "-")) if isinstance(item, dict) else str(item or "-")  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]


def _show_stops(manifest: dict[str, Any], account: Account) -> str:
    dropped: dict[str, int] = manifest["counts"].get("dropped", {})
    refused = {f"{stage}: {reason}": num for (stage, reason), num in account.refused.items()}
    rows = [(key, dropped.get(key, 0), refused.get(key, 0)) for key in dict.fromkeys([*dropped, *refused])]
    return _table(("stage: reason", "prompts that led to nothing", "pairs refused"), rows) if rows else ""


def _show_numbers(account: Account) -> str:
    pairs = account.pairs
    rows = [(f"score by {name}", *_spread(values)) for name, values in account.scores.items()]
    if len(pairs):
        rows = [
            ("margin of a pair", *_spread(pairs.margins)),
            ("words of the chosen answer", *_spread(pairs.words_chosen)),
            ("words of the rejected answer", *_spread(pairs.words_rejected)),
            *rows,
        ]
    if not rows:
        return ""
    text = _table(("", "number", "lowest", "lower quarter", "median", "upper quarter", "highest"), rows)
    if len(pairs):
        text += f"\n\nThe chosen answer is the longer one in {_show_share(pairs.longer_chosen)}, of pairs of unequal lengths."
    return text


def _show_repeats(manifest: dict[str, Any], account: Account) -> str:
    pairs = account.pairs
    if not len(pairs):
        return ""
    rows = [
        ("pairs whose scores are equal (ties)", pairs.ties),
        ("pairs whose rejected answer has the higher score", pairs.inverted),
        ("pairs beyond the first of their prompt", len(pairs) - len(pairs.prompts)),
        ("pairs whose chosen answer came before, but for case and spaces", pairs.repeated_chosen),
        ("texts chosen in one pair and rejected in another", pairs.on_both_sides),
        ("answers cut off, chosen and rejected", f"{pairs.cut['chosen']} and {pairs.cut['rejected']}"),
    ]
    names = [_name(item) for item in manifest["config"].get("filters") or ()]
    looked = "was looked for" if "overlap" in names else "was not looked for"
    return (
        _table(("in the pairs", ""), rows)
        + f"\n\nOverlap with evaluation sets {looked}. Filters: {', '.join(names) or 'none'}."
    )


def _show_judges(account: Account) -> str:
    parts: list[str] = []
    for judge, tally in account.verdicts.items():
        rows = [(name, _show_share(share)) for name, share in tally.shares.items()]
        parts.append(
            _table((f"{judge or 'main'}, {tally.total:,} comparisons in both orders", "share [95 % interval]"), rows)
        )
    return "\n\n".join(parts)


def _show_costs(manifest: dict[str, Any], account: Account) -> str:
    rows = [
        (step, role or "main", tally.asked, tally.answers, tally.prompt_tokens, tally.tokens, tally.cut)
        for (step, role), tally in account.steps.items()
    ]
    total = ", ".join(f"{key} {value:,}" for key, value in manifest["tokens"].items()) or "not counted"
    text = f"{show_seconds(manifest['seconds'])}; tokens: {total}."
    head = ("step", "model", "requests", "answers", "prompt tokens", "generated tokens", "cut off")
    return text + ("\n\n" + _table(head, rows) if rows else "")


def _show_config(manifest: dict[str, Any]) -> str:
    text = yaml.safe_dump(manifest["config"], sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"`counterfoil {manifest['versions'].get('counterfoil', '')}`:\n\n{fence}yaml\n{text}{fence}"


def _show_share(share: Share) -> str:
    if not share.total:
        return "none"
    low, high = share.interval
    return f"{100 * share.value:.1f} % [{100 * low:.1f} to {100 * high:.1f}], {share.num:,} of {share.total:,}"


def _spread(values: Sequence[float]) -> tuple[Any, ...]:
    found = [value for value in values if math.isfinite(value)]
    if not found:
        return (0, *["-"] * 5)
    middle = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return (len(found), *(f"{value:.4g}" for value in (min(found), *middle, max(found))))


def _size_category(count: int) -> str:
    for bound, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if count < bound:
            return name
    return "n>1M"
