"""Puzzles(Job): questions with known answers out of reasoning-gym's generators, for `split`.

Source: Stojanovski et al. 2025 (arXiv 2505.24760), by its library: each generator draws puzzles from a seed.
"""

import importlib
import importlib.util
import json
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import ConfigError
from counterfoil.job import Job, Run
from counterfoil.records import Dropped, content_id

__all__ = ["Puzzles"]


class Puzzles(Job):
    """Write questions.jsonl: `question`, `answer` and `metadata`, what the generator says of a puzzle."""

    VERB: ClassVar[str] = "eval"

    generator: str = "chain_sum"
    """A data set of reasoning-gym."""
    options: dict[str, Any] = {}
    """Its settings."""
    count: int = Field(default=2000, ge=1)
    """Puzzles drawn."""
    seed: int = 0
    """Of the draw."""

    def work(self, run: Run) -> None:
        """Draw."""
        if importlib.util.find_spec("reasoning_gym") is None:
            do = "Install reasoning-gym."
            raise ConfigError("puzzles", given="no package reasoning_gym", allowed="reasoning-gym installed", do=do)
        reasoning_gym: Any = importlib.import_module("reasoning_gym")
        run.facts["seeds"] = {"seed": self.seed}
        run.open_output("dropped.jsonl")
        run.open_output("questions.jsonl")
        try:
            drawn = reasoning_gym.create_dataset(self.generator, size=self.count, seed=self.seed, **self.options)
        except (ValueError, TypeError, AssertionError) as error:
            do = "See reasoning-gym's list of data sets and their settings."
            raise ConfigError("generator", given=f"{self.generator}: {error}", allowed="a known one", do=do) from error
        for row in drawn:
            run.counts["read"] = run.counts.get("read", 0) + 1
            if not row["question"] or row["answer"] is None:
                run.drop(Dropped(id=content_id(row["question"]), stage="puzzles", reason="no answer"))
                continue
            told = json.loads(json.dumps(row.get("metadata", {}), default=str))  # generators put objects in, too
            run.write("questions.jsonl", {"question": row["question"], "answer": str(row["answer"]), "metadata": told})
            run.counts["kept"] = run.counts.get("kept", 0) + 1
