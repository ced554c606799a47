"""MaxSim of codes by the CUDA kernels, compiled for the CPU: exactly the numbers defined."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import build
from hypothesis import given
from hypothesis import strategies as st
from maxsim_cases import DIMS, LENGTHS
from maxsim_cuda import POISON, SHARED_BYTES, Device, Host

KINDS = ("int8", "uint8", "bits")
QUERIES = ("float32", "float16", "int8")
lengths = st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def module():
    return build.load("maxsim")


class Call:
    """Rows of codes with everything that a token is made of, drawn from a seed."""

    def __init__(
        self, kind, query_kind, query_lengths, document_lengths, dim, seed, normalize=False
    ):
        self.kind, self.query_kind, self.dim = kind, query_kind, dim
        self.normalize = normalize
        self.lengths = (np.array(query_lengths), np.array(document_lengths))
        rng = np.random.default_rng(seed)
        rows, tokens = (int(own.sum()) for own in self.lengths)
        few = seed % 3 == 0  # equal tokens: ties in the maximum
        self.queries = rng.normal(size=(rows, dim)).astype(np.float32)
        if query_kind == "int8":
            self.queries = rng.integers(-128, 128, (rows, dim)).astype(np.int8)
        elif query_kind == "float16":
            self.queries = self.queries.astype(np.float16)
        self.query_scale = rng.uniform(0.5, 2, rows).astype(np.float32)
        low, high = {"int8": (-128, 128), "uint8": (0, 256), "bits": (0, 2)}[kind]
        self.codes = rng.integers(low, high, (tokens, dim))
        if few and tokens:
            self.codes = self.codes[rng.integers(min(2, tokens), size=tokens)]
        self.scale = self.offset = self.token_scale = None
        if kind == "int8" and seed % 2:  # symmetric, a scale for each token
            self.token_scale = np.where(few, 1, rng.uniform(0.5, 2, tokens)).astype(np.float32)
        elif kind != "bits":
            self.offset = rng.normal(size=dim).astype(np.float32)
        if kind != "bits" and query_kind != "int8":
            self.scale = rng.uniform(0.01, 1, dim).astype(np.float32)
        self.masks = [rng.random(n) < 0.8 for n in (rows, tokens)]

    @property
    def stored(self):
        if self.kind == "bits":
            return np.packbits(self.codes.astype(bool), axis=1)
        return self.codes.astype(self.kind)

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
            given[f"{name}_mask"] = self.masks[i]
        host.run(
            {
                **given,
                "dimensions": self.dim,
                "longest_query": self.lengths[0].max(initial=0),
                "scale": self.scale,
                "offset": self.offset,
                "token_scale": self.token_scale,
                "query_scale": self.query_scale if self.query_kind == "int8" else None,
                "normalize": self.normalize,
                "pad_zero_rows": False,
                "length_normalize": False,
                "empty_score": -3.0,
                "candidates": None,
                "candidate_count": n,
                "scores": scores,
                "argmax": argmax,
                "token_scores": values,
                "rows_before": starts[0],
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
                    z, factor, level = self.folded(row)
                    similarity = self.similarities(z, there)
                    place = int(similarity.argmax())
                    value = similarity[place] * factor + level
                    argmax[q][n, i] = there[place] - tokens[0]
                    values[q][n, i] = value
                    total += float(value)
                scores[q, n] = total if len(there) else -3.0
        return scores, argmax, values

    def folded(self, row):
        """Integers that stand for a query's token, and what makes similarities of products."""
        x = self.queries[row].astype(np.float64)
        scale = np.ones(self.dim) if self.scale is None else self.scale.astype(np.float64)
        zero = np.zeros(self.dim) if self.offset is None else self.offset.astype(np.float64)
        if self.kind == "uint8":
            zero = zero + 128 * scale
        if self.kind == "bits":
            zero = np.full(self.dim, -1.0)
        weights = x * scale
        largest = np.abs(weights).max()
        most = min(32639, (2**31 - 1) // (128 * self.dim))
        unit, step, z = 1.0, largest / most, np.rint(weights * (most / largest))
        if self.query_kind == "int8":
            unit, step, z = float(self.query_scale[row]), 1.0, x
        level = lane_sum(x * zero)
        if self.normalize:
            floor = 1e-12 / unit
            unit = 1 / max(np.sqrt(lane_sum(x * x)), floor)
        doubled = 2 * step if self.kind == "bits" else step
        return z.astype(np.int64), np.float32(doubled * unit), np.float32(level * unit)

    def similarities(self, z, tokens):
        codes = self.codes[tokens] - (128 if self.kind == "uint8" else 0)
        products = codes.astype(np.int64) @ z
        assert np.abs(products).max() < 2**31
        if self.token_scale is None:
            return products.astype(np.float32)
        return products.astype(np.float32) * self.token_scale[tokens]


def lane_sum(terms):
    """Of 32 lanes, one element after the other, then of halves of the lanes."""
    lanes = np.zeros(32)
    for first in range(0, len(terms), 32):
        part = terms[first : first + 32]
        lanes[: len(part)] += part
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


@given(
    kind=st.sampled_from(KINDS),
    query_kind=st.sampled_from(QUERIES),
    query_lengths=lengths,
    document_lengths=lengths,
    dim=st.sampled_from((*DIMS, 128, 200)),
    seed=st.integers(0, 99),
    normalize=st.booleans(),
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


def test_a_product_never_leaves_int32(module):
    """The largest codes of 2000 dimensions; 15 bits of the query would be too many."""
    call = Call("int8", "float32", (1,), (2,), 2000, 2)
    call.queries[:] = 1
    call.scale[:] = 1
    call.codes[:] = [[-128], [127]]
    call.masks[1][:] = call.masks[0][:] = True
    scores, argmax, _ = call.run(Host(module))
    assert argmax[0][0] == 1
    np.testing.assert_array_equal(scores, call.expected()[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_token_scales_that_are_no_scales(module, value):
    call = Call("int8", "float32", (2,), (3,), 16, 1)
    call.masks[1][:] = call.masks[0][:] = True
    call.token_scale[1] = value
    with np.errstate(all="ignore"):
        expected = call.expected()
    scores, argmax, _ = call.run(Host(module))
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(argmax[0], expected[1][0])


def test_what_has_no_definition_is_refused(module):
    call = Call("uint8", "float32", (2,), (3,), 16, 1)
    call.token_scale = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="token_scale with uint8, bits or offset; expected int8"):
        call.run(Host(module))
    call = Call("int8", "int8", (2,), (3,), 16, 1)
    call.scale = np.ones(16, np.float32)
    with pytest.raises(ValueError, match="scale with int8 queries; expected float queries"):
        call.run(Host(module))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_near_those_of_what_codes_stand_for(module, kind):
    """15 bits of a query and the roundings to float32."""
    call = Call(kind, "float32", (7, 3), (30, 5), 96, 1)
    scores, _, _ = call.run(Host(module))
    x = call.codes.astype(np.float64)
    if kind == "bits":
        x = 2 * x - 1
    x = x if call.scale is None else x * call.scale
    x = x if call.offset is None else x + call.offset
    x = x if call.token_scale is None else x * call.token_scale[:, None]
    bounds = np.cumsum([0, *call.lengths[0]]), np.cumsum([0, *call.lengths[1]])
    for q in range(2):
        rows = np.arange(*bounds[0][q : q + 2])
        rows = rows[call.masks[0][rows]]
        for n in range(2):
            tokens = np.arange(*bounds[1][n : n + 2])
            tokens = tokens[call.masks[1][tokens]]
            products = call.queries[rows].astype(np.float64) @ x[tokens].T
            sizes = np.abs(call.queries[rows]).max(1) * np.abs(x[tokens]).sum(1).max()
            assert abs(scores[q, n] - products.max(1).sum()) <= (sizes.sum() / 32639)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("query_kind", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_gives_the_same_numbers(kind, query_kind, seed):
    lengths = ((32, 7, 150), (180, 0, 1, 60, 300) * 20) if seed % 2 else ((5,), (1, 33))
    dim = (128, 96, 33, 768, 4096, 1)[seed // 2]
    check(Call(kind, query_kind, *lengths, dim, seed, normalize=seed % 3 == 0), Device())
