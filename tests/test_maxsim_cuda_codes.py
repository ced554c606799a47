"""MaxSim of codes by the CUDA kernels, compiled for the CPU: exactly the numbers defined."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import build
from hypothesis import given
from hypothesis import strategies as st
from maxsim_cases import DIMS, LENGTHS
from maxsim_cuda_host import POISON, SHARED_BYTES, Device, Host

import simtile
from simtile import _maxsim_fold
from simtile.quantized import unpack

KINDS = ("int8", "uint8", "bits")
QUERIES = ("int8", "int16")
lengths = st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def module():
    return build.load("maxsim")


class Call:
    """Rows of codes with everything that a token is made of, drawn from a seed."""

    def __init__(self, kind, query_kind, query_lengths, document_lengths, dim, seed):
        self.kind, self.query_kind, self.dim = kind, query_kind, dim
        self.lengths = (np.array(query_lengths), np.array(document_lengths))
        rng = np.random.default_rng(seed)
        rows, tokens = (int(own.sum()) for own in self.lengths)
        few = seed % 3 == 0  # equal tokens: ties in the maximum
        low, high = {"int8": (-128, 128), "uint8": (0, 256), "bits": (0, 2)}[kind]
        self.codes = rng.integers(low, high, (tokens, dim))
        if few and tokens:
            self.codes = self.codes[rng.integers(min(2, tokens), size=tokens)]
        most = min(32639, (2**31 - 1) // (max(-low, high - 1) * dim))
        if query_kind == "int8":
            most = 127
        self.queries = rng.integers(-most, most + 1, (rows, dim)).astype(query_kind)
        self.units = self.terms = self.factors = None
        if seed % 2:
            self.units = rng.uniform(0.5, 2, rows).astype(np.float32)
        if seed % 5:
            self.terms = (1000 * rng.normal(size=rows)).astype(np.float32)
        if seed % 7:
            drawn = np.ones(tokens) if few else rng.uniform(0.5, 2, tokens)
            self.factors = drawn.astype(np.float32)
        self.masked = True
        self.masks = [rng.random(n) < 0.8 for n in (rows, tokens)]

    @property
    def stored(self):
        if self.kind == "bits":
            return np.packbits(self.codes.astype(bool), axis=1)
        return self.codes.astype(self.kind)

    def more(self):
        """Arguments that only residuals have."""
        return {}

    def run(self, host):
        (q, n), (rows, _) = map(len, self.lengths), map(len, (self.queries, self.codes))
        scores = np.full((q, n), POISON, np.float32)
        argmax = np.full(rows * n, POISON, np.int32)
        values = np.full(rows * n, POISON, np.float32)
        ends = [np.cumsum(own) for own in self.lengths]
        starts = [end - own for end, own in zip(ends, self.lengths, strict=True)]
        given = {}
        for name, kind, x, i in (
            ("queries", self.query_kind, self.queries, 0),
            ("documents", self.kind, self.stored, 1),
        ):
            given[f"{name}_kind"] = kind
            given[f"{name}_count"] = len(starts[i])
            given[f"{name}_data"], given[f"{name}_stride"] = x, x.strides[0]
            given[f"{name}_starts"], given[f"{name}_ends"] = starts[i], ends[i]
            given[f"{name}_mask"] = self.masks[i] if self.masked else None
        host.run(
            {
                **given,
                "dimensions": self.dim,
                "longest_query": self.lengths[0].max(initial=0),
                "units": self.units,
                "terms": self.terms,
                "factors": self.factors,
                "normalize": False,
                "pad_zero_rows": False,
                "length_normalize": False,
                "empty_score": -3.0,
                "candidates": None,
                "candidate_count": n,
                "scores": scores,
                "argmax": argmax,
                "token_scores": values,
                "rows_before": starts[0],
                **self.more(),
            }
        )
        split = [
            [x[n * s : n * e].reshape(n, e - s) for s, e in zip(starts[0], ends[0], strict=True)]
            for x in (argmax, values)
        ]
        return scores, *split

    def expected(self):
        """The definition, one query's token after the other."""
        ends = [np.cumsum(own) for own in self.lengths]
        spans = [
            [np.arange(e - n, e) for e, n in zip(*pair, strict=True)]
            for pair in zip(ends, self.lengths, strict=True)
        ]
        shape = tuple(map(len, spans))
        scores = np.zeros(shape, np.float32)
        argmax, values = [], []
        for q, rows in enumerate(spans[0]):
            argmax.append(np.full((shape[1], len(rows)), -1, np.int32))
            values.append(np.zeros((shape[1], len(rows)), np.float32))
            for n, tokens in enumerate(spans[1]):
                there = tokens[self.masks[1][tokens]]
                total = 0.0
                for i, row in enumerate(rows):
                    if not self.masks[0][row] or not len(there):
                        continue
                    similarity = self.similarities(row, there)
                    place = int(similarity.argmax())
                    unit = np.float32(1 if self.units is None else self.units[row])
                    value = unit * similarity[place]
                    argmax[q][n, i] = there[place] - tokens[0]
                    values[q][n, i] = value
                    total += float(value)
                scores[q, n] = total if len(there) else -3.0
        return scores, argmax, values

    def similarities(self, row, tokens):
        """In units of the query's token; NumPy rounds every operation to float32."""
        products = self.codes[tokens].astype(np.int64) @ self.queries[row].astype(np.int64)
        assert np.abs(products).max() < 2**31
        term = np.float32(0 if self.terms is None else self.terms[row])
        factors = np.float32(1) if self.factors is None else self.factors[tokens]
        return (products.astype(np.float32) + term) * factors


@given(
    kind=st.sampled_from(KINDS),
    query_kind=st.sampled_from(QUERIES),
    query_lengths=lengths,
    document_lengths=lengths,
    dim=st.sampled_from((*DIMS, 128, 200)),
    seed=st.integers(0, 99),
    shared_bytes=st.sampled_from([2048, SHARED_BYTES]),
    order=st.integers(0, 9),
)
def test_scores_are_those_of_the_definition(module, shared_bytes, order, **drawn):
    check(Call(**drawn), Host(module, order, shared_bytes=shared_bytes))


def check(call, host):
    scores, argmax, values = call.run(host)
    expected = call.expected()
    np.testing.assert_array_equal(scores, expected[0])
    for ours, theirs in ((argmax, expected[1]), (values, expected[2])):
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_products(module, kind):
    call = Call(kind, "int16", (2,), (2,), 128, 1)
    most = np.abs(call.codes).max()
    call.queries[0], call.queries[1] = 32639, -32639
    call.codes[:] = call.codes.max()
    if kind == "int8":
        call.codes[0] = -128
    call.masks[1][:] = call.masks[0][:] = True
    assert most * 32639 * 128 < 2**31
    check(call, Host(module))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
@pytest.mark.parametrize("name", ["units", "terms", "factors"])
def test_what_is_not_finite(module, name, value):
    call = Call("int8", "int16", (2,), (3,), 16, 1)
    call.masks[1][:] = call.masks[0][:] = True
    getattr(call, name)[1] = value
    with np.errstate(all="ignore"):
        check(call, Host(module))


def test_what_has_no_definition_is_refused(module):
    call = Call("uint8", "int16", (2,), (3,), 16, 1)
    call.query_kind = "float32"
    with pytest.raises(ValueError, match="the kind of queries; expected floats, or int8 or int16"):
        call.run(Host(module))


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("query_kind", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_gives_the_same_numbers(kind, query_kind, seed):
    lengths = ((32, 7, 150), (180, 0, 1, 60, 300) * 20) if seed % 2 else ((5,), (1, 33))
    dim = (128, 96, 33, 768, 4096, 1)[seed // 2]
    check(Call(kind, query_kind, *lengths, dim, seed), Device())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int8_vector", "binary"])
def test_the_cpu_gives_the_same_numbers(module, kind, normalize):
    rng = np.random.default_rng(3)
    lengths = (np.array([9, 3]), np.array([70, 1, 0, 39]))
    queries = rng.normal(size=(12, 70)).astype(np.float32)
    tokens = simtile.quantize(rng.normal(size=(110, 70)).astype(np.float32), kind)
    offsets = np.cumsum([0, *lengths[1]])
    expected = simtile.maxsim_packed(
        np.split(queries, [9]),
        tokens,
        offsets,
        normalize=normalize,
        empty_score=-3.0,
        return_argmax=True,
        return_token_scores=True,
    )
    stored = {"int8_vector": "int8", "binary": "bits"}.get(kind, kind)
    call = Call(stored, "int16", *lengths, 70, 3)
    folded = _maxsim_fold.fold(
        *_maxsim_fold.normalized(queries.astype(np.float64), None)
        if normalize
        else (queries.astype(np.float64), None),
        tokens,
        kind,
        normalize,
    )
    call.queries, call.units, call.terms = folded.whole, folded.units, folded.terms
    call.factors = _maxsim_fold.factors(tokens, normalize)
    call.codes = unpack(tokens.codes, kind, 70)
    call.masks = [np.ones(12, bool), np.ones(110, bool)]
    scores, argmax, values = call.run(Host(module, 1))
    np.testing.assert_array_equal(scores, expected[0])
    for ours, theirs in ((argmax, expected[1]), (values, expected[2])):
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, two)
