"""MaxSim: late interaction of queries and documents that are matrices of token vectors.

The definition is `reference/maxsim.py`; the kernels and their story are in `kernels/maxsim/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy.typing as npt

from simtile import (
    _inputs,
    _maxsim_call,
    _maxsim_codes,
    _maxsim_inputs,
    _maxsim_run,
    _search_call,
    _tensors,
)
from simtile._maxsim_codes import Coded
from simtile._maxsim_inputs import Given
from simtile.quantized import Quantized
from simtile.residual import ResidualTokens

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Backend = Literal["auto", "cpu", "triton", "cuda", "reference"]
ZeroRows = Literal["score", "pad"]
# [B, L, D], or [L, D] of each length
Matrices: TypeAlias = "npt.ArrayLike | torch.Tensor | Sequence[npt.ArrayLike | torch.Tensor]"


def maxsim(
    queries: Matrices,
    documents: Matrices,
    query_mask: Any = None,
    document_mask: Any = None,
    *,
    normalize: bool = False,
    length_normalize: bool = False,
    empty_score: float = 0.0,
    zero_rows: ZeroRows = "score",
    temperature: float | None = None,
    return_argmax: bool = False,
    return_token_scores: bool = False,
    backend: Backend = "auto",
    threads: int | None = None,
) -> Any:
    r"""Late-interaction scores of all queries with all documents, differentiable with torch.

    .. math:: s(q, d) = \sum_i \max_j q_i \cdot d_j

    over the tokens that are there (Khattab and Zaharia 2020, arXiv:2004.12832, eq. 3). No
    similarity is stored, nothing is padded, and padding is not multiplied.

    Parameters
    ----------
    queries : array or Tensor [Q, Lq, D], or list of [L, D]
        float32, float64, float16 or bfloat16 (``ml_dtypes.bfloat16`` in NumPy), converted to the
        type of the scores. Any strides; rows that are not contiguous cost a copy.
    documents : array or Tensor [N, Ld, D], or list of [L, D]
        Of the same types, multiplied as they are stored. Slices of wider batches and expanded ones
        are read in place; a list is put together once.
    query_mask, document_mask : bool [Q, Lq] and [N, Ld], or lists of [L], optional
        False for what is no token. It may stand anywhere, and takes part in no maximum. Integers,
        as tokenizers give them, are False where they are 0.
    normalize : bool
        Divide every token by max(‖x‖, 1e-12) first; gradients include it.
    length_normalize : bool
        Divide a score by the number of the query's tokens.
    empty_score : float
        The score of a document without a token. A query without one has the score 0 with all
        others.
    zero_rows : "score" or "pad"
        Whether a row of zeros is a token with similarity 0 to all, or none.
    temperature : float, optional
        Instead of the maximum its smooth bound t · log Σ_j exp(q_i · d_j / t), which gives every
        token of a document a gradient.
    return_argmax : bool
        Also return which row of the document each row of a query matched.
    return_token_scores : bool
        Also return the terms of each score, which explain it; they carry no gradient.
    backend : str
        "auto" takes the fastest that can run the inputs: "cpu" on the CPU, on a GPU "triton" or
        "cuda". A named one never falls back. "reference" is the definition in plain Python lists.
    threads : int, optional
        Threads for this call on the CPU; see :func:`simtile.set_num_threads` for the default.

    Returns
    -------
    scores : [Q, N]
        float64 if an input is, else float32. Tensors if queries or documents are, else arrays.
    argmax : int32 [Q, N, Lq], or list of [N, L]
        With ``return_argmax``: rows of the documents, padding and masked rows counted. The first
        of equals, and the first NaN; -1 where a row of the query is no token or the document has
        none. A list where queries are one.
    token_scores : [Q, N, Lq], or list of [N, L]
        With ``return_token_scores``; 0 where ``argmax`` is -1.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value.
    RuntimeError
        The named backend is not available; the gradient is differentiated (``create_graph=True``);
        a torch.func transform is active.

    Notes
    -----
    A maximum passes its gradient to the first token that attains it. Gradients are computed in
    float32 (float64 for float64) without atomics, and the same inputs give the same bits. In one
    call equal pairs have equal scores. Two calls may differ in the last bits for the same pair: on
    processors with AMX float32 is multiplied in another way where there are many query tokens.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)  # two tokens
    >>> near = np.array([[1.0, 0.0], [0.0, 0.5], [0.2, 0.2]], np.float32)
    >>> far = np.array([[0.1, 0.3]], np.float32)
    >>> simtile.maxsim(query[None], [near, far])  # 1.0 + 0.5, 0.1 + 0.3
    array([[1.5, 0.4]], dtype=float32)

    A padded batch with a mask:

    >>> documents = np.stack([near, near])
    >>> mask = np.array([[True, True, True], [False, True, True]])
    >>> simtile.maxsim(query[None], documents, document_mask=mask)  # 0.2 + 0.5 without the first
    array([[1.5, 0.7]], dtype=float32)
    """
    options = _maxsim_call.read_options(
        normalize, length_normalize, empty_score, zero_rows, temperature
    )
    left, right = _maxsim_inputs.check_together(
        _maxsim_inputs.given("queries", queries, query_mask, "query_mask"),
        _maxsim_inputs.given("documents", documents, document_mask, "document_mask", apart=True),
    )
    found = _maxsim_call.run(
        left, right, None, options, return_argmax, return_token_scores, backend, threads
    )
    return _maxsim_call.results(left, found, right.batch)


def maxsim_pairwise(
    queries: Matrices,
    documents: Matrices,
    query_mask: Any = None,
    document_mask: Any = None,
    *,
    normalize: bool = False,
    length_normalize: bool = False,
    empty_score: float = 0.0,
    zero_rows: ZeroRows = "score",
    temperature: float | None = None,
    return_argmax: bool = False,
    return_token_scores: bool = False,
    backend: Backend = "auto",
    threads: int | None = None,
) -> Any:
    """Late-interaction scores of query i with document i.

    Parameters
    ----------
    queries, documents : arrays or Tensors [B, Lq, D] and [B, Ld, D], or lists of B matrices [L, D]
    query_mask, document_mask, normalize, length_normalize, empty_score, zero_rows, temperature, \
return_argmax, return_token_scores, backend, threads
        As in :func:`simtile.maxsim`.

    Returns
    -------
    scores : [B]
    argmax, token_scores : [B, Lq], or lists of [L]
        If they are asked for, as in :func:`simtile.maxsim`.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As :func:`simtile.maxsim`; there are not as many documents as queries.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> queries = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    >>> documents = np.array([[[0.5, 0.0], [0.25, 0.0]], [[1.0, 2.0], [0.0, 3.0]]], np.float32)
    >>> simtile.maxsim_pairwise(queries, documents)
    array([0.5, 3. ], dtype=float32)
    """
    options = _maxsim_call.read_options(
        normalize, length_normalize, empty_score, zero_rows, temperature
    )
    left, right = _maxsim_inputs.check_together(
        _maxsim_inputs.given("queries", queries, query_mask, "query_mask"),
        _maxsim_inputs.given("documents", documents, document_mask, "document_mask", apart=True),
    )
    if left.batch != right.batch:
        raise ValueError(
            f"documents: found {right.batch} for {left.batch} queries, expected {left.batch} "
            "because document i belongs to query i; simtile.maxsim scores all with all"
        )
    found = _maxsim_call.run(
        left,
        right,
        _maxsim_call.each_its_own(left, right),
        options,
        return_argmax,
        return_token_scores,
        backend,
        threads,
    )
    results = [found.scores[:, 0]]
    for x in (found.argmax, found.token_scores):
        if x is not None and left.width is not None:
            results.append(x[:, 0])
        elif x is not None:
            results.append([part[0] for part in _maxsim_run.split(left, 1, x)])
    return results[0] if len(results) == 1 else tuple(results)


def maxsim_packed(
    queries: Matrices,
    tokens: Any,
    offsets: Any,
    query_mask: Any = None,
    document_mask: Any = None,
    *,
    ids: Any = None,
    k: int | None = None,
    allow: Any = None,
    normalize: bool = False,
    length_normalize: bool = False,
    empty_score: float = 0.0,
    zero_rows: ZeroRows = "score",
    temperature: float | None = None,
    return_argmax: bool = False,
    return_token_scores: bool = False,
    backend: Backend = "auto",
    threads: int | None = None,
) -> Any:
    """Late-interaction scores with documents whose tokens are stored one after the other.

    Parameters
    ----------
    queries : array or Tensor [Q, Lq, D], or list of [L, D]
        With tokens that are codes also a list of int8_vector `Quantized`.
    tokens : array or Tensor [T, D], Quantized or ResidualTokens
        Of all documents, without padding. Codes are scored as they are and without gradients:
        `Quantized` of int8, uint8, int8_vector or binary, and `ResidualTokens`, on the CPU or a GPU
        (CUDA), where queries are rounded on the host first.
    offsets : int [N + 1]
        Document n is ``tokens[offsets[n] : offsets[n + 1]]``: ascending, from 0 to T.
    query_mask : bool [Q, Lq], or list of [L], optional
    document_mask : bool [T], optional
        False for what is no token.
    ids : int [Q, C], optional
        Score query q with documents ids[q] only; -1 is none, and has the score -inf. Another that
        is not 0 to N - 1 raises; on a GPU, whose ids nothing waits for, it is none.
    k : int, optional
        Return the k best documents of each query instead of all scores; at most 65536 by CUDA.
    allow : bool [N] or [Q, N], or integers [A], optional
        With ``k``: the documents that may be found, as in :func:`simtile.topk`.
    normalize, length_normalize, empty_score, zero_rows, temperature, return_argmax, \
return_token_scores, backend, threads
        As in :func:`simtile.maxsim`.

    Returns
    -------
    scores : [Q, N], or [Q, C] with ``ids``, or [Q, k] with ``k``
        With ``k`` best first. A document whose score is NaN is not found.
    ids : int64 [Q, k]
        With ``k``: which documents; of equal scores the lowest first, and each once. Where a query
        finds fewer than k, the remaining places hold id -1 and the score -inf.
    argmax, token_scores : of shape scores.shape + [Lq], or lists
        If they are asked for, as in :func:`simtile.maxsim`; argmax counts a document's own rows.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As :func:`simtile.maxsim`; offsets, ids or allow are not as described.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> documents = [np.full((length, 2), length, np.float32) for length in (1, 3, 2)]
    >>> tokens, offsets = np.concatenate(documents), np.cumsum([0, *map(len, documents)])
    >>> queries = np.ones((1, 4, 2), np.float32)
    >>> simtile.maxsim_packed(queries, tokens, offsets)  # 4 query tokens, each 2 · length
    array([[ 8., 24., 16.]], dtype=float32)
    >>> simtile.maxsim_packed(queries, tokens, offsets, k=2)
    (array([[24., 16.]], dtype=float32), array([[1, 2]]))
    >>> simtile.maxsim_packed(queries, tokens, offsets, ids=[[2, 0]])  # rerank candidates
    array([[16.,  8.]], dtype=float32)
    """
    options = _maxsim_call.read_options(
        normalize, length_normalize, empty_score, zero_rows, temperature
    )
    right: Given | Coded
    if isinstance(tokens, (Quantized, ResidualTokens)):
        left, right = _maxsim_codes.given(queries, tokens, offsets, query_mask, document_mask)
    else:
        left, right = _maxsim_inputs.check_together(
            _maxsim_inputs.given("queries", queries, query_mask, "query_mask"),
            _maxsim_inputs.given_packed("tokens", tokens, offsets, document_mask, "document_mask"),
        )
    candidates = None if ids is None else _maxsim_call.check_ids(ids, left.batch)
    if candidates is not None and right.of_tensors and right.x.is_cuda:
        candidates = _tensors.as_tensor(candidates, right.x.device)
        candidates = candidates.masked_fill(candidates >= right.batch, -1)
    details = (
        _inputs.check_flag("return_argmax", return_argmax),
        _inputs.check_flag("return_token_scores", return_token_scores),
    )
    _inputs.check_choice("backend", backend, _inputs.BACKENDS)
    if k is None:
        if allow is not None:
            raise ValueError(
                "allow: found one without k, expected k as well: it says what a search may find; "
                "ids=[Q, C] chooses what is scored"
            )
        found = _maxsim_call.run(left, right, candidates, options, *details, backend, threads)
        count = right.batch if candidates is None else int(candidates.shape[1])
        return _maxsim_call.results(left, _maxsim_call.without_none(found, candidates), count)
    count = _search_call.check_k(k)
    mask = _maxsim_call.allowed_documents(allow, left, right)
    scores, best = _maxsim_call.search(
        left, right, candidates, options, mask, count, backend, threads
    )
    differentiable = isinstance(right, Given) and _maxsim_call.needs_grad(left, right)
    if not (any(details) or differentiable):
        return scores, best
    found = _maxsim_call.run(left, right, best, options, *details, backend, threads)
    again, *rest = _maxsim_call.as_list(
        _maxsim_call.results(left, _maxsim_call.without_none(found, best), count)
    )
    return (again if differentiable else scores, best, *rest)
