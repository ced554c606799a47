"""What the tests of the sigmoid loss draw, how they run its kernels, and what these should give."""

import numpy as np
from contrastive_cases import Case
from contrastive_kernel import NUMPY, largest_terms, rounded
from hypothesis import strategies as st
from tolerances import CPU, check_rounding

from simtile import _core
from simtile.reference import contrastive_numpy

DTYPES = tuple(NUMPY)


def siglip_case(queries, dimensions, bank=0, seed=0, special=(), **drawn):
    drawn = {"temperature": 0.1, "bias": -10.0, "bank": bank, **drawn}
    return Case(queries, dimensions, drawn=drawn, special=special, seed=seed)


@st.composite
def siglip_cases(draw, sizes, dimensions, dtypes=DTYPES):
    dtype = draw(st.sampled_from(dtypes))
    case = siglip_case(
        draw(sizes),
        draw(dimensions),
        draw(st.sampled_from([0, 1, 5, 64])),
        draw(st.integers(0, 2**32 - 1)),
        tuple(sorted(draw(st.sets(st.sampled_from(("duplicates", "zero rows")))))),
        # From where training starts to logits whose exponentials leave float32 on both sides.
        temperature=draw(st.sampled_from([0.1, 1.0, 0.01, 1e-3])),
        bias=draw(st.sampled_from([-10.0, 0.0, 3.5, -300.0])),
        normalize=draw(st.booleans()),
    )
    return rounded(case, dtype), dtype


def stored(x, dtype):
    return np.ascontiguousarray(x.astype(NUMPY[dtype]))


def run_kernel(case, dtype, need=(True, True), threads=1):
    """As simtile.siglip.run, on outputs full of NaN: the kernel must write all of them."""
    inputs = [stored(x, dtype) for x in case.inputs[:2]]
    number = np.float64 if dtype == "float64" else np.float32
    grads = [
        np.full(x.shape, np.nan, number) if wanted else None
        for x, wanted in zip(inputs, need, strict=True)
    ]
    losses = np.full(case.queries, np.nan)
    scalars = _core.siglip(
        *(x.view(np.uint16) if dtype == "bfloat16" else x for x in inputs),
        dtype,
        case["temperature"],
        case["bias"],
        case["normalize"],
        1.0,
        losses,
        *grads,
        threads,
    )
    return losses, *grads, *scalars


def run_oracle(case):
    return contrastive_numpy.siglip_loss_grad(*case.inputs[:2], None, case.options)


def compared(case, dtype, result, arithmetic=CPU):
    """What tolerances.py takes, for each output that is not None."""
    truth = run_oracle(case)
    rows = (
        ("losses", truth.losses, truth.losses),
        ("grad_queries", truth.queries, truth.query_scale),
        ("grad_documents", truth.documents, truth.document_scale),
        ("grad_temperature", truth.temperature, truth.temperature_scale),
        ("grad_bias", truth.bias, truth.bias_scale),
    )
    # A loss and a coefficient are off by as much, relatively, as their logit is absolutely. Equal
    # candidates are all rounded alike, so that in a sum of n the roundings add up.
    condition = (1.0 + truth.logit_scale) * (1.0 + (case.queries + case["bank"]) / 200)
    smallest = arithmetic.smallest.get(dtype, 0.0)
    largest = largest_terms(case) if smallest else {}
    for ours, (name, value, scale) in zip(result, rows, strict=True):
        if ours is not None:
            scale = np.maximum(scale, smallest * largest.get(name, 0.0))
            yield f"siglip.{name}", ours, value, scale, dtype, condition


def check_case(case, dtype, result, arithmetic=CPU):
    for comparison in compared(case, dtype, result, arithmetic):
        check_rounding(*comparison, arithmetic, case.dimensions)
