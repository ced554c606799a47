"""The same documents searched by simtile and by what people use today, on as many threads.

A corpus is documents of one kind with their queries, and everybody's exact search of them. NumKong
returns all scores and no best k; it has no threads of its own in Python, so every thread gets an
equal part of the documents.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

import simtile
from simtile.reference import topk_numpy

SIMTILE, FAISS, NUMKONG, USEARCH, TORCH = "simtile", "faiss", "NumKong", "usearch", "torch"
INT8_QUERY = "simtile, int8 query"

Array = npt.NDArray[Any]
Call = Callable[[], Any]
ORACLE_ROWS = 1000  # that are widened to float64 at a time
DRAWN_ROWS = 8192


def normal(n: int, dim: int, seed: int, threads: int) -> Array:
    """Float32 [n, dim], drawn in blocks whose seeds do not depend on the threads."""
    out = np.empty((n, dim), np.float32)

    def fill(begin: int) -> None:
        rows = out[begin : begin + DRAWN_ROWS]
        np.random.default_rng([seed, begin]).standard_normal(dtype=np.float32, out=rows)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(0, n, DRAWN_ROWS)))
    return out


def random_bytes(n: int, width: int, seed: int, dtype: type = np.uint8) -> Array:
    drawn = np.random.default_rng(seed).bytes(n * width)
    return np.frombuffer(drawn, dtype).reshape(n, width)


class NumKong:
    """Documents packed once, in as many parts as there are threads."""

    def __init__(self, pack: Any, multiply: Any, documents: Array, threads: int) -> None:
        parts = np.array_split(documents, threads)
        self._packed = [pack(np.ascontiguousarray(part)) for part in parts]
        self._multiply = multiply
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, queries: Array) -> list[Any]:
        """All scores, [Q, n] for each part."""
        return list(self._pool.map(lambda part: self._multiply(queries, part), self._packed))


class Corpus:
    """Documents of one kind and everybody's search of them.

    Subclasses set the attributes and give `calls`.
    """

    kind: str  # the kind of documents as `_core` names it
    metric: str
    documents: Any  # what simtile.topk gets
    rows: Array  # as stored
    dim: int
    queries: Array
    scale: Array | None = None
    offset: Array | None = None
    tolerance = 1e-4  # of the largest score, between float32 sums and the definition

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._oracle: Array | None = None

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def bytes(self) -> int:
        """What one query has to read."""
        return self.rows.nbytes

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        scores, ids = simtile.topk(
            queries, self.documents, k, metric=self.metric, threads=self.threads
        )
        return scores, ids

    def simtile(self, count: int, k: int) -> tuple[Array, Array]:
        return self.search(self.queries[:count], k)

    def calls(self, count: int, k: int) -> dict[str, Call]:
        """By name of the contender; a call returns (scores, ids), best first, or all scores."""
        return {SIMTILE: lambda: self.simtile(count, k)}

    def theirs(self, count: int, k: int) -> tuple[Array, Array] | None:
        """Scores and ids of the peer that the results are compared with, if there is one."""
        return None

    def oracle(self) -> Array:
        """All scores of the first query by their definition: [N]."""
        if self._oracle is None:
            with ThreadPoolExecutor(self.threads) as pool:
                parts = list(pool.map(self._oracle_part, range(0, self.n, ORACLE_ROWS)))
            self._oracle = topk_numpy.plain_zeros(np.concatenate(parts))
        return self._oracle

    def _oracle_part(self, begin: int) -> Array:
        rows = topk_numpy.wide(self.kind, self.rows[begin : begin + ORACLE_ROWS], self.dim)
        operands = (self.scale, self.offset, None, None, None)
        return topk_numpy.scores_of(
            self.kind, self.metric, self.queries[0], rows, self.dim, *operands
        )


class Bits(Corpus):
    """Packed bits by Hamming distance."""

    kind, metric = "packed", "hamming"
    tolerance = 0.0

    def __init__(self, n: int, dim: int, queries: int, threads: int, peers: bool = True) -> None:
        super().__init__(threads)
        self.dim = dim
        self.rows = self.documents = random_bytes(n, dim // 8, seed=1)
        self.queries = random_bytes(queries, dim // 8, seed=2)
        if not peers:
            return
        import faiss
        import numkong

        self._faiss = faiss.IndexBinaryFlat(dim)
        self._faiss.add(self.rows)
        self._numkong = NumKong(
            numkong.hammings_pack, numkong.hammings_packed, self.rows, self.threads
        )

    def calls(self, count: int, k: int) -> dict[str, Call]:
        from usearch.index import MetricKind, search

        queries = self.queries[:count]
        return {
            **super().calls(count, k),
            FAISS: lambda: self._faiss.search(queries, k),
            NUMKONG: lambda: self._numkong(queries),
            USEARCH: lambda: search(
                self.rows, queries, k, MetricKind.Hamming, exact=True, threads=self.threads
            ),
        }

    def theirs(self, count: int, k: int) -> tuple[Array, Array]:
        scores, ids = self._faiss.search(self.queries[:count], k)
        return scores, ids


class Int8(Corpus):
    """int8 codes by inner product with float queries.

    faiss's quantizer takes floats and cuts them to integers before it multiplies, so the queries
    are floats of whole numbers: all contenders have the same.
    """

    kind, metric = "int8", "dot"
    tolerance = 1e-6

    def __init__(self, n: int, dim: int, queries: int, threads: int) -> None:
        super().__init__(threads)
        import faiss
        import numkong

        self.dim = dim
        self.rows = random_bytes(n, dim, seed=3, dtype=np.int8)
        self.scale, self.offset = np.ones(dim, np.float32), np.zeros(dim, np.float32)
        self.documents = simtile.Quantized(self.rows, 1, 0, dim, "int8")
        self._codes = np.maximum(random_bytes(queries, dim, seed=5, dtype=np.int8), -127)
        self._codes[:, 0] = 127  # the largest: folding such a query rounds nothing
        self.queries = self._codes.astype(np.float32)
        self._plain = simtile.Quantized(self.rows, 1, None, dim, "int8_vector")
        self._faiss = faiss.IndexScalarQuantizer(
            dim, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        )
        # Its codes are the floats' values, so floats of these values give them back.
        for begin in range(0, n, 50_000):
            self._faiss.add(self.rows[begin : begin + 50_000].astype(np.float32))
        self._numkong = NumKong(numkong.dots_pack, numkong.dots_packed, self.rows, self.threads)

    def int8_query(self, count: int, k: int) -> tuple[Array, Array]:
        codes = simtile.Quantized(self._codes[:count], 1, None, self.dim, "int8_vector")
        scores, ids = simtile.topk(codes, self._plain, k, metric="dot", threads=self.threads)
        return scores, ids

    def calls(self, count: int, k: int) -> dict[str, Call]:
        from usearch.index import MetricKind, search

        queries, codes = self.queries[:count], self._codes[:count]
        return {
            **super().calls(count, k),
            INT8_QUERY: lambda: self.int8_query(count, k),
            FAISS: lambda: self._faiss.search(queries, k),
            NUMKONG: lambda: self._numkong(codes),
            USEARCH: lambda: search(
                self.rows, codes, k, MetricKind.IP, exact=True, threads=self.threads
            ),
        }

    def theirs(self, count: int, k: int) -> tuple[Array, Array]:
        scores, ids = self._faiss.search(self.queries[:count], k)
        return scores, ids

    def integer_scores(self, count: int) -> Array:
        """All scores of the int8 queries, by NumKong: [count, N]."""
        return np.concatenate([np.asarray(part) for part in self._numkong(self._codes[:count])], 1)


class Floats(Corpus):
    """float32 by inner product."""

    kind, metric = "float32", "dot"

    def __init__(self, documents: Array, queries: int, threads: int) -> None:
        super().__init__(threads)
        import faiss
        import torch

        self.rows = self.documents = documents
        self.dim = documents.shape[1]
        self.queries = normal(queries, self.dim, 6, threads)
        self._faiss = faiss.IndexFlatIP(self.dim)
        self._faiss.add(documents)
        self._tensor = torch.from_numpy(documents)

    def calls(self, count: int, k: int) -> dict[str, Call]:
        import torch

        queries = self.queries[:count]
        tensor = torch.from_numpy(queries)
        return {
            **super().calls(count, k),
            FAISS: lambda: self._faiss.search(queries, k),
            TORCH: lambda: torch.topk(tensor @ self._tensor.T, k),
        }

    def theirs(self, count: int, k: int) -> tuple[Array, Array]:
        scores, ids = self._faiss.search(self.queries[:count], k)
        return scores, ids


class OfKind(Corpus):
    """Any kind by inner product (bits with bits: Hamming distance), simtile alone."""

    def __init__(self, kind: str, n: int, dim: int, queries: int, threads: int) -> None:
        super().__init__(threads)
        self.dim = dim
        self.kind, self.metric = kind, "hamming" if kind == "packed" else "dot"
        self.queries = normal(queries, dim, 7, threads)
        width = {"int4": (dim + 1) // 2, "bits": (dim + 7) // 8, "packed": (dim + 7) // 8}
        if kind in ("float32", "float64", "float16", "bfloat16"):
            self.rows = normal(n, dim, 8, threads)
        else:
            dtype = np.int8 if kind == "int8" else np.uint8
            self.rows = random_bytes(n, width.get(kind, dim), 8, dtype).copy()
            if kind == "int4" and dim % 2:
                self.rows[:, -1] &= 15
            elif kind in ("bits", "packed") and dim % 8:
                self.rows[:, -1] &= 256 - (1 << (8 - dim % 8))
        if kind in ("int8", "uint8", "int4"):
            self.scale = np.linspace(0.5, 2, dim).astype(np.float32)
            self.offset = np.linspace(-1, 1, dim).astype(np.float32)
            self.documents = simtile.Quantized(self.rows, self.scale, self.offset, dim, kind)
        elif kind == "bits":
            self.documents = simtile.Quantized(self.rows, None, None, dim, "binary")
        elif kind == "packed":
            self.documents = self.rows
            self.queries = np.packbits(self.queries > 0, axis=1)
        elif kind == "bfloat16":
            import torch

            self.documents = torch.from_numpy(self.rows).to(torch.bfloat16)
            self.rows = self.documents.view(torch.uint16).numpy()
        else:
            self.documents = self.rows = self.rows.astype(kind)


def versions() -> dict[str, str]:
    """Of the peers, by the package's name."""
    return {name: importlib.metadata.version(name) for name in ("faiss-cpu", "numkong", "usearch")}
