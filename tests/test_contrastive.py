"""The kernel of info_nce with all directions, hardness, guide and margin, against the oracle."""

import itertools

import pytest
from contrastive_cases import LEVELS, Case, option_tuples, pairwise
from contrastive_kernel import CLOSE, check_case, rounded, run_kernel, run_oracle, ties_across_roles
from hypothesis import assume, given
from hypothesis import strategies as st

DTYPES = ("float32", "float64", "float16", "bfloat16")
KERNEL_LEVELS = {**LEVELS, "matryoshka": (None,), "bias": (0.0,)}
TUPLES = pairwise(KERNEL_LEVELS)
ODD_SIZES = st.sampled_from([1, 2, 7, 33, 111, 200])
ODD_DIMENSIONS = st.sampled_from([1, 3, 7, 64, 111, 515])


def has_no_ties(case, dtype):
    """That a threshold is tied with nothing that this arithmetic rounds in another way."""
    thresholds = case["guide"] is not None or case["false_negative_margin"] is not None
    return "duplicates" not in case.special or not thresholds or ties_across_roles(dtype)


@st.composite
def kernel_cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    case = Case(
        queries=draw(ODD_SIZES),
        dimensions=draw(ODD_DIMENSIONS),
        guide_dimensions=draw(st.sampled_from([2, 5, 33])),
        drawn=draw(option_tuples(KERNEL_LEVELS)),
        special=tuple(sorted(draw(st.sets(st.sampled_from(("duplicates", "zero rows")))))),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
    # In one dimension all cosines are 1 or -1, and rounding decides which exceed a threshold.
    assume(case.dimensions > 1 or case["false_negative_margin"] is None)
    assume(has_no_ties(case, dtype))
    return rounded(case, dtype), dtype


def check(case, dtype, threads=1):
    truth = run_oracle(case)
    assume(truth.closest_call > CLOSE[dtype])
    check_case(case, dtype, run_kernel(case, dtype, threads=threads), truth)


@given(kernel_cases())
def test_kernel_is_the_oracle(drawn):
    check(*drawn)


@pytest.mark.parametrize("drawn", TUPLES, ids=range(len(TUPLES)))
def test_every_pair_of_options(drawn):
    for dtype, special in itertools.product(("float64", "float32"), ((), ("duplicates",))):
        for seed in range(20):
            case = rounded(Case(19, 12, 5, drawn, special, seed), dtype)
            if not has_no_ties(case, dtype):
                case = rounded(Case(19, 12, 5, drawn, (), seed), dtype)
            truth = run_oracle(case)
            if truth.closest_call > CLOSE[dtype]:
                break
        else:
            raise AssertionError("every seed has a similarity next to its threshold")
        check_case(case, dtype, run_kernel(case, dtype), truth)
