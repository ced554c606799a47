"""The functions behind search by every backend: equal to the oracle, to the last bit."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from search_cases import FLOATS, KINDS, METRICS, Case
from topk_backends import THREADS, every_backend, threads
from topk_cases import check

from simtile import _core
from simtile.reference import topk_numpy as oracle

aways = st.sampled_from((0.0, math.inf, -math.inf))


@every_backend()
@pytest.mark.parametrize("kind", KINDS)
def test_topk_is_the_oracle(backend, kind):
    def test(case, threads):
        check(backend.call(lambda core: case.topk(core, threads)), case.topk(oracle))

    backend.search(test, threads, kinds=(kind,))


@every_backend(without=("reference",))
def test_many_queries_are_the_oracle(backend):
    """So many that floats are screened in small integers where that is faster."""

    def test(case, threads):
        check(backend.call(lambda core: case.topk(core, threads)), case.topk(oracle))
        threshold = float(np.nan_to_num(np.median(case.topk(oracle)[0])))
        ours = backend.call(lambda core: case.range_search(core, threshold, threads))
        theirs = case.range_search(oracle, threshold)
        np.testing.assert_array_equal(ours[0], theirs[0])
        check(ours[1:], theirs[1:])

    sizes = {
        "queries": (48, 65),
        "documents": (111, 700),
        "dims": (32, 33, 111, 384),
        "ks": (1, 10, 60),
    }
    backend.search(test, threads, kinds=FLOATS, candidates=None, **sizes)


@every_backend(without=("reference",))
@pytest.mark.parametrize("rounded", ["documents", "queries"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_what_rounding_takes_away_is_found(backend, kind, rounded):
    """Vectors whose elements are all rounded in one direction, so that a product of the rounded
    ones is as far off as it can be: among the best only if the bound has room for that."""
    spiky = np.full(64, 0.0075)  # under half of a step of 1 / 64, and of most other steps
    spiky[0] = 1
    flat = np.ones(64)
    almost = np.zeros((300, 64))  # rounded to themselves
    almost[:, 1] = 1.25
    documents = np.concatenate([almost, [spiky if rounded == "documents" else flat]])
    query = flat if rounded == "documents" else spiky
    if rounded == "queries":
        documents[:-1] = 0
        documents[:-1, 0] = 1.25
    case = Case(kind, "dot", 50, len(documents), 64, k=3)
    case["queries"] = np.tile(query, (50, 1)).astype(np.float32)
    stored = documents.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else np.float32)
    case["documents"] = stored.view(np.uint16) if kind == "bfloat16" else stored
    theirs = case.topk(oracle)
    assert (theirs[1][:, 0] == 300).all()
    check(backend.call(lambda core: case.topk(core)), theirs)


@every_backend()
def test_range_search_is_the_oracle(backend):
    def test(case, threads, at, away):
        scores = case.topk(oracle)[0].ravel()
        threshold = at if scores.size == 0 else float(scores[int(at * (scores.size - 1))])
        threshold = math.nextafter(threshold, away)  # rounded to the score again, or not at all
        ours = backend.call(lambda core: case.range_search(core, threshold, threads))
        theirs = case.range_search(oracle, threshold)
        np.testing.assert_array_equal(ours[0], theirs[0])
        check(ours[1:], theirs[1:])

    backend.search(test, threads, st.floats(0, 1), aways, candidates=None)


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


# More documents than a task has, so that threads share a query and selections are full.


@lru_cache(maxsize=2)
def many(kind, order):
    metric = "hamming" if kind == "packed" else METRICS[KINDS.index(kind) % 3]
    sizes = (2, 20_011, 65 * (8 if kind in ("bits", "packed") else 1), 10)
    if order in ("ties", "near ties"):
        values = {"ties": "few", "near ties": "near"}[order]
        case = Case(kind, metric, *sizes, allow="some", values=values, seed=1)
        return case, case.topk(oracle)
    case = Case(kind, metric, *sizes, allow="some", seed=2)
    by_score = case_in_order(case, order)
    return by_score, by_score.topk(oracle)


def case_in_order(case, order):
    """Every document is better, or worse, than those before it, for the first query."""
    arrays = case.arrays
    scored = oracle.scores_of(
        case.stored,
        case.metric,
        arrays["queries"][0],
        oracle.wide(case.stored, arrays["documents"], case.dim),
        case.dim,
        *(arrays[name] for name in ("scale", "offset", "factor", "addend")),
        None,
    )
    rows = np.argsort(scored, kind="stable")
    if (order == "improving") == (case.metric in ("l2", "hamming")):
        rows = rows[::-1]
    for name in ("documents", "factor", "addend"):
        if arrays[name] is not None:
            arrays[name] = np.ascontiguousarray(arrays[name][rows])
    return case


@every_backend(without=("reference",))
@pytest.mark.parametrize("order", ["ties", "near ties", "improving", "worsening"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_documents(kind, order, backend):
    case, expected = many(kind, order)
    for count in THREADS:
        check(backend.call(lambda core, n=count: case.topk(core, n)), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1000, 5000, 30_000])
def test_large_k(metric, k):
    case = Case("int8", metric, 2, 20_011, 33, k, values="few" if k == 5000 else "random")
    check(case.topk(_core, 2), case.topk(oracle))


@every_backend(without=("reference",))
@pytest.mark.parametrize("kind", ["float32", "int8", "bits", "packed"])
def test_many_queries(kind, backend):
    case = Case(kind, "hamming" if kind == "packed" else "cosine", 130, 300, 96, 10, allow="few")
    check(backend.call(lambda core: case.topk(core, 2)), many_queries(kind, case))


@lru_cache(maxsize=1)
def many_queries(kind, case):
    return case.topk(oracle)


# Products of codes that come close to the ends of 32 bits.


@every_backend(without=("reference",))
@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "bits", "int8_vector", "int4_vector"])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_codes(backend, kind, sign):
    dim = 65536
    case = Case(kind, "dot", 3, 3, dim, integer_queries=kind.endswith("_vector"))
    arrays = case.arrays
    codes = arrays["documents"].view(np.uint8)
    codes[0], codes[1] = {"int8": (0x7F, 0x80), "uint8": (0xFF, 0)}.get(case.stored, (0x77, 0x88))
    if kind == "bits":
        codes[0], codes[1] = 0xFF, 0
    if case.integer_queries:
        arrays["queries"][0], arrays["queries"][1] = 127, -128
    else:
        # The largest integer is 127 · 256 + 127, and one has the largest lower part, -128.
        arrays["queries"][0] = sign
        arrays["queries"][1] = sign * (32639 - 255) / 32639
        arrays["queries"][1, 0] = sign
        arrays["scale"] = None if case.arrays["scale"] is None else np.ones(dim, np.float32)
    check(backend.call(lambda core: case.topk(core, 2)), case.topk(oracle))


def test_searches_at_the_same_time():
    cases = [Case(kind, "dot", 3, 5000, 64, seed=i) for i, kind in enumerate(("float32", "int8"))]
    expected = [case.topk(oracle) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(cases[i % 2].topk, _core, 2) for i in range(40)]
        for i, job in enumerate(jobs):
            check(job.result(), expected[i % 2])


# A wrong call must not touch memory.

WRONG = {
    "queries": lambda a: a.update(queries=a["queries"][:, :-1]),
    "queries: type": lambda a: a.update(queries=a["queries"].astype(np.float64)),
    "documents": lambda a: a.update(documents=a["documents"][:, 1:]),
    "documents: type": lambda a: a.update(documents=a["documents"].view(np.uint8)),
    "documents: backwards": lambda a: a.update(documents=a["documents"][::-1]),
    "documents: columns": lambda a: a.update(documents=np.asfortranarray(a["documents"])),
    "scale": lambda a: a.update(scale=a["scale"][:-1]),
    "scale: type": lambda a: a.update(scale=a["scale"].astype(np.float64)),
    "offset": lambda a: a.update(offset=a["offset"][::2]),
    "factor": lambda a: a.update(factor=np.ones(6, np.float32)),
    "addend": lambda a: a.update(addend=np.ones(8, np.float32)),
    "query_scale": lambda a: a.update(query_scale=np.ones(3, np.float32)),
    "allow": lambda a: a.update(allow=np.ones(6, bool)),
    "allow: type": lambda a: a.update(allow=np.ones(7, np.uint8)),
    "allow: queries": lambda a: a.update(allow=np.ones((2, 7), bool)),
    "rank": lambda a: a.update(rank=np.arange(6, dtype=np.uint32)),
    "rank: type": lambda a: a.update(rank=np.arange(7)),
    "candidates": lambda a: a.update(candidates=np.full((3, 2), 7)),
    "candidates: queries": lambda a: a.update(candidates=np.full((2, 2), 0)),
    "candidates: type": lambda a: a.update(candidates=np.full((3, 2), 0, np.int32)),
}


@pytest.mark.parametrize("what", WRONG)
def test_core_refuses(what):
    case = Case("int8", "cosine", 3, 7, 16)
    case.topk(_core)
    WRONG[what](case.arrays)
    with pytest.raises(ValueError, match=what.partition(":")[0]):
        case.topk(_core)


@pytest.mark.parametrize("wrong", ["short", "type", "columns", "read-only"])
def test_core_refuses_outputs(wrong):
    case = Case("int8", "cosine", 3, 7, 16, k=4)
    scores, ids = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.int64)
    if wrong == "short":
        scores = scores[:, :3].copy()
    elif wrong == "type":
        ids = ids.astype(np.int32)
    elif wrong == "columns":
        scores = np.asfortranarray(scores)
    else:
        ids.flags.writeable = False
    with pytest.raises(ValueError, match=r"scores|ids|writeable"):
        _core.topk(*case.operands, 4, None, None, None, 1, scores, ids)


def test_unknown_kinds_and_metrics():
    case = Case("int8", "cosine", 3, 7, 16)
    for kind, metric in (("int7", "dot"), ("int8", "hamming"), ("packed", "dot"), ("int8", "ip")):
        with pytest.raises(ValueError, match=r"kind|metric"):
            _core.topk(
                kind,
                metric,
                *case.operands[2:],
                10,
                None,
                None,
                None,
                1,
                case.poisoned((3, 10)),
                np.zeros((3, 10), np.int64),
            )
