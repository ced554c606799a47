"""How far from the float64 reference a result may be: the one table that all tests use.

The rule: at most twice the error of the plain formula in the same element type (eager PyTorch or
NumPy), plus a floor for when that happens to be exact. Errors are relative to the size of the terms
that were added up, not to the sum, which may have cancelled.
"""

import numpy as np

TIMES_EAGER = 2.0

# Unit roundoff: half the distance from 1 to the next number.
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

# The floor in roundoffs of the element type.
FLOOR = {
    # Per unit of 1 + Σ_k |q_k d_k| / temperature: what rounding does to a logit, it does
    # to a loss and, relatively, to a softmax.
    "info_nce.losses": 8.0,
    "info_nce.grad_queries": 8.0,
    "info_nce.grad_documents": 8.0,
    "info_nce.grad_negatives": 8.0,
    "info_nce.grad_temperature": 8.0,
}

# What exp may flush to zero, as a share of the largest term.
UNDERFLOW = {"float64": 1e-270, "float32": 1e-18, "float16": 1e-18, "bfloat16": 1e-18}


def relative_error(value, expected, scale, dtype):
    """The largest error, relative to `scale`, in which a term may have been flushed to zero."""
    value, expected, scale = (np.asarray(x, np.float64) for x in (value, expected, scale))
    assert value.shape == expected.shape
    if value.size == 0:
        return 0.0
    error = np.abs(value - expected)
    if scale.ndim < error.ndim:
        scale = scale[..., None]
    scale = np.broadcast_to(scale + UNDERFLOW[dtype] * scale.max(), error.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(error == 0.0, 0.0, error / scale).max())


def check_close(name, value, expected, scale, dtype, *, condition=1.0, eager=None):
    """Fail if `value` is further from `expected` than the rule allows.

    `condition` multiplies the floor. `eager` is what the plain formula gives; where that is not
    finite only the floor counts.
    """
    error = relative_error(value, expected, scale, dtype)
    eager_error = 0.0 if eager is None else relative_error(eager, expected, scale, dtype)
    if not np.isfinite(eager_error):
        eager_error = 0.0
    floor = FLOOR[name] * ROUNDOFF[dtype] * condition
    allowed = TIMES_EAGER * eager_error + floor
    assert error <= allowed, (
        f"{name} ({dtype}): relative error {error:.3g}, allowed {allowed:.3g} = "
        f"{TIMES_EAGER} x {eager_error:.3g} of the plain formula + {floor:.3g}"
    )
