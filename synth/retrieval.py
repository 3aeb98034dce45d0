"""Neighbours in meaning: an index of vectors that lies in a run's folder, and the entries that it is of.

    index (synth/index.py): corpus -> describe -> embed -> FOLDER/vectors.usearch, entries.jsonl, settings.json
    recipes: an entry's id -> its vector -> its nearest entries

The vectors lie in a graph (Malkov and Yashunin 2016, HNSW, arXiv 1603.09320) of the library USearch, chosen with
benchmarks/retrieval.py for how it grows: it begins empty and takes, replaces and removes vectors under 64-bit keys, which
content ids are, and a finished file is searched where it lies. In half precision it finds what it finds in single, in
half the file and half the time to build. faiss's lists are built several times as fast, change at next to no cost and find no
less; but they are trained on a sample before they hold a first vector, which a filter does not have, and anew when they are
outgrown; its graph takes nothing out. LanceDB costs ten times the time a query. Building is not what one waits for: to embed
a text costs tens of times as much as to add its vector.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from counterfoil.errors import EngineError, InputError
from counterfoil.records import Prompt, Record
from eval.judging import show_request

__all__ = ["Entry", "Hit", "Neighbour", "Pool", "VectorIndex"]

VECTORS, ENTRIES, SETTINGS = "vectors.usearch", "entries.jsonl", "settings.json"
"""The files of an index."""
DTYPE = "f16"
CONNECTIVITY = 16
"""Links of a node in the graph."""
EXPANSION_ADD = 128
"""Candidates that are looked at for the links of a new vector."""
EXPANSION_SEARCH = 128
"""Candidates that a search holds, at least."""

_HEAD = b'{"id":"'  # how a line of entries begins; the id follows


class Hit(NamedTuple):
    """What a search found."""

    id: str
    cosine: float


class VectorIndex:
    """Unit vectors under content ids, of which nearest ones are found without looking at all; grows and shrinks as it is.

    One thread builds it, so that the same vectors in the same order make the same file; searches take all cores.
    """

    def __init__(self, num_dims: int) -> None:
        """Make an empty one. Raises EngineError without the library."""
        self._index: Any = _library().Index(
            ndim=num_dims, metric="ip", dtype=DTYPE, connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD,
            expansion_search=EXPANSION_SEARCH,
        )  # fmt: skip
        self._frozen = False

    @classmethod
    def load(cls, path: Path, *, frozen: bool = False) -> Self:
        """Read one; a frozen one stays on the disk, takes no memory and no change. Raises InputError where it is none."""
        library = _library()
        try:
            facts = library.Index.metadata(str(path))
            if facts is None:
                raise ValueError("no such file")
            index = cls(facts["dimensions"])
            (index._index.view if frozen else index._index.load)(str(path))
        except (ValueError, RuntimeError) as error:
            allowed, do = "an index that `synth index` wrote", "Check the path, or make it again."
            raise InputError(str(path), given=str(error), allowed=allowed, do=do) from error
        index._frozen = frozen
        return index

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: str) -> bool:
        return int(name, 16) in self._index

    @property
    def num_dims(self) -> int:
        """Return the vectors' dimensions."""
        return self._index.ndim

    def add(self, ids: Sequence[str], vectors_ND: Any) -> None:
        """Take vectors in; one whose id is there already takes its place, of two with one id the last does."""
        import numpy as np

        rows = {name: at for at, name in enumerate(ids)}
        if vectors_ND.shape != (len(ids), self.num_dims):
            raise ValueError(f"{len(ids)} ids and vectors of {vectors_ND.shape} for {self.num_dims} dimensions")
        if rows:
            self.remove(list(rows))
            self._index.add(_number(rows), np.ascontiguousarray(vectors_ND[list(rows.values())]), threads=1)

    def remove(self, ids: Sequence[str]) -> int:
        """Take out those that are there; return how many that were."""
        assert not self._frozen, "a frozen index takes no change"
        before, keys = len(self), _number(ids)
        if len(keys) and len(known := keys[self._index.contains(keys)]):
            self._index.remove(known, threads=1)
        return before - len(self)

    def get(self, name: str) -> Any:
        """Return the vector of an id, (D,) of float32. Raises KeyError where there is none."""
        found = self._index.get(int(name, 16))
        if found is None:
            raise KeyError(name)
        return found.astype("float32")

    def search(self, vectors_ND: Any, k: int, *, exact: bool = False) -> list[list[Hit]]:
        """Return for each vector its nearest k, nearest first; fewer where there are fewer. `exact` looks at all."""
        if len(self) == 0 or len(vectors_ND) == 0:
            return [[] for _ in vectors_ND]
        if len(vectors_ND) == 1:  # the library then answers without a batch around it
            found = [self._index.search(vectors_ND[0], k, exact=exact, threads=1)]
        else:
            found = self._index.search(vectors_ND, k, exact=exact)
        return [
            [
                Hit(f"{int(key):016x}", min(1.0, 1 - float(away)))
                for key, away in zip(one.keys, one.distances, strict=True)
            ]
            for one in (found[at] for at in range(len(vectors_ND)))
        ]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            self._index.save(str(partial))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class Entry(Record):
    """What an index holds a vector of."""

    id: str
    """Of the prompt."""
    prompt: Prompt
    description: str = ""
    """What a model said of it, which was then embedded in place of its text; empty where the text itself was."""


class Neighbour(NamedTuple):
    """An entry near another."""

    entry: Entry
    cosine: float


class Pool:
    """A finished index with its entries, both left on the disk: 16 bytes an entry are kept in memory."""

    def __init__(self, folder: Path) -> None:
        """Open it. Raises InputError where it is none, EngineError without the library."""
        import numpy as np

        if missing := [name for name in (VECTORS, ENTRIES, SETTINGS) if not (folder / name).is_file()]:
            allowed, do = "the folder `index` of a run of `synth index`", "Check the path."
            raise InputError(str(folder), given=f"no {', '.join(missing)}", allowed=allowed, do=do)
        self.vectors = VectorIndex.load(folder / VECTORS, frozen=True)
        self.settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        self._path = folder / ENTRIES
        starts, keys, at = array("q"), array("Q"), 0
        with self._path.open("rb") as lines:
            for line in lines:
                starts.append(at)
                keys.append(int(line[len(_HEAD) : len(_HEAD) + 16], 16))
                at += len(line)
        order = np.argsort(np.frombuffer(keys, dtype=np.uint64))
        self._keys = np.frombuffer(keys, dtype=np.uint64)[order]
        self._starts = np.frombuffer(starts, dtype=np.int64)[order]

    def __contains__(self, name: str) -> bool:
        return name in self.vectors

    def ids(self) -> Iterator[str]:
        """Yield the ids of all entries."""
        return (f"{key:016x}" for key in self._keys.tolist())

    def entry(self, name: str) -> Entry:
        """Return the entry of an id that is there."""
        key = _number([name])[0]
        at = int(self._keys.searchsorted(key))
        assert self._keys[at] == key, "vectors and entries of one index"
        with self._path.open("rb") as lines:
            lines.seek(int(self._starts[at]))
            return Entry.model_validate_json(lines.readline())

    def neighbours(
        self, name: str, k: int, *, cosines: tuple[float, float], wanted: Callable[[Entry], bool]
    ) -> list[Neighbour]:
        """Return the nearest k entries that are `wanted` with a cosine between the two, nearest first.

        Never the entry itself, and no text twice: a duplicate teaches nothing. Looks further until there are k.
        """
        least, most = cosines
        vector, num_looked = self.vectors.get(name), 2 * k + 8
        while True:
            hits = self.vectors.search(vector[None], num_looked)[0]
            texts, found = {_fold(self.entry(name).prompt)}, list[Neighbour]()
            for hit in hits:
                if hit.id != name and least <= hit.cosine <= most and len(found) < k:
                    entry = self.entry(hit.id)
                    if (text := _fold(entry.prompt)) not in texts and wanted(entry):
                        texts.add(text)
                        found.append(Neighbour(entry, hit.cosine))
            if len(found) == k or len(hits) < num_looked or hits[-1].cosine < least:
                return found
            num_looked *= 4


def _fold(prompt: Prompt) -> str:
    return " ".join(show_request(prompt).casefold().split())


def _library() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        allowed, do = "the package usearch", "uv pip install 'counterfoil[synth]'"
        raise EngineError("vector index", given=str(error), allowed=allowed, do=do) from error
    return usearch.index


def _number(ids: Iterable[str]) -> Any:
    """Return the 64-bit numbers that content ids are."""
    import numpy as np

    return np.array([int(name, 16) for name in ids], dtype=np.uint64)
