"""siglip_loss against the oracle, beside open_clip's formula and open_clip, and its torch side."""

import copy
import importlib.util
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from siglip_cases import (
    DTYPES,
    check_case,
    run_kernel,
    run_oracle,
    siglip_case,
    siglip_cases,
    stored,
)

import simtile
import simtile.ops.siglip  # registers the operator, whichever test runs first

ODD_SIZES = st.sampled_from([1, 2, 7, 33, 111, 301])
ODD_DIMENSIONS = st.sampled_from([1, 3, 7, 64, 111, 515])
GRADS = ("queries", "documents", "temperature", "bias")


def plain(queries, documents, temperature, bias, normalize=True):
    """open_clip's SigLipLoss of one process, with more documents than queries."""
    if normalize:
        queries, documents = F.normalize(queries, dim=-1), F.normalize(documents, dim=-1)
    logits = queries @ documents.T / temperature + bias
    labels = 2 * torch.eye(*logits.shape, dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(queries)


def leaves(case, dtype=torch.float64):
    vectors = [torch.tensor(x, dtype=dtype) for x in case.inputs[:2]]
    numbers = [torch.tensor(case[name], dtype=torch.float64) for name in GRADS[2:]]
    return [x.requires_grad_() for x in (*vectors, *numbers)]


@given(siglip_cases(ODD_SIZES, ODD_DIMENSIONS))
def test_kernel_is_the_oracle(drawn):
    case, dtype = drawn
    check_case(case, dtype, run_kernel(case, dtype))


@given(siglip_cases(st.sampled_from([7, 33]), st.sampled_from([3, 64])), st.integers(0, 3))
def test_outputs_that_are_not_wanted(drawn, wanted):
    case, dtype = drawn
    everything = run_kernel(case, dtype)
    some = run_kernel(case, dtype, need=(bool(wanted & 1), bool(wanted & 2)))
    for ours, full in zip(some, everything, strict=True):
        if ours is not None:
            np.testing.assert_array_equal(ours, full)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("queries", "bank", "dimensions"), [(700, 333, 33), (40, 5000, 20)])
def test_threads_give_the_same_bits(dtype, queries, bank, dimensions):
    # More rows than a chunk has, and more documents than groups of panels at one panel each.
    case = siglip_case(queries, dimensions, bank, seed=3)
    runs = [run_kernel(case, dtype, threads=threads) for threads in (1, 2, 2, 3)]
    check_case(case, dtype, runs[0]) if dtype in ("float32", "float64") else None
    for run in runs[1:]:
        for ours, first in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(ours, first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["queries", "documents"])
@pytest.mark.parametrize("normalize", [False, True])
def test_not_finite_in_nan_out(dtype, value, side, normalize):
    case = siglip_case(50, 7, 3, seed=1, normalize=normalize)
    case.arrays[side][31, 2] = value
    losses, grad_queries, grad_documents, *scalars = run_kernel(case, dtype)
    if side == "queries":
        assert not np.isfinite(losses[31])
        assert np.isfinite(np.delete(losses, 31)).all()
        assert np.isfinite(np.delete(grad_queries, 31, axis=0)).all()
    else:
        assert not np.isfinite(losses).all()
    if math.isnan(value) or normalize:
        assert np.isnan(losses[31])
        assert np.isnan([grad_queries[31], grad_documents[31]]).all()
        assert np.isnan(scalars).all()
    inputs = [stored(x, dtype) for x in case.inputs[:2]]
    assert not np.isfinite(simtile.siglip_loss(*inputs, normalize=normalize))


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_far_from_zero(dtype):
    # exp of all of them leaves float32: a loss is then the logit, and gradients are 0 or 1.
    x = stored(np.array([[1.0, 0.0], [0.0, 1.0]]), dtype)
    assert simtile.siglip_loss(x, x, bias=1000.0, temperature=1.0) == 1000.0
    assert simtile.siglip_loss(x, x, bias=-1000.0, temperature=1.0) == 999.0
    assert simtile.siglip_loss(x, x, bias=-500.0, temperature=1e-3) < 1e-200 or dtype != "float64"
    assert simtile.siglip_loss(x, x, bias=-500.0, temperature=1e-3) < 1e-37
    case = siglip_case(2, 2, temperature=1.0, bias=1000.0)
    case.arrays["queries"] = case.arrays["documents"] = np.eye(2)
    _, grad_queries, grad_documents, grad_temperature, grad_bias = run_kernel(case, dtype)
    # Only the other document's logit has a slope, along what normalisation allows.
    np.testing.assert_array_equal(grad_queries, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(grad_documents, [[0, 1], [1, 0]])
    assert grad_temperature == 0
    assert grad_bias == 2


def test_small_losses_keep_their_digits():
    # log(1 + e^x) is e^x, of which 1 + e^x keeps nothing.
    x = np.array([[1.0], [1.0]], np.float32)
    for bias in (-20.0, -40.0, -80.0):
        loss = simtile.siglip_loss(x, -x, bias=bias, temperature=1.0)
        assert loss == pytest.approx(1 - bias + math.exp(bias - 1), rel=1e-6)
        case = siglip_case(1, 1, 1, bias=bias, temperature=1.0)
        case.arrays["queries"], case.arrays["documents"] = np.ones((1, 1)), -np.ones((2, 1))
        positive = siglip_case(1, 1, 0, bias=bias, temperature=1.0)
        positive.arrays.update(queries=np.ones((1, 1)), documents=-np.ones((1, 1)))
        ours = run_kernel(case, "float32")[4] - run_kernel(positive, "float32")[4]
        assert ours == pytest.approx(math.exp(bias - 1), rel=1e-5, abs=1e-7)


@given(siglip_cases(st.integers(1, 7), st.sampled_from([1, 3, 8]), ("float64",)))
def test_is_the_formula_of_open_clip(drawn):
    case, _ = drawn
    ours, theirs = leaves(case), leaves(case)
    loss = simtile.siglip_loss(
        *ours[:2], temperature=ours[2], bias=ours[3], normalize=case["normalize"]
    )
    expected = plain(*theirs, case["normalize"])
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-290)
    loss.backward()
    expected.backward()
    scale = run_oracle(case)
    sizes = (
        scale.query_scale.max(),
        scale.document_scale.max(),
        scale.temperature_scale,
        scale.bias_scale,
    )
    for mine, other, size in zip(ours, theirs, sizes, strict=True):
        tolerance = 1e-12 * size * (1 + scale.logit_scale)
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=tolerance)


def open_clip_losses():
    """open_clip/loss.py alone: it needs torch, the package torchvision and timm as well
    (pip install --no-deps open_clip_torch is enough)."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("open_clip is not installed")
    path = Path(package.origin).parent / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_is_open_clip():
    losses = open_clip_losses()
    images, texts, *_ = leaves(siglip_case(40, 16, seed=2), torch.float32)
    inputs = [*(F.normalize(x.detach(), dim=-1) for x in (images, texts)), 10.0, -10.0]
    theirs, ours = ([torch.as_tensor(x).clone().requires_grad_() for x in inputs] for _ in "ab")
    expected = losses.SigLipLoss()(*theirs)
    loss = simtile.siglip_loss(*ours[:2], temperature=1 / ours[2], bias=ours[3], normalize=False)
    torch.testing.assert_close(loss, expected)
    expected.backward()
    loss.backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    clip = simtile.nn.CLIPLoss(temperature=0.1)(*inputs[:2])
    torch.testing.assert_close(clip, losses.ClipLoss()(*inputs[:2], torch.tensor(10.0)))


@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck(normalize):
    inputs = leaves(siglip_case(5, 3, 2, seed=4, bias=-1.0, temperature=0.7))
    for reduction in ("mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda q, d, t, b, r=reduction: simtile.siglip_loss(
                q, d, temperature=t, bias=b, normalize=normalize, reduction=r
            ),
            inputs,
        )


def test_operator():
    inputs = leaves(siglip_case(6, 4, 3))
    operator = torch.ops.simtile.siglip.default
    torch.library.opcheck(operator, (*inputs, True, [True] * 4, "mean", "cpu", 1))
    for need in ([True, False, False, True], [False] * 4):
        some = [x.detach().requires_grad_(n) for x, n in zip(inputs, need, strict=True)]
        arguments = (*some, True, need, "mean", "cpu", 1)
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_compiled_without_breaks():
    inputs = leaves(siglip_case(6, 4, 3), torch.float32)

    def step(q, d, t, b):
        return simtile.siglip_loss(q.sin(), d, temperature=t, bias=b) * 2

    step(*inputs).backward()
    expected = [x.grad.clone() for x in inputs]
    for x in inputs:
        x.grad = None
    torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs).backward()
    for x, grad in zip(inputs, expected, strict=True):
        torch.testing.assert_close(x.grad, grad)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_arrays_tensors_and_lists_agree(reduction):
    case = siglip_case(9, 5, 4, seed=6)
    truth = run_oracle(case)
    expected = truth.losses.mean() if reduction == "mean" else truth.losses.sum()
    for dtype in DTYPES:
        arrays = [stored(x, dtype) for x in case.inputs[:2]]
        tensors = [torch.tensor(x.astype(np.float64), dtype=getattr(torch, dtype)) for x in arrays]
        loss = simtile.siglip_loss(*arrays, reduction=reduction)
        assert loss.dtype == (np.float64 if dtype == "float64" else np.float32)
        ours = simtile.siglip_loss(*tensors, reduction=reduction)
        assert ours.item() == loss
        assert ours.dtype == (torch.float64 if dtype == "float64" else torch.float32)
        by_lists = [
            simtile.siglip_loss(*x, reduction=reduction, backend="reference").item()
            for x in (arrays, tensors)
        ]
        assert by_lists == pytest.approx([loss.item()] * 2, rel=1e-5)
        if dtype in ("float32", "float64"):
            assert loss == pytest.approx(expected, rel=1e-5)
    mixed = stored(case.inputs[0], "float32"), stored(case.inputs[1], "bfloat16")
    assert simtile.siglip_loss(*mixed) == simtile.siglip_loss(mixed[0], mixed[1].astype(np.float32))
    mixed = tensors[0].to(torch.bfloat16), tensors[1].double()
    assert simtile.siglip_loss(*mixed) == simtile.siglip_loss(mixed[0].double(), mixed[1])


def test_gradients_of_the_reference_backend():
    case = siglip_case(5, 3, 2, seed=8)
    truth = run_oracle(case)
    leaf = leaves(case)
    simtile.siglip_loss(
        *leaf[:2], temperature=leaf[2], bias=leaf[3], reduction="sum", backend="reference"
    ).backward()
    for x, name in zip(leaf, GRADS, strict=True):
        np.testing.assert_allclose(x.grad, getattr(truth, name), rtol=1e-10, atol=1e-12)


def test_rows_of_any_stride():
    case = siglip_case(9, 5, 4, seed=9)
    q, d = (stored(x, "float32") for x in case.inputs[:2])
    expected = simtile.siglip_loss(q, d)
    wide = np.full((13, 20), np.nan, np.float32)
    wide[:, 3:13:2] = d
    assert simtile.siglip_loss(np.asfortranarray(q), wide[:, 3:13:2]) == expected
    wide[:, 3:8] = d
    assert simtile.siglip_loss(q[::-1][::-1], wide[:, 3:8]) == expected
    leaf = torch.tensor(wide)[:, 3:8].requires_grad_()
    simtile.siglip_loss(torch.tensor(q), leaf).backward()
    truth = run_oracle(rounded_to_float32(case))
    np.testing.assert_allclose(leaf.grad, truth.documents / 9, atol=1e-6)


def rounded_to_float32(case):
    for name in ("queries", "documents"):
        case.arrays[name] = case.arrays[name].astype(np.float32).astype(np.float64)
    return case


def test_autocast_and_half_gradients():
    q, d = (torch.randn(n, 8) for n in (5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        leaf = q.clone().requires_grad_()
        loss = simtile.siglip_loss(leaf, d)
    loss.backward()
    lower = q.to(torch.bfloat16).requires_grad_()
    expected = simtile.siglip_loss(lower, d.to(torch.bfloat16))
    expected.backward()
    assert loss.item() == expected.item()
    assert leaf.grad.dtype == torch.float32
    assert lower.grad.dtype == torch.bfloat16
    assert torch.equal(leaf.grad, lower.grad.float())


def test_differentiated_once_and_scaled():
    q, d = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    loss = simtile.siglip_loss(q, d)
    (grad,) = torch.autograd.grad(loss, q, retain_graph=True)
    (scaled,) = torch.autograd.grad(3 * loss, q, retain_graph=True)
    torch.testing.assert_close(scaled, 3 * grad)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, q, create_graph=True)
    with torch.no_grad():
        assert not simtile.siglip_loss(q, d).requires_grad


TWO = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((TWO, TWO[:1]), {}, "documents: found 1 rows for 2 queries, expected at least 2"),
        ((torch.zeros(2, 3), torch.zeros(1, 3)), {}, "documents: found 1 rows for 2 queries"),
        ((TWO, TWO[:, :2]), {}, r"documents: found shape \[2, 2\], expected \[M, 3\]"),
        ((TWO[0], TWO), {}, r"queries: found shape \[3\], expected \[N, D\]"),
        ((TWO[:0], TWO), {}, "queries: found shape .0, 3., expected at least one row"),
        ((TWO, TWO.view(np.int32)), {}, "documents: found int32"),
        ((TWO, TWO), {"temperature": 0.0}, "temperature: found 0.0, expected a finite number"),
        ((TWO, TWO), {"bias": math.nan}, "bias: found nan, expected a finite number"),
        ((torch.zeros(2, 3),) * 2, {"bias": torch.tensor(math.inf)}, "bias: found inf"),
        ((torch.zeros(2, 3),) * 2, {"bias": torch.zeros(2)}, r"bias: found shape \[2\]"),
        ((torch.zeros(2, 3),) * 2, {"temperature": torch.tensor(-1.0)}, "temperature: found -1.0"),
        (
            (TWO, TWO),
            {"reduction": "none"},
            "reduction: found 'none', expected one of 'mean', 'sum",
        ),
        ((TWO, TWO), {"threads": 0}, "threads: found 0"),
        ((TWO, TWO), {"backend": "gpu"}, "backend: found 'gpu'"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        simtile.siglip_loss(*arguments, **options)


def test_uint16_is_not_read_as_bfloat16():
    bits = np.ones((2, 3), ml_dtypes.bfloat16).view(np.uint16)
    with pytest.raises(ValueError, match="uint16 is never read as bfloat16"):
        simtile.siglip_loss(bits, bits)


class TestModules:
    q, d = torch.randn(6, 4), torch.randn(8, 4)

    def test_siglip(self):
        module = simtile.nn.SigLIPLoss()
        assert [name for name, _ in module.named_parameters()] == ["log_temperature", "bias"]
        module(self.q, self.d).backward()
        temperature = torch.tensor(0.1, requires_grad=True)
        bias = torch.tensor(-10.0, requires_grad=True)
        simtile.siglip_loss(self.q, self.d, temperature=temperature, bias=bias).backward()
        torch.testing.assert_close(module.log_temperature.grad, temperature.grad * 0.1)
        torch.testing.assert_close(module.bias.grad, bias.grad)
        assert "temperature=0.1, bias=-10" in repr(module)
        twin = copy.deepcopy(module)
        twin.load_state_dict(simtile.nn.SigLIPLoss(0.5, 1.0).state_dict())
        expected = simtile.siglip_loss(self.q, self.d, temperature=0.5, bias=1.0)
        torch.testing.assert_close(twin(self.q, self.d), expected)

    def test_siglip_that_does_not_learn(self):
        module = simtile.nn.SigLIPLoss(
            0.2, -3.0, learnable_temperature=False, learnable_bias=False, reduction="sum"
        )
        assert not list(module.parameters())
        expected = simtile.siglip_loss(self.q, self.d, temperature=0.2, bias=-3.0, reduction="sum")
        torch.testing.assert_close(module(self.q, self.d), expected)

    def test_clip(self):
        module = simtile.nn.CLIPLoss(reduction="mean")
        loss = module(self.q, self.d[:6])
        logits = F.normalize(self.q, dim=1) @ F.normalize(self.d[:6], dim=1).T / 0.07
        own = torch.arange(6)
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert module.log_temperature.grad is not None

    def test_clip_keeps_the_scale_in_bounds(self):
        module = simtile.nn.CLIPLoss(0.001)
        module(self.q, self.d).backward()
        assert module.temperature.item() == pytest.approx(0.01)
        fixed = simtile.nn.CLIPLoss(0.001, learnable_temperature=False)
        fixed(self.q, self.d)
        assert fixed.temperature == 0.001

    def test_refuse_when_they_are_made(self):
        for name in ("directions", "partition"):
            with pytest.raises(TypeError, match=f"{name}: CLIPLoss has its own"):
                simtile.nn.CLIPLoss(**{name: "joint"})
        with pytest.raises(ValueError, match="largest_scale: found 0"):
            simtile.nn.CLIPLoss(largest_scale=0.0)
        for options, message in (
            ({"temperature": 0.0}, "temperature: found 0.0"),
            ({"bias": math.nan}, "bias: found nan"),
            ({"reduction": "none"}, "reduction: found 'none'"),
            ({"threads": 0}, "threads: found 0"),
        ):
            with pytest.raises(ValueError, match=message):
                simtile.nn.SigLIPLoss(**options)
