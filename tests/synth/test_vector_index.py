"""The index of vectors against exact search."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterfoil.errors import InputError
from counterfoil.records import content_id
from synth.retrieval import VectorIndex

DIMS = 64


def name(*parts: Any) -> str:
    return content_id(*parts)


def make_vectors(count: int, *, seed: int = 0) -> Any:
    """Draw unit vectors in clusters: 20 centres, and noise about them."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, DIMS))
    found = centres[rng.integers(20, size=count)] + 0.7 * rng.normal(size=(count, DIMS))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def nearest(queries: Any, vectors: dict[str, Any], k: int) -> list[list[str]]:
    """Search by hand."""
    names, rows = list(vectors), np.stack(list(vectors.values()))
    return [[names[at] for at in order[:k]] for order in np.argsort(-(queries @ rows.T), axis=1)]


def recall(found: Sequence[Sequence[Any]], wanted: Sequence[Sequence[str]]) -> float:
    hits = [len({hit.id for hit in own} & set(best)) for own, best in zip(found, wanted, strict=True)]
    return sum(hits) / sum(map(len, wanted))


def make_index(vectors: dict[str, Any]) -> VectorIndex:
    index = VectorIndex(DIMS)
    index.add(list(vectors), np.stack(list(vectors.values())))
    return index


def test_an_index_finds_what_exact_search_finds() -> None:
    """By `exact` all of it but for ties within the rounding to 16 bits, by the graph at least 97 in 100."""
    vectors = {name(at): row for at, row in enumerate(make_vectors(3000))}
    index, queries = make_index(vectors), make_vectors(100, seed=1)
    wanted = nearest(queries, vectors, 10)
    assert recall(index.search(queries, 10, exact=True), wanted) >= 0.995
    assert recall(index.search(queries, 10), wanted) >= 0.97
    for query, hits in zip(queries, index.search(queries, 10), strict=True):
        assert [hit.cosine for hit in hits] == sorted((hit.cosine for hit in hits), reverse=True)
        assert [hit.cosine for hit in hits] == pytest.approx([float(query @ vectors[hit.id]) for hit in hits], abs=1e-3)
    assert [index.search(query[None], 10)[0] for query in queries] == index.search(queries, 10)


def test_vectors_are_replaced_and_removed_as_the_index_stands() -> None:
    """A third is replaced, a third taken out; what is found then is what is there then."""
    vectors = {name(at): row for at, row in enumerate(make_vectors(3000))}
    index, names = make_index(vectors), list(vectors)
    fresh = dict(zip(names[:1000], make_vectors(1000, seed=2), strict=True))
    index.add(list(fresh), np.stack(list(fresh.values())))
    assert len(index) == 3000
    assert index.remove([*names[1000:2000], name("unknown")]) == 1000
    left = {key: (vectors | fresh)[key] for key in [*names[:1000], *names[2000:]]}
    queries = make_vectors(100, seed=3)
    assert recall(index.search(queries, 10), nearest(queries, left, 10)) >= 0.97
    assert {hit.id for hits in index.search(queries, 50) for hit in hits} <= set(left)
    assert (len(index), names[0] in index, names[1000] in index) == (2000, True, False)
    assert index.get(names[0]) == pytest.approx(fresh[names[0]], abs=1e-3)
    with pytest.raises(KeyError, match=names[1000]):
        index.get(names[1000])


def test_an_index_is_the_same_file_each_time_and_read_back_goes_on(tmp_path: Path) -> None:
    vectors = {name(at): row for at, row in enumerate(make_vectors(500))}
    make_index(vectors).save(tmp_path / "one")
    make_index(vectors).save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    back, frozen = VectorIndex.load(tmp_path / "one"), VectorIndex.load(tmp_path / "one", frozen=True)
    queries = make_vectors(20, seed=1)
    assert back.search(queries, 5) == frozen.search(queries, 5) == make_index(vectors).search(queries, 5)
    back.remove(list(vectors)[:100])
    back.add([name("new")], queries[:1])
    assert (len(back), back.search(queries[:1], 1)[0][0].id) == (401, name("new"))
    with pytest.raises(AssertionError, match="no change"):
        frozen.remove(list(vectors)[:1])


def test_an_index_with_little_in_it_answers_with_what_there_is(tmp_path: Path) -> None:
    index, rows = VectorIndex(DIMS), make_vectors(2)
    assert index.search(rows, 3) == [[], []]
    index.add([], rows[:0])
    index.add([name(1), name(1)], rows)
    assert [[hit.id for hit in hits] for hits in index.search(rows, 3)] == [[name(1)], [name(1)]]
    assert index.search(rows[1:], 1)[0][0].cosine == pytest.approx(1, abs=1e-3)  # of two with one id the last
    with pytest.raises(ValueError, match="1 ids and vectors of"):
        index.add([name(2)], rows[:, :8])
    (tmp_path / "broken").write_bytes(b"no index at all")
    for path in ("nothing", "broken"):
        with pytest.raises(InputError, match=path):
            VectorIndex.load(tmp_path / path)
