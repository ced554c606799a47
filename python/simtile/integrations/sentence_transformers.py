"""sentence-transformers' quantisation and semantic search, with the same arguments and results.

``from simtile.integrations.sentence_transformers import quantize_embeddings`` (or
`semantic_search_faiss`, `semantic_search_usearch`, `util`) in place of the import from
``sentence_transformers``; neither that library nor faiss, usearch or torch is needed. The codes
are the same bytes. The searches find at least as many of the true neighbours, because

* int8 and uint8 codes are scored by what they stand for, start + code · step, against the query as
  it is, every document in one pass; the originals compare codes with codes, whose dimensions have
  different steps, and repair that for ``top_k * rescore_multiplier`` candidates;
* binary codes, with ``rescore=True``, are all scored by the original's rescoring formula.

``docs/sentence-transformers.md`` has the measured overlap and every difference.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from simtile._tensors import is_tensor
from simtile.integrations._corpus_search import (
    CorpusIndex,
    are_codes,
    check_ranges,
    find_ranges,
    rows_of,
    search_corpus,
)
from simtile.integrations._embeddings import Hits, common, hits, to_numpy
from simtile.quantize import quantize
from simtile.quantized import Kind
from simtile.search import Metric, topk

__all__ = [
    "CorpusIndex",
    "quantize_embeddings",
    "semantic_search",
    "semantic_search_faiss",
    "semantic_search_usearch",
    "util",
]

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
SCORE_METRICS: dict[str, Metric] = {
    "cos_sim": "cosine",
    "pytorch_cos_sim": "cosine",
    "dot_score": "dot",
}


def quantize_embeddings(
    embeddings: Any,
    precision: str,
    ranges: Any = None,
    calibration_embeddings: Any = None,
) -> Any:
    """The same codes, byte for byte, as ``sentence_transformers.util.quantize_embeddings``.

    Parameters
    ----------
    embeddings : floats [N, D] or [D], array or tensor, or a list of vectors
        A list of matrices [n_i, D] gives a list of matrices, quantised with common ranges.
    precision : "float32", "int8", "uint8", "binary" or "ubinary"
        "ubinary" packs 8 dimensions a byte, the first in the highest bit, a bit is x > 0; "binary"
        is that - 128 as int8. "uint8" is floor((x - low) / step) within 0 to 255, "int8" that
        - 128; step = (high - low) / 255, or 1 where that is 0.
    ranges : [2, D], optional
        The lowest and highest value of each dimension, for int8 and uint8.
    calibration_embeddings : [n, D], optional
        Where `ranges` is not given they are taken from these, and without these from the
        embeddings.

    Returns
    -------
    array : float32 [N, D], int8 or uint8 [N, D], or packed bits [N, ceil(D / 8)]

    Raises
    ------
    ValueError
        An unknown precision; ranges would have to come from a single embedding; the embeddings are
        codes already.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision: found {precision!r}, expected one of {', '.join(map(repr, PRECISIONS))}"
        )
    if isinstance(embeddings, list):
        if not embeddings:
            return []
        parts = [to_numpy("embeddings", part) for part in embeddings]
        if parts[0].ndim == 2 and (
            is_tensor(embeddings[0]) or isinstance(embeddings[0], np.ndarray)
        ):
            if precision in ("int8", "uint8") and ranges is None:
                whole = np.concatenate(parts) if calibration_embeddings is None else None
                if whole is None or len(whole):
                    ranges = find_ranges(whole, calibration_embeddings, precision)
            return [quantize_embeddings(part, precision, ranges) for part in parts]
        embeddings = np.array(parts)
    x = to_numpy("embeddings", embeddings)
    if are_codes(x):
        raise ValueError(
            f"embeddings: found {x.dtype} {list(x.shape)}, expected floats: these look like codes"
        )
    if precision == "float32":
        return x.astype(np.float32)
    if x.ndim == 0:
        raise ValueError("embeddings: found a single number, expected [N, D] or [D]")
    if precision in ("binary", "ubinary"):
        packed = quantize(rows_of(x), "binary")
        bits = packed.signed_bits() if precision == "binary" else packed.codes
        return bits.reshape(*x.shape[:-1], bits.shape[-1])
    if len(x) == 0:
        return np.zeros(x.shape, precision)
    if ranges is None:
        ranges = find_ranges(x, calibration_embeddings, precision)
    limits = check_ranges(ranges, x.shape[-1])
    return quantize(rows_of(x), cast("Kind", precision), ranges=limits).codes.reshape(x.shape)


def semantic_search_faiss(
    query_embeddings: Any,
    corpus_embeddings: Any = None,
    corpus_index: CorpusIndex | None = None,
    corpus_precision: str = "float32",
    top_k: int = 10,
    ranges: Any = None,
    calibration_embeddings: Any = None,
    rescore: bool = True,
    rescore_multiplier: int = 2,
    exact: bool = True,
    output_index: bool = False,
) -> tuple[Any, ...]:
    """``sentence_transformers.util.semantic_search_faiss``, searched by simtile.

    Parameters
    ----------
    query_embeddings : floats [Q, D]
        Codes of the corpus's precision are accepted; floats give better results.
    corpus_embeddings : [N, D] or packed bits [N, ceil(D / 8)], of `corpus_precision`
        Either these or `corpus_index`.
    corpus_index : CorpusIndex
        What an earlier call returned with ``output_index=True``.
    corpus_precision : "float32", "uint8" or "ubinary"
    top_k : int
    ranges : [2, D], optional
        The ranges the corpus was quantised with, for uint8.
    calibration_embeddings : [n, D], optional
        Where `ranges` is not given: the embeddings they were taken from. With neither, they are
        guessed from the queries, as in the original; give them.
    rescore : bool
        With True, binary codes are scored by their dot product with the query as it is; with False
        by their Hamming distance from the query's bits. uint8 scores do not depend on it.
    rescore_multiplier : int
        Only of binary codes with ``exact=False``: twice ``top_k * rescore_multiplier`` documents
        are taken by Hamming distance and rescored.
    exact : bool
        With False, binary codes are rescored for the nearest by Hamming distance alone, which is
        faster; float32 and uint8 are always searched exactly.
    output_index : bool
        Also return the corpus for the next call.

    Returns
    -------
    results : list of Q lists of {"corpus_id": int, "score": float}, best first
        float32: the dot product. uint8: the dot product of the query and the dequantised document,
        low + code · step, which is the original's score after rescoring. ubinary: Σ query · bit
        with bits 0 and 1, the original's score after rescoring; without rescoring the Hamming
        distance, where less is better.
    seconds : float
        Of the search itself.
    index : CorpusIndex, with ``output_index=True``

    Raises
    ------
    ValueError
        Both or neither of corpus_embeddings and corpus_index; an array that does not fit
        corpus_precision; a NaN in the queries.
    """
    return search_corpus(
        ("float32", "uint8", "ubinary"),
        query_embeddings,
        corpus_embeddings,
        corpus_index,
        corpus_precision,
        top_k,
        ranges,
        calibration_embeddings,
        rescore,
        rescore_multiplier,
        exact,
        output_index,
        distances=False,
    )


def semantic_search_usearch(
    query_embeddings: Any,
    corpus_embeddings: Any = None,
    corpus_index: CorpusIndex | None = None,
    corpus_precision: str = "float32",
    top_k: int = 10,
    ranges: Any = None,
    calibration_embeddings: Any = None,
    rescore: bool = True,
    rescore_multiplier: int = 2,
    exact: bool = True,
    output_index: bool = False,
) -> tuple[Any, ...]:
    """``sentence_transformers.util.semantic_search_usearch``, searched by simtile.

    As :func:`semantic_search_faiss`, but `corpus_precision` is "float32", "int8", "ubinary" or
    "binary", and the score is, as in the original, a distance where nothing is rescored:

    float32
        1 - cosine, less is better, whatever `rescore` is.
    int8
        Rescored, the dot product of the query and the dequantised document. With
        ``rescore=False``, or queries that are codes, 1 - that, less is better; the original has
        1 - the product of the codes, on another scale.
    binary, ubinary
        Rescored, Σ query · bit. Otherwise the Hamming distance, less is better.
    """
    return search_corpus(
        ("float32", "int8", "ubinary", "binary"),
        query_embeddings,
        corpus_embeddings,
        corpus_index,
        corpus_precision,
        top_k,
        ranges,
        calibration_embeddings,
        rescore,
        rescore_multiplier,
        exact,
        output_index,
        distances=True,
    )


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500000,
    top_k: int = 10,
    score_function: Callable[..., Any] | str = "cos_sim",
) -> Hits:
    """``sentence_transformers.util.semantic_search``: exact search by cosine or dot product.

    Parameters
    ----------
    query_embeddings : floats [Q, D] or [D], array, tensor, or a list of vectors
    corpus_embeddings : floats [N, D], likewise
        Queries are moved to its device.
    query_chunk_size, corpus_chunk_size : int
        Without effect: no block of scores is ever stored.
    top_k : int
    score_function : "cos_sim" or "dot_score", or sentence-transformers' functions of these names

    Returns
    -------
    list of Q lists of at most top_k {"corpus_id": int, "score": float}, best first

    Raises
    ------
    ValueError
        Another score function; a NaN in the queries.
    """
    metric = _metric_of(score_function)
    queries, documents = common(query_embeddings, corpus_embeddings)
    if top_k < 1 or len(documents) == 0 or len(queries) == 0:
        return [[] for _ in range(len(queries))]
    return hits(*topk(queries, documents, min(top_k, len(documents)), metric=metric))


util = SimpleNamespace(
    quantize_embeddings=quantize_embeddings,
    semantic_search=semantic_search,
    semantic_search_faiss=semantic_search_faiss,
    semantic_search_usearch=semantic_search_usearch,
)
"""For code that has ``util.semantic_search(...)``: these functions and no others."""


def _metric_of(score_function: Callable[..., Any] | str) -> Metric:
    name, ours = score_function, True
    if not isinstance(score_function, str):
        name = getattr(score_function, "__name__", "")
        ours = str(getattr(score_function, "__module__", "")).startswith("sentence_transformers.")
    if not ours or name not in SCORE_METRICS:
        raise ValueError(
            f"score_function: found {score_function!r}, expected 'cos_sim' or 'dot_score', or "
            "sentence_transformers.util.cos_sim or dot_score: other functions would need every "
            "score"
        )
    return SCORE_METRICS[str(name)]
