"""The functions behind search by every backend: equal to the oracle, to the last bit."""

import numpy as np
import pytest
from hypothesis import strategies as st
from search_cases import KINDS
from topk_backends import every_backend, threads
from topk_cases import check

from simtile.reference import topk_numpy as oracle


@every_backend()
@pytest.mark.parametrize("kind", KINDS)
def test_topk_is_the_oracle(backend, kind):
    def test(case, threads):
        check(backend.call(lambda core: case.topk(core, threads)), case.topk(oracle))

    backend.search(test, threads, kinds=(kind,))


@every_backend()
def test_range_search_is_the_oracle(backend):
    def test(case, threads, at):
        scores = case.topk(oracle)[0].ravel()
        threshold = at if scores.size == 0 else float(scores[int(at * (scores.size - 1))])
        ours = backend.call(lambda core: case.range_search(core, threshold, threads))
        theirs = case.range_search(oracle, threshold)
        np.testing.assert_array_equal(ours[0], theirs[0])
        check(ours[1:], theirs[1:])

    backend.search(test, threads, st.floats(0, 1), candidates=None)


@every_backend(without=("reference",))
def test_score_rows_is_the_oracle(backend):
    def test(case, threads):
        ours = backend.call(lambda core: case.score_rows(core, threads))
        np.testing.assert_array_equal(ours, case.score_rows(oracle))

    backend.search(test, threads, candidates=20)


@every_backend()
@pytest.mark.parametrize("inverse", [False, True])
def test_code_norms_is_the_oracle(backend, inverse):
    def test(case, threads):
        ours = backend.call(lambda core: case.code_norms(core, inverse, threads))
        np.testing.assert_array_equal(ours, case.code_norms(oracle, inverse))

    backend.search(test, threads, kinds=("int8", "uint8", "int4", "int8_vector", "bits"))
