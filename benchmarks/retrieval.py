"""Vector indexes side by side on vectors like those of real text: what synth/retrieval.py stands on, and why.

    python benchmarks/retrieval.py small TEXT.txt ... [--lancedb PYTHON]   # 100,000 vectors, all candidates
    python benchmarks/retrieval.py large TEXT.txt ...                      # 1,000,000 vectors, ours alone
    python benchmarks/retrieval.py tiny TEXT.txt ...                       # 20,000 vectors: whether all of it runs

TEXT.txt is prose, a paragraph a line, such as WikiText-2's validation and test files. MiniLM embeds 2,000 of its sentences
(384 dimensions; kept beside the system's temporary files). 500 of them are the queries; a vector of the corpus is one of the
others, moved by the difference of two more times 0.2 to 1.0: so vectors lie in clusters of many densities, in directions
in which texts differ, as iid noise does not. A candidate has a process of its own on one core; LanceDB may have its own
interpreter. Ground truth is the product with all vectors. The change is 5 % replaced and 5 % removed. Times are CPU seconds,
which other work on the machine hardly lengthens; memory is what the process grew by, at its peak. faiss-cpu has to be there.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:] = [folder for folder in sys.path if folder != str(HERE)]  # files here are named like packages

SIZES = {"tiny": 20_000, "small": 100_000, "large": 1_000_000}
NUM_SENTENCES = 2000
NUM_QUERIES = 500
NUM_SINGLE = 200
K = 10
WIDTH = 128  # candidates that a search of a graph holds; lists read are a quarter
CHUNK = 20_000
SCRATCH = Path(tempfile.gettempdir()) / "counterfoil-retrieval"


class Ours:
    """synth/retrieval.py itself, whose names are the keys in hexadecimal digits: 64-bit numbers, as content ids are."""

    def __init__(self) -> None:
        from synth.retrieval import VectorIndex

        self._index = VectorIndex(384)

    def build(self, chunks: Iterator[tuple[Any, Any]], size: int) -> None:
        """Add chunk by chunk."""
        for keys, vectors in chunks:
            self._index.add(_name(keys), vectors)

    def search(self, queries: Any) -> Any:
        """Search by batch."""
        return [[int(hit.id, 16) for hit in hits] for hits in self._index.search(queries, K)]

    def replace(self, keys: Any, vectors: Any) -> None:
        """Replace."""
        self._index.add(_name(keys), vectors)

    def remove(self, keys: Any) -> None:
        """Remove."""
        self._index.remove(_name(keys))

    def save(self, folder: Path) -> None:
        """Write the file."""
        self._index.save(folder / "vectors.usearch")


class Usearch:
    """USearch's HNSW with keys, built by its defaults."""

    def __init__(self, dtype: str) -> None:
        from usearch.index import Index

        self._index = Index(ndim=384, metric="ip", dtype=dtype, expansion_search=WIDTH)

    def build(self, chunks: Iterator[tuple[Any, Any]], size: int) -> None:
        """Add chunk by chunk."""
        for keys, vectors in chunks:
            self._index.add(keys, vectors, threads=1)

    def search(self, queries: Any) -> Any:
        """Search by batch."""
        return self._index.search(queries, K, threads=1).keys.reshape(len(queries), -1)

    def replace(self, keys: Any, vectors: Any) -> None:
        """Remove and add."""
        self.remove(keys)
        self._index.add(keys, vectors, threads=1)

    def remove(self, keys: Any) -> None:
        """Remove."""
        self._index.remove(keys, threads=1)

    def save(self, folder: Path) -> None:
        """Write the file."""
        self._index.save(folder / "usearch")


class FaissIvf:
    """Lists around 4 sqrt(N) centroids, learnt from a sample of the corpus, of which WIDTH / 4 are looked into."""

    def __init__(self) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self._faiss: Any = faiss

    def build(self, chunks: Iterator[tuple[Any, Any]], size: int) -> None:
        """Learn centroids from the first chunks, then add."""
        import numpy as np

        faiss = self._faiss
        num_lists = int(4 * size**0.5)
        self._index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(384), 384, num_lists, faiss.METRIC_INNER_PRODUCT)
        self._index.nprobe = WIDTH // 4
        first: list[tuple[Any, Any]] = []
        while sum(len(keys) for keys, _ in first) < min(size, 40 * num_lists):
            first.append(next(chunks))
        self._index.train(np.concatenate([vectors for _, vectors in first]))
        self._index.set_direct_map_type(faiss.DirectMap.Hashtable)
        for part in (first, chunks):
            for keys, vectors in part:
                self._index.add_with_ids(vectors, keys.astype(np.int64))

    def search(self, queries: Any) -> Any:
        """Search by batch."""
        return self._index.search(queries, K)[1].astype("uint64")

    def replace(self, keys: Any, vectors: Any) -> None:
        """Remove and add."""
        self.remove(keys)
        self._index.add_with_ids(vectors, keys.astype("int64"))

    def remove(self, keys: Any) -> None:
        """Remove."""
        signed = keys.astype("int64")
        self._index.remove_ids(self._faiss.IDSelectorArray(len(signed), self._faiss.swig_ptr(signed)))

    def save(self, folder: Path) -> None:
        """Write the file."""
        self._faiss.write_index(self._index, str(folder / "faiss"))


class FaissHnsw(FaissIvf):
    """HNSW with the graph of USearch's defaults; it can neither replace nor remove."""

    def build(self, chunks: Iterator[tuple[Any, Any]], size: int) -> None:
        """Add chunk by chunk."""
        graph = self._faiss.IndexHNSWFlat(384, 16, self._faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = 128, WIDTH
        self._index = self._faiss.IndexIDMap2(graph)
        for keys, vectors in chunks:
            self._index.add_with_ids(vectors, keys.astype("int64"))


class Lancedb:
    """LanceDB's IVF with HNSW inside and scalar quantisation, its results refined with the vectors as they were."""

    def __init__(self) -> None:
        import lancedb

        self._folder = tempfile.TemporaryDirectory()
        self._database: Any = lancedb.connect(self._folder.name)

    def build(self, chunks: Iterator[tuple[Any, Any]], size: int) -> None:
        """Write a table, then index it."""
        table = None
        for keys, vectors in chunks:
            rows = self._rows(keys, vectors)
            table = table or self._database.create_table("t", schema=rows.schema)
            table.add(rows)
        self._table: Any = table
        self._table.create_index(metric="dot", vector_column_name="vector", index_type="IVF_HNSW_SQ")
        self._table.create_scalar_index("key")

    def search(self, queries: Any) -> Any:
        """Search one by one: there is no batch that comes back in order."""
        found: list[list[int]] = []
        for query in queries:
            near = self._table.search(query).distance_type("dot").ef(WIDTH).refine_factor(2).limit(K)
            found.append([row["key"] for row in near.select(["key", "_distance"]).to_list()])
        return found

    def replace(self, keys: Any, vectors: Any) -> None:
        """Replace, and let the index take it in."""
        rows = self._rows(keys, vectors)
        self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self._table.optimize()

    def remove(self, keys: Any) -> None:
        """Remove."""
        self._table.delete(f"key IN ({', '.join(map(str, keys.tolist()))})")
        self._table.optimize()

    def save(self, folder: Path) -> None:
        """It lies on the disk already."""
        for path in Path(self._folder.name).rglob("*"):
            if path.is_file():
                (folder / f"{hash(path)}").hardlink_to(path)

    @staticmethod
    def _rows(keys: Any, vectors: Any) -> Any:
        import pyarrow as pa

        rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 384)
        return pa.table({"key": pa.array(keys), "vector": rows})


CANDIDATES: dict[str, Any] = {
    "ours": Ours,
    "usearch f32": lambda: Usearch("f32"),
    "usearch f16": lambda: Usearch("f16"),
    "faiss hnsw": FaissHnsw,
    "faiss ivf": FaissIvf,
    "lancedb": Lancedb,
}


def _name(keys: Any) -> list[str]:
    return [f"{key:016x}" for key in keys.tolist()]


def embed(texts: Sequence[Path]) -> Path:
    """Embed the sentences, once; return the file of their vectors."""
    sentences: dict[str, None] = {}
    for path in texts:
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.strip().startswith("="):  # WikiText's headings
                sentences |= dict.fromkeys(re.split(r"(?<= [.!?]) ", line.strip()))
    kept = [text for text in sentences if 6 <= len(text.split()) <= 30]
    kept = kept[:: max(1, len(kept) // NUM_SENTENCES)][:NUM_SENTENCES]
    path = SCRATCH / f"{hashlib.blake2b(chr(10).join(kept).encode(), digest_size=6).hexdigest()}.npy"
    if not path.is_file():
        import numpy as np

        from decode.embedders.sentence_transformers import SentenceTransformers

        SCRATCH.mkdir(exist_ok=True)
        started = time.perf_counter()
        vectors = SentenceTransformers().open()(kept)
        print(f"embedded {len(kept):,} sentences in {time.perf_counter() - started:.0f} s", flush=True)
        np.save(path, vectors)
    return path


class Corpus:
    """Queries, and as many vectors around the other sentences as are wanted, made chunk by chunk."""

    def __init__(self, path: Path, size: int) -> None:
        import numpy as np

        self._np, self._path, self.size = np, path, size
        vectors = np.load(path)
        order = np.random.default_rng(0).permutation(len(vectors))
        self.queries, self._base = vectors[order[:NUM_QUERIES]], vectors[order[NUM_QUERIES:]]

    def chunks(self, *, of: int = 1, at: int = 0, seed: int = 1) -> Iterator[tuple[Any, Any]]:
        """Yield (keys, vectors); of every `of` rows the `at`th alone."""
        np = self._np
        for start in range(0, self.size, CHUNK):
            rng, rows = np.random.default_rng([seed, start]), np.arange(start, min(start + CHUNK, self.size))
            one, two, three = rng.integers(len(self._base), size=(3, len(rows)))
            scale = rng.uniform(0.2, 1.0, size=(len(rows), 1)).astype(np.float32)
            moved = self._base[one] + scale * (self._base[two] - self._base[three]) / np.float32(2**0.5)
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
            here = rows % of == at
            keys = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # spread, as content ids are
            yield keys[here], moved[here]

    def truth(self) -> tuple[Any, Any]:
        """Return the keys of each query's nearest K, before and after the change; kept beside the vectors."""
        np, path = self._np, self._path.with_suffix(f".{self.size}.npz")
        if not path.is_file():
            replaced = self.chunks(of=20, at=0, seed=2)
            before, after = _Best(self.queries), _Best(self.queries)
            for keys, vectors in self.chunks():
                before.see(keys, vectors)
                rows = np.arange(len(keys)) % 20  # CHUNK is a multiple of 20
                after.see(keys[rows > 1], vectors[rows > 1])
                after.see(*next(replaced))
            np.savez(path, before=before.keys, after=after.keys, seconds=before.seconds)
        found = np.load(path)
        return found["before"], found["after"]


class _Best:
    """The nearest K of all that was seen."""

    def __init__(self, queries: Any) -> None:
        import numpy as np

        self._np, self._queries, self.seconds = np, queries, 0.0
        self.keys = np.zeros((len(queries), K), np.uint64)
        self._products = np.full((len(queries), K), -np.inf, np.float32)

    def see(self, keys: Any, vectors: Any) -> None:
        """Merge a chunk."""
        np, started = self._np, time.process_time()
        products = np.hstack([self._products, self._queries @ vectors.T])
        every = np.hstack([self.keys, np.broadcast_to(keys, (len(products), len(keys)))])
        top = np.argpartition(-products, K, axis=1)[:, :K]
        self.keys, self._products = np.take_along_axis(every, top, 1), np.take_along_axis(products, top, 1)
        self.seconds += time.process_time() - started


def measure(name: str, corpus: Corpus) -> dict[str, float]:
    """Build, search, save, change, search again."""
    np = corpus._np
    before, after = corpus.truth()
    candidate = CANDIDATES[name]()
    clock = time.process_time
    started = clock()
    for _ in corpus.chunks():  # making them is not the index's work
        pass
    making, started, start_mb = clock() - started, clock(), _peak_mb()
    candidate.build(corpus.chunks(), corpus.size)
    found = {"build s": clock() - started - making}
    candidate.search(corpus.queries[:10])
    single: list[float] = []
    for query in corpus.queries[:NUM_SINGLE]:
        mark = clock()
        candidate.search(query[None])
        single.append(clock() - mark)
    mark = clock()
    hits = candidate.search(corpus.queries)
    found |= {"one query ms": 1e3 * float(np.median(single)), "of a batch ms": 1e3 * (clock() - mark) / NUM_QUERIES}
    found["recall@10"] = _recall(hits, before)
    with tempfile.TemporaryDirectory() as folder:
        candidate.save(Path(folder))
        found["file MB"] = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
    found["peak MB"] = _peak_mb() - start_mb
    replaced, gone = list(corpus.chunks(of=20, at=0, seed=2)), list(corpus.chunks(of=20, at=1))
    keys, vectors = np.concatenate([part[0] for part in replaced]), np.concatenate([part[1] for part in replaced])
    try:
        mark = clock()
        candidate.replace(keys, vectors)
        found["replace ms"] = 1e3 * (clock() - mark) / len(keys)
        keys = np.concatenate([part[0] for part in gone])
        mark = clock()
        candidate.remove(keys)
        found["remove ms"] = 1e3 * (clock() - mark) / len(keys)
        found["recall@10 after"] = _recall(candidate.search(corpus.queries), after)
    except RuntimeError as error:
        print(f"{name}: no change: {str(error).splitlines()[0][:150]}", file=sys.stderr)
    return found


def _recall(hits: Any, truth: Any) -> float:
    return sum(len(set(map(int, own)) & set(map(int, best))) for own, best in zip(hits, truth, strict=True)) / (
        K * len(truth)
    )


def _peak_mb() -> float:
    """Read the peak of this program: what getrusage says of a process begins with the peak of the one that forked it."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def main() -> None:
    """Measure each candidate in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--lancedb", help="interpreter of an environment with lancedb and numpy")
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = SIZES[given.size]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LANCE_CPU_THREADS": "1"}
    if given.one:
        print(json.dumps(measure(given.one, Corpus(given.texts[0], size))))
        return
    corpus = Corpus(embed(given.texts), size)
    corpus.truth()
    exact = 1e3 * float(corpus._np.load(corpus._path.with_suffix(f".{size}.npz"))["seconds"]) / NUM_QUERIES
    print(f"{size:,} vectors; exact search {exact:.1f} ms a query of a batch of {NUM_QUERIES}", flush=True)
    for name in given.only or (["ours"] if given.size == "large" else CANDIDATES):
        python = given.lancedb if name == "lancedb" else sys.executable
        if python is None:
            continue
        command = [python, __file__, given.size, str(corpus._path), "--one", name]
        shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ)
        found = (
            json.loads(shown.stdout.splitlines()[-1]) if shown.returncode == 0 else {"exit status": shown.returncode}
        )
        print(f"{name:12s}", *(f"{key} {value:.4g}" for key, value in found.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
