"""How far from the reference a result may be, relative to the size of the terms added up.

The numbers for the CPU are those of the project's tests; those for GPUs follow from what the units
do, and no GPU has confirmed them yet.
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
# Roundoffs of the element type on top, where a matrix unit multiplies coefficients of that type.
COEFFICIENT_ROUNDOFFS = 1.25
WITH_COEFFICIENTS = ("grad_queries", "grad_documents", "grad_negatives")


@dataclass(frozen=True)
class Arithmetic:
    """The rounding of one way to compute, relative to the terms it is applied to."""

    accumulator: float
    products: float = 0.0  # of a logit's products before they are added up
    coefficients: float = 0.0  # of the coefficients of gradient products


CPU = {
    "float64": Arithmetic(ROUNDOFF["float64"]),
    "float32": Arithmetic(ROUNDOFF["float32"]),
    "float16": Arithmetic(ROUNDOFF["float32"]),
    "bfloat16": Arithmetic(
        ROUNDOFF["float32"], coefficients=COEFFICIENT_ROUNDOFFS * ROUNDOFF["bfloat16"]
    ),
}
# tf32 keeps 10 bits of the mantissa and units may truncate: up to 2^-10 an operand. A coefficient
# meets another rounded operand; of a logit's errors over D terms half the worst case is allowed.
TF32 = 2.0**-10
GPU = {
    "float32": CPU["float32"],
    "float32 (tf32x3)": CPU["float32"],
    "float32 (tf32)": Arithmetic(ROUNDOFF["float32"], products=TF32, coefficients=2 * TF32),
    "float16": Arithmetic(
        ROUNDOFF["float32"], coefficients=COEFFICIENT_ROUNDOFFS * ROUNDOFF["float16"]
    ),
    "bfloat16": CPU["bfloat16"],
}


def allowed(output: str, arithmetic: Arithmetic, condition: float) -> float:
    """The largest error that rounding explains.

    ``condition`` is by how much the problem itself multiplies a rounding of its input.
    """
    limit = (ROUNDOFFS[output] * arithmetic.accumulator + arithmetic.products) * condition
    return limit + (arithmetic.coefficients if output in WITH_COEFFICIENTS else 0.0)
