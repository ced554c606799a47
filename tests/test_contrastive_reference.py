"""The definition of the contrastive family: against torch's autograd, for every pair of options."""

import math

import contrastive_dense as dense
import numpy as np
import pytest
from contrastive_cases import (
    LEVELS,
    SIGLIP_LEVELS,
    Case,
    cases,
    lists_of,
    option_tuples,
    pairs_of,
    pairwise,
    possible_pairs,
    run_lists,
    valid,
)
from hypothesis import given
from hypothesis import strategies as st

from simtile.reference import contrastive
from simtile.reference.contrastive_options import Options, check_options
from simtile.reference.contrastive_statistics import statistics

COVERING = pairwise()
SIGLIP_COVERING = pairwise(SIGLIP_LEVELS, lambda options: True, ())


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
    siglip = set().union(*map(pairs_of, SIGLIP_COVERING))
    assert possible_pairs(SIGLIP_LEVELS, lambda options: True, ()) == siglip
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


WRONG = {
    "directions: found ()": {"directions": ()},
    "directions: found 'doc'": {"directions": ("doc",)},
    "each once": {"directions": ("query_to_doc", "query_to_doc")},
    "not in query_to_query;": {"directions": ("query_to_query",)},
    "not in query_to_query and doc_to_doc": {"directions": ("query_to_query", "doc_to_doc")},
    "with partition 'per_direction'": {
        "directions": ("query_to_doc", "doc_to_doc"),
        "partition": "per_direction",
    },
    "partition: found 'both'": {"partition": "both"},
    "negatives_scope: found 'mine'": {"negatives_scope": "mine"},
    "starts from the document": {
        "directions": ("query_to_doc", "doc_to_query"),
        "targets": [0, 1, 2],
    },
    "targets: found \\[0, 1, 4\\], expected 0 to 3": {"targets": [0, 1, 4]},
    "query_ids, document_ids": {"query_ids": [1, 2, 3]},
    "without hardness": {"hardness_strength": 1.0},
    "hardness: found 'hard'": {"hardness": "hard", "hardness_strength": 1.0},
    "hardness_strength: found -1": {"hardness": "hard_negatives", "hardness_strength": -1.0},
    "whose logits": {"hardness": "all_negatives", "directions": ("doc_to_query",)},
    "guide_margin: found 0.1 without": {"guide_margin": 0.1},
    "guide_margin: found nan": {"guide_margin": math.nan},
    "guide_margin_strategy": {"guide_margin_strategy": "both"},
    "guide: found 2 arrays with negatives": {"guide": ([], [])},
    "false_negative_margin: found inf": {"false_negative_margin": math.inf},
    "without matryoshka_dims": {"matryoshka_weights": [1.0]},
    "matryoshka_dims: found \\(\\)": {"matryoshka_dims": ()},
    "matryoshka_dims: found \\(2, 2\\)": {"matryoshka_dims": (2, 2)},
    "matryoshka_dims: found \\(0, 6\\)": {"matryoshka_dims": (0, 6)},
    "matryoshka_dims: found \\(7,\\)": {"matryoshka_dims": (7,)},
    "2 for 1 widths": {"matryoshka_dims": (3,), "matryoshka_weights": (1.0, 2.0)},
    "matryoshka_weights: found \\(0.0,\\)": {
        "matryoshka_dims": (3,),
        "matryoshka_weights": (0.0,),
    },
    "matryoshka_weights: found \\(1.0, -1.0\\)": {
        "matryoshka_dims": (3, 4),
        "matryoshka_weights": (1.0, -1.0),
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_go_together(message):
    with pytest.raises(ValueError, match=message):
        check_options(Options(**WRONG[message]), 3, 4, 6, True)


def test_fewer_documents_than_queries_need_targets():
    with pytest.raises(ValueError, match="documents: found 2 rows for 3 queries"):
        check_options(Options(), 3, 2, 6, False)
    check_options(Options(targets=[0, 1, 1]), 3, 2, 6, False)
    with pytest.raises(ValueError, match=r"expected \(queries, documents\)"):
        check_options(Options(guide=([], [], [])), 3, 3, 6, False)


@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in LEVELS.items()}))
def test_options_are_refused_exactly_where_they_do_not_go_together(drawn):
    case = Case(drawn=drawn)
    arguments = (len(case["queries"]), len(case["documents"]), 6, case["negatives"] is not None)
    if valid(drawn):
        check_options(case.options, *arguments)
    else:
        with pytest.raises(ValueError, match="expected"):
            check_options(case.options, *arguments)


@pytest.mark.parametrize("directions", ["doc_to_query", "query_to_query", "doc_to_doc"])
def test_the_sigmoid_loss_has_one_direction(directions):
    with pytest.raises(ValueError, match="no log-sum-exp"):
        contrastive.siglip_loss([[1.0]], [[1.0]], None, Options(directions=(directions,)))


def test_a_pair_alone():
    # Nothing to be told apart from: 0. In one log-sum-exp that has the pair twice: log 2.
    pair = ([[1.0, 2.0]], [[2.0, -1.0]])
    for directions, expected in [
        (("query_to_doc",), 0.0),
        (("doc_to_query",), 0.0),
        (("query_to_doc", "query_to_query", "doc_to_doc"), 0.0),
        (("query_to_doc", "doc_to_query"), math.log(2.0)),
    ]:
        result = contrastive.info_nce_grad(*pair, None, Options(directions=directions))
        assert result.losses == pytest.approx([expected], abs=1e-15)
        assert not np.any(result.queries)
        assert not np.any(result.documents)
    masked = Options(
        query_ids=[7, 7], document_ids=[7, 7], directions=("query_to_doc", "doc_to_doc")
    )
    assert contrastive.info_nce([[1.0], [2.0]], [[3.0], [-1.0]], None, masked) == 0.0


def test_a_bias_changes_no_softmax():
    case = Case(drawn={"directions": ("query_to_doc", "doc_to_query")})
    inputs = lists_of(case)
    plain = contrastive.info_nce_grad(*inputs, case.options)
    moved = contrastive.info_nce_grad(*inputs, case.options._replace(bias=5.0))
    np.testing.assert_allclose(moved.losses, plain.losses, rtol=1e-12)
    assert moved.bias == pytest.approx(0.0, abs=1e-14)


def nan_rows(case, **replaced):
    result = contrastive.info_nce_grad(*lists_of(case), case.options._replace(**replaced))
    return [
        np.isnan(result.losses),
        *(np.isnan(g).any(-1) for g in (result.queries, result.documents)),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_stays_with_what_sees_it(bad):
    case = Case(drawn={"bank": 1})
    case["queries"][1, 2] = bad
    losses, queries, documents = nan_rows(case)
    np.testing.assert_array_equal(losses, [False, True, False, False, False])
    np.testing.assert_array_equal(queries, losses)
    assert documents.all()
    # Equal ids: query 1 is compared with its own document and with that of query 3 alone.
    ids = {"query_ids": [0, 5, 1, 2, 3], "document_ids": [5, 5, 5, 6, 5, 5]}
    losses, queries, documents = nan_rows(case, **ids)
    np.testing.assert_array_equal(losses, [False, True, False, False, False])
    np.testing.assert_array_equal(documents, [False, True, False, True, False, False])
    both = ("query_to_doc", "query_to_query")
    assert nan_rows(case, directions=both)[0].all()
    ids["query_ids"] = [5, 5, 5, 5, 3]
    losses = nan_rows(case, directions=both, **ids)[0]
    np.testing.assert_array_equal(losses, [False, True, False, False, True])


def test_a_guide_that_gives_nan_gives_nan():
    case = Case(drawn={"guide": ("absolute", 0.0), "bank": 1})
    case["guide_documents"][5, 0] = math.nan  # nobody's
    assert nan_rows(case)[0].all()
    # A candidate that ids leave out is not asked about.
    ids = {"query_ids": [1, 1, 1, 0, 0], "document_ids": [0, 0, 0, 0, 0, 1]}
    np.testing.assert_array_equal(nan_rows(case, **ids)[0], [False, False, False, True, True])
    case = Case(drawn={"guide": ("relative", 0.1)})
    case["guide_queries"][2, 0] = math.nan
    np.testing.assert_array_equal(nan_rows(case)[0], [False, False, True, False, False])


@pytest.mark.parametrize(
    ("directions", "queries", "documents", "left"),
    [
        (("query_to_doc",), "q", "ddq", 2),
        (("doc_to_query",), "qqd", "ddd", 2),
        (("query_to_doc", "query_to_query"), "qdq", "ddd", 4),
        (("query_to_doc", "doc_to_doc"), "qqq", "dqd", 3),
    ],
)
@pytest.mark.parametrize("mask", ["margin", "guide", "relative"])
def test_a_candidate_exactly_as_similar_as_the_pair_stays(
    directions, queries, documents, left, mask
):
    # Of the first pair, q and d: what is as similar as they are stays, with equal logits, and what
    # equals the anchor goes.
    vectors = {"q": [0.6, 0.8, 0.1], "d": [0.5, 0.9, 0.3]}
    inputs = [[vectors[name] for name in names] for names in (queries, documents)]
    masks = {
        "margin": {"false_negative_margin": 0.0},
        "guide": {"guide": inputs},
        "relative": {"guide": inputs, "guide_margin_strategy": "relative"},
    }[mask]
    options = Options(directions=directions, **masks)
    losses = contrastive.info_nce(*inputs, None, options, "none")
    assert losses[0] == pytest.approx(math.log(left), rel=1e-14)
