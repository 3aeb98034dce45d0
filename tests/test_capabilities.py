"""The law of capabilities: what an engine lacks is named on both sides before any weight is read."""

from pathlib import Path

import pytest

from counterfoil.config import build, find_class, list_family
from counterfoil.errors import EngineError
from decode.engine import Engine
from synth.recipe import Recipe
from synth.synthesize import Synthesize

POOR = """
from typing import ClassVar
from decode.engine import Engine
from decode.method import Method
class Poor(Engine):
    gives: ClassVar[frozenset[str]] = frozenset({"chat", "text"})
    def open(self, model, *, adapters=(), methods=()):
        raise AssertionError("opened")
"""


@pytest.mark.parametrize("name", list_family(Engine))
def test_what_an_engine_gives_is_known_without_an_object(name: str) -> None:
    assert isinstance(find_class(Engine, name).gives, frozenset)


@pytest.mark.parametrize("name", list_family(Recipe))
def test_what_a_recipe_asks_is_known_before_anything_opens(name: str) -> None:
    found = build(find_class(Recipe, name), {}, source="test")
    assert all(found.asks().values())


def test_a_lack_is_named_on_both_sides_before_anything_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """best_of_n needs chat, n and seed; the engine gives chat and text."""
    (tmp_path / "laws_engine").mkdir()
    (tmp_path / "laws_engine" / "poor.py").write_text(POOR)
    monkeypatch.syspath_prepend(tmp_path)
    job = build(Synthesize, {"engine": "laws_engine.poor"}, source="test")
    with pytest.raises(EngineError, match="needs n, seed, which engine 'poor' does not give") as raised:
        job.run(tmp_path / "run", quiet=True)
    assert raised.value.allowed == "poor gives chat, text"
    assert not (tmp_path / "run").exists()
