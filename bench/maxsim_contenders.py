"""Late interaction scored by simtile and by what people use today, on as many threads.

A scene is a few queries and some documents of unit tokens, in every form that a contender wants,
made before anything is timed. maxsim-cpu takes one query a call, NumKong one query and one
document, each packed beforehand; it has no threads in Python, so every thread gets an equal part
of the documents.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

import simtile
from simtile.reference import maxsim_numpy

SIMTILE, MAXSIM_CPU, NUMKONG = "simtile", "maxsim-cpu", "NumKong"
EINSUM, SENTENCE_TRANSFORMERS = "torch einsum", "sentence-transformers"
PACKAGES = ("maxsim-cpu", "numkong", "torch", "sentence-transformers")

Array = npt.NDArray[Any]
Call = Callable[[], Any]
TOLERANCE = 1e-5  # of the number of query tokens: every similarity is at most 1


class Scene:
    """Q queries of `query_length` tokens and documents of the given lengths, D dimensions."""

    def __init__(
        self, queries: int, query_length: int, lengths: Array, dim: int, threads: int, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.threads = threads
        self.dim = dim
        self.lengths = np.asarray(lengths, np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.queries = unit_rows(rng, queries * query_length, dim).reshape(queries, -1, dim)
        self.tokens = unit_rows(rng, int(self.offsets[-1]), dim)
        self._pool = ThreadPoolExecutor(threads)

    @property
    def ragged(self) -> bool:
        return len(set(self.lengths.tolist())) > 1

    @property
    def products(self) -> float:
        """Multiply-adds of all pairs of tokens that are there."""
        return float(self.queries.shape[0] * self.queries.shape[1]) * len(self.tokens) * self.dim

    @property
    def documents(self) -> list[Array]:
        return np.split(self.tokens, self.offsets[1:-1])

    def padded(self) -> tuple[Array, Array]:
        """[N, Ld, D] with its mask [N, Ld]."""
        width = int(self.lengths.max(initial=0))
        mask = np.arange(width) < self.lengths[:, None]
        batch = np.zeros((*mask.shape, self.dim), np.float32)
        batch[mask] = self.tokens
        return batch, mask

    def simtile(self, tokens: Any = None, queries: Any = None, **options: Any) -> Any:
        """The packed call, of these tokens or of others in their place."""
        return simtile.maxsim_packed(
            self.queries if queries is None else queries,
            self.tokens if tokens is None else tokens,
            self.offsets,
            threads=self.threads,
            **options,
        )

    def calls(self, names: tuple[str, ...]) -> dict[str, Call]:
        """Each returns the scores [Q, N]."""
        make = {
            SIMTILE: lambda: self.simtile,
            MAXSIM_CPU: self._maxsim_cpu,
            NUMKONG: self._numkong,
            EINSUM: self._einsum,
            SENTENCE_TRANSFORMERS: self._sentence_transformers,
        }
        return {name: make[name]() for name in names}

    def _maxsim_cpu(self) -> Call:
        import maxsim_cpu

        if self.ragged:
            documents = self.documents
            score, theirs = maxsim_cpu.maxsim_scores_variable, documents
        else:
            score, theirs = maxsim_cpu.maxsim_scores, self.padded()[0]
        return lambda: np.stack([score(query, theirs) for query in self.queries])

    def _numkong(self) -> Call:
        import numkong

        queries = [numkong.maxsim_pack(np.ascontiguousarray(query)) for query in self.queries]
        packed = [numkong.maxsim_pack(document) for document in self.documents]
        parts = [packed[i :: self.threads] for i in range(self.threads)]
        count = self.queries.shape[1]

        def part(mine: list[Any]) -> list[list[float]]:
            return [[numkong.maxsim_packed(query, one) for one in mine] for query in queries]

        def call() -> Array:
            # NumKong gives Σ (1 − cos): angular distances
            scores = np.empty((len(queries), len(packed)))
            for i, found in enumerate(self._pool.map(part, parts)):
                scores[:, i :: self.threads] = count - np.asarray(found)
            return scores

        return call

    def _einsum(self) -> Call:
        import torch

        queries = torch.from_numpy(self.queries)
        batch, mask = (torch.from_numpy(array) for array in self.padded())

        def call() -> Array:
            similarity = torch.einsum("qid,njd->qnij", queries, batch)
            if not mask.all():
                similarity = similarity.masked_fill(~mask[None, :, None], -torch.inf)
            return similarity.amax(-1).sum(-1).numpy()

        return call

    def _sentence_transformers(self) -> Call:
        import torch
        from sentence_transformers.util import maxsim

        queries = torch.from_numpy(self.queries)
        documents: Any = torch.from_numpy(self.padded()[0])
        if self.ragged:
            documents = [torch.from_numpy(document) for document in self.documents]
        return lambda: maxsim(queries, documents).numpy()

    def oracle(self) -> Array:
        return maxsim_numpy.maxsim(self.queries, self.documents).scores


def unit_rows(rng: np.random.Generator, rows: int, dim: int) -> Array:
    x = rng.standard_normal((rows, dim), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def bfloat16(x: Array) -> Any:
    """The same values rounded, as the torch tensor that a model would hand over."""
    import torch

    return torch.from_numpy(x).to(torch.bfloat16)


def training(count: int, query_length: int, document_length: int, dim: int) -> tuple[Any, Any]:
    """A batch to train with: torch tensors that want gradients."""
    import torch

    rng = np.random.default_rng(1)
    shapes = ((count, query_length, dim), (count, document_length, dim))
    made = [unit_rows(rng, shape[0] * shape[1], dim).reshape(shape) for shape in shapes]
    queries, documents = (torch.from_numpy(x).requires_grad_() for x in made)
    return queries, documents


def einsum_scores(queries: Any, documents: Any) -> Any:
    import torch

    return torch.einsum("qid,njd->qnij", queries, documents).amax(-1).sum(-1)


def step(score: Callable[[Any, Any], Any], queries: Any, documents: Any) -> Call:
    """Forward and backward of the in-batch cross entropy on the scores."""
    import torch

    targets = torch.arange(len(queries))

    def call() -> Any:
        queries.grad = documents.grad = None
        loss = torch.nn.functional.cross_entropy(score(queries, documents), targets)
        loss.backward()
        return loss

    return call


def limit_threads(count: int) -> None:
    """Of the peers. maxsim-cpu reads its variable when it is first called."""
    import torch

    os.environ["RAYON_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
