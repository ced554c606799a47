"""How far from the reference a result may be, relative to the size of the terms added up.

The numbers are those of the project's tests. Those for GPUs follow from what the kernels round.
"""

from __future__ import annotations

from dataclasses import dataclass

# Unit roundoff: half the distance from 1 to the next number.
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

# Roundoffs of the accumulator that each output may be off by, per unit of the condition.
ROUNDOFFS = {
    "losses": 16.0,
    "grad_queries": 24.0,
    "grad_documents": 24.0,
    "grad_negatives": 24.0,
    "grad_temperature": 16.0,
}
# Outputs that are products of coefficients and operands.
WITH_COEFFICIENTS = ("grad_queries", "grad_documents", "grad_negatives")


@dataclass(frozen=True)
class Arithmetic:
    """The rounding of one way to compute, relative to the terms it is applied to."""

    accumulator: float
    products: float = 0.0  # of a product's two operands together
    coefficients: float = 0.0  # of the coefficients of gradient products
    smallest: float = 0.0  # terms below this share of the largest possible one lose digits
    truncated: float = 0.0  # roundoffs of the accumulator more for every 16 terms of a product


CPU = {
    "float64": Arithmetic(ROUNDOFF["float64"]),
    "float32": Arithmetic(ROUNDOFF["float32"]),
    "float16": Arithmetic(ROUNDOFF["float32"]),
    "bfloat16": Arithmetic(ROUNDOFF["float32"], coefficients=1.25 * ROUNDOFF["bfloat16"]),
}
# Of 16-bit types the Triton kernels keep exponentials in float16, then coefficients in the type.
SMALLEST_16 = 2.0**-24
# Matrix units cut off what the float32 sum cannot hold after every 16 products, and some of
# float16's products before: of an average of half of 2 roundoffs each time, always towards zero, of
# a sum that has yet to grow. An H200 was off by 0.5 roundoffs for every 16 products of float16 and
# by 0.2 of bfloat16; cutting off the sums alone explains 0.2 of either.
TRUNCATED_16 = 1.0
# tf32 keeps 11 bits of both operands, and units may cut off the others: more than the project's
# tests allow, where Triton's interpreter rounds. tf32x3 adds the products of what is left out.
GPU = {
    "float32": CPU["float32"],
    "float32 (tf32x3)": Arithmetic(ROUNDOFF["float32"], products=2 * 2.0**-21),
    "float32 (tf32)": Arithmetic(ROUNDOFF["float32"], products=2 * 2.0**-10),
    "float16": Arithmetic(
        ROUNDOFF["float32"],
        coefficients=2.25 * ROUNDOFF["float16"],
        smallest=SMALLEST_16,
        truncated=TRUNCATED_16,
    ),
    "bfloat16": Arithmetic(
        ROUNDOFF["float32"],
        coefficients=1.25 * ROUNDOFF["bfloat16"],
        smallest=SMALLEST_16,
        truncated=TRUNCATED_16,
    ),
}


def allowed(output: str, arithmetic: Arithmetic, condition: float, dimensions: int = 0) -> float:
    """The largest error that rounding explains.

    ``condition`` is by how much the problem itself multiplies a rounding of its input,
    ``dimensions`` how many products a similarity adds up.
    """
    roundoffs = ROUNDOFFS[output] + arithmetic.truncated * dimensions / 16
    limit = (roundoffs * arithmetic.accumulator + arithmetic.products) * condition
    return limit + (arithmetic.coefficients if output in WITH_COEFFICIENTS else 0.0)
