"""Finished runs of one evaluation, joined as seeds of it: what each measured stands, and nothing is asked again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from counterfoil.errors import InputError
from counterfoil.job import read_manifest
from counterfoil.jsonl import read_lines
from counterfoil.records import Dropped

__all__ = ["check_runs", "read_runs"]


def check_runs(runs: Sequence[Path], *, instead_of: str, given: Sequence[Path], same: Sequence[str]) -> None:
    """Raise InputError unless one of two is given: runs, or what a run of the field `instead_of` measures anew.

    Also for a folder of no finished run, and for runs that differ in one of the fields `same`.
    """
    if bool(given) == bool(runs):
        allowed, do = "one of them", f"Give {instead_of}=RUN,RUN or runs=RUN,RUN."
        raise InputError(f"{instead_of}, runs", given="both" if runs else "neither", allowed=allowed, do=do)
    first: dict[str, Any] = {}
    for folder in runs:
        where, manifest = f"runs: {folder}", read_manifest(folder)
        if manifest is None:
            allowed, do = "a finished run of this job", "Check the path, or run that job again."
            raise InputError(where, given="no manifest.json in it", allowed=allowed, do=do)
        asked = {key: manifest["config"].get(key) for key in same}
        first = first or asked
        for key, value in asked.items():
            if value != first[key]:
                allowed = f"{first[key]!r}, as in {runs[0]}"
                raise InputError(where, given=f"{key}: {value!r}", allowed=allowed, do="Take runs that ask the same.")


def read_runs(runs: Sequence[Path], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of each run's output `name`, with the run's place. Raises InputError for rows that no job wrote."""
    for at, folder in enumerate(runs):
        for row in read_lines(folder / name, where="runs"):
            if isinstance(row, Dropped):
                do = "Run that job again."
                raise InputError(f"runs: {folder}", given=row.detail, allowed="what that job wrote", do=do)
            yield at, row
