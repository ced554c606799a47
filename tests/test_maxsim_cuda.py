"""MaxSim on CUDA tensors, up to the kernels, which are those compiled for the CPU: no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_host import build
from device_fakes import CudaTensor, cuda_tensor, pretend_cuda
from hypothesis import given
from hypothesis import strategies as st
from maxsim_calls import near
from maxsim_cases import Case, cases
from maxsim_cuda_host import Host
from test_maxsim_cuda_codes import Call as CodesCall
from tolerances import ROUNDOFF, ROUNDOFFS

import simtile
from simtile import _allow, _gpu, _maxsim_select, _vectors
from simtile._maxsim_inputs import check_together, given_packed
from simtile._maxsim_inputs import given as given_matrices
from simtile._maxsim_run import Options, split
from simtile.ops import _backends, maxsim_cuda, maxsim_topk
from simtile.ops import maxsim as maxsim_ops
from simtile.reference import maxsim_numpy as oracle

STREAM = 77
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class FakeCuda:
    """Stands for simtile._cuda: the kernels on the CPU run on what lies at the addresses."""

    def __init__(self):
        self.calls = []
        self.searches = []
        self.host = Host(build.load("maxsim"))

    @staticmethod
    def MaxsimArgs(**arguments):
        return arguments

    def maxsim_workspace_bytes(self, args, device):
        return self.host.module.workspace_bytes(self.host.given(args))

    def maxsim(self, args, device, stream, workspace, workspace_bytes):
        self.calls.append((args, device, stream))
        assert workspace_bytes >= self.maxsim_workspace_bytes(args, device)
        self.host.run(args)

    @staticmethod
    def MaxsimTopkArgs(pairs, scores, ids, **more):
        return {**pairs, "best_scores": scores, "best_ids": ids, **more}

    def maxsim_topk_workspace_bytes(self, args, device):
        return self.host.module.search_workspace_bytes(self.host.given(args))

    def maxsim_topk(self, args, device, stream, workspace, workspace_bytes):
        self.searches.append((device, stream))
        assert workspace_bytes >= self.maxsim_topk_workspace_bytes(args, device)
        self.host.search(args)


@pytest.fixture(scope="module", autouse=True)
def cuda():
    """For the module, because hypothesis wants no fixture that changes between its examples."""
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeCuda()
        patch.setattr(_gpu, "cuda_module", lambda: fake)
        pretend_cuda(patch, stream=STREAM)
        yield fake


def plain(x):
    assert isinstance(x, CudaTensor)
    return x.as_subclass(torch.Tensor).numpy()


def stored(matrices, dim, dtype):
    """As tensors of the type, and their values."""
    with np.errstate(all="ignore"):
        tensors = [torch.from_numpy(x).to(DTYPES[dtype]).reshape(-1, dim) for x in matrices]
    return tensors, [x.double().numpy() for x in tensors]


def padded(tensors, masks, gap):
    """A batch with rows of NaN behind and, if there is a gap, between matrices; and its mask."""
    width = max((len(x) for x in tensors), default=0)
    dim = tensors[0].shape[1]
    whole = torch.full((len(tensors), width + gap, dim), torch.nan, dtype=tensors[0].dtype)
    mask = torch.zeros((len(tensors), width), dtype=torch.bool)
    for i, x in enumerate(tensors):
        whole[i, : len(x)] = x
        mask[i, : len(x)] = True if masks is None else torch.from_numpy(masks[i])
    return whole[:, :width], mask


def check(case, found, queries, wide, options):
    expected = oracle.maxsim(*wide, *case.mask_arrays, empty_score=-3.0, **options)
    roundoff = ROUNDOFFS["maxsim.scores"] * ROUNDOFF["float32"]
    scores, argmax, values = map(plain, found)
    count = len(case["documents"])
    argmax, values = (split(queries, count, x) for x in (argmax, values))
    for q in range(len(case["queries"])):
        for n in range(count):
            length = len(case["queries"][q])
            bound = roundoff * expected.scale[q, n]
            near(scores[q, n], expected.scores[q, n], bound)
            near(values[q][n][:length], expected.token_scores[q][n], bound)
            assert (argmax[q][n][length:] == -1).all()
            same = (argmax[q][n][:length] < 0) == (expected.argmax[q][n] < 0)
            assert same.all()


@given(
    case=cases(most=3),
    dtype=st.sampled_from(sorted(DTYPES)),
    query_dtype=st.sampled_from(sorted(DTYPES)),
    form=st.sampled_from(["batches", "batches with gaps", "packed"]),
)
def test_every_argument_reaches_the_kernels(case, dtype, query_dtype, form):
    if not case["queries"] or not case["documents"]:
        return
    left, wide_left = stored(case["queries"], case.dim, query_dtype)
    right, wide_right = stored(case["documents"], case.dim, dtype)
    masks = case.mask_arrays
    if form == "packed":
        flat = [
            None if m is None else cuda_tensor(torch.from_numpy(np.concatenate(m))) for m in masks
        ]
        bounds = [np.cumsum([0, *map(len, side)]) for side in (left, right)]
        sides = [
            given_packed(name, cuda_tensor(torch.cat(x)), offsets, mask, "mask")
            for name, x, offsets, mask in zip(
                ("queries", "tokens"), (left, right), bounds, flat, strict=True
            )
        ]
    else:
        gap = 2 if form == "batches with gaps" else 0
        sides = [
            given_matrices(name, *map(cuda_tensor, padded(x, mask, gap)), "mask")
            for name, x, mask in zip(("queries", "documents"), (left, right), masks, strict=True)
        ]
    queries, documents = check_together(*sides)
    options = {name: x for name, x in case.options.items() if name != "temperature"}
    given = Options(
        options["normalize"], options["zero_rows"] == "pad", options["length_normalize"], -3.0
    )
    found = maxsim_cuda.forward(queries, documents, None, given, argmax=True, token_scores=True)
    check(case, found, queries, (wide_left, wide_right), options)


def test_candidates_device_and_stream(cuda):
    case = Case((3, 7), (4, 5, 6), 16)
    (left, _), (right, _) = (stored(x, 16, "float32") for x in case.inputs)
    sides = [
        given_packed(name, cuda_tensor(torch.cat(x)), np.cumsum([0, *map(len, x)]), None, "mask")
        for name, x in (("queries", left), ("tokens", right))
    ]
    ids = torch.tensor([[2, -1], [0, 1]])
    found = maxsim_cuda.forward(*sides, cuda_tensor(ids), Options(empty_score=-3.0))
    everything = maxsim_cuda.forward(*sides, None, Options())
    scores, whole = plain(found.scores), plain(everything.scores)
    np.testing.assert_array_equal(scores, [[whole[0, 2], -3], [whole[1, 0], whole[1, 1]]])
    assert found.argmax is None
    assert found.token_scores is None
    assert cuda.calls[-1][1:] == (0, STREAM)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float64}, "tokens: found torch.float64 .* expected float32"),
        ({"temperature": 0.5}, "temperature: found 0.5 with backend 'cuda', expected None"),
    ],
)
def test_what_the_kernels_do_not_have_is_refused(change, message):
    x = cuda_tensor(torch.zeros((3, 4), dtype=change.get("dtype", torch.float32)))
    queries = given_packed("queries", x.float(), [0, 3], None, "mask")
    documents = given_packed("tokens", x, [0, 3], None, "mask")
    options = Options(temperature=change.get("temperature", 0.0))
    with pytest.raises(ValueError, match=message):
        maxsim_cuda.forward(queries, documents, None, options)


@pytest.mark.parametrize("kind", ["int8", "uint8", "bits"])
def test_codes_reach_the_kernels(kind):
    call = CodesCall(kind, "int16", (3, 7), (4, 0, 6), 20, 1)
    starts, ends = (torch.from_numpy(x) for x in ([0, 3], [3, 10]) for x in [np.array(x)])
    optional = {name: getattr(call, name) for name in ("units", "terms", "factors")}
    tensors = {
        name: None if x is None else cuda_tensor(torch.from_numpy(x))
        for name, x in optional.items()
    }
    masks = [cuda_tensor(torch.from_numpy(x)) for x in call.masks]
    found = maxsim_cuda.forward_codes(
        maxsim_cuda.WholeQueries(
            cuda_tensor(torch.from_numpy(call.queries)),
            tensors["units"],
            tensors["terms"],
            cuda_tensor(starts),
            cuda_tensor(ends),
            masks[0],
            7,
        ),
        kind,
        cuda_tensor(torch.from_numpy(call.stored)),
        20,
        cuda_tensor(torch.tensor([0, 4, 4, 10])),
        masks[1],
        tensors["factors"],
        None,
        empty_score=-3.0,
        argmax=True,
        token_scores=True,
    )
    scores, argmax, values = call.expected()
    np.testing.assert_array_equal(plain(found.scores), scores)
    np.testing.assert_array_equal(plain(found.argmax), np.concatenate([x.ravel() for x in argmax]))
    np.testing.assert_array_equal(
        plain(found.token_scores), np.concatenate([x.ravel() for x in values])
    )


def test_codes_of_another_type_are_refused():
    x = cuda_tensor(torch.zeros((3, 4), dtype=torch.int8))
    one = cuda_tensor(torch.zeros(1, dtype=torch.int64))
    queries = maxsim_cuda.WholeQueries(x, x.float()[:, 0], None, one, one + 3, None, 3)
    with pytest.raises(ValueError, match=r"found codes of kind 'bits' as torch\.int8, expected"):
        maxsim_cuda.forward_codes(queries, "bits", x, 32, one, None, None, None)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int8_vector", "binary"])
def test_codes_on_a_gpu_score_as_on_the_cpu(kind, monkeypatch):
    monkeypatch.setattr(_vectors, "gpu_of", lambda x: getattr(x, "is_cuda", False) or None)
    rng = np.random.default_rng(5)
    queries = [rng.normal(size=(n, 33)).astype(np.float32) for n in (5, 9)]
    tokens = simtile.quantize(rng.normal(size=(120, 33)).astype(np.float32), kind)
    offsets = np.array([0, 70, 70, 120])
    moved = [
        None if x is None else cuda_tensor(torch.from_numpy(x))
        for x in (tokens.scale, tokens.offset)
    ]
    there = simtile.Quantized(cuda_tensor(torch.from_numpy(tokens.codes)), *moved, 33, kind)
    options = {"return_argmax": True, "return_token_scores": True}
    masks = {"query_mask": [np.arange(len(x)) != 2 for x in queries]}
    expected = simtile.maxsim_packed(queries, tokens, offsets, **masks, **options)
    found = simtile.maxsim_packed(queries, there, offsets, **masks, **options)
    np.testing.assert_array_equal(plain(found[0]), expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(plain(one), two)


def packed(kind):
    """Queries, tokens of `kind` on the device that is none and on the CPU, and offsets."""
    rng = np.random.default_rng(6)
    queries = rng.normal(size=(2, 4, 17)).astype(np.float32)
    tokens = np.rint(rng.normal(size=(120, 17))).astype(np.float32)
    tokens[60:] = tokens[:60]  # equal documents
    offsets = np.array([0, 7, 7, 40, 60, 67, 67, 100, 120])
    if kind == "float32":
        return queries, cuda_tensor(torch.from_numpy(tokens)), tokens, offsets
    codes = simtile.quantize(tokens, kind)
    moved = [
        None if x is None else cuda_tensor(torch.from_numpy(x)) for x in (codes.scale, codes.offset)
    ]
    there = simtile.Quantized(cuda_tensor(torch.from_numpy(codes.codes)), *moved, 17, kind)
    return queries, there, codes, offsets


@pytest.fixture
def routed(monkeypatch):
    """Public calls go to the kernels, and nobody else selects."""
    monkeypatch.setattr(_vectors, "gpu_of", lambda x: getattr(x, "is_cuda", False) or None)
    monkeypatch.setattr(_backends, "check_available", lambda backend: None)
    monkeypatch.setattr(maxsim_topk, "check_available", lambda backend: None)
    monkeypatch.setattr(maxsim_topk, "are_plain", lambda *tensors: True)
    monkeypatch.setattr(maxsim_ops, "_HAS_CUDA", True)
    monkeypatch.setattr(_maxsim_select, "_best_of_tensors", None)


IDS = np.array([[3, -1, 7, 3, 0, 4], [5, 5, 1, 2, 6, 0]])
MASK = np.random.default_rng(7).random((2, 8)) < 0.6


OPTIONS = [{}, {"ids": IDS}, {"allow": MASK}, {"allow": [0, 4, 6]}]


@pytest.mark.usefixtures("routed")
@pytest.mark.parametrize("options", OPTIONS, ids=["all", "ids", "mask", "listed"])
@pytest.mark.parametrize("kind", ["float32", "int8", "uint8", "int8_vector", "binary"])
def test_the_best_come_from_the_kernels(kind, options, cuda):
    """As on the CPU, and not by sorting scores."""
    queries, there, here, offsets = packed(kind)
    before = len(cuda.searches)
    for k in (1, 3, 20):
        expected = simtile.maxsim_packed(queries, here, offsets, k=k, **options)
        given = {name: cuda_tensor(x) if x is IDS else x for name, x in options.items()}
        left = cuda_tensor(queries) if kind == "float32" else queries
        scores, ids = simtile.maxsim_packed(left, there, offsets, k=k, **given)
        np.testing.assert_array_equal(plain(ids), expected[1])
        np.testing.assert_allclose(plain(scores), expected[0], rtol=1e-5, atol=1e-5)
        if kind != "float32":
            np.testing.assert_array_equal(plain(scores), expected[0])
    assert cuda.searches[before:] == [(0, STREAM)] * 3


@pytest.mark.usefixtures("routed")
def test_a_mask_on_the_device_is_not_read_by_the_host(monkeypatch):
    queries, there, here, offsets = packed("float32")
    expected = simtile.maxsim_packed(queries, here, offsets, k=3, allow=MASK)
    monkeypatch.setattr(_allow, "resolve", None)
    found = simtile.maxsim_packed(
        cuda_tensor(queries), there, offsets, k=3, allow=cuda_tensor(MASK)
    )
    np.testing.assert_array_equal(plain(found[1]), expected[1])


@pytest.mark.usefixtures("routed")
def test_a_k_that_is_too_large_is_refused():
    queries, there, _, offsets = packed("float32")
    with pytest.raises(ValueError, match=r"k = 65537; expected 1 to 65536 on a CUDA device"):
        simtile.maxsim_packed(cuda_tensor(queries), there, offsets, k=65537)


@pytest.mark.usefixtures("routed")
def test_nothing_to_find():
    queries, there, _, _ = packed("float32")
    none = torch.zeros((2, 0), dtype=torch.int64)
    found = [
        simtile.maxsim_packed(cuda_tensor(queries), there[:0], [0], k=2),
        simtile.maxsim_packed(cuda_tensor(queries), there, [0, 120], k=2, ids=cuda_tensor(none)),
    ]
    for scores, ids in found:
        assert (plain(scores) == -np.inf).all()
        assert (plain(ids) == -1).all()
    none = simtile.maxsim_packed(cuda_tensor(queries[:0]), there, [0, 120], k=2)
    assert [x.shape for x in none] == [(0, 2)] * 2
