"""Prompts from JSONL files of the user's: one to learn from, one that is held out."""

from collections.abc import Iterator

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.jsonl import describe_file
from counterfoil.records import Dropped, Prompt
from decode.generate import read_prompts
from eval.scorer import LocalScorer
from eval.scorers.verifiable import Verifiable
from eval.task import Split, Task

__all__ = ["File"]


class File(Task):
    """A row a prompt: a text or a list of messages; its `reference` holds what the scorer needs."""

    path: InputPath | None = None
    """JSONL of the training split."""
    heldout: InputPath | None = None
    """JSONL of the held-out split."""
    column: str = "prompt"
    """The column with the text or the messages; a column `messages` is taken first."""
    scoring: LocalScorer = Verifiable()
    """What judges the answers."""

    def prompts(self, split: Split) -> Iterator[Prompt | Dropped]:
        """Read a split's rows in order; what cannot be a prompt comes as Dropped."""
        where, path = ("path", self.path) if split == "train" else ("heldout", self.heldout)
        if path is None:
            raise InputError(f"task.{where}", given="nothing", allowed="a JSONL file", do=f"Give task.{where}=FILE.")
        return read_prompts(path, column=self.column, where=f"task.{where}", asked=True)

    def size(self, split: Split) -> int | None:
        """Count the lines of a split's file."""
        path = self.path if split == "train" else self.heldout
        return describe_file(path).num_lines if path is not None and path.is_file() else None

    def scorer(self) -> LocalScorer:
        """Return the scorer given."""
        return self.scoring
