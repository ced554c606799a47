"""simtile.info_nce on tensors of a GPU: autograd, types, graphs, memory.

Marked gpu. With TRITON_INTERPRET=1 what needs no GPU runs on tensors of the CPU instead; so does
test_in_the_interpreter, in a process of its own, where there is no GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from info_nce_cases import Case, as_tensor, check_case, compared
from info_nce_tensors import tensor_options
from simtile.kernels.info_nce import triton_configs as configs
from tolerances import PRECISIONS, TRITON, check_rounding

import simtile
from simtile.ops import info_nce_autotune as autotune
from simtile.ops import info_nce_triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
on_gpu = pytest.mark.gpu
on_hardware = pytest.mark.skipif(INTERPRETED, reason="the interpreter is no GPU")


@pytest.fixture(autouse=INTERPRETED)
def small_tiles(monkeypatch):
    """The pinned ones take the interpreter long, and pad all rows to 256."""
    tile = configs.Tile(32, 32, 32, 1, 1)
    monkeypatch.setattr(configs, "ROW_PADDING", 32)
    monkeypatch.setattr(info_nce_triton, "_pinned", lambda *key: configs.Config(tile, tile))


def info_nce(*inputs, **options):
    return simtile.info_nce(*inputs, backend="triton", **options)


def inputs_of(case):
    tensors = (as_tensor(x, DEVICE) for x in case.inputs)
    return [None if x is None else x.requires_grad_() for x in tensors]


def options_of(case):
    options = {
        name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x
        for name, x in tensor_options(case).items()
    }
    del options["threads"]
    return options


def result_of(case, loss, inputs, temperature):
    """Losses and gradients as arrays; the gradients are of the inputs' type."""
    grads = [None if x is None else x.grad.float().numpy(force=True) for x in inputs]
    return loss.numpy(force=True), *grads, temperature.grad.item()


def leaf(value):
    return torch.tensor(value, device=DEVICE, requires_grad=True)


@on_gpu
@pytest.mark.parametrize("own", [False, True])
def test_autograd(own):
    # Only the float32 gradients are as exact as the kernel's: others are rounded to their type.
    case = Case(9, 12, 33, 2, own=own, targets=True, ids=True, layout="padded rows")
    inputs, temperature = inputs_of(case), leaf(case.temperature)
    losses = info_nce(*inputs, temperature=temperature, reduction="none", **options_of(case))
    assert losses.device.type == DEVICE
    losses.sum().backward()
    check_case(case, result_of(case, losses, inputs, temperature), arithmetic=TRITON)


@on_gpu
@pytest.mark.parametrize("guided", [False, True])
def test_the_family_is_what_the_cpu_computes(guided):
    case = Case(5, 6, 12, 1)
    options = {
        "directions": ("query_to_doc", "doc_to_doc"),
        "hardness": "all_negatives",
        "hardness_strength": 2.0,
        "false_negative_margin": -0.1,
    }
    guide = [x.detach()[..., :5] for x in inputs_of(case)] if guided else None
    found = []
    for device in (DEVICE, "cpu"):
        inputs = [x.detach().to(device).requires_grad_() for x in inputs_of(case)]
        temperature = torch.tensor(0.1, device=device, requires_grad=True)
        losses = simtile.info_nce(
            *inputs,
            temperature=temperature,
            guide=None if guide is None else tuple(x.to(device) for x in guide),
            reduction="none",
            backend="cpu" if found else "triton",
            **options,
        )
        losses.sum().backward()
        found.append([losses.detach(), *(x.grad for x in (*inputs, temperature))])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-4, atol=1e-5)


@on_gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_have_the_inputs_type(dtype):
    case = Case(7, 9, 20, dtype=dtype)
    inputs, temperature = inputs_of(case), leaf(case.temperature)
    loss = info_nce(*inputs[:2], temperature=temperature)
    loss.backward()
    assert loss.dtype == torch.float32
    assert inputs[0].grad.dtype == inputs[1].grad.dtype == getattr(torch, dtype)
    expected = info_nce(*(x.detach().float() for x in inputs[:2]), temperature=case.temperature)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)


@on_gpu
def test_reductions():
    case = Case(7, 9, 20)
    queries, documents, _ = inputs_of(case)
    grads = {}
    for reduction in ("mean", "sum", "none"):
        loss = info_nce(queries, documents, reduction=reduction)
        assert loss.shape == ((7,) if reduction == "none" else ())
        grads[reduction], *_ = torch.autograd.grad(loss.sum(), queries)
    torch.testing.assert_close(grads["sum"], grads["none"])
    torch.testing.assert_close(grads["mean"] * 7, grads["sum"])


@on_gpu
def test_auto_is_triton_on_a_gpu():
    case = Case(5, 5, 8)
    queries, documents, _ = inputs_of(case)
    named = info_nce(queries, documents)
    if not INTERPRETED:
        assert torch.equal(simtile.info_nce(queries, documents), named)
    on_cpu = simtile.info_nce(queries.cpu(), documents.cpu(), backend="cpu")
    torch.testing.assert_close(named.cpu(), on_cpu, rtol=1e-5, atol=1e-6)


@on_gpu
def test_float64_is_refused():
    x = torch.ones(3, 4, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="the GPU kernels have no float64"):
        info_nce(x, x)


@on_gpu
@pytest.mark.parametrize("wrong", [-0.05, float("inf")])
def test_a_wrong_temperature_makes_all_nan(wrong):
    x = torch.eye(3, 4, device=DEVICE)
    need = (True, True, False, True)
    result = info_nce_triton.run(
        x, x, None, dtype=x.dtype, temperature=torch.tensor(wrong, device=DEVICE), need_grad=need
    )
    found = (result.losses, result.grad_queries, result.grad_documents, result.grad_temperature)
    assert all(torch.isnan(part).all() for part in found)


@on_gpu
def test_strides():
    case = Case(9, 9, 20)
    queries, documents, _ = inputs_of(case)
    expected = info_nce(queries, documents, reduction="none")
    transposed = queries.detach().t().contiguous().t()
    sparse = documents.detach().repeat_interleave(2, 0)[::2]
    losses = info_nce(transposed, sparse, reduction="none")
    assert torch.equal(losses, expected)


@on_gpu
def test_module_learns_its_temperature():
    loss_of = simtile.nn.InfoNCE(temperature=0.1, learnable_temperature=True, backend="triton")
    loss_of.to(DEVICE)
    case = Case(5, 5, 8)
    loss_of(*inputs_of(case)[:2]).backward()
    gradient = loss_of.log_temperature.grad
    assert gradient.device.type == DEVICE
    assert torch.isfinite(gradient)


@on_gpu
@pytest.mark.parametrize("shape", [(), (1,)])
def test_temperature_on_the_cpu(shape):
    case = Case(5, 6, 8)
    inputs, on_device = inputs_of(case)[:2], leaf(0.1)
    on_cpu = torch.full(shape, 0.1, requires_grad=True)
    for temperature in (on_device, on_cpu):
        (2 * info_nce(*inputs, temperature=temperature)).backward()
    assert on_cpu.grad.device.type == "cpu"
    torch.testing.assert_close(on_cpu.grad.reshape(()), on_device.grad.cpu())


@on_gpu
@on_hardware
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(precision):
    case = Case(111, 120, 515, 1, temperature=0.3)
    inputs, temperature = inputs_of(case), leaf(case.temperature)
    losses = info_nce(
        *inputs,
        temperature=temperature,
        reduction="none",
        precision=precision,
        **options_of(case),
    )
    losses.sum().backward()
    result = result_of(case, losses, inputs, temperature)
    arithmetic = PRECISIONS[precision]
    for comparison in compared(case, result, arithmetic=arithmetic):
        check_rounding(*comparison, arithmetic)


@on_gpu
@on_hardware
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_bits_every_time(dtype):
    case = Case(989, 1111, 768, 1, dtype, ids=True)
    results = []
    for _ in range(3):
        inputs, temperature = inputs_of(case), leaf(case.temperature)
        info_nce(*inputs, temperature=temperature, **options_of(case)).backward()
        results.append([x.grad for x in (*inputs, temperature)])
    for again in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], again, strict=True))


@on_gpu
@on_hardware
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_host_does_not_wait():
    case = Case(64, 64, 128, 1, "bfloat16", targets=True, ids=True)
    inputs, options, temperature = inputs_of(case), options_of(case), leaf(0.05)
    info_nce(*inputs, temperature=temperature, **options).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        info_nce(*inputs, temperature=temperature, **options).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@on_hardware
# steps on two streams, one after the other, are what is tested
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")
def test_cuda_graph():
    case = Case(200, 211, 256, 1, "bfloat16")
    inputs, temperature = inputs_of(case), leaf(case.temperature)

    def step():
        loss = info_nce(*inputs, temperature=temperature)
        return loss, torch.autograd.grad(loss, (*inputs, temperature))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        for x, new in zip(inputs, inputs_of(replace(case, seed=seed)), strict=True):
            x.data.copy_(new.detach())
        graph.replay()
        loss, grads = step()
        assert torch.equal(captured[0], loss)
        assert all(torch.equal(x, y) for x, y in zip(captured[1], grads, strict=True))


@on_gpu
@on_hardware
# inductor imports what some versions of torch say is deprecated
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_compile(reduction):
    case = Case(70, 80, 96, 1, "bfloat16")

    def step(*inputs):
        queries, *others = inputs
        return info_nce(queries * 2, *others, reduction=reduction).mean()

    results = []
    for call in (step, torch.compile(step, fullgraph=True)):
        inputs = inputs_of(case)
        loss = call(*inputs)
        results.append((loss, *torch.autograd.grad(loss, inputs)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=2**-7, atol=1e-6)


@on_gpu
@on_hardware
def test_autotune_measures_on_this_gpu(monkeypatch):
    monkeypatch.setenv("SIMTILE_AUTOTUNE", "1")
    monkeypatch.setattr(autotune, "_found", {})
    monkeypatch.setattr(autotune, "BATCH", 512)
    slow, too_large = configs.Tile(64, 64, 32, 4, 2), configs.Tile(128, 128, 128, 8, 8)
    monkeypatch.setattr(configs, "alternatives", lambda tile: [too_large, slow])
    times = []
    milliseconds = autotune._milliseconds
    monkeypatch.setattr(
        autotune, "_milliseconds", lambda call: times.append(milliseconds(call)) or times[-1]
    )
    case = Case(70, 80, 128, dtype="bfloat16")
    inputs = [x.detach() for x in inputs_of(case)[:2]]
    losses = info_nce(*inputs, temperature=case.temperature, reduction="none")
    (found,) = autotune._found.values()
    assert not {too_large} & set(found)
    assert [np.isinf(time) for time in times] == [False, True, False, True, False]
    monkeypatch.delenv("SIMTILE_AUTOTUNE")
    expected = info_nce(*inputs, temperature=case.temperature, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


@on_gpu
@on_hardware
def test_memory_of_a_large_batch():
    n, dim = 65536, 768
    queries, documents = (
        torch.randn(n, dim, device=DEVICE).to(torch.bfloat16).requires_grad_() for _ in range(2)
    )
    torch.cuda.reset_peak_memory_stats()
    loss = info_nce(queries, documents)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.cuda.max_memory_allocated() < 1e9


@on_gpu
@on_hardware
def test_more_than_2_to_the_31_elements():
    # The last query's positive is 3.1 G elements into the documents.
    n, dim = 3_000_000, 1024
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("needs 16 GB of GPU memory")
    documents = torch.zeros(n, dim, dtype=torch.bfloat16, device=DEVICE)
    documents[:, 0] = 1.0
    documents[-1, 0], documents[-1, 1] = 0.0, 1.0
    queries = documents[-1:].clone()
    target = torch.tensor([n - 1], device=DEVICE)
    losses = info_nce(queries, documents, temperature=1.0, targets=target, reduction="none")
    expected = np.log1p((n - 1) * np.exp(-1.0))
    assert losses.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.deep  # the interpreter takes a second a test
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_the_interpreter():
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout
    assert "15 passed, 13 skipped" in process.stdout
