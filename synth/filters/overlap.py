"""Drop pairs that overlap with evaluation sets: training on them would measure memory.

Source: shared words by `eval/overlap.py`, which names its own, and nearness in meaning for what was reworded (Yang et al.
2023, arXiv 2311.04850).
"""

from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.records import Dropped, Group, Pair, Prompt, Record, Triplet
from decode.embedder import Embedder
from eval.overlap import LEAST_WORDS, NGRAM, find_overlap, list_texts, read_marks, read_texts
from synth.filter import Judge, LocalFilter, drop

__all__ = ["Overlap"]


class Overlap(LocalFilter):
    """Looks at the prompt and at all that answers it; keeps 8 bytes for each n-gram of the sets."""

    takes: ClassVar[tuple[type[Record], ...]] = (Pair, Group, Triplet, Prompt)
    remembers: ClassVar[bool] = True  # nothing of pairs, but it is costly to open

    sets: tuple[InputPath, ...] = Field(min_length=1)
    """JSONL files of evaluation sets; every text in a row counts, however deep."""
    ngram: int = Field(default=NGRAM, ge=3)
    """Words in a row that no evaluation text may share."""
    least_words: int = Field(default=LEAST_WORDS, ge=1)
    """Evaluation texts of fewer words are not looked for, but by the embedder."""
    embedder: Embedder | None = None
    """Compares prompts in meaning as well; None does not."""
    similarity: float = Field(default=0.9, gt=0, le=1)
    """Cosine with the nearest evaluation text from which a prompt counts as reworded."""

    def open(self) -> Judge:
        """Read the sets. Raises InputError where one is missing, has a broken line, or nothing that can be looked for."""
        where = "filters: overlap: sets"
        known = read_marks(self.sets, ngram=self.ngram, least_words=self.least_words, where=where)
        if not known and self.embedder is None:
            given, do = f"no text of {self.least_words} words or more", "Lower `least_words`, or give an embedder."
            raise InputError(where, given=given, allowed="JSONL rows with texts", do=do)
        every = (text for path in self.sets for text in read_texts(path, where=where))
        texts = list(dict.fromkeys(every)) if self.embedder is not None else []
        embed = self.embedder.open() if self.embedder is not None else None
        vectors_ND: Any = embed(texts) if embed else None

        def judge(record: Pair | Group | Triplet | Prompt) -> Dropped | None:
            prompt, rest = list_texts(record)
            for name, text in [*(("prompt", text) for text in prompt), *rest]:
                found = find_overlap(text, known)
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
