"""The sigmoid loss of SigLIP: every pair of a batch is a question of its own, without the matrix.

The definition is `siglip_loss` in `reference/contrastive.py`; the kernel and its story are in
`kernels/siglip/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs, _pairwise
from simtile._info_nce_run import reduce_losses
from simtile._tensors import is_tensor

Array = npt.NDArray[Any]

REDUCTIONS = ("mean", "sum")


def siglip_loss(
    queries: Any,
    documents: Any,
    *,
    temperature: Any = 0.1,
    bias: Any = -10.0,
    normalize: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
    backend: Literal["auto", "cpu", "triton", "reference"] = "auto",
    threads: int | None = None,
) -> Any:
    r"""Sigmoid loss of torch tensors (differentiable) or NumPy arrays, in O((N + M) D) memory.

    Every query is compared with every document; that of its own number belongs to it:

    .. math:: \frac{1}{N} \sum_{i, j} -\log \sigma(z_{ij} x_{ij}), \qquad
        x_{ij} = q_i \cdot d_j / \tau + b, \qquad z_{ij} = 1 \text{ if } i = j \text{ else } -1

    Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", arXiv:2303.15343, eq. 1;
    open_clip's SigLipLoss with logit_scale 1/τ and logit_bias b. No logit is normalised by others,
    so batches may be small, and a pass needs no sums over rows.

    Parameters
    ----------
    queries : Tensor or array [N, D]
        float32, float64, bfloat16 or float16, on the CPU or a GPU (float64 on the CPU only).
        Different element types promote; under autocast tensors are cast as those of a matmul.
        Tensors are differentiable.
    documents : Tensor or array [M, D]
        M ≥ N: document i belongs to query i, the others are negatives of every query.
    temperature : float or Tensor with one element
        τ > 0, divides the similarities. A tensor is differentiated if it requires a gradient. Its
        value on a GPU is not read back: one that is not above 0 makes the result NaN.
    bias : float or Tensor with one element
        b, added to every logit, and differentiated likewise. Training starts with almost only
        negatives: at −10 they are all taken for such, so that the first steps are small.
    normalize : bool
        Divide every vector by max(‖x‖, 1e-12) first; the gradients include it.
    reduction : "mean" or "sum"
        Over the N queries, whose losses are sums over all documents.
    backend : str
        "auto" takes "cpu" on the CPU and "triton" on a GPU; a named one never falls back.
        "reference" is plain Python lists.
    threads : int, optional
        Threads for this call on the CPU; the result is the same for any number.

    Returns
    -------
    Tensor, scalar; or a NumPy number for arrays
        float64 if an input is, else float32. NaN in, NaN out.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value; there are no queries.
    RuntimeError
        The named backend is not available; the gradient is differentiated.

    Examples
    --------
    >>> import torch, simtile
    >>> images, texts = torch.eye(4, requires_grad=True), torch.eye(4)
    >>> log_temperature = torch.tensor(0.1).log().requires_grad_()
    >>> bias = torch.tensor(-10.0, requires_grad=True)
    >>> loss = simtile.siglip_loss(images, texts, temperature=log_temperature.exp(), bias=bias)
    >>> round(loss.item(), 4)
    0.6933
    >>> loss.backward()
    """
    _inputs.check_choice("reduction", reduction, REDUCTIONS)
    normalize = _inputs.check_flag("normalize", normalize)
    thread_count = _inputs.check_threads(threads)
    if is_tensor(queries):
        from simtile.ops.siglip import siglip_tensors

        return siglip_tensors(
            queries, documents, temperature, bias, normalize, reduction, backend, thread_count
        )
    chosen = _inputs.check_array_backend(backend, "simtile.siglip_loss")
    given = [
        _inputs.float_array(name, x) for name, x in (("queries", queries), ("documents", documents))
    ]
    check_shapes(given[0][0].shape, given[1][0].shape)
    dtype = _inputs.promote([name for _, name in given])
    arrays = [
        _pairwise.as_kernel(x, dtype)
        if name == dtype
        else x.astype(np.float64 if dtype == "float64" else np.float32)
        for x, name in given
    ]
    result = run(
        arrays[0],
        arrays[1],
        dtype,
        _inputs.check_temperature(temperature),
        _pairwise.check_number("bias", bias),
        normalize,
        1.0,
        (False, False),
        chosen,
        thread_count,
    )
    loss = reduce_losses(result.losses, reduction)
    return _pairwise.as_number(loss, dtype)


def check_shapes(queries: _inputs.Shape, documents: _inputs.Shape) -> None:
    """Raise unless shapes are [N, D] and [M, D] with M >= N >= 1 and D >= 1."""
    if len(queries) == 2 and len(documents) == 2 and documents[0] < queries[0]:
        raise ValueError(
            f"documents: found {documents[0]} rows for {queries[0]} queries, expected at least "
            f"{queries[0]} because document i belongs to query i"
        )
    _inputs.check_shapes(queries, documents, None, None, None, None)


class Result(NamedTuple):
    """What one run of the kernel gives; gradients that were not asked for are None."""

    losses: npt.NDArray[np.float64]  # [N]
    grad_queries: Array | None  # float64 for float64 inputs, else float32
    grad_documents: Array | None
    grad_temperature: float
    grad_bias: float


def run(
    queries: Array,
    documents: Array,
    dtype: str,
    temperature: float,
    bias: float,
    normalize: bool,
    weight: float,
    need_grad: Sequence[bool],
    backend: str,
    threads: int,
) -> Result:
    """The losses, and the gradients of weight · Σ losses, of arrays that have been checked.

    `need_grad` of queries and documents.
    """
    number = np.float64 if dtype == "float64" else np.float32
    if backend == "reference":
        from simtile.reference import contrastive
        from simtile.reference.contrastive_options import SIGLIP_DEFAULTS

        options = SIGLIP_DEFAULTS._replace(temperature=temperature, bias=bias, normalize=normalize)
        q, d = (_pairwise.wide(x, dtype).tolist() for x in (queries, documents))
        of = contrastive.siglip_loss_grad(q, d, None, options, [weight] * len(q))
        return Result(
            np.array(of.losses),
            np.array(of.queries, number) if need_grad[0] else None,
            np.array(of.documents, number) if need_grad[1] else None,
            of.temperature,
            of.bias,
        )
    losses = np.empty(len(queries))
    grads = [
        np.empty(x.shape, number) if needed else None
        for x, needed in zip((queries, documents), need_grad, strict=True)
    ]
    scalars = _core.siglip(
        _inputs.kernel_rows(queries),
        _inputs.kernel_rows(documents),
        dtype,
        temperature,
        bias,
        normalize,
        weight,
        losses,
        grads[0],
        grads[1],
        threads,
    )
    return Result(losses, grads[0], grads[1], *scalars)
