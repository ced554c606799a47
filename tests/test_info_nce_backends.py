"""info_nce by every backend: what holds for one holds for all."""

import numpy as np
import pytest
from info_nce_backends import (
    BACKENDS,
    every_backend,
    run_interpreter,
    run_triton,
)
from info_nce_cases import Case, check_case, compared, run_oracle, run_plain
from tolerances import PRECISIONS, TRITON, check_against_plain

INTERPRETER = next(b for b in BACKENDS if b.name == "triton-interpreter")
# Backends that look at targets themselves; the others refuse wrong ones before they start.
ON_DEVICE = every_backend(
    without=[b.name for b in BACKENDS if b.name == "reference" or b.name.startswith("cpu")]
)


def dtypes_of(backend, *wanted):
    return [dtype for dtype in wanted if dtype in backend.dtypes] or backend.dtypes[:1]


def assert_same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@every_backend()
def test_backend_is_the_oracle(backend):
    backend.search(backend.check)


@every_backend(without=("reference",))
def test_same_bits_again(backend):
    for dtype in dtypes_of(backend, "float32", "bfloat16"):
        case = Case(17, 40, 33, 1, dtype, ids=True, targets=True)
        assert_same_bits(backend.run(case), backend.run(case))


@every_backend()
@pytest.mark.parametrize(
    ("bad", "normalize"), [(np.nan, False), (np.nan, True), (np.inf, True), (-np.inf, True)]
)
@pytest.mark.parametrize(
    ("where", "own"), [("queries", False), ("documents", False), ("negatives", True)]
)
def test_nan_in_nan_out(backend, bad, normalize, where, own):
    case = Case(7, 9, 7, 2, backend.dtypes[0], own=own, normalize=normalize, seed=3)
    case[where][(3,) + (1,) * (case[where].ndim - 1)] = bad
    with np.errstate(invalid="ignore"):
        truth = run_oracle(case)
        losses, *grads, grad_temperature = backend.run(case)
    assert np.isnan(truth.losses).any()
    np.testing.assert_array_equal(np.isnan(losses), np.isnan(truth.losses))
    for ours, exact in zip(grads, truth[1:4], strict=True):
        if ours is not None:
            np.testing.assert_array_equal(np.isnan(ours), np.isnan(exact))
    assert grad_temperature is None or np.isnan(grad_temperature)


@every_backend()
def test_a_row_without_negatives_has_no_loss_and_no_gradient(backend):
    for dtype in backend.dtypes:
        alone = Case(1, 1, 7, dtype=dtype)
        masked = Case(5, 9, 7, dtype=dtype)
        masked.arrays["query_ids"] = np.full(5, 3)
        masked.arrays["document_ids"] = np.full(9, 3)
        for case in (alone, masked):
            losses, *grads, grad_temperature = backend.run(case)
            assert not np.any(losses)
            assert not grad_temperature
            for grad in grads:
                assert grad is None or not np.any(grad)


@every_backend()
def test_tiny_losses_keep_their_digits(backend):
    # A loss of 3e-6: softmax and log would round 1 - 3e-6 to few digits.
    for dtype in backend.dtypes:
        case = Case(1, 2, 2, dtype=dtype, normalize=False)
        case["queries"][:] = [[1.0, 0.0]]
        case["documents"][:] = [[0.875, 0.0], [0.25, 0.0]]
        losses = backend.run(case)[0]
        assert losses[0] == pytest.approx(np.log1p(np.exp(-12.5)), rel=1e-5)


@every_backend()
def test_losses_are_never_negative(backend):
    # The positive is the maximum by far: its share of the sum must come from the same tile.
    case = Case(17, 17, 111, dtype=backend.dtypes[0], temperature=0.01)
    case["documents"][:] = case["queries"]
    assert np.min(backend.run(case)[0]) >= 0.0


@every_backend()
@pytest.mark.parametrize("special", ["tiny rows", "huge rows", "zero query", "zero document"])
def test_rows_of_any_length(backend, special):
    for dtype in dtypes_of(backend, "float32", "bfloat16"):
        backend.check(Case(9, 11, 33, 1, dtype, special=(special,), own=dtype == "bfloat16"))


@ON_DEVICE
@pytest.mark.parametrize("wrong", [-1, 12, 2**40, -(2**63)])
def test_a_target_that_is_no_document_makes_its_row_nan(backend, wrong):
    case = Case(7, 12, 5, 1, "bfloat16", targets=True, ids=True)
    right = backend.run(case)[0]
    case["targets"][3] = wrong
    losses = backend.run(case)[0]
    assert np.isnan(losses[3])
    # Its mask of ids is another one; the other rows are what they were.
    np.testing.assert_array_equal(np.delete(losses, 3), np.delete(right, 3))


# Queries, documents, negatives, temperature: each of them alone, and what training asks for.
@pytest.mark.parametrize(
    "need",
    ["", "queries", "documents", "negatives", "temperature", "queries documents temperature"],
)
@pytest.mark.parametrize("own", [False, True])
def test_only_the_gradients_that_are_wanted(need, own):
    case = Case(3, 4, 5, negatives=2, own=own)
    wanted = [name in need for name in ("queries", "documents", "negatives", "temperature")]
    result = run_interpreter(case, need=wanted)
    check_case(case, result, arithmetic=TRITON)
    assert [x is not None for x in result[1:]] == wanted


@pytest.mark.parametrize(("negatives", "own"), [(None, False), (1, True)])
def test_several_chunks_of_rows(negatives, own):
    options = {"targets": True, "ids": True, "row_weights": True, "own": own}
    case = Case(40, 45, 33, negatives, dtype="bfloat16", **options)
    whole = run_interpreter(case)
    parts = run_interpreter(case, chunk_bytes=1)
    check_case(case, parts, arithmetic=TRITON)
    assert_same_bits(whole[:2], parts[:2])  # only sums over rows are divided


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", *(pytest.param(d, marks=pytest.mark.deep) for d in ("float16", "float32"))],
)
def test_pinned_tiles(dtype):
    case = Case(33, 131, 70, dtype=dtype, row_weights=True)
    check_case(case, run_interpreter(case, small_tiles=False), arithmetic=TRITON)


@pytest.mark.parametrize("dtype", INTERPRETER.dtypes)
def test_error_is_at_most_twice_that_of_the_plain_formula(dtype):
    case = Case(48, 48, 96, dtype=dtype, seed=1)
    plain = compared(case, run_plain(case))
    ours = compared(case, run_interpreter(case))
    for (name, value, *rest), theirs in zip(ours, plain, strict=True):
        check_against_plain(name, value, theirs[1], *rest)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("n", "dimensions"), [(111, 515), (989, 768)])
def test_precisions_on_a_gpu(precision, n, dimensions):
    case = Case(n, n, dimensions, 1, temperature=0.3)
    result = run_triton(case, precision=precision, device="cuda")
    check_case(case, result, arithmetic=PRECISIONS[precision])
