"""simtile.maxsim on tensors of a GPU by the Triton kernels: scores, autograd, types, graphs.

Marked gpu. With TRITON_INTERPRET=1 what needs no GPU runs on tensors of the CPU instead.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from info_nce_cases import as_tensor
from maxsim_calls import Form
from maxsim_cases import Case
from simtile.kernels.maxsim import triton_configs as configs
from tolerances import ROUNDOFF, ROUNDOFFS

import simtile
from simtile.reference import maxsim_numpy as oracle

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    # of NumPy in the interpreter, where maxima of nothing are infinite
    pytest.mark.filterwarnings("ignore::RuntimeWarning" if INTERPRETED else "default"),
]
on_hardware = pytest.mark.skipif(INTERPRETED, reason="the interpreter is no GPU")


@pytest.fixture(autouse=INTERPRETED)
def small_tiles(monkeypatch):
    """The pinned ones take the interpreter long."""
    tiles = [configs.Tile(16, 32, 32, 1, 1), configs.Tile(32, 64, 16, 1, 1)]
    small = configs.Config(*tiles, tiles[0], *[configs.Tile(16, 16, 16, 1, 1)] * 2)
    monkeypatch.setattr(configs, "config", lambda *_: small)


DTYPES = ("float32", "bfloat16", "float16")
BOTH = {"return_argmax": True, "return_token_scores": True}
OPTIONS = [
    {},
    {"normalize": True},
    {"length_normalize": True, "zero_rows": "pad", "empty_score": -2.0},
    {"temperature": 0.4},
    {"temperature": 0.1, "normalize": True, "length_normalize": True},
]
# Dimensions that are multiplied whole, and in steps; lengths on both sides of every tile.
SIZES = [
    Case((3, 0, 7), (1, 9, 0), 33, "zeros", ("holes", "holes")),
    Case((1,), (5, 1), 1, masks=("absent", "prefix"), seed=1),
    Case((32, 31), (111, 64, 1), 128, masks=("prefix", "holes"), seed=2),
    Case((33, 32, 70), (129, 7), 145, masks=("holes", "prefix"), seed=3),
]
LARGE = [
    Case((32,) * 4, (180, 1, 989, 60), 128, masks=("holes", "holes"), seed=4),
    Case((111, 7, 300), (257, 300), 515, masks=("prefix", "holes"), seed=5),
]


def maxsim(*inputs, **options):
    return simtile.maxsim(*inputs, backend="triton", **options)


def tensors(form, *, requires_grad=False):
    q, d, *masks = (None if x is None else as_tensor(x, DEVICE) for x in form.arguments)
    return (q.requires_grad_(requires_grad), d.requires_grad_(requires_grad), *masks)


def roundoffs(name, dim):
    """Matrix units cut off what their sums cannot hold, once for every 16 products."""
    return (ROUNDOFFS[name] + (0 if INTERPRETED else dim / 16)) * ROUNDOFF["float32"]


def check_scores(form, found, options):
    scores, argmax, values = (x.numpy(force=True).astype(np.float64) for x in found)
    expected = form.oracle(**options)
    temperature = options.get("temperature") or 0.0
    for q, row in enumerate(expected.scale):
        length = len(form.wide[0][q])
        bound = roundoffs("maxsim.scores", form.case.dim) * (row + length * temperature) + 1e-37
        assert (np.abs(scores[q] - expected.scores[q]) <= bound).all()
        terms = np.array(expected.token_scores[q])
        assert (np.abs(values[q, :, :length] - terms) <= bound[:, None]).all()
        matched = np.array(expected.argmax[q])
        np.testing.assert_array_equal(argmax[q, :, :length] < 0, matched < 0)
        assert (argmax[q, :, length:] == -1).all()


def check_gradients(form, inputs, weights, options):
    keep = {name: x for name, x in options.items() if name != "empty_score"}
    expected = oracle.maxsim_grad(*form.wide, weights, *form.case.mask_arrays, **keep)
    smooth = 0.0
    if options.get("temperature"):
        # Shares are exp of similarities / temperature, whose rounding they multiply.
        sizes = zip(form.oracle(**keep).scale, form.wide[0], strict=True)
        largest = max(row.max(initial=0.0) / max(len(tokens), 1) for row, tokens in sizes)
        smooth = 2 * ROUNDOFF["float32"] * largest / options["temperature"]
    for x, side in zip(inputs, expected, strict=True):
        assert x.grad.dtype == x.dtype
        assert x.grad.device == x.device
        # Of 16-bit types, a gradient is rounded to them, and shares of tokens to two of them.
        rounding = 2.0**-17 + smooth + (0 if x.dtype == torch.float32 else torch.finfo(x.dtype).eps)
        scale = max(np.abs(g).max(initial=0.0) for g in side)
        for ours, theirs in zip(x.grad.double().numpy(force=True), side, strict=True):
            assert (ours[len(theirs) :] == 0).all()
            error = np.abs(ours[: len(theirs)] - theirs)
            assert (error <= rounding * scale + 1e-7).all()


def check_case(case, options, dtype):
    form = Form(case, "padded", "wider", (dtype, dtype))
    inputs = tensors(form, requires_grad=True)
    found = maxsim(*inputs, **options, **BOTH)
    check_scores(form, found, options)
    weights = case["grad_scores"]
    found[0].backward(torch.from_numpy(weights).to(DEVICE, torch.float32))
    # Rows of zeros have no direction: what is rounded there is divided by 1e-12.
    if not (options.get("normalize") and case.values == "zeros"):
        check_gradients(form, inputs[:2], weights, options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", SIZES, ids=lambda case: str(case.seed))
def test_scores_and_gradients(case, options, dtype):
    check_case(case, options, dtype)


@on_hardware
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=lambda case: str(case.seed))
def test_large(case, options, dtype):
    check_case(case, options, dtype)


def leaves(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(*shape, generator=generator) for shape in shapes)
    return [x.to(DEVICE, dtype).requires_grad_() for x in made]


def test_pairs_and_candidates():
    q, d = leaves((3, 4, 17), (3, 6, 17))
    every = maxsim(q, d)
    pairs = simtile.maxsim_pairwise(q, d, backend="triton")
    assert torch.equal(pairs, every.diagonal())
    grads = torch.autograd.grad(pairs.square().sum(), (q, d))
    expected = torch.autograd.grad(every.diagonal().square().sum(), (q, d), retain_graph=True)
    torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-5)
    ids = torch.tensor([[2, -1, 2], [0, 1, 2], [-1, -1, 1]], device=DEVICE)
    offsets = torch.arange(4) * 6
    chosen = simtile.maxsim_packed(q, d.flatten(0, 1), offsets, ids=ids, backend="triton")
    picked = torch.where(ids < 0, -torch.inf, every.gather(1, ids.clamp(min=0)))
    assert torch.equal(chosen, picked)
    weights = torch.where(ids < 0, 0.0, torch.arange(9.0, device=DEVICE).view(3, 3))
    grads = torch.autograd.grad((chosen.clamp(min=-1e9) * weights).sum(), (q, d))
    total = (every.gather(1, ids.clamp(min=0)) * weights).sum()
    torch.testing.assert_close(grads, torch.autograd.grad(total, (q, d)), rtol=1e-5, atol=1e-5)


def test_the_first_of_equals():
    q, d = leaves((1, 5, 16), (1, 3, 16))
    _, argmax = maxsim(q, d.repeat(1, 30, 1), return_argmax=True)
    assert (argmax < 3).all()
    scores = maxsim(q, d.repeat(7, 1, 1))
    assert (scores == scores[0, 0]).all()


def test_lists():
    q, d = leaves((2, 4, 17), (3, 6, 17))
    parts = [d[0], d[1, :1], d[2, :3]]
    scores = maxsim(list(q), parts)
    expected = [maxsim(q, x[None])[:, 0] for x in parts]
    assert torch.equal(scores, torch.stack(expected, 1))
    grads = torch.autograd.grad(scores.sum(), (q, d))
    assert (grads[1][1, 1:] == 0).all()
    assert (grads[1][0] != 0).any()


def test_0_93_and_0_91_are_1_84():
    q = torch.eye(2, 4, device=DEVICE)[None]
    d = torch.tensor([[[0.93, 0, 0, 0], [0.2, 0.91, 0, 0], [-1, 0.4, 0, 0]]], device=DEVICE)
    assert maxsim(q, d).item() == pytest.approx(1.84, abs=1e-6)


@on_hardware
@pytest.mark.parametrize("temperature", [None, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype, temperature):
    shapes = ((32, 32, 128), (33, 180, 128))
    results = []
    for _ in range(3):
        q, d = leaves(*shapes, dtype=getattr(torch, dtype))
        scores = maxsim(q, d, temperature=temperature, normalize=True)
        scores.square().sum().backward()
        results.append((scores, q.grad, d.grad))
    for again in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], again, strict=True))


@on_hardware
def test_auto_is_triton_with_gradients():
    q, d = leaves((2, 3, 16), (4, 9, 16))
    assert torch.equal(simtile.maxsim(q, d), maxsim(q, d))


@on_hardware
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_host_does_not_wait():
    q, d = leaves((4, 32, 128), (9, 180, 128), dtype=torch.bfloat16)
    mask = torch.ones(9, 180, dtype=torch.bool, device=DEVICE)
    options = {"document_mask": mask, "normalize": True, "zero_rows": "pad"}
    maxsim(q, d, **options).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        maxsim(q, d, **options).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_hardware
# steps on two streams, one after the other, are what is tested
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")
def test_cuda_graph():
    q, d = leaves((4, 32, 128), (9, 180, 128), dtype=torch.bfloat16)

    def step():
        scores = maxsim(q, d, normalize=True)
        return scores, torch.autograd.grad(scores.square().sum(), (q, d))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        for x, new in zip((q, d), leaves(q.shape, d.shape, dtype=q.dtype, seed=seed), strict=True):
            x.data.copy_(new.detach())
        graph.replay()
        scores, grads = step()
        assert torch.equal(captured[0], scores)
        assert all(torch.equal(x, y) for x, y in zip(captured[1], grads, strict=True))


@on_hardware
def test_memory_of_training():
    """Similarities of all pairs would be 3.0 GB in float32."""
    q, d = leaves((128, 32, 128), (1024, 180, 128), dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    maxsim(q, d).square().mean().backward()
    assert torch.cuda.max_memory_allocated() - before < 0.3e9


@on_hardware
def test_more_than_2_to_the_31_elements():
    count, length, dim = 100_000, 180, 128
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("needs 16 GB of GPU memory")
    documents = torch.zeros(count, length, dim, dtype=torch.bfloat16, device=DEVICE)
    documents[-1, -1, :] = 1.0
    queries = torch.ones(1, 2, dim, dtype=torch.bfloat16, device=DEVICE)
    scores, argmax = maxsim(queries, documents, return_argmax=True)
    assert scores[0, -1].item() == 2 * dim
    assert (scores[0, :-1] == 0).all()
    assert argmax[0, -1].tolist() == [length - 1] * 2
