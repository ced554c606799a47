"""The definition of the contrastive family: against torch's autograd, for every pair of options."""

import contrastive_dense as dense
import numpy as np
import pytest
from contrastive_cases import (
    LEVELS,
    Case,
    cases,
    option_tuples,
    pairs_of,
    pairwise,
    possible_pairs,
    valid,
)
from hypothesis import given

from simtile.reference import contrastive
from simtile.reference.contrastive_options import Options
from simtile.reference.contrastive_statistics import statistics

SIGLIP_LEVELS = {
    name: values
    for name, values in LEVELS.items()
    if name not in ("directions", "partition", "hardness")
}
COVERING = pairwise()
SIGLIP_COVERING = pairwise(SIGLIP_LEVELS, lambda options: True, ())


def lists_of(case):
    return [None if x is None else x.tolist() for x in case.inputs]


def run_lists(case, sigmoid=False):
    run = contrastive.siglip_loss_grad if sigmoid else contrastive.info_nce_grad
    weights = None if case["row_weights"] is None else case["row_weights"].tolist()
    result = run(*lists_of(case), case.options, weights)
    if case["negatives"] is not None:  # [N][0] has lost its dimensions
        shape = case["negatives"].shape
        return result._replace(negatives=np.reshape(result.negatives, shape))
    return result


def lengths(case):
    """The shortest length of a vector or its prefixes: gradients are as large as its inverse."""
    if not case["normalize"]:
        return 1.0
    dims = case.options.matryoshka_dims or [case.dimensions]
    found = [1.0]
    for x in case.inputs:
        if x is not None and x.size:
            norms = [np.sqrt(np.square(x[..., :d]).sum(-1)) for d in dims]
            found += [float(np.maximum(n, 1e-12).min()) for n in norms]
    return min(found)


def assert_equal_up_to_rounding(case, ours, theirs):
    size = 1e-13 / case["temperature"]  # of a logit's rounding
    gradients = size * 20 / case["temperature"] / lengths(case)
    tolerances = [10 * size, *[gradients] * 3, gradients, gradients]
    for name, a, b, tolerance in zip(
        contrastive.Gradients._fields, ours, theirs, tolerances, strict=True
    ):
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=tolerance, err_msg=name)


def test_every_possible_pair_of_options_occurs():
    found = set().union(*map(pairs_of, COVERING))
    assert possible_pairs() <= found
    assert all(map(valid, COVERING))
    # The pairs that cannot occur are those that are excluded, and no others.
    everything = {
        frozenset({(a, x), (b, y)})
        for a in LEVELS
        for b in LEVELS
        if a < b
        for x in LEVELS[a]
        for y in LEVELS[b]
    }
    excluded = {"directions", "partition", "targets", "hardness"}
    for pair in everything - possible_pairs():
        assert {name for name, _ in pair} <= excluded


@pytest.mark.parametrize("number", range(len(COVERING)))
def test_info_nce_is_autograd(number):
    for seed in range(3):
        case = Case(4 + seed, drawn=COVERING[number], seed=100 * number + seed)
        assert_equal_up_to_rounding(case, run_lists(case), dense.run(case))


@given(cases(option_tuples()))
def test_info_nce_is_autograd_for_any_tuple(case):
    assert_equal_up_to_rounding(case, run_lists(case), dense.run(case))


@pytest.mark.parametrize("number", range(len(SIGLIP_COVERING)))
def test_siglip_is_autograd(number):
    case = Case(drawn=SIGLIP_COVERING[number], seed=number)
    assert_equal_up_to_rounding(case, run_lists(case, True), dense.run(case, True))


@given(cases(option_tuples(SIGLIP_LEVELS, lambda options: True)))
def test_siglip_is_autograd_for_any_tuple(case):
    assert_equal_up_to_rounding(case, run_lists(case, True), dense.run(case, True))


@given(cases(option_tuples()))
def test_statistics(case):
    found = statistics(*lists_of(case), case.options)
    np.testing.assert_allclose(found, dense.statistics(case), rtol=1e-9, atol=1e-13)


def test_matryoshka_averages():
    queries = [[1, 0, 0.9, 0.1, 0.5, 0.2], [0, 1, 0.1, 0.9, 0.2, 0.5]]
    documents = [[0.95, 0.05, 0.85, 0.15, 0.45, 0.25], [0.05, 0.95, 0.15, 0.85, 0.25, 0.45]]
    for dims in ((2, 4, 6), (6, 2, 4)):
        options = Options(temperature=0.2, matryoshka_dims=dims)
        assert round(contrastive.info_nce(queries, documents, None, options), 4) == 0.0153


def test_reductions():
    case = Case(drawn={"negatives_per_query": 2})
    rows = contrastive.info_nce(*lists_of(case), case.options, "none")
    assert rows == run_lists(case).losses
    assert contrastive.info_nce(*lists_of(case), case.options) == pytest.approx(sum(rows) / 5)
    assert contrastive.info_nce(*lists_of(case), case.options, "sum") == pytest.approx(sum(rows))
