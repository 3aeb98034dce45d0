"""Drop pairs that overlap with evaluation sets: training on them would measure memory.

Source: contamination by shared word n-grams (Brown et al. 2020, GPT-3, arXiv 2005.14165, appendix C, with 13 words), and by
nearness in meaning for what was reworded (Yang et al. 2023, arXiv 2311.04850). Differences: (1) a text shorter than `ngram`
words overlaps where it is found whole.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.job import InputPath
from counterfoil.jsonl import read_lines
from counterfoil.records import Dropped, Pair, content_id
from decode.embedder import Embedder
from synth.filter import LocalFilter, drop

__all__ = ["Overlap"]


class Overlap(LocalFilter):
    """Looks at the prompt and at both answers."""

    remembers: ClassVar[bool] = True  # nothing of pairs, but it is costly to open

    sets: tuple[InputPath, ...] = Field(min_length=1)
    """JSONL files of evaluation sets; every text in a row counts, however deep."""
    ngram: int = Field(default=13, ge=3)
    """Words in a row that no evaluation text may share."""
    embedder: Embedder | None = None
    """Compares prompts in meaning as well; None does not."""
    similarity: float = Field(default=0.9, gt=0, le=1)
    """Cosine with the nearest evaluation text from which a prompt counts as reworded."""

    def open(self) -> Callable[[Pair], Dropped | None]:
        """Read the sets. Raises InputError where a file is missing."""
        known: dict[int, str] = {}
        texts: list[str] = []
        for path in self.sets:
            for text in _read(path):
                texts.append(text)
                for mark in self._marks(text):
                    known.setdefault(mark, path.name)
        embed = self.embedder.open() if self.embedder is not None and texts else None
        vectors_ND: Any = embed(texts) if embed else None

        def judge(pair: Pair) -> Dropped | None:
            for name, side in (("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)):
                for message in side:
                    found = next((known[mark] for mark in self._marks(message["content"]) if mark in known), None)
                    if found is not None:
                        return drop(pair, "overlap", f"the {name} shares words with an evaluation set", found)
            if embed is not None:
                nearest_N = vectors_ND @ embed([pair.prompt[-1]["content"]])[0]
                at = int(nearest_N.argmax())
                if nearest_N[at] >= self.similarity:
                    detail = f"cosine {nearest_N[at]:.2f} with: {texts[at][:150]}"
                    return drop(pair, "overlap", "the prompt rewords an evaluation text", detail)
            return None

        return judge

    def _marks(self, text: str) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        if not words:
            return []
        rows = [words[at : at + self.ngram] for at in range(max(len(words) - self.ngram, 0) + 1)]
        return [int(content_id(row), 16) for row in rows]


def _read(path: Path) -> Iterator[str]:
    for row in read_lines(path, where="filters: overlap"):
        if not isinstance(row, Dropped):
            yield from _walk(row)


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)
