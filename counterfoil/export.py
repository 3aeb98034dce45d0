"""Exports of a finished run: parquet, and a folder as the Hugging Face hub takes it, with a data set card."""

import json
from pathlib import Path
from typing import Any

import yaml

from counterfoil.errors import InputError
from counterfoil.jsonl import open_atomic

__all__ = ["export_run"]

CARD = """---
{front}---

# {title}

{what}

| | |
|---|---|
{facts}

## Columns

{columns}

## How it was made

`counterfoil {version}`, config:

```yaml
{config}```

Inputs: {inputs}

## Licence

{licence}
"""


def export_run(folder: Path, manifest: dict[str, Any], *, kind: str, to: Path) -> Path:
    """Write a run's pairs (or completions) as parquet; `hub-folder` adds the card. Return the folder written to.

    Raises InputError where the run has no records.
    """
    source = next((folder / name for name in ("pairs.jsonl", "completions.jsonl") if (folder / name).is_file()), None)
    if source is None or source.stat().st_size == 0:
        raise InputError(
            str(folder),
            given="a run without pairs or completions",
            allowed="a synth or decode run",
            do="Export another.",
        )
    from datasets import Dataset  # pyright: ignore[reportMissingTypeStubs]

    rows: Any = Dataset.from_json(str(source), cache_dir=str(to / ".cache"))  # pyright: ignore[reportUnknownMemberType]
    data = to / "data" if kind == "hub-folder" else to
    data.mkdir(parents=True, exist_ok=True)
    partial = data / ".train.partial"
    rows.to_parquet(str(partial))
    partial.replace(data / "train-00000-of-00001.parquet")
    if kind == "hub-folder":
        with open_atomic(to / "README.md") as stream:
            stream.write(_write_card(manifest, source.stem, rows))
    _remove(to / ".cache")
    return to


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _write_card(manifest: dict[str, Any], kind: str, rows: Any) -> str:
    front = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        "license": "other",
        "license_name": "see-card",
        "size_categories": [_size_category(len(rows))],
        "tags": ["synthetic", "counterfoil"] + (["preference", "dpo"] if kind == "pairs" else []),
    }
    config = manifest["config"]
    facts = {
        "rows": len(rows),
        "model": config.get("model"),
        "model fingerprint": manifest.get("model"),
        "counts": json.dumps(manifest["counts"]),
        "tokens": json.dumps(manifest["tokens"]),
        "seeds": json.dumps(manifest.get("seeds", {})),
        "made": manifest["started"],
        "versions": ", ".join(f"{key} {value}" for key, value in manifest["versions"].items()),
    }
    what = {
        "pairs": "Preference pairs in TRL's conversational format, made by a model from prompts and judged by a scorer.",
        "completions": "Completions of prompts by a model.",
    }[kind]
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=f"{kind.capitalize()} by counterfoil",
        what=what,
        facts="\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items()),
        columns="\n".join(f"- `{name}`: {feature}" for name, feature in rows.features.items()),
        version=manifest["versions"].get("counterfoil", ""),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        inputs=_cell(json.dumps({key: fact.get("sha256") for key, fact in manifest["inputs"].items()}) or "none"),
        licence="The prompts' and the model's licences apply to what was made from them; state yours here before you share.",
    )


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _size_category(count: int) -> str:
    for bound, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if count < bound:
            return name
    return "n>1M"
