"""Drop pairs whose answers are in another language than they should be.

Source: langid.py of Lui and Baldwin 2012, as the package py3langid keeps it, its model in the package. Differences: (1) a
text that is short, or for which no language is likely (code, numbers, names), is of any language.
"""

from functools import lru_cache
from typing import Any

from pydantic import Field

from counterfoil.errors import ConfigError, EngineError
from counterfoil.records import Dropped, Pair
from synth.filter import Judge, LocalFilter, drop

__all__ = ["Language"]

TOLD = 0.5
"""The likeliest language of a text that is of any has less; of code and numbers it is far below."""


class Language(LocalFilter):
    """Compares languages where a text is long enough to tell."""

    wanted: tuple[str, ...] = ()
    """ISO 639-1 codes that are kept, such as `en`; empty wants the prompt's language, which fits no translations."""
    min_chars: int = Field(default=40, ge=1)
    """Shorter texts are of any language."""
    confidence: float = Field(default=0.9, gt=0.5, le=1)
    """Least probability of another language than those wanted: relatives, such as Spanish and Galician, share theirs."""

    def open(self) -> Judge:
        """Return the judgement. Raises EngineError without the library, ConfigError for a language that it does not know."""
        tell = _load()
        for code in self.wanted:
            if code not in tell.nb_classes:
                allowed, do = ", ".join(tell.nb_classes), "Write a language by its code."
                raise ConfigError("filters: language: wanted", given=repr(code), allowed=allowed, do=do)

        def read(text: str) -> dict[str, float]:
            """Return the probability of each language, of none where that cannot be told."""
            if len(text.strip()) < self.min_chars:
                return {}
            found = {str(code): float(probability) for code, probability in tell.rank(text)}
            return found if max(found.values()) >= TOLD else {}

        def judge(pair: Pair) -> Dropped | None:
            asked = {} if self.wanted else read(pair.prompt[-1]["content"])
            wanted = self.wanted or tuple(sorted(asked, key=lambda code: -asked[code])[:1])
            for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                found = read(side[-1]["content"]) if wanted else {}
                if found and sum(found[code] for code in set(wanted)) <= 1 - self.confidence:
                    likeliest = max(found, key=lambda code: found[code])
                    return drop(pair, "language", f"the {name} answer is in another language", likeliest)
            return None

        return judge


@lru_cache(maxsize=1)
def _load() -> Any:
    """Read the library's model once: that takes seconds."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        allowed, do = "the package py3langid", "uv pip install 'counterfoil[synth]'"
        raise EngineError("filters: language", given=str(error), allowed=allowed, do=do) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
