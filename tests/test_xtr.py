"""XTR scores: arrays and tensors against the definition in lists, gradients, both divisors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maxsim_calls import FORMS, STORED, Form
from maxsim_cases import Case, cases

import simtile
from simtile.reference import xtr as lists

DIVISORS = ("found", "positive")
# Equal directions of different rows would be ranked by how they were rounded.
VALUES = {False: ("random", "few", "zeros", "apart", "integers", "special")}
VALUES[True] = ("random", "zeros", "apart", "special")
forms = st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS))


@st.composite
def calls(draw, values=None):
    """A case and the options of `xtr_scores`."""
    normalize = draw(st.booleans())
    case = draw(cases(values=values or VALUES[normalize]))
    options = {
        "normalize": normalize,
        "zero_rows": case.options["zero_rows"],
        "top_k": draw(st.sampled_from([1, 2, 5, 40, 1000])),
        "divisor": draw(st.sampled_from(DIVISORS)),
    }
    return case, options


def as_lists(form, case):
    """As the kernel's types have rounded them; what pads a batch are rows that are masked."""
    arguments = []
    for wide, x, mask in zip(form.wide, form.arguments[:2], form.arguments[2:], strict=True):
        if isinstance(x, list):
            arguments.append(([rows.tolist() for rows in wide], mask))
        else:
            arguments.append((x.astype(np.float64).tolist(), mask))
    (queries, query_mask), (documents, document_mask) = arguments
    masks = [
        None if mask is None else [own.tolist() for own in mask]
        for mask in (query_mask, document_mask)
    ]
    return queries, documents, masks


def scores_of(pairs, shape):
    return np.array([[pair.score for pair in row] for row in pairs]).reshape(shape)


def near(ours, theirs, dtype, scale=1.0):
    tolerance = {"float32": 2e-5, "float64": 1e-12}[str(dtype).removeprefix("torch.")]
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale)


def as_tensors(x):
    if x is None or isinstance(x, list):
        return None if x is None else [as_tensors(own) for own in x]
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)


dtypes = st.tuples(st.sampled_from(sorted(STORED)), st.sampled_from(sorted(STORED)))


@given(call=calls(), forms=forms, dtypes=dtypes)
def test_scores_are_the_definition(call, forms, dtypes):
    case, options = call
    form = Form(case, *forms, dtypes)
    queries, documents, masks = as_lists(form, case)
    expected = lists.xtr_scores(queries, documents, *masks, empty_score=-3.0, **options)
    scores = simtile.xtr_scores(*form.arguments, empty_score=-3.0, **options)
    shape = (len(case["queries"]), len(case["documents"]))
    assert scores.shape == shape
    assert scores.dtype == form.compute
    # Where nothing is positive sums are divided by 1e-3.
    scale = 1e3 * 33 if options["divisor"] == "positive" else 33
    near(scores, scores_of(expected, shape), scores.dtype, scale)
    if any(isinstance(x, np.ndarray) or x for x in form.arguments[:2]):  # else there is no tensor
        tensor = simtile.xtr_scores(*map(as_tensors, form.arguments), empty_score=-3.0, **options)
        near(tensor.numpy(), scores, scores.dtype, scale)
        assert str(tensor.dtype) == f"torch.{scores.dtype}"


def leaves(x):
    if isinstance(x, list):
        return [leaves(own) for own in x]
    return as_tensors(x).requires_grad_()


@settings(max_examples=15)
@given(call=calls(values=("random", "apart")), forms=forms, dtypes=dtypes)
def test_gradients_are_the_definition(call, forms, dtypes):
    case, options = call
    if not case["queries"] or not case["documents"]:
        return
    form = Form(case, *forms, dtypes)
    queries, documents, masks = as_lists(form, case)
    weights = np.rint(4 * case["grad_scores"]) / 4
    expected = lists.xtr_scores_grad(queries, documents, weights.tolist(), *masks, **options)
    inputs = [leaves(x) for x in form.arguments[:2]]
    scores = simtile.xtr_scores(*inputs, *map(as_tensors, form.arguments[2:]), **options)
    (scores * torch.from_numpy(weights)).sum().backward()
    for leaf, theirs in zip(inputs, expected[1:], strict=True):
        for i, own in enumerate(theirs):
            ours = leaf[i].grad if isinstance(leaf, list) else leaf.grad[i]
            rounding = torch.finfo(ours.dtype).eps
            own = np.reshape(own, ours.shape)
            scale = np.abs(own).max(initial=0.0) + 1.0
            error = np.abs(ours.double().numpy() - own)
            limit = (1e-11 if form.compute == "float64" else 2e-5) * scale * 33
            assert (error <= limit + rounding * np.abs(own)).all()


@pytest.mark.parametrize("divisor", DIVISORS)
@pytest.mark.parametrize("options", [{}, {"normalize": True}], ids=str)
def test_gradcheck(divisor, options):
    torch.manual_seed(0)
    queries = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    documents = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)

    def scores(queries, documents):
        return simtile.xtr_scores(queries, documents, top_k=4, divisor=divisor, **options)

    assert torch.autograd.gradcheck(scores, (queries, documents))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(scores(queries, documents).sum(), queries, create_graph=True)


def test_what_competes():
    """A document's tokens are found or not depending on the others; the divisor counts finders."""
    queries = [np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)]
    documents = [
        np.array([[0.9, 0.1], [0.2, 0.7]], np.float32),
        np.array([[0.8, 0.0], [0.0, -0.5]], np.float32),
    ]
    near(simtile.xtr_scores(queries, documents, top_k=1), [[0.8, 0.0]], "float32")
    # The first token finds 0.9 and 0.8, the second 0.7 and 0.1.
    near(simtile.xtr_scores(queries, documents, top_k=2), [[0.8, 0.8]], "float32")
    near(simtile.xtr_scores(queries, documents[1:], top_k=9), [[0.4]], "float32")


def test_the_divisor_of_positive_maxima():
    """As in PrimeQA and PyLate: what was not found takes part in the maximum as 0."""
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(3, 4, 5)).astype(np.float32)
    documents = (rng.normal(size=(6, 7, 5)) - 0.3).astype(np.float32)
    similarities = np.einsum("qid,njd->qinj", queries, documents)
    for top_k in (1, 5, 20, 42, 100):
        pool = similarities.reshape(3, 4, -1)
        limit = np.sort(pool, axis=2)[:, :, -min(top_k, 42)][..., None, None]
        maxima = (similarities * (similarities >= limit)).max(3)
        expected = maxima.sum(1) / (maxima > 0).sum(1).clip(1e-3)
        scores = simtile.xtr_scores(queries, documents, top_k=top_k, divisor="positive")
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_padding_competes_with_nothing():
    """Less than the best of a pool, and it is not found; zeros are padding if told."""
    query = [-np.ones((1, 3), np.float32)]
    document = np.zeros((2, 4, 3), np.float32)
    document[:, :2] = [[1, 2, 3], [2, 1, 1]]
    scores = simtile.xtr_scores(query, document, top_k=3, zero_rows="pad")
    near(scores, [[-4.0, -4.0]], "float32")
    scores = simtile.xtr_scores(query, document, top_k=99, zero_rows="pad", divisor="positive")
    near(scores, [[-4e3, -4e3]], "float32")
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 0]])
    near(simtile.xtr_scores(query, document, None, mask, top_k=2), [[-4.0, -4.0]], "float32")
    near(simtile.xtr_scores(query, document, top_k=3), [[0.0, 0.0]], "float32")


def test_named_backends():
    case = Case((5, 3), (7, 2, 9), 16)
    sides = [[x.astype(np.float32) for x in side] for side in case.inputs]
    scores = simtile.xtr_scores(*sides, top_k=6)
    for backend in ("cpu", "reference"):
        np.testing.assert_array_equal(simtile.xtr_scores(*sides, top_k=6, backend=backend), scores)
    np.testing.assert_array_equal(simtile.xtr_scores(*sides, top_k=6, threads=1), scores)
    with pytest.raises((RuntimeError, ValueError), match=r"cuda|GPU"):
        simtile.xtr_scores(*sides, top_k=6, backend="cuda")


WRONG = {
    "top_k": ({"top_k": 0}, ValueError, "top_k: found 0, expected at least 1"),
    "top_k type": ({"top_k": 2.5}, TypeError, "top_k: found 2.5, expected an int"),
    "divisor": ({"divisor": "query"}, ValueError, "divisor: found 'query'"),
    "zero_rows": ({"zero_rows": "drop"}, ValueError, "zero_rows: found 'drop'"),
    "backend": ({"backend": "triton"}, ValueError, "backend: found 'triton'"),
    "empty_score": ({"empty_score": "no"}, TypeError, "empty_score: found 'no'"),
    "mask": ({"query_mask": np.ones((1, 2), bool)}, ValueError, "query_mask: found bool"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_wrong_arguments(name, kind):
    changed, error, message = WRONG[name]
    queries, documents = np.ones((1, 3, 4), np.float32), np.ones((2, 3, 4), np.float32)
    if kind == "tensor":
        queries, documents = torch.from_numpy(queries), torch.from_numpy(documents)
    with pytest.raises(error, match=message):
        simtile.xtr_scores(queries, documents, **changed)
