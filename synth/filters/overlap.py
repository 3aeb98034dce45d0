"""Drop pairs that overlap with evaluation sets: training on them would measure memory.

Source: contamination by shared word n-grams (Brown et al. 2020, GPT-3, arXiv 2005.14165, appendix C, with 13 words), and by
nearness in meaning for what was reworded (Yang et al. 2023, arXiv 2311.04850). Differences: (1) a text shorter than `ngram`
words counts where it stands whole in another; (2) texts under `least_words`, such as labels and single answers, do not; (3)
in scripts that part words by no space each character is a word.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.jsonl import read_lines
from counterfoil.records import Dropped, Group, Message, Pair, Prompt, Record, Triplet
from decode.embedder import Embedder
from synth.filter import Judge, LocalFilter, drop

__all__ = ["Overlap"]

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: no space parts their words, so that a character counts as one."""
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
FACTOR = 0x9E3779B97F4A7C15
"""An odd number: an n-gram's hash is the polynomial in it of the words' hashes, modulo 2^64."""


class _Marks(NamedTuple):
    """Hashes of the word n-grams of one length in one set, sorted."""

    name: str
    size: int
    marks: Any


class Overlap(LocalFilter):
    """Looks at the prompt and at all that answers it; keeps 8 bytes for each n-gram of the sets."""

    takes: ClassVar[tuple[type[Record], ...]] = (Pair, Group, Triplet, Prompt)
    remembers: ClassVar[bool] = True  # nothing of pairs, but it is costly to open

    sets: tuple[InputPath, ...] = Field(min_length=1)
    """JSONL files of evaluation sets; every text in a row counts, however deep."""
    ngram: int = Field(default=13, ge=3)
    """Words in a row that no evaluation text may share."""
    least_words: int = Field(default=8, ge=1)
    """Evaluation texts of fewer words are not looked for, but by the embedder."""
    embedder: Embedder | None = None
    """Compares prompts in meaning as well; None does not."""
    similarity: float = Field(default=0.9, gt=0, le=1)
    """Cosine with the nearest evaluation text from which a prompt counts as reworded."""

    def open(self) -> Judge:
        """Read the sets. Raises InputError where one is missing, has a broken line, or nothing that can be looked for."""
        known = self._read_marks()
        texts = list(dict.fromkeys(self._read_texts())) if self.embedder is not None else []
        embed = self.embedder.open() if self.embedder is not None else None
        vectors_ND: Any = embed(texts) if embed else None

        def judge(record: Pair | Group | Triplet | Prompt) -> Dropped | None:
            prompt, rest = _list_texts(record)
            for name, text in [*(("prompt", text) for text in prompt), *rest]:
                found = _find(text, known)
                if found is not None:
                    return drop(record, "overlap", f"the {name} shares words with an evaluation set", found)
            if embed is not None:
                nearest_N = vectors_ND @ embed(prompt[-1:])[0]
                at = int(nearest_N.argmax())
                if nearest_N[at] >= self.similarity:
                    detail = f"cosine {nearest_N[at]:.2f} with: {texts[at][:150]}"
                    return drop(record, "overlap", "the prompt rewords an evaluation text", detail)
            return None

        return judge

    def _read_texts(self) -> Iterator[str]:
        return (text for path in self.sets for text in _read(path))

    def _read_marks(self) -> list[_Marks]:
        """Read each set's n-grams, and the texts that are shorter than one."""
        import numpy as np

        found: list[_Marks] = []
        for path in self.sets:
            hashes: dict[int, list[Any]] = {}
            for text in _read(path):
                words = _split(text)
                size = min(len(words), self.ngram)
                if size >= min(self.least_words, self.ngram):
                    hashes.setdefault(size, []).append(_hash(words, size))
            for size in sorted(hashes, reverse=True):
                marks = np.concatenate(hashes.pop(size))
                marks.sort()
                found.append(_Marks(path.name, size, marks))
        if not found and self.embedder is None:
            given, do = f"no text of {self.least_words} words or more", "Lower `least_words`, or give an embedder."
            raise InputError("filters: overlap: sets", given=given, allowed="JSONL rows with texts", do=do)
        return found


def _list_texts(record: Pair | Group | Triplet | Prompt) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the prompt's texts, and what answers it, each with its name."""
    match record:
        case Pair():
            sides = (("chosen", record.chosen), ("rejected", record.rejected))
            return _contents(record.prompt), [(name, text) for name, side in sides for text in _contents(side)]
        case Group():
            own = [("prompt", text) for item in record.answers if item.prompt for text in _contents(item.prompt)]
            return _contents(record.prompt), own + [("answer", item.text) for item in record.answers]
        case Triplet():
            others = [("positive", record.positive), ("negative", record.negative)]
            others += [("positive", text) for text in record.shares]
            return [record.anchor], [(name, text) for name, text in others if text is not None]
        case Prompt():
            return _contents(record.messages), []


def _contents(said: str | Sequence[Message]) -> list[str]:
    return [said] if isinstance(said, str) else [message["content"] for message in said]


def _find(text: str, known: Sequence[_Marks]) -> str | None:
    """Return the set that a text overlaps with, and the words that they share."""
    words = _split(text)
    for name, size, marks in known:
        if size <= len(words):
            own = _hash(words, size)
            shared = (marks[marks.searchsorted(own).clip(max=len(marks) - 1)] == own).nonzero()[0]
            if len(shared):
                return f"{name}: {' '.join(words[shared[0] : shared[0] + size])}"
    return None


def _split(text: str) -> list[str]:
    return WORD.findall(text.lower())


@lru_cache(maxsize=1 << 16)
def _hash_word(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _hash(words: list[str], size: int) -> Any:
    """Return the hash of each `size` words in a row."""
    import numpy as np

    own = np.fromiter(map(_hash_word, words), np.uint64, len(words))
    num_rows = len(words) - size + 1
    found = np.zeros(num_rows, np.uint64)
    for at in range(size):
        found = found * np.uint64(FACTOR) + own[at : at + num_rows]
    return found


def _read(path: Path) -> Iterator[str]:
    for row in read_lines(path, where="filters: overlap"):
        if isinstance(row, Dropped):
            given, do = f"{row.reason} ({row.detail})", "Mend the line: what is not read is not looked for."
            raise InputError(f"filters: overlap: {path}", given=given, allowed="a JSON object a line", do=do)
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
