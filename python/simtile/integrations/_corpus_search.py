"""The searches of :mod:`simtile.integrations.sentence_transformers`, on arrays."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs
from simtile._search_call import topk_rows
from simtile._search_operands import prepare
from simtile.integrations._embeddings import Hits, hits, to_numpy
from simtile.quantize import ZERO_LEVEL, grid, quantize
from simtile.quantized import Kind, Quantized
from simtile.search import topk

Array = npt.NDArray[Any]
Search = Callable[[], tuple[Array, Array]]

logger = logging.getLogger("simtile.integrations.sentence_transformers")

# Fewer rows than this tell little about the range of a dimension.
FEW_ROWS = 100
# Of many documents at the same Hamming distance chance decides which are rescored; with twice as
# many as asked for it costs no neighbour that the original finds.
MORE_CANDIDATES = 2
# Between the two ways to write packed bits: "binary" is "ubinary" - 128 as int8.
TOP_BIT = np.uint8(0x80)


class CorpusIndex:
    """A corpus as ``output_index=True`` returns it, to be given as ``corpus_index``.

    It refers to the caller's array and does not copy it.

    Parameters
    ----------
    embeddings : [N, D] float32, int8 or uint8; packed bits uint8 or int8 [N, ceil(D / 8)]
    precision : "float32", "int8", "uint8", "binary" or "ubinary"
    """

    def __init__(self, embeddings: Any, precision: str) -> None:
        array = to_numpy("corpus_embeddings", embeddings)
        expected = {"binary": "int8", "ubinary": "uint8"}.get(precision, precision)
        is_right = array.dtype.kind == "f" if precision == "float32" else array.dtype == expected
        if not is_right or array.ndim != 2:
            raise ValueError(
                f"corpus_embeddings: found {array.dtype} {list(array.shape)}, expected {expected} "
                f"[N, {'ceil(D / 8)' if 'binary' in precision else 'D'}] because corpus_precision "
                f"is {precision!r}; quantize_embeddings(x, precision={precision!r}) makes them"
            )
        if precision == "binary":
            array = array.view(np.uint8) ^ TOP_BIT
        self.embeddings: Array = array
        self.kind = "ubinary" if precision == "binary" else precision

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def ntotal(self) -> int:
        """The number of documents."""
        return len(self.embeddings)


def search_corpus(
    precisions: Sequence[str],
    query_embeddings: Any,
    corpus_embeddings: Any,
    corpus_index: CorpusIndex | None,
    precision: str,
    top_k: int,
    ranges: Any,
    calibration: Any,
    rescore: bool,
    rescore_multiplier: int,
    exact: bool,
    output_index: bool,
    *,
    distances: bool,
) -> tuple[Any, ...]:
    """Both searches; with `distances`, scores of what is not rescored are distances."""
    if precision not in precisions:
        raise ValueError(
            f"corpus_precision: found {precision!r}, expected one of "
            f"{', '.join(map(repr, precisions))}"
        )
    index = _index(corpus_embeddings, corpus_index, precision)
    queries = to_numpy("query_embeddings", query_embeddings)
    if queries.ndim != 2:
        raise ValueError(
            f"query_embeddings: found shape {list(queries.shape)}, expected [Q, D]"
            + ("; a single query is x[None, :]" if queries.ndim == 1 else "")
        )
    rescore = rescore and not are_codes(queries)
    k = min(top_k, len(index))
    results: Hits = [[] for _ in range(len(queries))]
    seconds = 0.0
    if k >= 1 and len(queries) > 0:
        if index.kind == "float32":
            search = _float_search(index, queries, k, distances)
        elif index.kind == "ubinary":
            candidates = None
            if not exact:
                candidates = min(len(index), MORE_CANDIDATES * k * max(1, rescore_multiplier))
            search = _bit_search(index, queries, precision, k, rescore, candidates)
        else:
            as_distance = distances and not rescore
            search = _code_search(index, queries, k, ranges, calibration, as_distance)
        started = time.perf_counter()
        scores, ids = search()
        results = hits(scores, ids)
        seconds = time.perf_counter() - started
    return (results, seconds, index) if output_index else (results, seconds)


def _index(embeddings: Any, index: Any, precision: str) -> CorpusIndex:
    if (embeddings is None) == (index is None):
        raise ValueError(
            "corpus_embeddings, corpus_index: found "
            f"{'neither' if index is None else 'both'}, expected one of them"
        )
    if index is None:
        return CorpusIndex(embeddings, precision)
    if not isinstance(index, CorpusIndex):
        raise TypeError(
            f"corpus_index: found {type(index).__name__}, expected what an earlier call returned "
            "with output_index=True; the vectors of a faiss index are "
            "index.reconstruct_n(0, index.ntotal): pass them as corpus_embeddings"
        )
    if index.kind != ("ubinary" if precision == "binary" else precision):
        raise ValueError(
            f"corpus_index: found an index of {index.kind} embeddings, expected {precision} "
            "because of corpus_precision"
        )
    return index


def _float_search(index: CorpusIndex, queries: Array, k: int, distances: bool) -> Search:
    if are_codes(queries):
        queries = queries.astype(np.float32)

    def search() -> tuple[Array, Array]:
        if not distances:
            return topk(queries, index.embeddings, k, metric="dot")
        cosines, ids = topk(queries, index.embeddings, k, metric="cosine")
        return 1 - cosines.astype(np.float64), ids

    return search


def _code_search(
    index: CorpusIndex, queries: Array, k: int, ranges: Any, calibration: Any, distances: bool
) -> Search:
    """int8 and uint8: the step and start of every dimension are folded into the query."""
    dim, kind = index.embeddings.shape[1], cast("Kind", index.kind)
    scored: Array | Quantized = queries
    if not are_codes(queries) or ranges is not None or calibration is not None:
        if ranges is None:
            ranges = find_ranges(queries, calibration, kind)
        starts, steps, middles = grid(check_ranges(ranges, dim), kind)
        # As the original has it, a document is the start of its level; the middle would move all
        # scores of a query alike. A query's start would not, so for its codes it is the middle.
        documents = Quantized(index.embeddings, steps, starts + ZERO_LEVEL[kind] * steps, dim, kind)
        if are_codes(queries):
            scored = Quantized(queries, steps, middles, dim, kind)
    else:
        # Nothing says what the codes stand for: their plain products, as in the original.
        documents = Quantized(index.embeddings, 1, 0, dim, kind)
        scored = Quantized(queries, 1, 0, dim, kind)

    def search() -> tuple[Array, Array]:
        products, ids = topk(scored, documents, k, metric="dot")
        return (1 - products.astype(np.float64) if distances else products), ids

    return search


def _bit_search(
    index: CorpusIndex,
    queries: Array,
    precision: str,
    k: int,
    rescore: bool,
    candidates: int | None,
) -> Search:
    """Packed bits: Σ query · bit with `rescore`, for the nearest `candidates` alone if not None."""
    bits = queries
    if not are_codes(queries):
        bits = quantize(rows_of(queries), "binary").codes
    elif precision == "binary":
        bits = queries.view(np.uint8) ^ TOP_BIT

    def hamming(k: int) -> tuple[Array, Array]:
        return topk(bits, index.embeddings, k, metric="hamming")

    if not rescore:
        return lambda: hamming(k)
    documents = Quantized(index.embeddings, None, None, queries.shape[1], "binary")
    sums = queries.sum(axis=1, dtype=np.float64, keepdims=True)

    def search() -> tuple[Array, Array]:
        if candidates is None:
            products, ids = topk(queries, documents, k, metric="dot")
        else:
            nearest = hamming(candidates)[1]
            operands = prepare(queries, documents, "dot")
            products, ids = topk_rows(operands, k, candidates=nearest)
        # from bits that are -1 and 1 to the original's 0 and 1
        return (products.astype(np.float64) + sums) / 2, ids

    return search


def find_ranges(embeddings: Any, calibration: Any, precision: str) -> Array:
    """The lowest and highest value of each dimension, [2, D]."""
    if calibration is not None:
        rows = to_numpy("calibration_embeddings", calibration)
    else:
        rows = embeddings
        if rows.ndim == 1 or len(rows) == 1:
            raise ValueError(
                f"ranges: found None, and the {precision} ranges of each dimension cannot be found "
                "from a single embedding; give ranges, or calibration_embeddings that represent "
                "the corpus"
            )
        if len(rows) < FEW_ROWS:
            logger.warning(
                "%s ranges found from %d embeddings only; give ranges, or calibration_embeddings "
                "that represent the corpus",
                precision,
                len(rows),
            )
    rows = _inputs.kernel_rows(rows_of(rows))
    ends = np.empty((2, rows.shape[1]), np.float64 if rows.dtype == np.float64 else np.float32)
    _core.value_ranges(rows, rows.dtype.name, ends, 0)
    return ends


def check_ranges(ranges: Any, dim: int) -> Array:
    array = to_numpy("ranges", ranges)
    if array.shape != (2, dim):
        raise ValueError(
            f"ranges: found shape {list(array.shape)}, expected [2, {dim}]: the lowest and the "
            "highest value of each dimension"
        )
    return array.astype(np.float32)


def are_codes(x: Array) -> bool:
    return x.dtype in (np.int8, np.uint8)


def rows_of(x: Array) -> Array:
    """[..., D] as the float matrix [n, D] that is quantised."""
    if x.dtype.kind in "iub":
        x = x.astype(np.result_type(x.dtype, np.float32))
    return x.reshape(-1, x.shape[-1])
