"""`allow`, a boundary of authorisation: nothing outside is found, what is malformed raises."""

import array
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import KINDS, as_given, cases

import simtile
from simtile._allow import resolve

N = 6
MASK = np.array([True, False, False, True, True, False])
IDS = [0, 3, 4]


def as_set(allow, find=None):
    mask = resolve(allow, 2, N, find)
    assert mask.dtype == np.bool_
    assert mask.strides[-1] == 1
    return np.flatnonzero(mask).tolist() if mask.ndim == 1 else mask.tolist()


@pytest.mark.parametrize(
    "allow",
    [
        MASK,
        MASK.tolist(),
        tuple(MASK.tolist()),
        torch.from_numpy(MASK),
        np.repeat(MASK, 2)[::2],
        IDS,
        tuple(IDS),
        set(IDS),
        frozenset(IDS),
        [4, 3, 0, 0, 3],
        np.array(IDS, np.uint8),
        np.array(IDS, np.uint64),
        torch.tensor(IDS, dtype=torch.int32),
        array.array("q", IDS),
    ],
    ids=repr,
)
def test_ways_to_say_the_same(allow):
    assert as_set(allow) == IDS


def test_all_or_nothing():
    assert resolve(None, 2, N) is None
    for nothing in ([], (), set(), np.empty(0, np.int64), range(0), np.zeros(N, bool)):
        assert as_set(nothing) == []
    assert as_set(range(N)) == list(range(N))
    assert resolve([], 2, 0).shape == (0,)
    assert resolve(np.empty(0, bool), 2, 0).shape == (0,)


def test_a_mask_for_each_query():
    both = np.stack([MASK, ~MASK])
    assert as_set(both) == both.tolist()
    assert as_set(np.asfortranarray(both)) == both.tolist()
    assert as_set(both[::-1]) == both[::-1].tolist()
    assert as_set(both.tolist()) == both.tolist()


def test_ids_of_an_index():
    known = np.array([100, 7, -5, 8, 9, 2**40])

    def find(ids):
        return np.array([int(np.flatnonzero(known == i)[0]) if i in known else -1 for i in ids])

    assert as_set([8, 100, 2**40], find) == [0, 3, 5]
    assert as_set([-5], find) == [2]
    with pytest.raises(ValueError, match="unknown id 18446744073709551611"):
        resolve(np.array([2**64 - 5], np.uint64), 2, N, find)  # -5 in 64 bits with a sign
    with pytest.raises(ValueError, match=r"unknown id 6 \(1 of 2 .*, expected ids of the index"):
        resolve([7, 6], 2, N, find)


MALFORMED = [
    (MASK[:5], "a mask [5], expected [6], one bool for each document, or [2, 6], one row"),
    (MASK[:0], "a mask [0], expected [6]"),
    (np.ones((3, 6), bool), "a mask [3, 6], expected [6]"),
    (np.ones((6, 2), bool), "a mask [6, 2], expected [6]"),
    (MASK[None], "a mask [1, 6], expected [6]"),
    (np.ones((2, 6, 1), bool), "a mask [2, 6, 1], expected [6]"),
    (True, "a mask [], expected [6]"),
    ([0, 6], "the unknown id 6 (1 of 2 are unknown), expected 0 to 5"),
    ([-1], "the unknown id -1"),
    (np.array([2**64 - 1], np.uint64), "the unknown id 18446744073709551615"),
    (3, "int64 [], expected ids [A]"),
    ([[0, 1, 2], [3, 4, 5]], "int64 [2, 3], expected ids [A]"),
    (np.ones((2, 6), np.int8), "int8 [2, 6], expected ids [A]"),
    (MASK.astype(np.int64), "int64 [6] of zeros and ones"),
    (MASK.view(np.uint8), "uint8 [6] of zeros and ones"),
    ([0, 1, 0, 0, 1, 1], "which could be a mask or ids: pass allow.astype(bool) for a mask"),
    (MASK.astype(np.float64), "float64 [6], expected bool (a mask, [N] or [Q, N]) or integers"),
    (np.array([]), "float64 [0]"),
    (torch.tensor([0.0, 3.0, 4.0]), "float32 [3]"),
    (torch.tensor([0.0, 3.0, 4.0], dtype=torch.bfloat16), "torch.bfloat16 [3]"),
    ([True, 3, False], "2 bools among 3 values"),
    ({3, True}, "1 bools among 2 values"),
    (["0", "3"], "<U1 [2]"),
    ([b"0"], "|S1 [1]"),
    ([0, None], "object [2]"),
    ({0: True}, "object []"),
    (iter(IDS), "object []"),
    ([2**70], "object [1]"),
    (np.array([0, 3], "datetime64[s]"), "datetime64"),
    ([0j, 3j], "complex128 [2]"),
    (np.ma.masked_array(MASK, mask=~MASK), "a numpy.ma.MaskedArray"),
    ([[0, 1], [2]], "is no array"),
    (MASK.view([("a", "?")]), "[('a', '?')] [6]"),
]


@pytest.mark.parametrize(("allow", "message"), MALFORMED, ids=[m for _, m in MALFORMED])
def test_malformed(allow, message):
    with pytest.raises((TypeError, ValueError), match="allow: found") as error:
        resolve(allow, 2, N)
    assert message in str(error.value)
    # And through the public functions: nothing is searched.
    x = np.ones((N, 3), np.float32)
    for search, argument in ((simtile.topk, 2), (simtile.range_search, 0.5)):
        with pytest.raises((TypeError, ValueError), match="allow: found"):
            search(x[:2], x, argument, allow=allow)


@given(st.data())
def test_anything_else_raises(data):
    """Whatever comes: it is a mask of the right shape, known ids, or an error."""
    scalars = st.one_of(
        st.integers(-2, 8), st.booleans(), st.none(), st.floats(), st.text(max_size=1)
    )
    allow = data.draw(st.one_of(scalars, st.lists(scalars, max_size=8)))
    if allow is None:
        return
    listed = isinstance(allow, list)
    is_mask = listed and len(allow) == N and all(isinstance(x, bool) for x in allow)
    are_ids = listed and all(type(x) is int and 0 <= x < N for x in allow)
    if are_ids and len(allow) == N and set(allow) <= {0, 1}:
        are_ids = False
    if is_mask:
        assert as_set(allow) == [i for i, x in enumerate(allow) if x]
    elif are_ids:
        assert as_set(allow) == sorted(set(allow))
    else:
        with pytest.raises((TypeError, ValueError), match="allow: found"):
            resolve(allow, 2, N)


BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    case=cases(KINDS, queries=(1, 3), documents=(1, 33, 111), rank=False, candidates=None),
    data=st.data(),
)
def test_nothing_outside_is_found(backend, case, data):
    """The best documents of all, and their duplicates, are those that are not allowed."""
    queries, documents = as_given(case)
    everything = {"metric": case.metric, "nan": "ignore", "backend": backend}
    _, best = simtile.topk(queries, documents, case.documents, **everything)
    share = data.draw(st.sampled_from((0, 1, 5, case.documents)))
    forbidden = np.unique(best[:, :share])
    forbidden = forbidden[forbidden >= 0]
    mask = np.ones(case.documents, bool)
    mask[forbidden] = False
    forms = [mask, np.flatnonzero(mask), np.tile(mask, (case.queries, 1))]
    allow = forms[data.draw(st.integers(0, 2))]
    if allow.dtype != bool and len(allow) == case.documents and set(allow.tolist()) <= {0, 1}:
        return
    _, ids = simtile.topk(queries, documents, case.k, allow=allow, **everything)
    assert not np.isin(ids, forbidden).any()
    _, _, ids = simtile.range_search(
        queries,
        documents,
        -np.inf if case.metric in ("cosine", "dot") else np.inf,
        allow=allow,
        **everything,
    )
    assert not np.isin(ids, forbidden).any()
    # All others are: as many as without the filter, less those.
    found = [len(set(row.tolist()) - set(forbidden.tolist()) - {-1}) for row in best]
    assert len(ids) == sum(found)


def test_every_mask_of_few_documents():
    x = np.float32([[1.0], [1.0], [2.0], [1.0]])
    for bools in itertools.product((False, True), repeat=4):
        _, ids = simtile.topk(x[:1], x, 4, metric="dot", allow=bools)
        wanted = [i for i in (2, 0, 1, 3) if bools[i]]
        assert ids[0].tolist() == wanted + [-1] * (4 - len(wanted))
