"""Drop pairs whose answers are in another language than they should be.

Source: langid.py of Lui and Baldwin 2012, as the package py3langid keeps it (97 languages, its model in the package).
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from counterfoil.errors import EngineError
from counterfoil.records import Dropped, Pair
from synth.filter import LocalFilter, drop

__all__ = ["Language"]


class Language(LocalFilter):
    """Compares languages where a text is long enough to tell."""

    wanted: tuple[str, ...] = ()
    """ISO 639-1 codes that are kept, such as `en`; empty wants the language of the prompt."""
    min_chars: int = Field(default=40, ge=1)
    """Shorter texts are of any language."""
    confidence: float = Field(default=0.9, gt=0, le=1)
    """Least probability at which a language is believed."""

    def open(self) -> Callable[[Pair], Dropped | None]:
        """Return the judgement. Raises EngineError without the library."""
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            allowed, do = "the package py3langid", "uv pip install 'counterfoil[synth]'"
            raise EngineError("filters: language", given=str(error), allowed=allowed, do=do) from error
        tell: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

        def read(text: str) -> str | None:
            if len(text.strip()) < self.min_chars:
                return None
            code, probability = tell.classify(text)
            return str(code) if probability >= self.confidence else None

        def judge(pair: Pair) -> Dropped | None:
            asked = None if self.wanted else read(pair.prompt[-1]["content"])
            allowed = self.wanted or ((asked,) if asked else ())
            for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                found = read(side[-1]["content"])
                if found is not None and allowed and found not in allowed:
                    return drop(pair, "language", f"the {name} answer is in another language", found)
            return None

        return judge
