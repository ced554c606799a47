"""XTR: MaxSim over the tokens that a search over all documents' tokens finds.

The definition is `reference/xtr.py`. The search is `simtile.topk`; gradients are those of MaxSim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _maxsim_inputs, _maxsim_sides, _tensors, search
from simtile._maxsim_inputs import Given

if TYPE_CHECKING:
    from simtile.maxsim import Matrices, ZeroRows

Array = npt.NDArray[Any]
Backend = Literal["auto", "cpu", "cuda", "reference"]
Divisor = Literal["found", "positive"]

BACKENDS = ("auto", "cpu", "cuda", "reference")
FEWEST_POSITIVE = 1e-3  # what a sum is divided by where no maximum is positive
SMALLEST_NORM = 1e-12  # what shorter rows are divided by


class Options(NamedTuple):
    top_k: int
    normalize: bool
    divisor: str
    empty_score: float
    pad_zero_rows: bool
    backend: str
    threads: int | None


class Layout(NamedTuple):
    """Where the matrices of one side are among its rows."""

    starts: npt.NDArray[np.int64]  # [B]
    lengths: npt.NDArray[np.int64]  # [B]
    batch: bool  # padded, so of one length


def xtr_scores(
    queries: Matrices,
    documents: Matrices,
    query_mask: Any = None,
    document_mask: Any = None,
    *,
    top_k: int = 256,
    normalize: bool = False,
    divisor: Divisor = "found",
    empty_score: float = 0.0,
    zero_rows: ZeroRows = "score",
    backend: Backend = "auto",
    threads: int | None = None,
) -> Any:
    r"""Late-interaction scores by the tokens that a search would find, differentiable with torch.

    Each token of a query finds the ``top_k`` tokens of all documents together that are most
    similar to it, and a document scores by those of its tokens that were found:

    .. math:: s(q, d) = \frac{1}{Z} \sum_i \max_{j \text{ found by } i} q_i \cdot d_j

    over the tokens that are there, 0 for the maximum of none (Lee et al. 2023, arXiv:2304.01982,
    eq. 5).

    Parameters
    ----------
    queries : array or Tensor [Q, Lq, D], or list of [L, D]
        float32, float64, float16 or bfloat16 (``ml_dtypes.bfloat16`` in NumPy).
    documents : array or Tensor [N, Ld, D], or list of [L, D]
        Of the same types. Which documents are given together matters: all their tokens compete.
    query_mask, document_mask : bool [Q, Lq] and [N, Ld], or lists of [L], optional
        False for what is no token, as in :func:`simtile.maxsim`.
    top_k : int
        How many tokens of all documents a token of a query finds; of equal similarities the first.
        On a GPU at most 65,536.
    normalize : bool
        Divide every token by max(‖x‖, 1e-12) first; gradients include it.
    divisor : "found" or "positive"
        Z is the number of the query's tokens that found one of the document's, at least 1; or the
        number of maxima that are positive, at least 1e-3. With "positive" a negative maximum
        counts as 0, unless all rows of the document were found.
    empty_score : float
        The score of a document without a token. A query without one has the score 0 with all
        others.
    zero_rows : "score" or "pad"
        Whether a row of zeros is a token with similarity 0 to all, or none.
    backend : "auto", "cpu", "cuda" or "reference"
        Of the search, as in :func:`simtile.topk`: "auto" searches where the inputs are.
    threads : int, optional
        Threads for this call on the CPU; see :func:`simtile.set_num_threads` for the default.

    Returns
    -------
    scores : [Q, N]
        float64 if an input is, else float32. A tensor if queries or documents are, else an array.
        NaN where a token of the query or of the document has a NaN or an infinity.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value.
    RuntimeError
        The named backend is not available, or not for these inputs; the gradient is differentiated
        (``create_graph=True``).

    Notes
    -----
    Similarities are ranked in float32, in float64 as well. A maximum passes its gradient to its
    token; which tokens are found, and Z, are constants. Memory grows with
    Q · Lq · (top_k + N), never with the number of pairs of tokens.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> query = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)
    >>> documents = np.array([[[0.9, 0.0], [0.0, 0.1]], [[0.8, 0.0], [0.0, 0.7]]], np.float32)
    >>> simtile.xtr_scores(query, documents, top_k=1)  # of the first document one token is found
    array([[0.9, 0.7]], dtype=float32)
    """
    _inputs.check_choice("divisor", divisor, ("found", "positive"))
    _inputs.check_choice("zero_rows", zero_rows, ("score", "pad"))
    _inputs.check_choice("backend", backend, BACKENDS)
    _inputs.check_threads(threads)
    options = Options(
        _check_top_k(top_k),
        _inputs.check_flag("normalize", normalize),
        divisor,
        _inputs.to_float("empty_score", empty_score),
        zero_rows == "pad",
        backend,
        threads,
    )
    left, right = _maxsim_inputs.check_together(
        _maxsim_inputs.given("queries", queries, query_mask, "query_mask"),
        _maxsim_inputs.given("documents", documents, document_mask, "document_mask"),
    )
    if _tensors.is_tensor(left.x) or _tensors.is_tensor(right.x):
        from simtile.ops.xtr import xtr_tensors

        return xtr_tensors(left, right, options)
    return _of_arrays(left, right, options)


def _check_top_k(top_k: Any) -> int:
    count = _inputs.to_int("top_k", top_k)
    if count < 1:
        raise ValueError(f"top_k: found {count}, expected at least 1")
    return count


def layout(side: Given) -> Layout:
    if side.offsets is not None:
        return Layout(side.offsets[:-1], np.diff(side.offsets), False)
    width = int(side.x.shape[1])
    lengths = np.full(side.batch, width, np.int64)
    return Layout(np.arange(side.batch, dtype=np.int64) * width, lengths, True)


def _of_arrays(queries: Given, documents: Given, options: Options) -> Array:
    (own, own_kind), (x, kind) = (_maxsim_sides.elements(side) for side in (queries, documents))
    compute = "float64" if "float64" in (own_kind, kind) else "float32"
    tokens = _maxsim_sides.widen(own, own_kind, compute).reshape(-1, queries.dim)
    if compute == "float64" or options.normalize:
        others = _maxsim_sides.widen(x, kind, compute).reshape(-1, documents.dim)
    else:
        others = np.asarray(documents.x).reshape(-1, documents.dim)
    own_there, there = (
        _there(side, rows, options.pad_zero_rows)
        for side, rows in ((queries, tokens), (documents, others))
    )
    own_finite, finite = np.isfinite(tokens).all(1), np.isfinite(others).all(1)
    of_queries, of_documents = layout(queries), layout(documents)
    count = documents.batch
    if options.normalize:
        tokens, others = _unit(tokens), _unit(others)
    document_of = np.repeat(np.arange(count), of_documents.lengths)
    allow = there & finite
    if len(tokens) and len(others):
        similarities, ids = search.topk(
            tokens,
            others,
            min(options.top_k, len(others)),
            metric="dot",
            allow=None if allow.all() else allow,
            nan="ignore",
            backend=options.backend,  # type: ignore[arg-type]
            threads=options.threads,
        )
    else:
        similarities = np.zeros((len(tokens), 1), np.float32)
        ids = np.full((len(tokens), 1), -1)

    # Best first, so the first one of a document is its maximum.
    found_in = np.where(ids < 0, count, np.append(document_of, count)[ids])
    first = np.full((len(tokens), count + 1), -1)
    every = np.arange(len(tokens))
    for place in reversed(range(ids.shape[1])):
        first[every, found_in[:, place]] = place
    first = first[:, :count]
    taken = (first >= 0) & own_there[:, None]
    values = np.where(taken, np.take_along_axis(similarities, first, 1), 0).astype(compute)
    rows = np.take_along_axis(ids, first, 1)
    if compute == "float64":
        values[taken] = _products(tokens, others, taken, rows)
    sources = taken
    if options.divisor == "positive" and options.top_k < len(others):
        numbers = np.zeros((len(tokens), count + 1), np.int64)
        np.add.at(numbers, (every[:, None], found_in), 1)
        part = numbers[:, :count] < of_documents.lengths
        values[part & (values < 0)] = 0
    if options.divisor == "positive":
        sources = values > 0

    scores = np.empty((queries.batch, count), compute)
    for q, (start, length) in enumerate(zip(of_queries.starts, of_queries.lengths, strict=True)):
        own_rows = slice(start, start + length)
        z = np.maximum(sources[own_rows].sum(0), smallest(options.divisor))
        scores[q] = values[own_rows].sum(0, dtype=np.float64) / z
        if (own_there & ~own_finite)[own_rows].any():
            scores[q] = np.nan
        if not own_there[own_rows].any():
            scores[q] = 0
    for n, (start, length) in enumerate(
        zip(of_documents.starts, of_documents.lengths, strict=True)
    ):
        its_rows = slice(start, start + length)
        if (there & ~finite)[its_rows].any():
            with_tokens = [own_there[s : s + m].any() for s, m in zip(*of_queries[:2], strict=True)]
            scores[with_tokens, n] = np.nan
        if not there[its_rows].any():
            scores[:, n] = options.empty_score
    return scores


def smallest(divisor: str) -> float:
    """Of Z."""
    return 1.0 if divisor == "found" else FEWEST_POSITIVE


def _there(side: Given, rows: Array, pad_zero_rows: bool) -> npt.NDArray[np.bool_]:
    there = np.ones(len(rows), bool) if side.mask is None else _tensors.as_array(side.mask)
    there = there.reshape(-1)
    return there & (rows != 0).any(1) if pad_zero_rows else there


def _unit(rows: Array) -> Array:
    with np.errstate(all="ignore"):
        wide = rows.astype(np.float64)
        norms = np.sqrt((wide * wide).sum(1, keepdims=True))
        wide /= np.maximum(norms, SMALLEST_NORM)
    return wide.astype(rows.dtype)


def _products(tokens: Array, others: Array, taken: Array, rows: Array) -> Array:
    """The similarities of what was taken, in the type of the tokens; a row at a time."""
    parts = [others[rows[i][taken[i]]] @ tokens[i] for i in range(len(tokens)) if taken[i].any()]
    return np.concatenate([*parts, np.zeros(0, tokens.dtype)])
