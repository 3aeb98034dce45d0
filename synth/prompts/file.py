"""Prompts from a JSONL file: texts, message lists or Prompt records."""

from collections.abc import Iterator

from counterfoil.job import InputPath
from counterfoil.jsonl import describe_file
from counterfoil.records import Dropped, Prompt
from decode.generate import read_prompts
from synth.source import Source

__all__ = ["File"]


class File(Source):
    """A row a prompt; a `reference` column holds what the scorer needs."""

    path: InputPath
    """The JSONL file."""
    column: str = "prompt"
    """The column with the text or the messages; a column `messages` is taken first."""

    def read(self) -> Iterator[Prompt | Dropped]:
        """Read the rows in order."""
        return read_prompts(self.path, column=self.column, where="prompts.path")

    def size(self) -> int | None:
        """Count lines."""
        return describe_file(self.path).num_lines if self.path.is_file() else None
