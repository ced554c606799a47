"""How embeddings lie on the sphere: alignment, uniformity, anisotropy.

The definitions are in `reference/uniformity.py`; the kernel and its story are in
`kernels/pairwise/`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from simtile import _inputs, _pairwise
from simtile._tensors import is_tensor


def alignment(x: Any, y: Any, alpha: float = 2, normalize: bool = True) -> Any:
    """Mean of ‖x_i − y_i‖^alpha over pairs of positives, in O(N D).

    Wang and Isola 2020, arXiv:2005.10242, eq. 1: 0 is perfect.

    Parameters
    ----------
    x, y : Tensor or array [N, D]
        Row i of one is the positive of row i of the other. float32, float64, bfloat16 or float16;
        tensors are differentiable. Computed in float64 if one is, else in float32.
    alpha : float
        Above 0.
    normalize : bool
        Divide every row by max(‖x‖, 1e-12) first, as the definition supposes.

    Returns
    -------
    Tensor, scalar; or a NumPy number for arrays

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value; there are no rows.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> round(float(simtile.alignment(x, [[1.0, 0.0], [1.0, 0.0]])), 4)  # distances 0 and √2
    1.0
    """
    alpha = _pairwise.check_number("alpha", alpha, positive=True)
    normalize = _inputs.check_flag("normalize", normalize)
    if is_tensor(x):
        from simtile.ops.triplet import alignment_tensors

        return alignment_tensors(x, y, alpha, normalize)
    (a, b), number = _pairwise.wide_arrays({"x": x, "y": y})
    from simtile.reference import pairwise_numpy

    # NaN in, NaN out; what only fits float64 is infinite in float32.
    with np.errstate(over="ignore", invalid="ignore"):
        return number(pairwise_numpy.alignment(a, b, alpha, normalize))


def uniformity(
    x: Any,
    t: float = 2,
    normalize: bool = True,
    *,
    backend: Literal["auto", "cpu", "triton", "reference"] = "auto",
    threads: int | None = None,
) -> Any:
    r"""Logarithm of the mean Gaussian potential of all pairs, in O(N D) memory.

    .. math:: \log \frac{2}{N (N - 1)} \sum_{i < j} e^{-t \|x_i - x_j\|^2}

    Wang and Isola 2020, arXiv:2005.10242, eq. 2: lower is more uniform.

    Parameters
    ----------
    x : Tensor or array [N, D]
        N ≥ 2. float32, float64, bfloat16 or float16. Tensors are differentiable and may be on a
        GPU (without float64). Autocast changes nothing. Without ``normalize`` rows of more than
        1e18 leave the range of float32 and give NaN or -inf.
    t : float
        Above 0.
    normalize : bool
        Divide every row by max(‖x‖, 1e-12) first, as the definition supposes.
    backend : str
        "auto" takes "cpu" on the CPU and "triton" on a GPU; a named one never falls back.
        "reference" is plain Python lists.
    threads : int, optional
        Threads for this call on the CPU.

    Returns
    -------
    Tensor, scalar; or a NumPy number for arrays
        float64 if x is, else float32. NaN in, NaN out.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value; there are fewer than two rows.
    RuntimeError
        The named backend is not available; the gradient is differentiated.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> round(float(simtile.uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]]))), 4)
    -8.0
    """
    t = _pairwise.check_number("t", t, positive=True)
    normalize = _inputs.check_flag("normalize", normalize)
    thread_count = _inputs.check_threads(threads)
    if is_tensor(x):
        from simtile.ops.pairwise import uniformity_tensors

        return uniformity_tensors(x, t, normalize, backend, thread_count)
    chosen = _inputs.check_array_backend(backend, "simtile.uniformity")
    array, dtype = _inputs.float_array("x", x)
    _pairwise.check_matrix("x", array.shape, 2)
    value, _ = _pairwise.uniformity(
        _pairwise.as_kernel(array, dtype), dtype, t, normalize, False, chosen, thread_count
    )
    return _pairwise.as_number(value, dtype)


def anisotropy(x: Any) -> Any:
    """Mean cosine of all pairs of different rows, in O(N D): (‖Σ x̂‖² − Σ ‖x̂‖²) / (N (N − 1)).

    Ethayarajh 2019, arXiv:1909.00512: near 0 the directions are spread, near 1 they are one.

    Parameters
    ----------
    x : Tensor or array [N, D]
        N ≥ 2. float32, float64, bfloat16 or float16; tensors are differentiable. A row of zeros has
        cosine 0 with every other.

    Returns
    -------
    Tensor, scalar; or a NumPy number for arrays
        float64 if x is, else float32.

    Raises
    ------
    ValueError, TypeError
        x has a wrong type, shape or element type; there are fewer than two rows.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> round(float(simtile.anisotropy(np.array([[1.0, 0.0], [1.0, 1.0]]))), 4)  # cos 45°
    0.7071
    """
    if is_tensor(x):
        from simtile.ops.triplet import anisotropy_tensors

        return anisotropy_tensors(x)
    (array,), number = _pairwise.wide_arrays({"x": x}, 2)
    from simtile.reference import pairwise_numpy

    with np.errstate(over="ignore", invalid="ignore"):  # NaN in, NaN out
        u = pairwise_numpy.unit(array)
        n = len(u)
        return number((np.square(u.sum(axis=0)).sum() - np.square(u).sum()) / (n * (n - 1)))
