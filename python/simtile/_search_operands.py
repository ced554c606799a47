"""From queries and documents as they are given to the arguments of `_core.topk` and its siblings.

What `Operands` holds has been checked. The definition of every score is `reference/topk.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simtile import _inputs, _tensors, _vectors
from simtile.quantized import CODE_KINDS, PER_VECTOR, Quantized, unpack

METRICS = ("cosine", "dot", "l2", "hamming")
WORST = {
    "cosine": np.float32(-np.inf),
    "dot": np.float32(-np.inf),
    "l2": np.float32(np.inf),
    "hamming": np.int32(np.iinfo(np.int32).max),
}


@dataclass(frozen=True)
class Documents:
    """Documents for one metric; arrays, or tensors of one GPU.

    `factor` and `addend` are m and n of `reference/topk.py`.
    """

    kind: str  # FLOATS, int8, uint8, int4, bits, or packed for hamming
    metric: str
    rows: Any
    dim: int
    scale: Any = None  # float32 [D]
    offset: Any = None
    factor: Any = None  # float32 [N]
    addend: Any = None
    integer_scale: float | None = None  # integer queries are multiplied exactly, times this

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Operands:
    """A search without its k or threshold."""

    documents: Documents
    queries: Any
    query_scale: Any = None  # float32 [Q], of integer queries
    device: Any = None  # where results go: of the tensor of queries, None for arrays
    # The rows of `queries` among those that were given, [Q] bool, where some have NaN and find
    # nothing; None where all are searched.
    searched: Any = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The first arguments of `_core.topk`."""
        d = self.documents
        fixed = (d.rows, d.dim, d.scale, d.offset, d.factor, d.addend)
        return (d.kind, d.metric, self.queries, *fixed, self.query_scale)

    @property
    def query_count(self) -> int:
        """Of those that were given."""
        return len(self.queries if self.searched is None else self.searched)

    @property
    def score_dtype(self) -> Any:
        return WORST[self.documents.metric].dtype

    @property
    def gpu(self) -> Any:
        return _vectors.gpu_of(self.documents.rows)


def prepare(queries: object, documents: object, metric: str, nan: str = "raise") -> Operands:
    """Check queries [Q, D] and documents [N, D] and make kernel arguments of them.

    Parameters
    ----------
    queries, documents : arrays, tensors, or Quantized
    metric : "cosine", "dot", "l2" or "hamming"
    nan : "raise" or "ignore"
        What a query with NaN does.

    Raises
    ------
    ValueError, TypeError
        As `simtile.topk`.
    """
    return prepare_queries(queries, prepare_documents(documents, metric), nan)


def prepare_documents(documents: object, metric: str) -> Documents:
    """The half of `prepare` that does not depend on queries."""
    _inputs.check_choice("metric", metric, METRICS)
    if isinstance(documents, Quantized):
        return _of_quantized(documents, metric)
    rows = _vectors.read("documents", documents)
    if rows.kind == "int8":
        hint = "; packed bits are uint8: x.view(numpy.uint8)" if metric == "hamming" else ""
        raise ValueError(
            f"documents: int8 codes {list(rows.array.shape)} have no scale; pass the Quantized "
            f"that simtile.quantize returned{hint}"
        )
    if rows.kind == "uint8":
        if metric != "hamming":
            raise ValueError(
                f"documents: found {rows} and metric {metric!r}, expected floats or a Quantized; "
                'packed bits are compared with packed bits by metric="hamming", and with floats '
                'as simtile.Quantized(codes, None, None, dim, "binary"); uint8 codes need the '
                "Quantized that simtile.quantize returned"
            )
        return Documents("packed", metric, rows.array, 8 * rows.array.shape[1])
    if metric == "hamming":
        raise ValueError(
            f"documents: found {rows} and metric 'hamming', expected packed bits: pass "
            'simtile.quantize(x, "binary") of documents and queries'
        )
    return Documents(rows.kind, metric, rows.array, rows.array.shape[1])


def _of_quantized(documents: Quantized, metric: str) -> Documents:
    if _vectors.gpu_of(documents.codes) is None:
        documents = documents.numpy()
    kind, dim = documents.kind, documents.dim
    codes = _vectors.side_by_side(documents.codes)
    if kind == "binary":
        return Documents("packed" if metric == "hamming" else "bits", metric, codes, dim)
    if metric == "hamming":
        raise ValueError(
            f"metric: found 'hamming' for documents of kind {kind!r}, expected 'cosine', 'dot' or "
            "'l2'; Hamming distances are those of kind 'binary'"
        )
    factor, integer_scale = None, None
    if metric == "cosine":
        factor = documents.inverse_norms
    elif kind in PER_VECTOR:
        factor = documents.scale
    addend = documents.squared_norms if metric == "l2" else None
    if kind in PER_VECTOR:
        return Documents(
            CODE_KINDS[kind], metric, codes, dim, None, None, factor, addend, integer_scale=1.0
        )
    if metric == "dot":
        integer_scale = _plain_scale(documents)
    return Documents(
        kind, metric, codes, dim, documents.scale, documents.offset, factor, addend, integer_scale
    )


def _plain_scale(codes: Quantized) -> float | None:
    """The scale of codes that have the same in all dimensions and no offset: plain integers."""
    if bool((codes.offset == 0).all()) and bool((codes.scale == codes.scale[0]).all()):
        return float(codes.scale[0])
    return None


def prepare_queries(queries: object, documents: Documents, nan: str = "raise") -> Operands:
    """The half of `prepare` for documents that were prepared."""
    _inputs.check_choice("nan", nan, ("raise", "ignore"))
    there = _vectors.gpu_of(documents.rows)
    here = _vectors.gpu_of(queries.codes if isinstance(queries, Quantized) else queries)
    if here != there:
        raise ValueError(
            f"queries: found them on {here or 'the CPU'}, expected {there or 'the CPU'} because "
            "documents are there"
        )
    if isinstance(queries, Quantized):
        return _quantized_queries(queries, documents, nan)
    if documents.metric == "hamming":
        return _packed_queries(queries, documents)
    rows = _vectors.read("queries", queries, "Q")
    if rows.kind == "int8":
        raise ValueError(
            f"queries: int8 codes {list(rows.array.shape)} have no scale; pass the Quantized that "
            "simtile.quantize returned, or floats"
        )
    if rows.kind == "uint8":
        raise ValueError(
            f"queries: found {rows} and metric {documents.metric!r}, expected floats; packed bits "
            'are compared with packed bits by metric="hamming"'
        )
    if rows.array.shape[1] != documents.dim:
        raise ValueError(
            f"queries: found {rows}, expected [Q, {documents.dim}] because documents have "
            f"{documents.dim} dimensions"
        )
    x = _vectors.cast("queries", rows, documents.kind)
    return _without_nan(Operands(documents, x, None, rows.device), nan)


def _packed_queries(queries: object, documents: Documents) -> Operands:
    width = documents.rows.shape[1]
    rows = _vectors.read("queries", queries, "Q", "W")
    if rows.kind != "uint8":
        raise ValueError(
            f"queries: found {rows} and metric 'hamming', expected packed bits, uint8 "
            f'[Q, {width}]: pass simtile.quantize(queries, "binary")'
        )
    if rows.array.shape[1] != width:
        raise ValueError(
            f"queries: found {rows}, expected uint8 [Q, {width}] because documents have {width} "
            "bytes each"
        )
    return Operands(documents, rows.array, None, rows.device)


def _quantized_queries(queries: Quantized, documents: Documents, nan: str) -> Operands:
    device = queries.codes.device if _tensors.is_tensor(queries.codes) else None
    if _vectors.gpu_of(queries.codes) is None:
        queries = queries.numpy()
    codes = _vectors.side_by_side(queries.codes)
    hamming = documents.metric == "hamming"
    if (queries.kind == "binary") != hamming:
        expected = "kind 'binary'" if hamming else "floats, or metric='hamming'"
        raise ValueError(
            f"queries: found a Quantized of kind {queries.kind!r} and metric "
            f"{documents.metric!r}, expected {expected}"
        )
    # The number of bits of a matrix of packed bits is not known, only that of its bytes.
    same = codes.shape[1] == documents.rows.shape[1] if hamming else queries.dim == documents.dim
    if not same:
        raise ValueError(
            f"queries: found a Quantized of {queries.dim} dimensions, expected {documents.dim} "
            "because documents have as many"
        )
    if hamming:
        return Operands(documents, codes, None, device)
    scale = _integer_scale(queries, documents)
    if scale is None:
        floats = prepare_queries(queries.dequantize(), documents, nan)
        return replace(floats, device=device)
    if queries.kind == "int4_vector":
        codes = _one_a_byte(codes, queries.dim)
    if documents.scale is not None:  # the same in all dimensions: it becomes m
        factor = _vectors.full(len(documents), documents.integer_scale or 0.0, codes)
        documents = replace(documents, scale=None, offset=None, factor=factor)
    return _without_nan(Operands(documents, codes, scale, device), nan)


def _integer_scale(queries: Quantized, documents: Documents) -> Any:
    """The scale of every query whose codes can be multiplied as they are; None if they cannot."""
    if documents.integer_scale is None:
        return None
    if queries.kind in PER_VECTOR:
        return queries.scale
    plain = _plain_scale(queries) if queries.kind == "int8" else None
    return None if plain is None else _vectors.full(len(queries), plain, queries.codes)


def _one_a_byte(codes: Any, dim: int) -> Any:
    """int4 codes as int8 [N, D]."""
    array = np.ascontiguousarray(unpack(_tensors.as_array(codes), "int4", dim))
    return _tensors.as_tensor(array, codes.device) if _tensors.is_tensor(codes) else array


def _without_nan(operands: Operands, nan: str) -> Operands:
    scale = operands.query_scale
    wrong = _vectors.rows_with_nan(operands.queries if scale is None else scale[:, None])
    if not bool(wrong.any()):
        return operands
    if nan == "raise":
        raise ValueError(
            f"queries: found NaN in {int(wrong.sum())} of {len(wrong)} queries, the first is query "
            f"{int(wrong.nonzero()[0][0])}; expected numbers, or nan='ignore': then a query with "
            "NaN finds nothing"
        )
    kept = ~wrong
    return replace(
        operands,
        queries=operands.queries[kept],
        query_scale=None if scale is None else scale[kept],
        searched=kept,
    )
