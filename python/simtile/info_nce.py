"""InfoNCE: the contrastive loss of text-embedding training without the matrix of similarities.

The definition is `reference/info_nce.py`; the kernel and its story are in `kernels/info_nce/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _pairwise
from simtile._contrast import check_contrast, check_guide_shapes, check_widths, split_guide
from simtile._info_nce_run import reduce_losses, run
from simtile._statistics import ContrastiveStatistics, check_statistics

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

Hardness = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]


def info_nce(
    queries: torch.Tensor,
    documents: torch.Tensor,
    negatives: torch.Tensor | None = None,
    *,
    temperature: float | torch.Tensor = 0.05,
    bias: float | torch.Tensor | None = None,
    normalize: bool = True,
    targets: torch.Tensor | Sequence[int] | None = None,
    directions: Sequence[str] = ("query_to_doc",),
    partition: Literal["joint", "per_direction"] = "joint",
    negatives_scope: Literal["all", "queries", "own"] = "all",
    query_ids: torch.Tensor | Sequence[int] | None = None,
    document_ids: torch.Tensor | Sequence[int] | None = None,
    guide: Sequence[torch.Tensor] | None = None,
    guide_margin: float = 0.0,
    guide_margin_strategy: Literal["absolute", "relative"] = "absolute",
    false_negative_margin: float | None = None,
    hardness: Hardness | None = None,
    hardness_strength: float = 0.0,
    matryoshka_dims: Sequence[int] | None = None,
    matryoshka_weights: Sequence[float] | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    statistics: ContrastiveStatistics | None = None,
    backend: Literal["auto", "cpu", "triton", "cuda", "reference"] = "auto",
    precision: Literal["ieee", "tf32", "tf32x3"] = "ieee",
    threads: int | None = None,
) -> torch.Tensor:
    r"""InfoNCE loss of torch tensors, differentiable, in O((N + M) D) memory.

    Every query q_i is compared with its document and with all other candidates c_j, the documents
    of the other queries and the hard negatives:

    .. math:: \ell_i = \log \sum_j e^{s_{ij}} - s_{i,t_i}, \qquad s_{ij} = q_i \cdot c_j / \tau

    (van den Oord et al. 2018, arXiv:1807.03748, eq. 4). With ``normalize`` the similarities are
    cosines and this is the NT-Xent loss (Chen et al. 2020, arXiv:2002.05709, eq. 1) in one
    direction; sentence-transformers calls it MultipleNegativesRankingLoss with scale 1/τ.

    Parameters
    ----------
    queries : Tensor [N, D]
        float32, float64, bfloat16 or float16, on the CPU or a GPU (float64 on the CPU only).
        Different element types promote as torch promotes; under autocast inputs are cast as those
        of a matmul. Rows may have any stride; on the CPU a last axis that is not contiguous costs a
        copy.
    documents : Tensor [M, D]
        M ≥ N: document i belongs to query i, the others are negatives of every query. With
        ``targets`` any M.
    negatives : Tensor [N, K, D], optional
        K hard negatives for each query.
    temperature : float or Tensor with one element
        τ > 0. A tensor is differentiated if it requires a gradient. Its value on a GPU is not
        read back: one that is not above 0 makes the result meaningless or NaN.
    bias : float or Tensor with one element, optional
        Added to every logit, which changes nothing: it cancels in log Σ exp(s + b) − (s₊ + b). So
        the loss is the same without it and its gradient exactly 0. It is here so that one set of
        arguments serves :func:`simtile.siglip_loss` as well, where it matters.
    normalize : bool
        Divide every vector by max(‖x‖, 1e-12) first, as ``torch.nn.functional.normalize``; the
        gradients include it.
    targets : int Tensor [N], optional
        The document of each query, from 0 to M − 1. On a GPU a wrong one makes the row's loss NaN
        instead of raising, because nothing waits for the device.
    directions : tuple of str
        What is compared with what. Of pair i, whose positive is query i with its document:

        =================  ============  ================================================
        direction          anchor        its negatives
        =================  ============  ================================================
        "query_to_doc"     query i       the other documents; hard negatives
        "query_to_query"   query i       the other queries
        "doc_to_query"     document i    the other queries
        "doc_to_doc"       document i    the other documents; hard negatives of others
        =================  ============  ================================================

        Those from documents need document i to belong to query i (no ``targets``). Documents past
        the N-th belong to nobody (a memory bank): candidates, never anchors.
    partition : "joint" or "per_direction"
        One log-sum-exp over the candidates of all directions (Li et al. 2023, arXiv:2308.03281;
        with query_to_doc and doc_to_query the positive counts twice, as in sentence-transformers),
        or a loss for each direction and their mean: with these two CLIP's symmetric loss (Radford
        et al. 2021, arXiv:2103.00020). The positive must be a candidate in every log-sum-exp, which
        it is in these two directions.
    negatives_scope : "all", "queries" or "own"
        Whose candidates the hard negatives are: every anchor's, every query's but no document's,
        or only their own query's.
    query_ids, document_ids : int Tensor [N] and [M], optional
        A document whose id equals the query's is not one of its negatives (the query's own
        document always counts; hard negatives have no ids), and so in the other directions. With
        M = N and no targets either alone serves for both; ``document_ids`` alone gives each query
        the id of its document.
    guide : (queries [N, G], documents [M, G]) and with negatives (…, negatives [N, K, G])
        Vectors by another model: a candidate whose cosine with its anchor exceeds that of the pair
        is taken for a false negative and left out (GISTEmbed: Solatorio 2024, arXiv:2402.16829).
        Not differentiated.
    guide_margin, guide_margin_strategy : float, "absolute" or "relative"
        The pair's cosine by the guide less this, or less this share of its size, is the threshold.
    false_negative_margin : float, optional
        A candidate whose similarity exceeds the pair's less this is left out; similarities as they
        are, before the temperature.
    hardness : "in_batch_negatives", "hard_negatives" or "all_negatives", optional
        Adds ``hardness_strength`` times the similarity, as a constant, to the logits in
        query_to_doc of what belongs to others (Lan et al. 2025, arXiv:2503.04812, eq. 5), of the
        query's own hard negatives (Schechter Vera et al. 2025, arXiv:2509.20354), or of both.
    matryoshka_dims, matryoshka_weights : tuple of int and of float, optional
        The loss is the weighted average of the losses of the first ``matryoshka_dims[k]``
        dimensions of all vectors, each normalised by itself (Kusupati et al. 2022,
        arXiv:2205.13147). Any order, each width once; equal weights unless given, and only their
        ratios matter (sentence-transformers' MatryoshkaLoss is the weighted sum: the average times
        the sum of the weights). On the CPU all widths together cost little more than the widest
        alone; with a guide, a margin, hardness or hard negatives in the scope "own", and on a GPU,
        each width is a run of its own.
    reduction : "mean", "sum" or "none"
        Over the N losses.
    statistics : ContrastiveStatistics, optional
        What the loss sees is added to it: mean similarity of pairs and of negatives, accuracy, the
        share of negatives left out. Gathered while the similarities are computed.
    backend : str
        "auto" takes the fastest that can run the inputs: "cpu" on the CPU, "triton" on a GPU. A
        named one never falls back. "cuda" computes bfloat16 losses of query_to_doc without
        gradients, guide, margin or hardness in one launch, for small batches on NVIDIA GPUs;
        "reference" is plain Python lists.
    precision : "ieee", "tf32" or "tf32x3"
        The least that float32 products are computed in on a GPU's matrix units: in full, in TF32
        (10 bits of significand), or as three TF32 products with nearly the accuracy of the first.
        The CPU always computes them in full; other element types are multiplied exactly.
    threads : int, optional
        Threads for this call on the CPU; see :func:`simtile.set_num_threads` for the default.

    Returns
    -------
    Tensor, scalar or [N] for "none"
        float64 if an input is, else float32. NaN in, NaN out. Zero when nothing but its own
        document is left for a query (log 2 where that counts twice).

    Raises
    ------
    ValueError
        An argument has a wrong shape, element type or value; there are no queries.
    TypeError
        An argument is not a tensor where one is expected.
    RuntimeError
        The named backend is not available; the gradient is differentiated (``create_graph=True``);
        a torch.func transform is active.

    Notes
    -----
    For "mean" and "sum" the gradients are computed with the loss, row block by row block, and kept
    in float32 (float64 for float64 inputs) for the backward; for "none" the backward computes them.
    The same inputs and threads give the same bits.

    Examples
    --------
    >>> import torch, simtile
    >>> queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> documents = torch.tensor([[2.0, 0.1], [0.1, 2.0]])  # document i answers query i
    >>> loss = simtile.info_nce(queries, documents, temperature=0.5)
    >>> round(loss.item(), 4)
    0.1397
    >>> loss.backward()
    >>> queries.grad.shape
    torch.Size([2, 2])

    With hard negatives, K for each query, and both directions:

    >>> negatives = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])
    >>> loss = simtile.info_nce(
    ...     queries, documents, negatives, directions=("query_to_doc", "doc_to_query")
    ... )
    """
    _inputs.check_choice("reduction", reduction, _inputs.REDUCTIONS)
    contrast = check_contrast(
        directions,
        partition,
        negatives_scope,
        targets is not None,
        hardness,
        hardness_strength,
        false_negative_margin,
        guide,
        guide_margin,
        guide_margin_strategy,
        matryoshka_dims,
        matryoshka_weights,
    )
    try:
        from simtile.ops.info_nce import check_bias, info_nce_tensors, with_bias
    except ModuleNotFoundError as error:
        raise _inputs.explain_missing(error, "simtile.info_nce takes torch tensors") from None
    if bias is not None:
        check_bias(bias)
    if statistics is not None:
        check_statistics(statistics)
    loss = info_nce_tensors(
        queries,
        documents,
        negatives,
        temperature,
        targets,
        query_ids,
        document_ids,
        split_guide(guide, negatives is not None),
        _inputs.check_flag("normalize", normalize),
        contrast,
        reduction,
        statistics,
        backend,
        _inputs.check_precision(precision),
        _inputs.check_threads(threads),
    )
    return loss if bias is None else with_bias(loss, bias)


def info_nce_grad(
    queries: npt.ArrayLike,
    documents: npt.ArrayLike,
    negatives: npt.ArrayLike | None = None,
    *,
    temperature: float = 0.05,
    bias: float | None = None,
    normalize: bool = True,
    targets: npt.ArrayLike | None = None,
    directions: Sequence[str] = ("query_to_doc",),
    partition: Literal["joint", "per_direction"] = "joint",
    negatives_scope: Literal["all", "queries", "own"] = "all",
    query_ids: npt.ArrayLike | None = None,
    document_ids: npt.ArrayLike | None = None,
    guide: Sequence[npt.ArrayLike] | None = None,
    guide_margin: float = 0.0,
    guide_margin_strategy: Literal["absolute", "relative"] = "absolute",
    false_negative_margin: float | None = None,
    hardness: Hardness | None = None,
    hardness_strength: float = 0.0,
    matryoshka_dims: Sequence[int] | None = None,
    matryoshka_weights: Sequence[float] | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    statistics: ContrastiveStatistics | None = None,
    backend: Literal["auto", "cpu", "triton", "cuda", "reference"] = "auto",
    precision: Literal["ieee", "tf32", "tf32x3"] = "ieee",
    threads: int | None = None,
) -> tuple[Any, ...]:
    """InfoNCE loss and its gradients, NumPy in and NumPy out, without torch.

    The loss is that of :func:`simtile.info_nce`, and so are all parameters, with arrays for
    tensors.

    Parameters
    ----------
    queries : array [N, D]
        float32, float64, float16 or ``ml_dtypes.bfloat16``; different element types promote.
        Rows may have any stride; a last axis that is not contiguous costs a copy. uint16 is refused
        and never read as bfloat16.
    documents : array [M, D]
        M ≥ N, or any M with ``targets``.
    negatives : array [N, K, D], optional
        K hard negatives for each query.
    temperature : float
        τ > 0, divides the similarities.
    bias, normalize, targets, directions, partition, negatives_scope, query_ids, document_ids, \
guide, guide_margin, guide_margin_strategy, false_negative_margin, hardness, hardness_strength, \
matryoshka_dims, matryoshka_weights, statistics, precision, threads
        As in :func:`simtile.info_nce`.
    backend : "auto", "cpu" or "reference"
        The GPU backends take torch tensors.
    reduction : "mean", "sum" or "none"
        Over the N losses. The gradients are those of the mean, or of the sum for the other two.

    Returns
    -------
    loss : NumPy scalar, or array [N] for "none"
    grad_queries : array [N, D]
    grad_documents : array [M, D]
    grad_negatives : array [N, K, D]
        Only when ``negatives`` are given. All are C-contiguous and float64 if an input is float64,
        else float32.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value; there are no queries.
    RuntimeError
        The named backend is not available.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> x = np.eye(3, dtype=np.float32)
    >>> loss, grad_queries, grad_documents = simtile.info_nce_grad(x, x, temperature=1.0)
    >>> round(float(loss), 4), grad_queries.shape
    (0.5514, (3, 3))
    """
    if bias is not None:
        _pairwise.check_number("bias", bias)
    if statistics is not None:
        check_statistics(statistics)
    _inputs.check_choice("reduction", reduction, _inputs.REDUCTIONS)
    contrast = check_contrast(
        directions,
        partition,
        negatives_scope,
        targets is not None,
        hardness,
        hardness_strength,
        false_negative_margin,
        guide,
        guide_margin,
        guide_margin_strategy,
        matryoshka_dims,
        matryoshka_weights,
    )
    chosen_backend = _inputs.check_array_backend(backend)
    _inputs.check_precision(precision)
    thread_count = _inputs.check_threads(threads)
    arrays, guides, dtype = _as_arrays(
        queries, documents, negatives, split_guide(guide, negatives is not None)
    )
    target_array = None if targets is None else _inputs.int_array("targets", targets)
    query_id_array = None if query_ids is None else _inputs.int_array("query_ids", query_ids)
    document_id_array = (
        None if document_ids is None else _inputs.int_array("document_ids", document_ids)
    )
    _inputs.check_shapes(
        arrays[0].shape,
        arrays[1].shape,
        None if arrays[2] is None else arrays[2].shape,
        None if target_array is None else target_array.shape,
        None if query_id_array is None else query_id_array.shape,
        None if document_id_array is None else document_id_array.shape,
    )
    check_guide_shapes(
        guides, arrays[0].shape, arrays[1].shape, None if arrays[2] is None else arrays[2].shape
    )
    check_widths(contrast, arrays[0].shape[1])
    result = run(
        *arrays,
        dtype,
        _inputs.check_temperature(temperature),
        _inputs.check_flag("normalize", normalize),
        target_array,
        query_id_array,
        document_id_array,
        guides,
        contrast,
        1.0 / arrays[0].shape[0] if reduction == "mean" else 1.0,
        None,
        (True, True, negatives is not None),
        statistics is not None,
        chosen_backend,
        thread_count,
    )
    if statistics is not None:
        statistics.add(result.tally)
    number = np.float64 if dtype == "float64" else np.float32
    loss = (
        result.losses.astype(number, copy=False)
        if reduction == "none"
        else number(reduce_losses(result.losses, reduction))
    )
    if negatives is None:
        return loss, result.grad_queries, result.grad_documents
    return loss, result.grad_queries, result.grad_documents, result.grad_negatives


def _as_arrays(
    queries: object, documents: object, negatives: object, guide: Sequence[object]
) -> tuple[tuple[Array, Array, Array | None], list[Array], str]:
    """The inputs and the guide's in their common element type, and its name; bfloat16 as bits."""
    given = [("queries", queries), ("documents", documents)]
    if negatives is not None:
        given.append(("negatives", negatives))
    given += [("guide", x) for x in guide]
    found = [_inputs.float_array(name, x, "simtile.info_nce") for name, x in given]
    dtype = _inputs.promote([name for _, name in found])
    arrays = [
        x.view(np.uint16) if dtype == "bfloat16" else x.astype(dtype, copy=False) for x, _ in found
    ]
    vectors = len(given) - len(guide)
    inputs, guides = arrays[:vectors], arrays[vectors:]
    return (inputs[0], inputs[1], inputs[2] if negatives is not None else None), guides, dtype
