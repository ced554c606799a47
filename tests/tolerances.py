"""How far from the float64 reference a result may be: the one table that all tests use.

Two rules. On any input, however awkward, the largest error stays within what rounding explains:
`check_rounding`. On ordinary inputs the root mean square error is at most twice that of the plain
formula in the same element type, by PyTorch or NumPy, plus a floor: `check_against_plain`.

Errors are relative to the size of the terms that were added up (the caller's `scale`), not to the
sum, which may have cancelled.
"""

from typing import NamedTuple

import numpy as np

# Unit roundoff: half the distance from 1 to the next number.
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# What float16 and bfloat16 are added up in.
ACCUMULATOR = {"float64": "float64"}

# check_rounding: roundoffs of the accumulator, per unit of the problem's condition. Measured at all
# levels, with up to 515 dimensions: up to 11 for losses, 18 for gradients.
ROUNDOFFS = {
    "info_nce.losses": 16.0,
    "info_nce.grad_queries": 24.0,
    "info_nce.grad_documents": 24.0,
    "info_nce.grad_negatives": 24.0,
    "info_nce.grad_temperature": 16.0,
    "info_nce.statistics": 8.0,  # per unit of a similarity's terms
    # Per unit of Σ_i max_j Σ_k |q_ik d_jk|. Measured: up to 12; in float64 with `normalize` up to
    # 24, as much as the oracle's own.
    "maxsim.scores": 32.0,
    # Per unit of the terms' sizes; with a temperature also of what a rounding of a similarity does
    # to a share. Measured: up to 8.
    "maxsim.gradients": 16.0,
    # Per unit of |u_i| + |u_j| over the distance of a chosen pair, of exponents, of terms.
    "pairwise.grad_chosen": 4.0,
    "pairwise.uniformity": 8.0,
    "pairwise.grad_uniformity": 16.0,
    # Per unit of the terms' sizes.
    "pool.vectors": 8.0,
    "pool.grad_tokens": 8.0,
    "pool.grad_weights": 16.0,
    # Per unit of a logit's size.
    "siglip.losses": 8.0,
    "siglip.grad_queries": 8.0,
    "siglip.grad_documents": 8.0,
    "siglip.grad_temperature": 8.0,
    "siglip.grad_bias": 8.0,
}
# Gradients that are products of coefficients and operands.
PRODUCTS = (
    "info_nce.grad_queries",
    "info_nce.grad_documents",
    "info_nce.grad_negatives",
    "pairwise.grad_uniformity",
    "siglip.grad_queries",
    "siglip.grad_documents",
)


class Arithmetic(NamedTuple):
    """What a backend rounds besides its sums."""

    # Roundoffs of the element type in the coefficients that are multiplied with the operands.
    coefficients: dict[str, float] = {"bfloat16": 1.25}  # noqa: RUF012
    # Unit roundoff of the operands of float32 products; each of two factors is rounded.
    operands: float = 0.0
    # By element type: terms below this share of the largest that there could be lose digits.
    smallest: dict[str, float] = {}  # noqa: RUF012
    # By element type: roundoffs of the accumulator more for every 16 products of a sum.
    truncated: dict[str, float] = {}  # noqa: RUF012


CPU = Arithmetic()
# Exponentials are kept in float16, then coefficients in the element type.
TRITON = Arithmetic(
    {"bfloat16": 1.25, "float16": 2.25}, smallest={"bfloat16": 2.0**-24, "float16": 2.0**-24}
)
# On a GPU matrix units cut off what their float32 sums cannot hold, where the interpreter rounds:
# simtile/doctor/limits.py has the reasons and what was measured.
TRITON_ON_GPU = TRITON._replace(truncated={"bfloat16": 1.0, "float16": 1.0})
CUDA_ON_GPU = CPU._replace(truncated={"bfloat16": 1.0})
PRECISIONS = {
    "ieee": TRITON,
    "tf32": TRITON._replace(operands=2.0**-10),  # units may truncate
    "tf32x3": TRITON._replace(operands=2.0**-21),
}

# An error below this is a number that the result's type cannot hold.
SMALLEST = {"float64": 1e-300, "float32": 1e-37}

# check_against_plain
TIMES_PLAIN = 2.0
FLOOR_ROUNDOFFS = 0.25  # of the accumulator, per unit of condition


def relative_errors(value, expected, scale, accumulator):
    value, expected, scale = (np.asarray(x, np.float64) for x in (value, expected, scale))
    assert value.shape == expected.shape
    error = np.abs(value - expected)
    if scale.ndim < error.ndim:
        scale = scale[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error < SMALLEST[accumulator], 0.0, error / scale)


def allowed_error(name, dtype, condition, arithmetic, dimensions=0):
    """What rounding explains, relative to the scale; `dimensions` products are a similarity."""
    roundoffs = ROUNDOFFS[name] + arithmetic.truncated.get(dtype, 0.0) * dimensions / 16
    allowed = roundoffs * ROUNDOFF[ACCUMULATOR.get(dtype, "float32")] * condition
    if dtype == "float32":
        allowed += 2.0 * arithmetic.operands * condition
    if name in PRODUCTS:
        allowed += arithmetic.coefficients.get(dtype, 0.0) * ROUNDOFF[dtype]
    return allowed


def largest_error(value, expected, scale, dtype):
    """Of all elements, relative to the scale."""
    return relative_errors(value, expected, scale, ACCUMULATOR.get(dtype, "float32")).max(
        initial=0.0
    )


def check_rounding(name, value, expected, scale, dtype, condition, arithmetic=CPU, dimensions=0):
    """Fail if an element of `value` is further from `expected` than rounding explains.

    `condition` is by how much the problem itself multiplies a rounding of its input.
    """
    error = largest_error(value, expected, scale, dtype)
    allowed = allowed_error(name, dtype, condition, arithmetic, dimensions)
    assert error <= allowed, f"{name} ({dtype}): relative error {error:.3g}, allowed {allowed:.3g}"


def errors(comparisons, arithmetic=CPU, dimensions=0):
    """Of each comparison, which has the arguments of check_rounding, the largest error and what
    rounding explains."""
    for name, value, expected, scale, dtype, condition in comparisons:
        yield (
            largest_error(value, expected, scale, dtype),
            allowed_error(name, dtype, condition, arithmetic, dimensions),
        )


def check_against_plain(name, value, plain, expected, scale, dtype, condition):
    """Fail if `value` is on average further from `expected` than twice the plain formula is."""
    accumulator = ACCUMULATOR.get(dtype, "float32")

    def root_mean_square(x):
        return np.sqrt(np.square(relative_errors(x, expected, scale, accumulator)).mean())

    error, plain_error = root_mean_square(value), root_mean_square(plain)
    floor = FLOOR_ROUNDOFFS * ROUNDOFF[accumulator] * condition
    assert error <= TIMES_PLAIN * plain_error + floor, (
        f"{name} ({dtype}): relative error {error:.3g}, allowed "
        f"{TIMES_PLAIN} x {plain_error:.3g} of the plain formula + {floor:.3g}"
    )
