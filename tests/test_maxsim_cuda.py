"""MaxSim on CUDA tensors, up to the kernels, which are those compiled for the CPU: no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_host import build
from device_fakes import CudaTensor, cuda_tensor, pretend_cuda
from hypothesis import given
from hypothesis import strategies as st
from maxsim_cases import Case, cases
from maxsim_cuda_host import Host
from test_maxsim import near
from test_maxsim_cuda_codes import Call as CodesCall
from tolerances import ROUNDOFF, ROUNDOFFS

import simtile
from simtile import _gpu, _vectors
from simtile._maxsim_inputs import check_together, given_packed
from simtile._maxsim_inputs import given as given_matrices
from simtile._maxsim_run import Options, split
from simtile.ops import maxsim_cuda
from simtile.reference import maxsim_numpy as oracle

STREAM = 77
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class FakeCuda:
    """Stands for simtile._cuda: the kernels on the CPU run on what lies at the addresses."""

    def __init__(self):
        self.calls = []
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
