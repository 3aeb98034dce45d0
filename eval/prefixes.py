r"""Prefixes(Job): beginnings of real texts, and how they go on, for judging open-ended writing.

Source: Su et al. 2022 (arXiv 2202.06417), section 4: the first 32 tokens of a paragraph are the prefix, the next 128 what a
person wrote. WikiText's tokenised text is joined again (" , " to ", ", " @-@ " to "-") and its headings are no text. It has
"<unk>" for rare words: no prefix has one, and the text after it is written without them, which lowers a little what is
compared with it (MAUVE) and raises its own perplexity.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.job import InputPath, Job, Run
from counterfoil.models import find_model

__all__ = ["Prefixes", "join_words", "read_paragraphs"]

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


class Prefixes(Job):
    """Cut paragraphs of a text file into prefixes and references."""

    VERB: ClassVar[str] = "eval"

    corpus: InputPath
    """A text file, a paragraph a line."""
    model: str = "smollm2"
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
        from decode.chat import encode_text, load_tokenizer

        tokenizer = load_tokenizer(str(find_model(self.model)))
        found = list(dict.fromkeys(read_paragraphs(self.corpus)))
        random.Random(self.seed).shuffle(found)
        kept: set[str] = set()
        for paragraph in found:
            run.counts["read"] = run.counts.get("read", 0) + 1
            ids = encode_text(tokenizer, join_words(paragraph))
            if len(ids) < self.prefix_tokens + self.text_tokens:
                run.dropped["prefixes: too short"] += 1
                continue
            known = encode_text(tokenizer, join_words(paragraph.partition(_UNKNOWN)[0]))
            if known[: self.prefix_tokens] != ids[: self.prefix_tokens]:
                run.dropped["prefixes: unknown word"] += 1
                continue
            prefix = tokenizer.decode(ids[: self.prefix_tokens])
            if prefix in kept:
                run.dropped["prefixes: came before"] += 1
                continue
            text = tokenizer.decode(ids[self.prefix_tokens : self.prefix_tokens + self.text_tokens])
            row: dict[str, Any] = {"prompt": prefix, "reference": {"text": text}}
            run.write("prompts.jsonl", row)
            kept.add(prefix)
            if len(kept) == self.count:
                break
        if not kept:
            allowed = f"lines of at least {self.prefix_tokens + self.text_tokens} tokens"
            raise InputError(f"corpus: {self.corpus}", given="none", allowed=allowed, do="Give a longer text.")
        run.counts["kept"] = run.figures["prefixes"] = len(kept)


def read_paragraphs(corpus: Path) -> Iterator[str]:
    """Yield the paragraphs of a text file as they stand there, without headings."""
    for line in corpus.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.strip().startswith("="):
            yield line


def join_words(text: str) -> str:
    """Undo the tokenisation of WikiText; its unknown words are left out."""
    text = " ".join(text.replace(_UNKNOWN, " ").split())
    for pattern, replacement in _JOIN:
        text = re.sub(pattern, replacement, text)
    return text.strip()
