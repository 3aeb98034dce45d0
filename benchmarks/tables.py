"""Markdown tables of evaluations, as they stand in docs/studies.md: a row a method and run, or a column a run.

    python benchmarks/tables.py rows RUN/summary.json RUN/summary.json --figures reward_accuracy,chosen
    python benchmarks/tables.py columns RUN/summary.json RUN/summary.json --figures score,difference

A file is what `eval preferences`, `eval answers` or `eval frontier` leaves; runs are numbered in the order given.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Methods = dict[str, dict[str, Any]]


def show(found: Any, *, signed: bool) -> str:
    """Write a mean with its interval; nothing where there is none."""
    if not isinstance(found, dict):
        return ""
    one = "{:+.3f}" if signed else "{:.3f}"
    return f"{one.format(found['mean'])} ({one.format(found['low'])} to {one.format(found['high'])})"


def find(row: dict[str, Any], figure: str) -> str:
    """Look a figure up, `difference.score` inside another; differences and nats bear a sign."""
    value: Any = row
    for key in figure.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    signed = figure.startswith("difference") or figure in ("chosen", "rejected")
    return show(value, signed=signed)


def list_rows(runs: Sequence[Methods], figures: Sequence[str]) -> Iterator[list[str]]:
    """Yield the head, then a row a method and run."""
    yield ["", *figures]
    for name in runs[0]:
        for number, methods in enumerate(runs):
            yield [f"{name}, seed {number}", *(find(methods[name], figure) for figure in figures)]


def list_columns(runs: Sequence[Methods], figures: Sequence[str]) -> Iterator[list[str]]:
    """Yield the head, then a row a method."""
    yield ["", *(f"{figure}: seed {number}" for figure in figures for number in range(len(runs)))]
    for name in runs[0]:
        yield [name, *(find(methods[name], figure) for figure in figures for methods in runs)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=["rows", "columns"])
    parser.add_argument("summaries", nargs="+", type=Path)
    parser.add_argument("--figures", required=True, help="names in the summaries, with commas between")
    given = parser.parse_args()
    runs: list[Methods] = [json.loads(path.read_text())["methods"] for path in given.summaries]
    table = list_rows if given.form == "rows" else list_columns
    for at, cells in enumerate(table(runs, given.figures.split(","))):
        print("| " + " | ".join(cells) + " |")
        if not at:
            print("|" + "---|" * len(cells))


if __name__ == "__main__":
    main()
