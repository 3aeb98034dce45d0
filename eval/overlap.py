"""Texts that overlap with evaluation sets, by words in a row that both have.

Source: contamination by shared word n-grams (Brown et al. 2020, GPT-3, arXiv 2005.14165, appendix C, with 13 words).
Differences: (1) a text shorter than `ngram` words counts where it stands whole in another; (2) texts under `least_words`,
such as labels and single answers, do not; (3) in scripts that part words by no space each character is a word.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from counterfoil.errors import InputError
from counterfoil.jsonl import read_lines
from counterfoil.records import Dropped, Group, Message, Pair, Prompt, Triplet

__all__ = ["Marks", "find_overlap", "list_texts", "read_marks", "read_texts"]

NGRAM = 13
LEAST_WORDS = 8
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: no space parts their words, so that a character counts as one."""
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
FACTOR = 0x9E3779B97F4A7C15
"""An odd number: an n-gram's hash is the polynomial in it of the words' hashes, modulo 2^64."""


class Marks(NamedTuple):
    """Hashes of the word n-grams of one length in one set, sorted."""

    name: str
    size: int
    marks: Any


def read_marks(
    paths: Sequence[Path], *, ngram: int = NGRAM, least_words: int = LEAST_WORDS, where: str = "sets"
) -> list[Marks]:
    """Read each set's n-grams, and the texts that are shorter than one: 8 bytes for each.

    Raises InputError, naming `where`, for a set that is missing or has a broken line.
    """
    import numpy as np

    found: list[Marks] = []
    for path in paths:
        hashes: dict[int, list[Any]] = {}
        for text in read_texts(path, where=where):
            words = _split(text)
            size = min(len(words), ngram)
            if size >= min(least_words, ngram):
                hashes.setdefault(size, []).append(_hash(words, size))
        for size in sorted(hashes, reverse=True):
            marks = np.concatenate(hashes.pop(size))
            marks.sort()
            found.append(Marks(path.name, size, marks))
    return found


def read_texts(path: Path, *, where: str) -> Iterator[str]:
    """Yield every text in a set's rows, however deep. Raises InputError for a broken line."""
    for row in read_lines(path, where=where):
        if isinstance(row, Dropped):
            given, do = f"{row.reason} ({row.detail})", "Mend the line: what is not read is not looked for."
            raise InputError(f"{where}: {path}", given=given, allowed="a JSON object a line", do=do)
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


def list_texts(record: Pair | Group | Triplet | Prompt) -> tuple[list[str], list[tuple[str, str]]]:
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


def find_overlap(text: str, known: Sequence[Marks]) -> str | None:
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
