"""The embedders with the real MiniLM: vectors of unit length that mean something, and the same by either library."""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from counterfoil.config import build
from counterfoil.errors import ConfigError, EngineError, InputError
from decode.embedder import Embed, Embedder
from decode.embedders.sentence_transformers import SentenceTransformers
from decode.embedders.vllm_pooling import VllmPooling
from decode.engine import Request, Sampling, Session
from decode.engines.vllm import Vllm

TEXTS = [
    "A man is playing a guitar.",
    "Someone plays the guitar.",
    "The stock market fell on Monday.",
    "On Monday shares lost much of their value.",
    "Gr\u00fc\u00dfe aus M\u00fcnchen!",
    "x",
    "",
    "word " * 1000,
]
"""Two pairs of paraphrases; then what is unusual: other scripts, next to nothing, nothing, more than the model reads."""


@pytest.fixture(scope="module")
def embed() -> Embed:
    return SentenceTransformers(batch_size=2).open()


def check(embed: Embed, texts: Sequence[str]) -> None:
    vectors = embed(texts)
    assert (vectors.shape, vectors.dtype) == ((len(texts), 384), np.float32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_vectors_have_unit_length_and_paraphrases_are_near(embed: Embed) -> None:
    check(embed, TEXTS)
    cosines = embed(TEXTS[:4]) @ embed(TEXTS[:4]).T
    assert min(cosines[0, 1], cosines[2, 3]) > 0.5 > 0.3 > max(cosines[0, 2], cosines[0, 3], cosines[1, 2])


def test_a_text_has_one_vector_whatever_it_is_batched_with(embed: Embed) -> None:
    alone = np.vstack([embed([text]) for text in TEXTS])
    assert np.abs(embed(TEXTS) - alone).max() < 1e-5
    assert np.abs(embed(TEXTS[::-1])[::-1] - alone).max() < 1e-5


def test_nothing_to_embed_is_no_vectors(embed: Embed) -> None:
    assert len(embed([])) == 0


def test_what_is_too_long_is_cut_off(embed: Embed) -> None:
    """MiniLM reads 256 tokens: what comes after 1000 words is not among them."""
    assert np.abs(embed(["word " * 1000 + "guitar"]) - embed(["word " * 1000 + "market"])).max() < 1e-6


def test_a_prefix_stands_before_every_text(embed: Embed) -> None:
    prefixed = SentenceTransformers(prefix="query: ").open()
    assert np.abs(prefixed(TEXTS[:2]) - embed([f"query: {text}" for text in TEXTS[:2]])).max() < 1e-5


def test_an_identity_is_of_what_decides_about_vectors() -> None:
    usual = SentenceTransformers().identify()
    assert SentenceTransformers(batch_size=7).identify() == usual
    assert usual not in {SentenceTransformers(prefix="query: ").identify(), VllmPooling().identify()}


def test_a_model_or_a_library_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"embedder\.model"):
        SentenceTransformers(model=str(tmp_path)).open()
    with pytest.raises(InputError, match=r"model: \./nowhere"):
        SentenceTransformers(model="./nowhere").open()
    with pytest.raises(ConfigError, match="sentence_transformer"):
        build(Embedder, {"name": "sentence_transformer"}, source="test")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EngineError, match="counterfoil"):
        SentenceTransformers().open()


@pytest.mark.slow
def test_an_engine_goes_on_when_another_of_its_process_ends(vllm_session: Session) -> None:
    """Collected as garbage or closed, it leaves the process groups to those that still answer."""
    request = Request(id="q", prompt="Once upon a time", sampling=Sampling(max_new_tokens=4, temperature=0))
    before = [result.completions for result in vllm_session.complete([request])]
    pooling = VllmPooling(memory_gib=0.25).open()
    assert pooling(TEXTS[:1]).shape == (1, 384)
    del pooling
    gc.collect()
    assert [result.completions for result in vllm_session.complete([request])] == before
    with Vllm(max_model_len=64, max_num_seqs=2, kv_cache_gib=0.1).open("smollm2") as other:
        assert [result.completions for result in other.complete([request])] == before
    assert [result.completions for result in vllm_session.complete([request])] == before


@pytest.mark.slow
def test_vllm_gives_the_same_vectors(embed: Embed) -> None:
    """Both compute in float32; the cut at the model's limit is the same."""
    pooling = VllmPooling(memory_gib=0.25).open()
    check(pooling, TEXTS)
    assert (pooling(TEXTS) * embed(TEXTS)).sum(axis=1) == pytest.approx(1, abs=1e-3)
    assert len(pooling([])) == 0
