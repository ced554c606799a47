"""The Triton kernels of MaxSim in Triton's interpreter, in a process of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maxsim_calls import Form, check
from maxsim_cases import Case, cases
from triton_worker import Interpreter
from triton_worker import maxsim as in_interpreter

from simtile.reference import maxsim_numpy as oracle

interpreter = Interpreter()
DTYPES = ("float32", "bfloat16", "float16")
EMPTY_SCORE = -3.0
ORDINARY = ("random", "few", "zeros", "apart", "integers")
EXAMPLES = max(4, settings.default.max_examples // 5)


def run(form, candidates=None, grad_scores=None):
    """Scores, argmax, token scores and, with grad_scores, both gradients."""
    options = {
        "normalize": form.options.get("normalize", False),
        "pad_zero_rows": form.options.get("zero_rows") == "pad",
        "length_normalize": form.options.get("length_normalize", False),
        "empty_score": EMPTY_SCORE,
        "temperature": form.options.get("temperature") or 0.0,
    }
    inputs = (form.queries, form.documents, form.query_mask, form.document_mask)
    return interpreter(in_interpreter, inputs, candidates, options, grad_scores)


def batches(case, forms, dtype):
    """Padded with NaN; without any mask where nothing pads."""
    form = Form(case, *forms, (dtype, dtype))
    for name in ("query_mask", "document_mask"):
        mask = getattr(form, name)
        if mask.all():
            setattr(form, name, None)
    return form


def check_all(form, candidates=None, gradients=True):
    case = form.case
    count = len(case["documents"])
    weights = case["grad_scores"]
    if candidates is None:
        documents = np.tile(np.arange(count), (len(case["queries"]), 1))
    else:
        documents = candidates
        weights = np.random.default_rng(case.seed).normal(size=candidates.shape)
    result = run(form, candidates, weights if gradients else None)
    check(form, result[:3], form.oracle(empty_score=EMPTY_SCORE), documents, none=EMPTY_SCORE)
    if not gradients:
        return
    total, sizes = np.zeros((2, len(case["queries"]), count))
    for q, row in enumerate(documents):
        for c, n in enumerate(row):
            if n >= 0:
                total[q, n] += weights[q, c]
                sizes[q, n] += abs(weights[q, c])
    expected, without_signs = (
        oracle.maxsim_grad(*form.wide, grad, *case.mask_arrays, **form.options)
        for grad in (total, sizes)
    )
    sides = zip(result[3:], expected, without_signs, form.wide, strict=True)
    for ours, theirs, largest, tokens in sides:
        # Weights of a document that is chosen twice may cancel.
        scale = max([np.abs(x).max(initial=0.0) for x in (*theirs, *largest)], default=0.0)
        # Shares of a smooth maximum are two 16-bit numbers each.
        for grad, right, x in zip(ours, theirs, tokens, strict=True):
            assert (grad[len(right) :] == 0).all()
            terms = scale
            if form.options.get("normalize"):  # of a difference that may be 0
                norms = np.linalg.norm(x, axis=1, keepdims=True)
                terms = scale + sizes.sum() / np.maximum(norms, 1e-12)
            assert (np.abs(grad[: len(right)] - right) <= 2.0**-17 * terms).all()


forms = st.tuples(*[st.sampled_from(("padded", "wider", "strided"))] * 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_and_gradients_are_the_oracle(dtype):
    @settings(max_examples=EXAMPLES)
    @given(
        case=cases(most=2, values=ORDINARY, temperatures=(None, None, 0.3)),
        forms=forms,
        chosen=st.booleans(),
    )
    def test(case, forms, chosen):
        if not case["queries"] or not case["documents"]:
            return
        candidates = None
        if chosen:
            rng = np.random.default_rng(case.seed)
            candidates = rng.integers(-1, len(case["documents"]), (len(case["queries"]), 3))
        # Parallel tokens tie but for rounding, and so do what gradients go to.
        gradients = not case.options["normalize"] or case.values in ("random", "apart")
        check_all(batches(case, forms, dtype), candidates, gradients)

    test()


@given(case=cases(most=2, values=("special",)), forms=forms)
@settings(max_examples=EXAMPLES)
def test_what_is_no_number(case, forms):
    if case["queries"] and case["documents"]:
        form = batches(case, forms, "float32")
        form.options["temperature"] = 0.3 if case.seed % 2 else None
        check_all(form, gradients=False)


# More rows and dimensions than a tile: several steps of every loop.
LARGER = Case((33, 20), (40, 16), 145, masks=("holes", "holes"), seed=4)


@pytest.mark.deep  # the interpreter runs each program's operations one by one
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {}),
        ("bfloat16", {"temperature": 0.5}),
        ("float16", {"normalize": True, "length_normalize": True}),
    ],
    ids=str,
)
def test_several_tiles(dtype, options):
    case = Case(LARGER.query_lengths, LARGER.document_lengths, 145, masks=LARGER.masks, seed=4)
    case.options.update(options)
    check_all(batches(case, ("padded", "padded"), dtype))


def test_equal_documents_tie():
    rng = np.random.default_rng(0)
    case = Case((5,), (9,), 33)
    case.arrays["documents"] = [rng.normal(size=(9, 33))] * 5
    case.arrays["document_mask"] = None
    scores, argmax, values = run(batches(case, ("padded", "padded"), "float32"))
    for x in (scores, argmax.swapaxes(1, 2), values.swapaxes(1, 2)):
        assert (x == x[..., :1]).all()


def test_gradients_of_nothing_are_zeros():
    case = Case((3,), (4,), 5, masks=("nothing", "nothing"))
    *_, grad_queries, grad_documents = run(
        batches(case, ("padded", "padded"), "float32"), None, case["grad_scores"]
    )
    assert (grad_queries == 0).all()
    assert (grad_documents == 0).all()
