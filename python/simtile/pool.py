"""Token embeddings to one vector for each row, in one pass over the tokens.

The definition is `reference/pool.py`; the kernels and their story are in `kernels/pool/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from simtile import _inputs, _pool, _tensors
from simtile.quantize import quantize_named
from simtile.quantized import KINDS, PER_DIMENSION, Kind

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch


def pool(
    token_embeddings: Any,
    mask: Any,
    how: Literal["mean", "cls", "max", "last"] = "mean",
    *,
    offsets: npt.ArrayLike | torch.Tensor | None = None,
    weights: Any = None,
    dim: int | None = None,
    normalize: bool = True,
    kind: Kind | None = None,
    ranges: npt.ArrayLike | torch.Tensor | None = None,
    backend: Literal["auto", "cpu", "triton", "reference"] = "auto",
    threads: int | None = None,
) -> Any:
    r"""One embedding for each row of tokens: pooled, truncated, normalised, perhaps quantised.

    Tokens are read once, and of them only what the result depends on: padding is not, nor are
    dimensions beyond ``dim``, nor with "cls" and "last" the other tokens. Of the tokens
    :math:`x_l` that the mask keeps,

    .. math:: p = \frac{\sum_l w_l x_l}{\max(\sum_l w_l, 10^{-9})}, \qquad
        y = \frac{p}{\max(\|p\|, 10^{-12})}

    or p is the first, the last, or for each dimension the largest of them: ``Pooling`` (Reimers and
    Gurevych 2019, arXiv:1908.10084) and ``Normalize`` of sentence-transformers.

    Parameters
    ----------
    token_embeddings : array or Tensor [N, L, D]; a list of N matrices [L_n, D]; or [T, D]
        float32, float64, bfloat16 or float16, arrays of NumPy (``ml_dtypes.bfloat16``) or tensors
        on the CPU or a GPU (float64 on the CPU only). [T, D] with ``offsets`` are the tokens of all
        rows one after the other, as encoders without padding give them. Rows and tokens may have
        any stride; dimensions that do not lie side by side are copied. Tensors are differentiable.
    mask : bool or int [N, L]; a list of N [L_n]; or [T]; or None
        Tokenizers' ``attention_mask``: 0 is no token, every other value one. Padding on the left,
        on the right and between is alike, and what stands there, NaN included, changes nothing.
        None: all are tokens.
    how : str
        "mean", "cls" (the first token that the mask keeps), "max" (of each dimension) or "last"
        (the last token that it keeps).
    offsets : int [N + 1], optional
        Row n is ``token_embeddings[offsets[n] : offsets[n + 1]]``: ascending, from 0 to T;
        ``cu_seq_lens_q`` of transformers. Read on the CPU.
    weights : float [N, L]; a list of N [L_n]; or [T], optional
        w ≥ 0 of the mean; 1 without. Tensors are differentiable; on a GPU none below 0 is looked
        for.
        ``torch.arange(1.0, L + 1).expand(N, L)`` is SGPT's (Muennighoff 2022, arXiv:2202.08904)
        where padding is on the right.
    dim : int, optional
        The first so many dimensions of the result, before it is normalised: what embeddings
        trained with Matryoshka representation learning are cut to.
    normalize : bool
        Divide by max(‖p‖, 1e-12). A row with an infinity has no direction and becomes NaN.
    kind : str, optional
        Of :func:`simtile.quantize`: the result is quantised, and has no gradient.
    ranges : float [2, dim], optional
        As in :func:`simtile.quantize`: of "int8", "uint8" and "int4" they are otherwise taken from
        this very batch, which another one cannot be compared with.
    backend : str
        "auto" takes "cpu" on the CPU and "triton" on a GPU; a named one never falls back.
        "reference" is plain Python lists.
    threads : int, optional
        Threads for this call on the CPU; the result is the same for any number.

    Returns
    -------
    array or Tensor [N, dim]; or Quantized with ``kind``
        Of the element type of token_embeddings, as sentence-transformers gives it, rounded once:
        sums and norms are of float64 on the CPU (of 8 tokens of float32 each), of float32 on a GPU.
        ``Quantized`` has the bits of ``simtile.quantize(simtile.pool(…), kind)``. A row without
        tokens is 0 in every dimension, whatever ``how`` (sentence-transformers gives its first
        padding for "cls" and -inf for "max"). NaN in, NaN out.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value.
    RuntimeError
        The named backend is not available; the gradient is differentiated.

    Notes
    -----
    Where several tokens are largest in a dimension, the first has its gradient, as ``torch.max``
    chooses. A sum of weights below 1e-9 is a constant.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> words = np.array([[[0.9, 0.1, 0.2], [0.8, 0.2, 0.1], [0.7, 0.1, 0.0], [9.0, 9.0, 9.0]]])
    >>> mask = np.array([[1, 1, 1, 0]])  # the last one is padding
    >>> simtile.pool(words, mask, normalize=False).round(3)
    array([[0.8  , 0.133, 0.1  ]])
    >>> simtile.pool(words, mask, "max", dim=2, normalize=False)
    array([[0.9, 0.2]])
    >>> simtile.pool(words, mask, kind="int8_vector")
    Quantized('int8_vector' [1, 3])
    """
    _inputs.check_choice("how", how, _pool.HOW)
    thread_count = _inputs.check_threads(threads)
    normalize = _inputs.check_flag("normalize", normalize)
    tokens = _pool.given(token_embeddings, offsets, mask)
    if weights is not None:
        weights = _pool.check_weights(weights, how, tokens)
    dim = _pool.check_dim(dim, tokens.dim)
    if kind is not None:
        _inputs.check_choice("kind", kind, KINDS)
        if kind in PER_DIMENSION and ranges is None and tokens.batch < 2:
            raise ValueError(
                f"token_embeddings: found {tokens.batch} rows, expected at least 2 to take the "
                f"ranges of {kind!r} from; give ranges=[2, {dim}]"
            )
    elif ranges is not None:
        raise ValueError("ranges: found some without kind, expected None: nothing is quantised")
    if tokens.of_tensors:
        from simtile.ops.pool import pool_tensors

        vectors: Any = pool_tensors(
            tokens, weights, how, dim, normalize, kind is None, backend, thread_count
        )
    else:
        chosen = _inputs.check_array_backend(backend, "simtile.pool")
        vectors = _pool.of_arrays(tokens, weights, how, dim, normalize, chosen, thread_count)
    if kind is None:
        return vectors
    if _tensors.is_tensor(vectors):
        vectors = vectors.detach()
    return quantize_named(
        "token_embeddings", vectors, kind, ranges, None, None, thread_count, stacklevel=3
    )
