"""simtile.maxsim, maxsim_pairwise and maxsim_packed of arrays, against the float64 oracle."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maxsim_calls import FORMS, STORED, Form, check
from maxsim_cases import cases

import simtile
from simtile import _core, _maxsim_run, _maxsim_select, _maxsim_sides

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
    assert scores.shape == (count,)
    for details in (argmax, values):
        assert isinstance(details, list) == (forms[0] == "list")
    result = (scores[:, None], [x[None] for x in argmax], [x[None] for x in values])
    check(form, result, form.oracle(), [[i] for i in range(count)])
    assert_same(simtile.maxsim_pairwise(*form.arguments, **form.options), scores)


def packed(form):
    """Tokens, offsets and the mask of documents that are a list."""
    lengths = [len(x) for x in form.documents]
    tokens = np.concatenate([*form.documents, np.zeros((0, form.case.dim), np.float32)])
    mask = form.document_mask
    flat = None if mask is None else np.concatenate([*mask, np.zeros(0, bool)])
    return tokens.astype(np.float32), np.cumsum([0, *lengths]), flat


@given(case=cases(most=5), form=st.sampled_from(FORMS))
def test_packed_documents_are_a_list_of_them(case, form):
    form = Form(case, form, "list")
    tokens, offsets, mask = packed(form)
    arguments = (form.queries, tokens, offsets, form.query_mask, mask)
    expected = simtile.maxsim(*form.arguments, **form.options, **BOTH)
    result = simtile.maxsim_packed(*arguments, **form.options, **BOTH)
    for ours, theirs in zip(result, expected, strict=True):
        assert_same(ours, theirs)


@given(case=cases(most=5), form=st.sampled_from(FORMS))
def test_ids_choose_documents(case, form):
    form = Form(case, form, "list")
    tokens, offsets, mask = packed(form)
    queries, documents = len(case["queries"]), len(case["documents"])
    rng = np.random.default_rng(case.seed)
    ids = rng.integers(-1, max(documents, 1), (queries, 4))
    ids = np.where(ids < documents, ids, -1)
    arguments = (form.queries, tokens, offsets, form.query_mask, mask)
    result = simtile.maxsim_packed(*arguments, ids=ids, **form.options, **BOTH)
    check(form, result, form.oracle(), ids)


def plain_best(scores, ids, allowed, k):
    """The k best of one query: of those that may be found, by falling score and rising id."""
    rows = {int(n): float(s) for n, s in zip(ids, scores, strict=True)}
    found = [n for n, s in rows.items() if n >= 0 and allowed[n] and not np.isnan(s)]
    found.sort(key=lambda n: (-rows[n], n))
    found = found[:k] + [-1] * (k - len(found))
    return [rows[n] if n >= 0 else -np.inf for n in found], found


@given(
    case=cases(most=6),
    form=st.sampled_from(FORMS),
    k=st.sampled_from([1, 2, 3, 9]),
    chosen=st.booleans(),
    filtered=st.sampled_from(["no", "mask", "masks", "rows"]),
)
def test_the_best_are_those_of_all_scores(case, form, k, chosen, filtered):
    form = Form(case, form, "list")
    tokens, offsets, mask = packed(form)
    queries, documents = len(case["queries"]), len(case["documents"])
    rng = np.random.default_rng(case.seed)
    ids = np.broadcast_to(np.arange(documents), (queries, documents))
    if chosen:
        ids = np.where(documents > 0, rng.integers(-1, max(documents, 1), (queries, 5)), -1)
    allowed = np.ones((queries, documents), bool)
    allow = None
    if filtered != "no":
        allow = rng.random((queries, documents) if filtered == "masks" else documents) < 0.6
        allowed[...] = allow
    if filtered == "rows" and documents > 2:
        allow = [*np.flatnonzero(allow)] * (documents + 1)  # zeros and ones could be a mask
    options = {**form.options, "ids": ids if chosen else None}
    arguments = (form.queries, tokens, offsets, form.query_mask, mask)
    scores = simtile.maxsim_packed(*arguments, **options)
    found = simtile.maxsim_packed(*arguments, **options, k=k, allow=allow, **BOTH)
    assert found[0].shape == found[1].shape == (queries, k)
    assert found[1].dtype == np.int64
    for q in range(queries):
        best, best_ids = plain_best(scores[q], ids[q], allowed[q], k)
        np.testing.assert_array_equal(found[1][q], best_ids)
        np.testing.assert_array_equal(found[0][q], np.array(best, np.float32))
    details = simtile.maxsim_packed(
        *arguments, **{**options, "ids": found[1]}, return_argmax=True, return_token_scores=True
    )
    for ours, theirs in zip(found[2:], details[1:], strict=True):
        assert_same(ours, theirs)
    fewer = simtile.maxsim_packed(*arguments, **options, k=k, allow=allow)
    np.testing.assert_array_equal(fewer, found[:2])


def test_the_best_of_a_gpu_are_those_of_the_cpu():
    """Selection by torch's sorts, on tensors of the CPU."""
    rng = np.random.default_rng(0)
    scores = rng.choice([1.0, 2.0, np.nan, -np.inf], size=(40, 9)).astype(np.float32)
    ids = rng.integers(-1, 6, size=(40, 9))
    scores = np.take_along_axis(scores, np.maximum(ids, 0), 1)  # equal ones have equal scores
    for candidates, allowed in ((None, None), (ids, None), (ids, rng.random((40, 9)) < 0.5)):
        for k in (1, 4, 12):
            ours = _maxsim_select._best_of_tensors(torch.from_numpy(scores), candidates, allowed, k)
            theirs = _maxsim_select.best(scores, candidates, allowed, k)
            np.testing.assert_array_equal(ours[0].numpy(), theirs[0])
            np.testing.assert_array_equal(ours[1].numpy(), theirs[1])


class TestCopies:
    """What reaches the kernel, by where it lies."""

    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []

        def spy(*arguments):
            calls.append(arguments)
            return _core.maxsim(*arguments)

        monkeypatch.setattr(_maxsim_run, "_core", SimpleNamespace(maxsim=spy))
        return calls

    def sides(self, calls):
        arguments = calls.pop()
        return arguments[0], arguments[1:5], arguments[5:9]

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_batches_are_read_in_place(self, calls, dtype):
        batch = np.ones((6, 9, 5), STORED[dtype])
        query = np.ones((2, 3, 5), STORED[dtype])
        for documents in (
            batch,
            batch[:, 2:7],
            batch[::2],
            batch[1:, :4, :3],
            np.broadcast_to(batch[0], (4, 9, 5)),
            batch[:, :1],
            batch[:1, ::2],
        ):
            simtile.maxsim(query[..., : documents.shape[2]], documents)
            kind, queries, (rows, starts, ends, mask) = self.sides(calls)
            assert kind == dtype
            assert np.shares_memory(rows, batch)
            assert np.shares_memory(queries[0], query) == (dtype in ("float32", "float64"))
            assert mask is None
            for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
                np.testing.assert_array_equal(
                    rows[start:end],
                    documents[i].view(rows.dtype) if dtype == "bfloat16" else documents[i],
                )

    @pytest.mark.parametrize("step", [(1, 1, -1), (-1, 1, 1), (1, -1, 1), (1, 1, 2)])
    def test_what_cannot_be_read_in_place_is_copied(self, calls, step):
        rng = np.random.default_rng(0)
        batch = rng.normal(size=(3, 4, 6)).astype(np.float32)
        view = batch[tuple(slice(None, None, s) for s in step)]
        scores = simtile.maxsim(view, view)
        np.testing.assert_array_equal(scores, simtile.maxsim(view.copy(), view.copy()))

    def test_prefixes_become_shorter_runs(self, calls):
        batch = np.ones((3, 5, 4), np.float32)
        mask = np.arange(5) < np.array([[5], [0], [2]])
        simtile.maxsim(batch, batch, mask, mask)
        _, queries, documents = self.sides(calls)
        assert documents[3] is None
        assert (documents[2] - documents[1]).tolist() == [5, 0, 2]
        mask[2, 4] = True  # a hole
        simtile.maxsim(batch, batch, None, mask)
        _, queries, documents = self.sides(calls)
        assert queries[3] is None
        assert documents[3].tolist() == mask.reshape(-1).tolist()
        assert (documents[2] - documents[1]).tolist() == [5, 0, 5]

    def test_packed_tokens_are_read_in_place(self, calls):
        tokens = np.ones((20, 9), np.float16)[::2, 2:7]
        simtile.maxsim_packed(np.ones((2, 3, 5)), tokens.astype(np.float64), [0, 4, 4, 10])
        self.sides(calls)
        simtile.maxsim_packed(np.ones((2, 3, 5), np.float32), tokens, [0, 4, 4, 10])
        kind, _, (rows, starts, ends, mask) = self.sides(calls)
        assert kind == "float16"
        assert np.shares_memory(rows, tokens)
        assert starts.tolist() == [0, 4, 4]
        assert ends.tolist() == [4, 4, 10]
        assert mask is None

    def test_threads_and_one_list_element(self, calls):
        only = np.ones((3, 4), np.float32)
        simtile.maxsim([only], [only], threads=2)
        assert calls[-1][-1] == 2
        _, queries, documents = self.sides(calls)
        assert np.shares_memory(queries[0], only)
        assert np.shares_memory(documents[0], only)

    def test_a_list_is_not_put_together(self, calls):
        documents = [np.ones((n, 4), np.float32) for n in (3, 0, 5)]
        mask = [np.ones(3, bool), np.ones(0, bool), np.arange(5) < 2]
        query = np.ones((2, 3, 4), np.float16)
        simtile.maxsim(query, documents, None, mask)
        kind, _, (rows, starts, ends, flat) = self.sides(calls)
        assert kind == "float32"
        assert isinstance(rows, list)
        assert all(own is x for own, x in zip(rows, documents, strict=True))
        assert starts.tolist() == [0, 0, 0]
        assert ends.tolist() == [3, 0, 2]
        assert flat is None
        tensors = [torch.from_numpy(x) for x in documents]
        simtile.maxsim(torch.from_numpy(query), tensors)
        rows = self.sides(calls)[2][0]
        assert len(rows) == 3
        assert all(np.shares_memory(rows[i], documents[i]) for i in (0, 2))

    @pytest.mark.parametrize("why", ["a hole", "a wider query", "other types", "a gradient"])
    def test_where_a_list_is_put_together(self, calls, why):
        documents = [np.ones((n, 4), np.float32) for n in (3, 0, 5)]
        query, mask = np.ones((2, 3, 4), np.float32), None
        if why == "a hole":
            mask = [np.ones(3, bool), np.ones(0, bool), np.arange(5) > 2]
        if why == "a wider query":
            query = query.astype(np.float64)
        if why == "other types":
            documents[1] = documents[1].astype(np.float16)
        if why == "a gradient":
            query = torch.from_numpy(query).requires_grad_()
            documents = [torch.from_numpy(x) for x in documents]
        simtile.maxsim(query, documents, None, mask)
        rows, starts, ends, _ = self.sides(calls)[2]
        assert rows.shape == (8, 4)
        assert starts.tolist() == [0, 3, 3]
        assert ends.tolist() == [3, 3, 8]


@given(case=cases(temperatures=(None, 0.5)), dtype=st.sampled_from(DTYPES))
def test_matrices_of_their_own_score_as_one_matrix(case, dtype):
    form = Form(case, "list", "list", (dtype, dtype))
    apart = simtile.maxsim(*form.arguments, **form.options, **BOTH)
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(_maxsim_sides, "_side_of_parts", lambda side: None)
        together = simtile.maxsim(*form.arguments, **form.options, **BOTH)
    for ours, theirs in zip(apart, together, strict=True):
        assert_same(ours, theirs)


LISTS = {
    "elements": ([np.zeros((3, 4))], r"documents\[0\]: dtype float64"),
    "dimensions": ([np.zeros((3, 5), np.float32)], r"documents\[0\]: shape"),
    "a vector": ([np.zeros(4, np.float32)], r"documents\[0\]: not a matrix"),
    "rows": ([np.zeros((2, 4), np.float32)], r"documents\[0\]: a run of rows that is not in"),
    "gaps": ([np.zeros((3, 8), np.float32)[:, ::2]], r"documents\[0\]: not C-contiguous"),
    "numbers": ([1.0], r"documents\[0\]: not an array"),
    "two": ([np.zeros((3, 4), np.float32)] * 2, r"documents_starts: shape"),
    "none": (None, "documents: neither an array nor a list"),
}


@pytest.mark.parametrize("name", LISTS)
def test_the_kernel_refuses_wrong_lists(name):
    documents, message = LISTS[name]
    zeros, threes = np.zeros(1, np.int64), np.full(1, 3)
    query = np.zeros((3, 4), np.float32)
    options = (False, False, False, 0.0, 0.0, None)
    outputs = (np.zeros((1, 1), np.float32), None, None, 1)

    def call(documents, mask=None):
        sides = (query, zeros, threes, None, documents, zeros, threes, mask)
        _core.maxsim("float32", *sides, *options, *outputs)

    call([query])
    with pytest.raises(ValueError, match=message):
        call(documents)
    with pytest.raises(ValueError, match="document_mask: not None beside a list"):
        call([query], np.ones(3, bool))
