r"""Prefixes(Job): beginnings of real texts, and how they go on, for judging open-ended writing.

Source: Su et al. 2022 (arXiv 2202.06417), section 4: the first 32 tokens of a paragraph are the prefix, the next 128 what a
person wrote. Headings are no text. WikiText's tokenised text is joined again (" , " to ", ", " @-@ " to "-"); a corpus
without its marks is taken as it stands. It has "<unk>" for rare words: no prefix has one, and the text after it is written
without them, which lowers a little what is compared with it (MAUVE) and raises its own perplexity. A cut that would part the
tokens of one character is made before it.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.models import find_model
from counterfoil.records import Dropped, content_id
from decode.chat import encode_text, load_tokenizer

__all__ = ["Paragraph", "Prefixes", "cut_text", "join_words", "read_paragraphs"]

_JOIN = (
    (r" @([-,.])@ ", r"\1"),
    (r" ([,.;:!?%)\]}])", r"\1"),
    (r"([(\[{$]) ", r"\1"),
    (r'" ([^"]*?) "', r'"\1"'),
    (r" ('(?:s|t|re|ve|ll|d|m)\b)", r"\1"),
    (r" n 't\b", "n't"),
    (r"(\w) ' ", r"\1' "),
)
_UNKNOWN = "<unk>"
_MARKS = (" @-@ ", " @,@ ", " @.@ ", f" {_UNKNOWN} ")
_BROKEN = "\ufffd"
"""What a tokenizer writes for a part of a character."""


class Prefixes(Job):
    """Cut paragraphs of a text file into prefixes and references."""

    VERB: ClassVar[str] = "eval"

    corpus: InputPath
    """A text file, a paragraph a line."""
    model: ModelName = "smollm2"
    """Whose tokens are counted: a name, a folder, a GGUF file or a hub id."""
    count: int = Field(default=200, ge=1)
    """Prefixes."""
    prefix_tokens: int = Field(default=32, ge=1)
    """Tokens of a prefix."""
    text_tokens: int = Field(default=128, ge=1)
    """Tokens of what follows it."""
    seed: int = 0
    """Of the choice of paragraphs."""

    def work(self, run: Run) -> None:
        """Write prompts.jsonl: `prompt`, `reference` with the `text` that followed."""
        tokenizer = load_tokenizer(str(find_model(self.model)))
        found = list(dict.fromkeys(read_paragraphs(self.corpus)))
        random.Random(self.seed).shuffle(found)
        run.open_output("dropped.jsonl")
        kept: set[str] = set()
        for paragraph in found:
            run.counts["read"] = run.counts.get("read", 0) + 1
            row = self._cut(tokenizer, paragraph)
            if not isinstance(row, str) and row["prompt"] in kept:
                row = "came before"
            if isinstance(row, str):
                name = content_id(paragraph.text)
                run.drop(Dropped(id=name, stage="prefixes", reason=row, detail=paragraph.text[:80]))
                continue
            run.write("prompts.jsonl", row)
            kept.add(row["prompt"])
            if len(kept) == self.count:
                break
        if not kept:
            allowed = f"lines of at least {self.prefix_tokens + self.text_tokens} tokens"
            raise InputError(f"corpus: {self.corpus}", given="none", allowed=allowed, do="Give a longer text.")
        run.counts["kept"] = run.figures["prefixes"] = len(kept)

    def _cut(self, tokenizer: Any, paragraph: "Paragraph") -> dict[str, Any] | str:
        """Return the prefix and what follows it as a row, or why there is none."""
        ids, known = encode_text(tokenizer, paragraph.text), encode_text(tokenizer, paragraph.known)
        if len(ids) < self.prefix_tokens + self.text_tokens:
            return "too short"
        if known[: self.prefix_tokens] != ids[: self.prefix_tokens]:
            return "unknown word"
        at, end = (_find_cut(tokenizer, ids, at) for at in (self.prefix_tokens, self.prefix_tokens + self.text_tokens))
        if not 0 < at < end:
            return "too short"
        return {"prompt": tokenizer.decode(ids[:at]), "reference": {"text": tokenizer.decode(ids[at:end])}}


class Paragraph(NamedTuple):
    """A paragraph ready for use."""

    text: str
    """Without unknown words."""
    known: str
    """What stands before the first unknown word; all, where there is none."""


def read_paragraphs(corpus: Path) -> Iterator[Paragraph]:
    """Yield the paragraphs of a text file, without headings. Raises InputError for a file that is no text."""
    try:
        text = corpus.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        given = "a folder" if corpus.is_dir() else str(error)
        allowed, do = (
            "a text file in UTF-8, a paragraph a line",
            "Give one file, and convert it where it is in another code.",
        )
        raise InputError(f"corpus: {corpus}", given=given, allowed=allowed, do=do) from error
    join = join_words if any(mark in text for mark in _MARKS) else str.strip
    for line in text.splitlines():
        if line.strip() and not line.strip().startswith("="):
            yield Paragraph(join(line.replace(_UNKNOWN, " ")), join(line.partition(_UNKNOWN)[0]))


def join_words(text: str) -> str:
    """Undo the tokenisation of WikiText."""
    text = " ".join(text.split())
    for pattern, replacement in _JOIN:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def cut_text(tokenizer: Any, text: str, max_tokens: int) -> str:
    """Return a text's first tokens, at most `max_tokens` and no part of a character."""
    ids = encode_text(tokenizer, text)
    return text if len(ids) <= max_tokens else str(tokenizer.decode(ids[: _find_cut(tokenizer, ids, max_tokens)]))


def _find_cut(tokenizer: Any, ids: list[int], at: int) -> int:
    """Return the last place up to `at` where no character is cut in two."""
    whole = tokenizer.decode(ids).count(_BROKEN)
    while at > 0 and sum(tokenizer.decode(part).count(_BROKEN) for part in (ids[:at], ids[at:])) != whole:
        at -= 1
    return at
