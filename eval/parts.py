"""Parts: finished decode runs that a job compares.

A part's name is its folder's. Parts that differ in a number at the end (`nucleus_0`, `nucleus_1`) are seeds of one method.
"""

import re
from pathlib import Path

from counterfoil.errors import InputError

__all__ = ["check_parts", "list_parts", "name_method", "name_part"]


def list_parts(parts: tuple[Path, ...]) -> dict[str, Path]:
    """Return the answers of finished decode runs, as inputs of a job."""
    return {f"parts[{at}] {name_part(folder)}": folder / "completions.jsonl" for at, folder in enumerate(parts)}


def check_parts(parts: tuple[Path, ...]) -> None:
    """Raise InputError for a folder that is not that of a finished run."""
    for folder in parts:
        if not (folder / "manifest.json").is_file():
            allowed, do = "the folder of a finished decode run", "Check the path, or run that job again."
            raise InputError(f"parts: {folder}", given="no manifest.json in it", allowed=allowed, do=do)


def name_part(folder: Path) -> str:
    """Return a part's name."""
    return folder.absolute().name


def name_method(folder: Path) -> str:
    """Return the name that a part shares with the other seeds of its method."""
    return re.sub(r"_\d+$", "", name_part(folder))
