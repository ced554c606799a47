"""The NumPy oracle of the contrastive family against the lists that define it."""

import math

import numpy as np
import pytest
from contrastive_cases import (
    DEFAULTS,
    LEVELS,
    SIGLIP_LEVELS,
    Case,
    cases,
    lists_of,
    option_tuples,
    pairwise,
    run_lists,
)
from hypothesis import assume, given

from simtile.reference import contrastive, contrastive_statistics, info_nce, info_nce_numpy
from simtile.reference import contrastive_numpy as oracle
from simtile.reference.contrastive_options import Options

GRADIENTS = ("queries", "documents", "negatives")


def run_oracle(case, sigmoid=False):
    run = oracle.siglip_loss_grad if sigmoid else oracle.info_nce_grad
    return run(*case.inputs, case.options, case["row_weights"])


def is_decided(truth):
    """Whether no rounding decides what is left out."""
    return truth.closest_call > 1e-13


def check(case, sigmoid=False):
    truth = run_oracle(case, sigmoid)
    assert is_decided(truth)
    lists = run_lists(case, sigmoid)
    roundoff = 1e-15 * (1.0 + truth.logit_scale)
    np.testing.assert_allclose(truth.losses, lists.losses, rtol=1e-12, atol=16 * roundoff)
    scales = (truth.query_scale, truth.document_scale, truth.negative_scale)
    for name, scale in zip(GRADIENTS, scales, strict=True):
        a, b = getattr(truth, name), getattr(lists, name)
        assert (a is None) == (b is None) == (scale is None)
        if a is not None:
            error = np.abs(a - np.reshape(b, a.shape))
            assert (error <= (16 * roundoff * scale)[..., None]).all(), name
    error = abs(truth.temperature - lists.temperature)
    assert error <= 16 * roundoff * truth.temperature_scale
    assert abs(truth.bias - lists.bias) <= 16 * roundoff * truth.bias_scale


@pytest.mark.parametrize("drawn", pairwise())
def test_info_nce_is_the_lists(drawn):
    check(Case(7, 5, drawn=drawn, special=("duplicates",), seed=3))


@given(cases(option_tuples()))
def test_info_nce_is_the_lists_for_any_tuple(case):
    assume(is_decided(run_oracle(case)))
    check(case)


@given(cases(option_tuples(SIGLIP_LEVELS, lambda options: True)))
def test_siglip_is_the_lists_for_any_tuple(case):
    assume(is_decided(run_oracle(case, sigmoid=True)))
    check(case, sigmoid=True)


@given(cases(option_tuples()))
def test_statistics_are_the_lists(case):
    assume(is_decided(run_oracle(case)))
    found = oracle.statistics(*case.inputs, case.options)
    expected = contrastive_statistics.statistics(*lists_of(case), case.options)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


ONE_DIRECTION = {
    name: LEVELS[name]
    for name in ("negatives_per_query", "bank", "targets", "ids", "normalize", "temperature")
} | {"negatives_scope": ("all", "own"), "row_weights": (False, True)}


@given(cases(option_tuples(ONE_DIRECTION, lambda options: True)))
def test_one_direction_is_info_nce(case):
    names = ("temperature", "normalize", "targets", "negatives_scope", "query_ids", "document_ids")
    options = {name: getattr(case.options, name) for name in names}
    if case["negatives_per_query"] == 0:
        case.arrays["negatives"] = None
    weights = case["row_weights"]
    short = info_nce.info_nce_grad(*lists_of(case), **options, row_weights=weights)
    for name, value in zip(short._fields, short, strict=True):
        ours = getattr(run_lists(case), name)
        assert (ours is None) == (value is None)
        if value is not None:
            np.testing.assert_allclose(ours, value, rtol=1e-9, atol=1e-10, err_msg=name)
    # The sizes too, so that tests of kernels can use either.
    short = info_nce_numpy.info_nce_grad(*case.inputs, **options, row_weights=weights)
    for name, value in zip(short._fields, short, strict=True):
        if name.endswith("_scale") and value is not None:
            ours = getattr(run_oracle(case), name)
            np.testing.assert_allclose(ours, value, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_defaults_are_the_lists(sigmoid):
    case = Case(drawn={"negatives_per_query": 2, "bank": 1})
    name = "siglip_loss_grad" if sigmoid else "info_nce_grad"
    ours = getattr(oracle, name)(*case.inputs)
    np.testing.assert_allclose(ours.losses, getattr(contrastive, name)(*lists_of(case)).losses)


def test_losses_that_are_tiny_keep_their_digits():
    # 1 - p underflows to a multiple of 2^-53 unless it is computed from the others.
    options = Options(temperature=1.0, normalize=False)
    result = oracle.info_nce_grad([[1.0]], [[40.0], [0.0]], None, options)
    assert result.losses[0] == pytest.approx(math.log1p(math.exp(-40.0)), rel=1e-14, abs=0.0)
    assert result.queries[0, 0] == pytest.approx(-40.0 * math.exp(-40.0), rel=1e-12, abs=0.0)


@given(cases(option_tuples({**LEVELS, "row_weights": (False,)}), special=()))
def test_nan_is_where_the_lists_have_it(case):
    rng = np.random.default_rng(case.seed)
    names = ["queries", "documents"]
    if case["negatives"] is not None and case["negatives"].size:
        names.append("negatives")
    if case["guide"] is not None:
        names += [f"guide_{name}" for name in names]
    where = case[names[rng.integers(len(names))]]
    where.reshape(-1)[rng.integers(where.size)] = rng.choice([np.nan, np.inf, -np.inf])
    assume(case["normalize"] or np.isfinite(where).all())  # a sum of infinities is another matter
    truth, lists = run_oracle(case), run_lists(case)
    assume(is_decided(truth))
    for name in ("losses", *GRADIENTS):
        if getattr(truth, name) is not None:
            a, b = getattr(truth, name), getattr(lists, name)
            np.testing.assert_array_equal(np.isnan(a), np.isnan(np.reshape(b, a.shape)), name)


def test_equal_vectors_tie_in_any_shape():
    rng = np.random.default_rng(0)
    for d in (1, 2, 3, 7, 16, 33, 111):
        for m in (1, 2, 5, 64, 133):
            a, c = rng.normal(size=(7, d)), rng.normal(size=(m, d + 1))[:, :d]
            c[:] = c[0]
            products = oracle.tied_products(a, c)
            assert (products == products[:, :1]).all()
            assert (products == oracle.tied_products(c, a).T).all()
            assert (oracle.tied_products(a[:1], c[:1]) == products[0, 0]).all()


def test_closest_call():
    # The pair's similarity is 0.8; the others' are 0.6, 0 and, a tie, 0.8.
    queries, documents = [[1.0, 0.0]], [[0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [0.8, 0.6]]
    closest = oracle.info_nce_grad(queries, documents).closest_call
    assert closest == math.inf
    options = Options(false_negative_margin=0.0)
    assert oracle.info_nce_grad(queries, documents, None, options).closest_call == pytest.approx(
        0.2 / (0.6 + 0.8)
    )
    options = Options(guide=(queries, documents), guide_margin=0.1)
    assert oracle.info_nce_grad(queries, documents, None, options).closest_call == pytest.approx(
        0.1 / (0.8 + 0.8 + 0.1)
    )


def test_drawn_options_start_with_the_defaults():
    assert Case().options == Options(guide_margin_strategy="absolute")
    assert DEFAULTS["directions"] == ("query_to_doc",)
