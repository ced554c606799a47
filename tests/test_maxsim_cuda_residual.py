"""MaxSim of residuals by the CUDA kernels, compiled for the CPU: exactly the numbers defined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_host import build
from device_fakes import CudaTensor, cuda_tensor, pretend_cuda
from hypothesis import given
from hypothesis import strategies as st
from maxsim_codes import Call as PublicCall
from maxsim_codes import Case
from maxsim_cuda_host import SHARED_BYTES, Device, Host
from test_maxsim_codes import check as check_public
from test_maxsim_cuda import FakeCuda, plain
from test_maxsim_cuda_codes import Call as CodesCall
from test_maxsim_cuda_codes import check

import simtile
from simtile import _gpu

BITS = (1, 2, 4)
DIMS = (1, 3, 7, 16, 33, 64, 96, 111, 128, 130, 256, 300)
LENGTHS = (0, 1, 2, 7, 17, 33)
ORDERS = st.integers(0, 9)
lengths = st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3)


class Call(CodesCall):
    """Residuals with everything that a token is made of, drawn from a seed."""

    def __init__(self, bits, query_lengths, document_lengths, dim, seed, centroids=5):
        super().__init__("uint8", "int16", query_lengths, document_lengths, dim, seed)
        rng = np.random.default_rng(seed)
        self.kind, self.bits = f"residual{bits}", bits
        rows, tokens = len(self.queries), len(self.codes)
        self.codes %= 1 << bits
        most = min(32639, (2**31 - 1) // (128 * dim))
        self.queries = rng.integers(-most, most + 1, (rows, dim)).astype(np.int16)
        self.units = None
        self.terms = rng.uniform(1e-6, 2e-6, rows).astype(np.float32)
        self.weights = rng.integers(-32639, 32640, 1 << bits).astype(np.int16)
        self.centroids = rng.normal(size=(centroids, dim)).astype(np.float32)
        self.values = rng.normal(size=(rows, dim)).astype(np.float32)
        self.ids = rng.integers(centroids, size=tokens).astype(np.int32)
        if seed % 3 == 0 and tokens:  # equal tokens: ties in the maximum
            self.ids[:] = self.ids[0]
        self.gap = seed % 4  # bytes between rows, and before the first

    @property
    def stored(self):
        bits = self.codes[:, :, None] >> np.arange(self.bits) & 1
        packed = np.packbits(bits.astype(bool).reshape(len(bits), self.dim * self.bits), axis=1)
        width = packed.shape[1]
        wider = np.full((len(packed), width + self.gap), 0xA5, np.uint8)
        rows = wider[:, self.gap :]
        rows[...] = packed
        return rows

    def more(self):
        return {
            "centroid_ids": self.ids,
            "centroid_count": len(self.centroids),
            "centroids": self.centroids,
            "query_values": self.values,
            "weights": self.weights.tolist(),
        }

    def similarities(self, row, tokens):
        """NumPy rounds every operation to float32; those of whole numbers are exact."""
        weights = self.weights.astype(np.int64)[self.codes[tokens]]
        low = (weights + 128) % 256 - 128
        whole = self.queries[row].astype(np.int64)
        dots = [part @ whole for part in ((weights - low) // 256, low)]
        assert all(np.abs(x).max() < 2**31 for x in dots)
        products = np.zeros(len(self.centroids), np.float32)
        for q, column in zip(self.values[row], self.centroids.T, strict=True):
            products = products + q * column
        high_dot, low_dot = (x.astype(np.float32) for x in dots)
        sums = (high_dot * np.float32(256) + low_dot) * self.terms[row] + products[self.ids[tokens]]
        return sums * (np.float32(1) if self.factors is None else self.factors[tokens])


@pytest.fixture(scope="module")
def module():
    return build.load("maxsim")


@given(
    bits=st.sampled_from(BITS),
    query_lengths=lengths,
    document_lengths=lengths,
    dim=st.sampled_from(DIMS),
    seed=st.integers(0, 99),
    shared_bytes=st.sampled_from([2048, SHARED_BYTES]),
    order=ORDERS,
)
def test_scores_are_those_of_the_definition(module, shared_bytes, order, **drawn):
    check(Call(**drawn), Host(module, order, shared_bytes=shared_bytes))


@pytest.mark.parametrize(
    ("queries", "documents", "centroids", "host"),
    [
        ((130, 3, 257), (40, 0, 7), 70, {}),  # queries that several groups share
        ((20,) * 9, (50, 33, 1), 3, {}),  # several queries in a group
        ((3, 2), (0, 900, 1, 0, 5), 3, {"multiprocessors": 9}),  # one document for many warps
        # Documents in many launches, and centroids' products of few groups in each.
        ((5, 0, 40, 1, 90), (3,) * 15, 65, {"most_maxima_bytes": 20000}),
        ((90,) * 3, (3,) * 15, 65, {"most_maxima_bytes": 9000, "most_product_bytes": 70000}),
        ((257, 130), (9, 3), 64, {"most_product_bytes": 1}),
        ((1,) * 80, (2, 9), 1, {"shared_bytes": 2048}),
    ],
    ids=str,
)
def test_groups_parts_and_launches(module, queries, documents, centroids, host):
    check(Call(2, queries, documents, 20, 1, centroids), Host(module, 3, **host))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [128, 514, 600])
def test_the_largest_products(module, bits, dim):
    """Sums that just fit 32 bits, at every value of a code."""
    call = Call(bits, (2,), (1 << bits,), dim, 1)
    most = min(32639, (2**31 - 1) // (128 * dim))
    call.queries[0], call.queries[1] = most, -most
    call.codes[:] = np.arange(1 << bits)[:, None]
    call.weights = np.linspace(-32639, 32639, 1 << bits).astype(np.int16)
    call.weights[0] = -128 * 256 + 129  # the high byte is -128 where the low one is 127
    call.masks[1][:] = call.masks[0][:] = True
    check(call, Host(module))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
@pytest.mark.parametrize("name", ["terms", "factors", "values", "centroids"])
def test_what_is_not_finite(module, name, value):
    call = Call(2, (2, 40), (3, 17), 16, 1)
    getattr(call, name)[1] = value
    with np.errstate(all="ignore"):
        check(call, Host(module))


def test_what_has_no_definition_is_refused(module):
    call = Call(2, (2,), (3,), 16, 1)
    call.query_kind, call.queries = "int8", call.queries.astype(np.int8)
    with pytest.raises(ValueError, match="the kind of queries; expected int16 with documents of"):
        call.run(Host(module))
    call = Call(2, (2,), (3,), 16, 1)
    call.centroids = call.centroids[:0]
    with pytest.raises(ValueError, match="residuals without centroids"):
        call.run(Host(module))


@pytest.mark.parametrize(
    ("lengths", "dim", "plan"),
    [
        ((32,) * 4, 128, (128, 2, True, 4)),
        ((32,), 128, (32, 2, True, 1)),
        ((200,), 768, (128, 2, False, 1)),
    ],
)
def test_what_the_dispatch_chooses(module, lengths, dim, plan):
    class Planned(Host):
        def run(self, given):
            self.plan = self.module.plan(self.given(given))

    host = Planned(module)
    Call(2, lengths, (3,), dim, 1).run(host)
    names = ("columns", "planes", "staged", "queries_per_group")
    assert tuple(host.plan[name] for name in names) == plan


# On tensors, up to the kernels: no GPU.


@pytest.fixture(scope="module")
def cuda():
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeCuda()
        patch.setattr(_gpu, "cuda_module", lambda: fake)
        pretend_cuda(patch)
        yield fake


def on_device(tokens):
    return tokens._convert(lambda x: cuda_tensor(torch.from_numpy(np.ascontiguousarray(x))))


def moved(found):
    return [[plain(x) for x in part] if isinstance(part, list) else plain(part) for part in found]


public_cases = st.builds(
    Case,
    kind=st.sampled_from(["residual1", "residual2", "residual4"]),
    dim=st.sampled_from(DIMS),
    query_lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3).map(tuple),
    document_lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3).map(tuple),
    values=st.sampled_from(["random", "few", "zeros", "special", "huge", "tiny"]),
    coded_queries=st.booleans(),
    masks=st.booleans(),
    normalize=st.booleans(),
    length_normalize=st.booleans(),
    zero_rows=st.sampled_from(["score", "pad"]),
    seed=st.integers(0, 99),
)


@given(case=public_cases, order=ORDERS, chosen=st.booleans())
def test_tokens_on_a_gpu_score_as_they_are_defined(cuda, case, order, chosen):
    cuda.host.order = order
    call = PublicCall(case)
    call.tokens = on_device(call.tokens)
    shape = (len(case.query_lengths), len(case.document_lengths))
    documents = np.tile(np.arange(shape[1]), (shape[0], 1))
    more = {}
    if chosen:
        documents = np.random.default_rng(case.seed).integers(-1, shape[1], (shape[0], 3))
        more["ids"] = documents
    found = moved(call.run(**more, return_argmax=True, return_token_scores=True))
    call.tokens = call.tokens.numpy()
    check_public(call, found, call.expected(), documents)


def test_tokens_of_a_gpu_are_read_where_they_are(cuda):
    rng = np.random.default_rng(7)
    call = Call(2, (5, 9), (70, 0, 50), 33, 2)
    codec = simtile.ResidualCodec(call.centroids, np.arange(4.0), [0.5, 1.5, 2.5], 2)
    tokens = simtile.ResidualTokens(codec, call.ids, call.stored)
    there = simtile.ResidualTokens(
        codec, cuda_tensor(call.ids.astype(np.int64)), cuda_tensor(call.stored)
    )
    assert isinstance(there.residuals, CudaTensor)
    assert there.residuals.data_ptr() == there[:].residuals.data_ptr()
    assert repr(there) == "ResidualTokens(120 tokens, dim=33, bits=2, device='cuda:0')"
    assert there.nbytes == tokens.nbytes
    for name in ("centroid_ids", "inverse_norms"):
        np.testing.assert_array_equal(plain(getattr(there, name)), getattr(tokens, name))
    for name in ("decode", "codes"):
        np.testing.assert_array_equal(plain(getattr(there, name)()), getattr(tokens, name)())
    queries = [rng.normal(size=(n, 33)).astype(np.float32) for n in (5, 9)]
    offsets = np.array([0, 40, 40, 110])
    expected = simtile.maxsim_packed(queries, tokens[5:115], offsets)
    found = simtile.maxsim_packed(queries, there[5:115], offsets, backend="cuda")
    np.testing.assert_array_equal(plain(found), expected)
    for more in ({"k": 2}, {"k": 3, "allow": [0, 2]}, {"k": 2, "ids": np.array([[2, 0], [1, -1]])}):
        expected = simtile.maxsim_packed(queries, tokens[5:115], offsets, **more)
        found = simtile.maxsim_packed(queries, there[5:115], offsets, **more)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(plain(ours), theirs)
    assert cuda.calls[-1][0]["documents_data"] == there[5:].residuals.data_ptr()


@pytest.mark.usefixtures("cuda")
def test_what_does_not_fit_on_a_gpu_is_refused():
    codec = simtile.ResidualCodec(np.ones((3, 4)), [0.0, 1.0], [0.5], 1)
    residuals = cuda_tensor(np.zeros((2, 1), np.uint8))
    for ids, more, message in [
        ([0, 3], (), "centroid_ids: found 0 to 3, expected 0 to 2"),
        ([0.0, 1.0], (), r"centroid_ids: found float64 \[2\], expected integers"),
        ([0], (), r"residuals: found uint8 \[2, 1\], expected uint8 \[1, 1\]"),
        ([0, 1], (np.ones(3, np.float32),), r"inverse_norms: found float32 \[3\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            simtile.ResidualTokens(codec, np.array(ids), residuals, *more)
    tokens = simtile.ResidualTokens(codec, [0, 1], residuals)
    queries = np.ones((1, 2, 4), np.float32)
    for options, message in [
        ({"backend": "cpu"}, "backend: found 'cpu' with tokens that are codes"),
        ({"temperature": 0.5}, "temperature: found one with tokens that are codes"),
    ]:
        with pytest.raises(ValueError, match=message):
            simtile.maxsim_packed(queries, tokens, [0, 2], **options)
    with pytest.raises(ValueError, match=r"queries: found .* on cpu .* expected cuda:0, where"):
        simtile.maxsim_packed(torch.from_numpy(queries), tokens, [0, 2])


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("bits", BITS)
def test_a_device_gives_the_same_numbers(bits, seed):
    lengths = ((32, 7, 150), (180, 0, 1, 60, 300) * 20) if seed % 2 else ((5,), (1, 33))
    dim = (128, 96, 33, 768, 4096, 1)[seed // 2]
    check(Call(bits, *lengths, dim, seed, 1 + 37 * seed), Device())


@pytest.mark.gpu
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_a_device_scores_as_the_cpu_does(bits, normalize):
    rng = np.random.default_rng(bits)
    x = rng.normal(size=(4000, 128)).astype(np.float32)
    tokens = simtile.ResidualCodec.train(x, bits, centroids=200).encode(x)
    queries = rng.normal(size=(6, 32, 128)).astype(np.float32)
    offsets = np.unique([0, *rng.integers(4000, size=50), 4000])
    mask = rng.random(4000) < 0.8
    options = {
        "normalize": normalize,
        "length_normalize": True,
        "empty_score": -2.0,
        "return_argmax": True,
        "return_token_scores": True,
    }
    there = tokens.to("cuda")
    ids = rng.integers(-1, len(offsets) - 1, (6, 9))
    for more in ({}, {"ids": ids}, {"k": 7}):
        expected = simtile.maxsim_packed(queries, tokens, offsets, None, mask, **options, **more)
        found = simtile.maxsim_packed(queries, there, offsets, None, mask, **options, **more)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours.cpu().numpy(), theirs)
