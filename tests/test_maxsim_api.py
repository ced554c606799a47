"""simtile.maxsim, maxsim_pairwise and maxsim_packed of arrays, against the float64 oracle."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from maxsim_calls import FORMS, STORED, Form, check
from maxsim_cases import cases

import simtile

DTYPES = sorted(STORED)
BOTH = {"return_argmax": True, "return_token_scores": True}


def everything(form):
    return [range(len(form.wide[1]))] * len(form.wide[0])


@given(
    case=cases(temperatures=(None, None, 0.5)),
    forms=st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS)),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    backend=st.sampled_from(["auto", "auto", "reference"]),
)
def test_all_forms_are_the_oracle(case, forms, dtypes, backend):
    form = Form(case, *forms, dtypes)
    options = {**form.options, "backend": backend, "empty_score": -3.0}
    result = simtile.maxsim(*form.arguments, **options, **BOTH)
    check(form, result, form.oracle(empty_score=-3.0), everything(form))
    np.testing.assert_array_equal(simtile.maxsim(*form.arguments, **options), result[0])
    scores, argmax = simtile.maxsim(*form.arguments, **options, return_argmax=True)
    scores, values = simtile.maxsim(*form.arguments, **options, return_token_scores=True)
    assert_same(scores, result[0])
    assert_same(argmax, result[1])
    assert_same(values, result[2])


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, y)


@given(case=cases(), forms=st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS)))
def test_pairs_are_the_diagonal(case, forms):
    count = min(len(case["queries"]), len(case["documents"]))
    for name in ("queries", "documents", "query_mask", "document_mask"):
        if case[name] is not None:
            case.arrays[name] = case[name][:count]
    form = Form(case, *forms)
    scores, argmax, values = simtile.maxsim_pairwise(*form.arguments, **form.options, **BOTH)
    all_scores, all_argmax, all_values = simtile.maxsim(*form.arguments, **form.options, **BOTH)
    assert scores.shape == (count,)
    assert_same(scores, np.diagonal(all_scores))
    for details, of_all in ((argmax, all_argmax), (values, all_values)):
        assert isinstance(details, list) == isinstance(of_all, list) == (forms[0] == "list")
        assert_same(list(details), [of_all[i][i] for i in range(count)])
    assert_same(simtile.maxsim_pairwise(*form.arguments, **form.options), scores)
