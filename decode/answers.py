"""Answers that are kept: what an engine answered, by what it was really sent, so that nothing is asked twice.

A key is of the engine's identity (the weights' and the tokenizer's fingerprint, or a server's address and model), the
prompt, the sampling, the adapter's own content and the method: change one and it is asked again, change nothing and nothing
is asked. A run keeps its answers in its own folder, which is all that it needs to go on; a copy goes into a file that all
runs of a user share, where another run finds what it would ask: one with another margin, another filter, one more stage. That
file is answers.sqlite in the user's cache, or what COUNTERFOIL_ANSWERS names (0 for none). It may be deleted at any time.
"""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from counterfoil.errors import RunError
from counterfoil.models import cache_folder
from counterfoil.records import Completion
from counterfoil.store import Store

__all__ = ["Answers", "shared_path"]

_PARTS = TypeAdapter(list[dict[str, Any]])


def shared_path() -> Path | None:
    """Return the file that runs share, or None where they share nothing."""
    given = os.environ.get("COUNTERFOIL_ANSWERS")
    if given is None:
        return cache_folder() / "answers.sqlite"
    return None if given in ("", "0") else Path(given)


@lru_cache(maxsize=1)
def _open_shared(path: Path | None) -> Store | None:
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Store(path)
    except (RunError, OSError):  # broken, or not ours to write: a run does without
        return None


class Answers:
    """A durable map from what was sent to what came back."""

    def __init__(self, own: Store) -> None:
        self._own, self._shared = own, _open_shared(shared_path())

    def has(self, key: str) -> bool:
        """Say whether there is an answer."""
        return self.find(key, prompt_id="") is not None

    def find(self, key: str, *, prompt_id: str, start: int = 0) -> tuple[Completion, ...] | None:
        """Return what was answered, as answers to `prompt_id` numbered from `start`; None where nothing was."""
        kept = self._own.get("answer", key)
        if kept is None:
            kept = self._read_shared(key)
            if kept is None:
                return None
            self._own.put("answer", key, kept)  # so that the run goes on by its own folder alone
        try:
            return tuple(
                Completion.make(prompt_id=prompt_id, index=start + at, **part)
                for at, part in enumerate(_PARTS.validate_json(kept))
            )
        except ValidationError:  # of another version, or of another's hand: it is asked again
            return None

    def _read_shared(self, key: str) -> str | None:
        with suppress(sqlite3.Error):
            return self._shared.get("answer", key) if self._shared is not None else None
        return None

    def keep(self, key: str, completions: Sequence[Completion]) -> bool:
        """Keep an answer; False where one is kept already, which stays: two may have asked the same at a time."""
        parts = [item.model_dump(exclude={"id", "prompt_id", "index"}, exclude_none=True) for item in completions]
        text = _PARTS.dump_json(parts).decode()
        if not self._own.add("answer", key, text):
            if self.find(key, prompt_id="") is not None:
                return False
            self._own.put("answer", key, text)
        if self._shared is not None:
            with suppress(OSError, sqlite3.Error):  # a copy: a run does without
                self._shared.add("answer", key, text)
        return True
