"""Parts: finished decode runs that a job compares.

A part's name is its folder's. Parts that differ in a number at the end (`nucleus_0`, `nucleus_1`) are seeds of one method:
their configs may differ in `sampling.seed` alone.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counterfoil.errors import InputError
from counterfoil.job import read_manifest

__all__ = ["check_parts", "find_adapter", "list_parts", "name_method", "name_part", "read_adapter"]


def list_parts(parts: tuple[Path, ...]) -> dict[str, Path]:
    """Return the answers of finished decode runs, as inputs of a job."""
    return {f"parts[{at}] {name_part(folder)}": folder / "completions.jsonl" for at, folder in enumerate(parts)}


def check_parts(parts: tuple[Path, ...]) -> None:
    """Raise InputError for a folder of no finished run, a name that comes twice, and seeds that differ in more."""
    seen: dict[str, dict[str, dict[str, Any]]] = {}
    for folder in parts:
        manifest = read_manifest(folder)
        if manifest is None:
            allowed, do = "the folder of a finished decode run", "Check the path, or run that job again."
            raise InputError(f"parts: {folder}", given="no manifest.json in it", allowed=allowed, do=do)
        name, settings = name_part(folder), _read_settings(manifest)
        others = seen.setdefault(name_method(folder), {})
        if name in others:
            do = "Rename one of the folders."
            raise InputError(f"parts: {folder}", given=f"a second part {name!r}", allowed="a name each", do=do)
        for other, known in others.items():
            if differs := sorted(key for key in settings.keys() | known.keys() if settings.get(key) != known.get(key)):
                given = f"{differs[0]} is {settings.get(differs[0])!r}, and {known.get(differs[0])!r} in {other}"
                allowed = "names that differ in a number at the end only for seeds (sampling.seed) of one method"
                do = "Rename the folders, so that they do not end in _NUMBER alone: s_1 and s_2 to s_1x and s_2x."
                raise InputError(f"parts: {folder}", given=given, allowed=allowed, do=do)
        others[name] = settings


def name_part(folder: Path) -> str:
    """Return a part's name."""
    return folder.absolute().name


def name_method(folder: Path) -> str:
    """Return the name that a part shares with the other seeds of its method."""
    return re.sub(r"_\d+$", "", name_part(folder))


def find_adapter(folder: Path) -> Path:
    """Return an adapter's own folder, where that of a run with an `adapter` in it may be given."""
    inner = folder / "adapter"
    return inner if inner.is_dir() else folder


def read_adapter(folder: Path, *, where: str) -> dict[str, Any]:
    """Return the config of an adapter, or of a run's. Raises InputError where there is none."""
    path = find_adapter(folder) / "adapter_config.json"
    if not path.is_file():
        allowed = "the folder of a PEFT adapter, or of a run with an `adapter` in it"
        raise InputError(f"{where}: {folder}", given=f"no {path.name} in it", allowed=allowed, do="Check the path.")
    return json.loads(path.read_text(encoding="utf-8"))


def _read_settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return by dotted name what seeds of one method share: the config, and the content of what it reads but the prompts."""
    inputs: dict[str, Any] = manifest.get("inputs", {})
    found = {key: value for key, value in _flatten(manifest.get("config", {}), "") if key not in inputs}
    found.pop("sampling.seed", None)
    read = {key: {name: fact for name, fact in facts.items() if name != "path"} for key, facts in inputs.items()}
    return found | {key: facts for key, facts in read.items() if key != "prompts"}


def _flatten(config: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
