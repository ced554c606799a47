"""The definition of MaxSim: known cases, the NumPy oracle against the lists, the gradients."""

import numpy as np
import pytest
from hypothesis import given, settings
from maxsim_cases import Case, cases

from simtile.reference import maxsim as lists
from simtile.reference import maxsim_numpy as oracle

TEMPERATURES = (None, 0.1, 2.0)


def as_lists(case):
    sides = [[x.tolist() for x in side] for side in case.inputs]
    masks = [None if side is None else [x.tolist() for x in side] for side in case.mask_arrays]
    return (*sides, *masks)


def test_two_tokens_score_the_sum_of_their_best_matches():
    document = [[0.93, 0.2], [0.4, 0.91], [0.1, 0.3]]
    [[pair]] = lists.maxsim([[[1.0, 0.0], [0.0, 1.0]]], [document])
    assert round(pair.score, 2) == 1.84
    assert pair.argmax == [0, 1]
    assert pair.token_scores == [0.93, 0.91]


def test_what_is_masked_never_beats_a_negative_similarity():
    query, document = [[1.0, 0.0]], [[0.0, 0.0], [-0.5, 0.0]]
    for options in ({"document_mask": [[False, True]]}, {"zero_rows": "pad"}):
        [[pair]] = lists.maxsim([query], [document], **options)
        assert pair == (-0.5, [1], [-0.5])
    [[pair]] = lists.maxsim([query], [document])
    assert pair == (0.0, [0], [0.0])


def test_where_there_is_no_token():
    query, document = [[2.0]], [[3.0]]
    scores = [
        [pair.score for pair in row]
        for row in lists.maxsim([query, []], [document, []], empty_score=-7.0)
    ]
    assert scores == [[6.0, -7.0], [0.0, -7.0]]
    [[pair]] = lists.maxsim([query], [[]], length_normalize=True, empty_score=-7.0)
    assert pair == (-7.0, [lists.NO_TOKEN], [0.0])


def test_the_mean_is_over_tokens_that_are_there():
    query = [[1.0], [3.0], [100.0]]
    [[pair]] = lists.maxsim([query], [[[1.0]]], [[True, True, False]], length_normalize=True)
    assert pair.score == 2.0


def test_ties_and_nan_go_to_the_first():
    document = [[1.0], [2.0], [2.0], [float("nan")], [float("nan")]]
    [[tied, nan]] = lists.maxsim([[[1.0]]], [document[:3], document])
    assert tied.argmax == [1]
    assert nan.argmax == [3]
    assert np.isnan(nan.score)


@given(cases(temperatures=TEMPERATURES))
def test_numpy_is_the_lists(case):
    expected = lists.maxsim(*as_lists(case), empty_score=-3.0, **case.options)
    result = oracle.maxsim(*case.inputs, *case.mask_arrays, empty_score=-3.0, **case.options)
    assert result.scores.shape == (len(case["queries"]), len(case["documents"]))
    for q, row in enumerate(expected):
        for n, pair in enumerate(row):
            close(result.scores[q, n], pair.score)
            close(result.token_scores[q][n], pair.token_scores)
            # Where sums are exact, ties are ties in both.
            if case.values in ("few", "integers") and not case.options["normalize"]:
                np.testing.assert_array_equal(result.argmax[q][n], pair.argmax)
            same = (result.argmax[q][n] >= 0) == (np.array(pair.argmax, int) >= 0)
            assert same.all()


@given(cases(temperatures=TEMPERATURES, values=("random", "apart", "zeros")))
def test_numpy_gradients_are_the_lists(case):
    arguments = (*as_lists(case)[:2], case["grad_scores"].tolist(), *as_lists(case)[2:])
    expected = lists.maxsim_grad(*arguments, **case.options)
    result = gradients(case)
    for name in ("queries", "documents"):
        for ours, theirs in zip(getattr(result, name), getattr(expected, name), strict=True):
            close(ours, np.reshape(theirs, ours.shape))


def gradients(case):
    arguments = (*case.inputs, case["grad_scores"], *case.mask_arrays)
    return oracle.maxsim_grad(*arguments, **case.options)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


# No zeros: a row without length has no direction to be moved in.
@settings(max_examples=15)
@given(cases(most=2, values=("random", "apart"), temperatures=TEMPERATURES))
def test_gradients_are_the_differences_of_the_scores(case):
    rows = [x for side in case.inputs for x in side if len(x)]
    if case.options["normalize"] and any(np.linalg.norm(x, axis=1).min() < 0.05 for x in rows):
        return  # curved on the scale of a short row's length

    def loss():
        result = oracle.maxsim(*case.inputs, *case.mask_arrays, **case.options)
        return (case["grad_scores"] * result.scores).sum()

    step = 1e-6
    result = gradients(case)
    rng = np.random.default_rng(case.seed)
    for side, grads in zip(case.inputs, result, strict=True):
        for x, grad in zip(side, grads, strict=True):
            for at in rng.permutation(x.size)[:5]:
                kept = x.flat[at]
                moved = []
                for sign in (1.0, -1.0):
                    x.flat[at] = kept + sign * step
                    moved.append(loss())
                x.flat[at] = kept
                difference = (moved[0] - moved[1]) / (2 * step)
                assert grad.flat[at] == pytest.approx(difference, rel=1e-4, abs=1e-5)


def test_smooth_maximum_bounds_the_maximum():
    case = Case((7,), (33,), 16)
    hard = oracle.maxsim(*case.inputs).scores
    for temperature in (10.0, 1.0, 0.1):
        smooth = oracle.maxsim(*case.inputs, temperature=temperature).scores
        assert hard < smooth < hard + 7 * temperature * np.log(33)
