"""The kernel of info_nce and its NumPy function against the references."""

import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from info_nce_cases import (
    DTYPES,
    NUMPY,
    Case,
    cases,
    check_case,
    compared,
    run_kernel,
    run_lists,
    run_oracle,
    run_plain,
)
from tolerances import check_against_plain

import simtile
from simtile.reference import contrastive

# Sizes that are no multiple of a vector, a register tile or a chunk of rows, and 1.
ODD_SIZES = st.sampled_from([1, 7, 33, 111, 200])
ODD_DIMENSIONS = st.sampled_from([1, 3, 7, 64, 111, 515])


def grad_of(case, **options):
    """simtile.info_nce_grad on a case."""
    inputs = case.inputs if case.negatives is not None else case.inputs[:2]
    return simtile.info_nce_grad(*inputs, **{**case.options, "threads": 1, **options})


def assert_same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@given(cases(st.integers(1, 16), st.sampled_from([1, 2, 3, 7, 16])))
def test_kernel_is_the_lists(case):
    check_case(case, run_kernel(case), run_lists(case))


@given(cases(ODD_SIZES, ODD_DIMENSIONS))
def test_kernel_is_the_oracle(case):
    check_case(case, run_kernel(case))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])  # the oracle is float64
@pytest.mark.parametrize(("n", "dimensions"), [(64, 384), (111, 515), (256, 768)])
def test_error_is_at_most_twice_that_of_the_plain_formula(n, dimensions, dtype, normalize, own):
    temperature = 0.05 if normalize else 1.0
    case = Case(n, n, dimensions, 1, dtype, temperature, normalize=normalize, own=own, seed=n)
    plain = compared(case, run_plain(case))
    for ours, theirs in zip(compared(case, run_kernel(case)), plain, strict=True):
        name, value, *rest = ours
        check_against_plain(name, value, theirs[1], *rest)


@given(cases(st.integers(1, 16), st.sampled_from([1, 3, 16]), negatives=(None, 1, 2)))
def test_backend_reference_is_the_lists(case):
    loss, *grads = grad_of(case, backend="reference", reduction="none")
    case = replace(case, row_weights=False)
    exact = run_lists(case, contrastive)
    number = np.float64 if case.dtype == "float64" else np.float32
    np.testing.assert_array_equal(loss, np.asarray(exact.losses).astype(number))
    wanted = (exact.queries, exact.documents, exact.negatives)[: len(grads)]
    for ours, expected in zip(grads, wanted, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(expected).astype(number))


@pytest.mark.parametrize("negatives", [None, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads(dtype, negatives):
    # More rows than a chunk has, and enough work that every thread gets some.
    n = 989 if dtype != "float64" else 400
    case = Case(n, n + 8, 111, negatives, dtype, own=dtype == "float16", ids=True, seed=1)
    results = {threads: run_kernel(case, threads=threads) for threads in (1, 2, 3)}
    for threads, result in results.items():
        check_case(case, result)
        assert_same_bits(result, run_kernel(case, threads=threads))


def test_many_rows_in_one_call():
    case = Case(2500, 3001, 17, dtype="float32", targets=True, layout="padded rows", seed=2)
    check_case(case, run_kernel(case, threads=2))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("need", list(itertools.product([False, True], repeat=3)))
def test_only_the_gradients_that_are_wanted(need, own):
    case = Case(33, 40, 19, negatives=2, own=own)
    check_case(case, run_kernel(case, need=need))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("size", [5, 111])
# Without normalisation an infinite logit may be a valid one: its probability is 0.
@pytest.mark.parametrize(
    ("bad", "normalize"), [(np.nan, False), (np.nan, True), (np.inf, True), (-np.inf, True)]
)
@pytest.mark.parametrize("where", ["queries", "documents", "negatives"])
@pytest.mark.parametrize("own", [False, True])
def test_nan_in_nan_out(dtype, size, bad, where, own, normalize):
    case = Case(size, size + 2, 7, 2, dtype, own=own, normalize=normalize, seed=3)
    case[where][(size // 2,) + (1,) * (case[where].ndim - 1)] = bad
    with np.errstate(invalid="ignore"):
        expected = run_oracle(case)
        losses, *grads, grad_temperature = run_kernel(case)
    assert np.isnan(expected.losses).any()
    np.testing.assert_array_equal(np.isnan(losses), np.isnan(expected.losses))
    wanted = (expected.queries, expected.documents, expected.negatives)
    for ours, exact in zip(grads, wanted, strict=True):
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(exact))
    assert np.isnan(grad_temperature)
    finite = np.isfinite(expected.losses)
    if dtype != "bfloat16" and finite.any():
        np.testing.assert_allclose(losses[finite], expected.losses[finite], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_without_negatives_has_no_loss_and_no_gradient(dtype):
    alone = Case(1, 1, 7, dtype=dtype)
    masked = Case(5, 9, 7, dtype=dtype)
    masked.arrays["query_ids"] = np.full(5, 3)
    masked.arrays["document_ids"] = np.full(9, 3)
    for case in (alone, masked):
        losses, *grads, grad_temperature = run_kernel(case)
        assert not losses.any()
        assert grad_temperature == 0.0
        assert not grads[0].any()
        assert not grads[1].any()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_tiny_losses_keep_their_digits(dtype):
    # Similarities 0.9 and 0.2 at temperature 0.05: softmax and log round 1 - 8e-7 to few digits.
    queries = np.array([[1.0, 0.0]], dtype)
    documents = np.array([[0.875, 0.0], [0.25, 0.0]], dtype)
    loss, grad_queries, _ = simtile.info_nce_grad(queries, documents, normalize=False)
    exact = run_oracle_on(queries, documents, normalize=False)
    assert 3e-6 < exact.losses[0] < 4e-6
    assert loss == pytest.approx(exact.losses[0], rel=1e-5)
    assert grad_queries[0, 0] == pytest.approx(exact.queries[0, 0], rel=1e-5)


def run_oracle_on(queries, documents, **options):
    from simtile.reference import info_nce_numpy

    return info_nce_numpy.info_nce_grad(queries, documents, **options)


def test_losses_are_never_negative():
    # The positive is the maximum by far: its share of the sum must come from the same tile.
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(300, 384)).astype(np.float32)
    loss, *_ = simtile.info_nce_grad(queries, queries, temperature=0.01, reduction="none")
    assert loss.min() >= 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_own_negatives_of_huge_queries(dtype):
    case = Case(3, 3, 7, 1, dtype, 0.05, own=True, seed=8)
    case["negatives"][0] *= 0.2
    case["negatives"][0] -= case["queries"][0]  # a probability of about e^-36
    case["queries"][:] *= 1e30
    check_case(case, run_kernel(case))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_unit_vectors_are_orthogonal_to_them(dtype):
    case = Case(50, 60, 33, negatives=1, dtype=dtype, temperature=0.3)
    _, *grads, _ = run_kernel(case)
    scales = run_oracle(case)
    for x, grad, scale in zip(
        case.inputs,
        grads,
        (scales.query_scale, scales.document_scale, scales.negative_scale),
        strict=True,
    ):
        along = (x.astype(np.float64) * grad).sum(-1) / np.linalg.norm(
            x.astype(np.float64), axis=-1
        )
        assert (np.abs(along) <= 1e-6 * scale * np.sqrt(x.shape[-1])).all()


def test_candidates_in_another_order_are_the_same_candidates():
    case = Case(70, 90, 21, temperature=0.3, targets=True, ids=True)
    rng = np.random.default_rng(5)
    order = rng.permutation(case.documents)
    moved = replace(case)
    moved.arrays["documents"] = case["documents"][order]
    moved.arrays["document_ids"] = case["document_ids"][order]
    moved.arrays["targets"] = np.argsort(order)[case["targets"]]
    losses, grad_queries, grad_documents, _, _ = run_kernel(case)
    moved_losses, moved_queries, moved_documents, _, _ = run_kernel(moved)
    np.testing.assert_allclose(moved_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(moved_queries, grad_queries, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved_documents, grad_documents[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("negatives", [None, 0, 2])
def test_reductions(dtype, reduction, negatives):
    case = Case(16, 18, 6, negatives, dtype)  # a mean over 2^4 rows rounds as the sum does
    result = grad_of(case, reduction=reduction)
    losses, *grads, _ = run_kernel(case)
    number = np.float64 if dtype == "float64" else np.float32
    share = 1 / 16 if reduction == "mean" else 1.0
    expected = losses if reduction == "none" else losses.sum() * share
    assert result[0].dtype == number
    np.testing.assert_allclose(result[0], expected, rtol=1e-6)
    assert len(result) == (3 if negatives is None else 4)
    for ours, sum_grad in zip(result[1:], grads[: len(result) - 1], strict=True):
        assert ours.dtype == number
        assert ours.flags.c_contiguous
        np.testing.assert_allclose(ours, sum_grad * share, rtol=1e-6, atol=1e-9)
    if negatives is not None:
        assert result[3].shape == (16, negatives, 6)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(DTYPES, repeat=2)))
def test_element_types_promote(first, second):
    case = Case(9, 9, 5, negatives=1, dtype="float16")
    q, d, x = case.inputs
    q, d = q.astype(NUMPY[first]), d.astype(NUMPY[second])
    x = x.astype(NUMPY[second])
    if first == second:
        common = NUMPY[first]
    else:
        common = np.dtype(np.float64 if "float64" in (first, second) else np.float32)
    expected = simtile.info_nce_grad(q.astype(common), d.astype(common), x.astype(common))
    assert_same_bits(simtile.info_nce_grad(q, d, x), expected)


def strided_copies(x):
    """The same values behind every kind of strides."""
    yield "transposed", np.ascontiguousarray(x.T).T
    yield "backwards", np.ascontiguousarray(x[::-1])[::-1]
    yield "columns backwards", np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    yield "every other column", np.repeat(x, 2, axis=-1)[..., ::2]
    yield "rows apart", np.repeat(x, 3, axis=0)[::3]
    yield "fortran", np.asfortranarray(x)
    if x.dtype.name != "bfloat16":
        yield "other byte order", x.astype(x.dtype.newbyteorder())
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    unaligned[:] = x
    yield "unaligned", unaligned
    frozen = x.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype):
    case = Case(11, 11, 6, negatives=3, dtype=dtype)
    expected = grad_of(case)
    for layouts in zip(*map(strided_copies, case.inputs), strict=True):
        names, arrays = zip(*layouts, strict=True)
        before = [x.tobytes() for x in arrays]
        assert_same_bits(simtile.info_nce_grad(*arrays, threads=1), expected)
        assert [x.tobytes() for x in arrays] == before, names


def test_broadcast_rows():
    q = np.broadcast_to(np.float32([1.0, 2.0, 3.0]), (4, 3))
    d = np.eye(4, 3, dtype=np.float32) + 0.1
    assert_same_bits(simtile.info_nce_grad(q, d), simtile.info_nce_grad(q.copy(), d))


def test_lists_are_arrays():
    loss, grad_queries, _ = simtile.info_nce_grad(
        [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.1], [0.1, 1.0]]
    )
    assert isinstance(loss, np.float64)
    assert grad_queries.dtype == np.float64


def test_objects_that_are_arrays():
    class Wrapped:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    case = Case(5, 5, 3, dtype="bfloat16")
    wrapped = simtile.info_nce_grad(Wrapped(case["queries"]), Wrapped(case["documents"]))
    assert_same_bits(wrapped, simtile.info_nce_grad(*case.inputs[:2]))


class TestIds:
    case = Case(6, 6, 4, dtype="float64", temperature=0.5)
    ids = np.array([1, 2, 1, 3, 2, 1])

    def loss(self, queries=6, **options):
        q, d, _ = self.case.inputs
        return simtile.info_nce_grad(q[:queries], d, temperature=0.5, reduction="none", **options)[
            0
        ]

    def by_hand(self, query_ids, document_ids, target):
        q, d = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in self.case.inputs[:2])
        logits = q[: len(target)] @ d.T / 0.5
        losses = []
        for i, t in enumerate(target):
            seen = [j for j in range(6) if j == t or document_ids[j] != query_ids[i]]
            losses.append(np.log(np.exp(logits[i, seen]).sum()) - logits[i, t])
        return np.array(losses)

    def test_both(self):
        document_ids = np.array([1, 1, 3, 9, 9, 2])
        expected = self.by_hand(self.ids, document_ids, range(6))
        assert self.loss(query_ids=self.ids, document_ids=document_ids) == pytest.approx(expected)

    @pytest.mark.parametrize("name", ["query_ids", "document_ids"])
    def test_either_serves_for_both(self, name):
        expected = self.by_hand(self.ids, self.ids, range(6))
        assert self.loss(**{name: self.ids}) == pytest.approx(expected)

    def test_document_ids_name_the_queries_of_targets(self):
        target = np.array([5, 0, 3, 3])
        expected = self.by_hand(self.ids[target], self.ids, target)
        assert self.loss(4, document_ids=self.ids, targets=target) == pytest.approx(expected)

    def test_document_ids_of_more_documents_than_queries(self):
        expected = self.by_hand(self.ids[:4], self.ids, range(4))
        assert self.loss(4, document_ids=self.ids) == pytest.approx(expected)

    @pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.uint64])
    def test_integers_of_any_width(self, dtype):
        ids = self.ids.astype(dtype)
        if dtype == np.uint64:
            ids += np.uint64(2**64 - 10)
        expected = self.by_hand(self.ids, self.ids, range(6))
        assert self.loss(query_ids=ids) == pytest.approx(expected)

    def test_large_ids_are_not_rounded(self):
        ids = np.arange(6) + 2**53
        assert self.loss(query_ids=ids) == pytest.approx(self.loss())


def test_targets_may_be_shared():
    case = Case(9, 4, 5, dtype="float64", targets=True)
    assert len(set(case["targets"].tolist())) < 9
    check_case(case, run_kernel(case))
    as_int8 = grad_of(replace(case), targets=case["targets"].astype(np.int8))
    assert_same_bits(as_int8, grad_of(case))


def test_set_num_threads_is_the_default():
    case = Case(700, 700, 64, seed=4)
    try:
        simtile.set_num_threads(2)
        assert_same_bits(grad_of(case, threads=None), grad_of(case, threads=2))
    finally:
        simtile.set_num_threads(None)


def test_bfloat16_is_the_type_of_ml_dtypes():
    case = Case(9, 9, 5, dtype="bfloat16")
    assert case["queries"].dtype == ml_dtypes.bfloat16
    loss, *_ = grad_of(case)
    wide = simtile.info_nce_grad(*(x.astype(np.float32) for x in case.inputs[:2]))[0]
    assert loss == pytest.approx(wide, rel=2e-2)
